"""From texts and conversations to token ids: what a user writes stays text, whatever special token it looks like."""

import re
import secrets
from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from coda.data.tokenizer import separator_id


class Turn(NamedTuple):
    """A message of a conversation."""

    role: str
    content: str


class PromptEncoder:
    """Encodes prompts as training encoded documents and conversations.

    Args:
        tokenizer: The model's.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.separator = separator_id(tokenizer)
        special = {str(token): index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.special = {**special, str(tokenizer.mask_token): int(tokenizer.mask_token_id)}
        longest_first = sorted(self.special, key=len, reverse=True)
        self._control = re.compile("(" + "|".join(re.escape(token) for token in longest_first) + ")")
        self.text("")  # sets what the tokenizer remembers of the last call: from now on threads only read it

    @property
    def chats(self) -> bool:
        """Whether the tokenizer has a chat template."""
        return self.tokenizer.chat_template is not None

    def text(self, text: str) -> list[int]:
        """Token ids of a text, in which ``<|mask|>`` and the like are characters as any other."""
        encoded = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)
        return list(encoded["input_ids"])

    def prompt(self, text: str) -> list[int]:
        """Token ids of what stands before the gap; without any text a document is begun."""
        return self.text(text) or [self.separator]

    def chat(self, turns: Sequence[Turn]) -> list[int]:
        """Token ids of a conversation in the tokenizer's chat template, up to where the answer begins.

        The template is written with placeholders, and only its own special tokens become such. Tokens are those of
        ``apply_chat_template`` for messages that hold none.

        Raises:
            ValueError: If the template cannot be applied to these turns.
        """
        mark = secrets.token_hex(16)
        messages = [{"role": turn.role, "content": f"{mark}{place:08}"} for place, turn in enumerate(turns)]
        try:
            written = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        except Exception as error:  # a template may raise, and jinja has many kinds
            raise ValueError(f"messages do not fit the model's chat template: {error}") from error
        ids: list[int] = []
        for place, part in enumerate(self._control.split(str(written))):
            if place % 2:
                ids.append(self.special[part])
            else:
                ids += self.text(re.sub(mark + r"(\d{8})", lambda found: turns[int(found[1])].content, part))
        return ids
