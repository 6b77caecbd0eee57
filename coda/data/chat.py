"""Conversations as tokens: ChatML, with a prompt that is given and a response that is learned."""

from typing import Any, Literal, get_args

import numpy as np
from transformers import PreTrainedTokenizerBase

from coda.data.encoders import Encoded, Encoder
from coda.data.sources import Document, Skipped
from coda.data.tokenizer import END_OF_TURN

START_OF_TURN = "<|im_start|>"
# Qwen3's own template writes an empty thought before every response.
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TooLong = Literal["truncate", "drop"]


class ChatEncoder(Encoder):
    """Writes the turns up to the last response as a prompt, then the response and its end of turn.

    Texts are tokenised apart from the special tokens around them, as :data:`TEMPLATE` has them tokenised at inference.

    Args:
        tokenizer: With the tokens that begin and end a turn.
        sequence_length: Tokens that a conversation may take.
        too_long: ``truncate`` longer ones, which then lack their end of turn, or ``drop`` them. Those whose prompt leaves
            no room for a response are dropped in any case.

    Raises:
        ValueError: If the tokenizer has no tokens for turns, or ``too_long`` is neither.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, sequence_length: int, too_long: TooLong) -> None:
        super().__init__(tokenizer)
        if too_long not in get_args(TooLong):
            raise ValueError(f"data.too_long is {too_long!r}; choose one of {', '.join(get_args(TooLong))}")
        vocabulary = tokenizer.get_vocab()
        for token in (START_OF_TURN, END_OF_TURN):
            if token not in vocabulary:
                raise ValueError(
                    f"data.tokenizer has no token {token}, which conversations need; take Qwen3's or add it"
                )
        self.sequence_length = sequence_length
        self.too_long = too_long
        self.start, self.end = vocabulary[START_OF_TURN], vocabulary[END_OF_TURN]
        self.newline, self.role = self.ids(["\n", "assistant\n"])

    def __call__(self, documents: list[Document]) -> list[Encoded | Skipped]:
        """See :class:`Encoder`."""
        texts = []
        for conversation in documents:
            assert not isinstance(conversation, str)
            texts += [f"{message.role}\n{message.content}" for message in conversation[:-1]]
            texts.append(conversation[-1].content)
        rows = iter(self.ids(texts))
        return [self._encode([next(rows) for _ in conversation]) for conversation in documents]

    def _encode(self, turns: list[list[int]]) -> Encoded | Skipped:
        prompt = [token for turn in turns[:-1] for token in (self.start, *turn, self.end, *self.newline)]
        prompt += [self.start, *self.role]
        tokens = [*prompt, *turns[-1], self.end]
        if len(prompt) >= self.sequence_length:
            return Skipped("prompts too long")
        if len(tokens) > self.sequence_length:
            if self.too_long == "drop":
                return Skipped("dropped, being too long")
            return Encoded(np.array(tokens[: self.sequence_length], dtype=np.uint32), len(prompt), "truncated")
        return Encoded(np.array(tokens, dtype=np.uint32), len(prompt))

    def fingerprint(self) -> dict[str, Any]:
        """See :class:`Encoder`."""
        return {"encoder": "ChatEncoder", "sequence_length": self.sequence_length, "too_long": self.too_long}
