"""From tokens to text: what may be sent of a gap that is still being decoded, and where its text ends."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Literal

from transformers import PreTrainedTokenizerBase

from coda.data.tokenizer import separator_id

INCOMPLETE = "�"  # what a character decodes to whose last bytes are in tokens to come
FinishReason = Literal["stop", "length"]


class Detokenizer:
    """Decodes tokens as they are: no whitespace is cleaned up.

    Args:
        tokenizer: The model's.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.mask_id = int(tokenizer.mask_token_id)
        found = (separator_id(tokenizer), tokenizer.eos_token_id)
        self.ends = tuple(dict.fromkeys(int(token) for token in found if token is not None))
        self._single: dict[int, str] = {}

    def text(self, ids: Sequence[int]) -> str:
        """The text of ``ids``."""
        return str(self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    def pieces(self, ids: Sequence[int]) -> list[str | None]:
        """The text of every token of a draft, so that committed neighbours join to its text.

        None is a masked token, "" one that ends the text. A character that takes several tokens is the last one's.
        """
        pieces: list[str | None] = []
        begun: list[int] = []  # tokens of a character that is not complete
        for place, token in enumerate(ids):
            if token == self.mask_id or token in self.ends:
                pieces.append(None if token == self.mask_id else "")
                begun = []
                continue
            text = self.text([*begun, token]) if begun else self._piece(token)
            begun = [*begun, token] if text.endswith(INCOMPLETE) and len(begun) < 3 else []
            if begun and place + 1 < len(ids) and ids[place + 1] not in (self.mask_id, *self.ends):
                text = ""
            pieces.append(text)
        return pieces

    def _piece(self, token: int) -> str:
        if token not in self._single:
            self._single[token] = self.text([token])
        return self._single[token]


class Transcript:
    """The text of one gap as it becomes final, up to its end.

    The text ends before the first token that ends a text, or before the stop string that is complete first.

    Args:
        detokenizer: Of the model.
        stops: Stop strings, which the text does not hold.

    Attributes:
        reason: Why the text has ended: ``stop`` at an end or a stop string, ``length`` at the end of the gap; None before.
        tokens: How many tokens were generated, the one that ended the text included.
    """

    def __init__(self, detokenizer: Detokenizer, stops: Sequence[str] = ()) -> None:
        self.detokenizer = detokenizer
        self.stops = stops
        self.reason: FinishReason | None = None
        self.tokens = 0
        self._sent = 0
        self._read = 0

    def read(self, ids: Sequence[int], whole: bool) -> str:
        """The text that may be sent now, behind what was returned before.

        Args:
            ids: The final tokens of the gap, from the left.
            whole: Whether these are all of them.
        """
        if self.reason is not None or (len(ids) == self._read and not whole):
            return ""
        self._read = self.tokens = len(ids)
        ends = self.detokenizer.ends
        end = next((place for place, token in enumerate(ids) if token in ends), None)
        if end is not None:
            self.reason, self.tokens = "stop", end + 1
        elif whole:
            self.reason = "length"
        text = self._up_to_stop(ids[:end])
        new = text[self._sent :]
        self._sent += len(new)
        return new

    def _up_to_stop(self, ids: Sequence[int]) -> str:
        """The text of ``ids`` as far as nothing that follows can take it back."""
        text = self.detokenizer.text(ids)
        found = [(text.find(stop), stop) for stop in self.stops]
        complete = [(start + len(stop), start) for start, stop in found if start >= 0]
        if complete:
            end, start = min(complete)
            self.reason = "stop"
            self.tokens = 1 + bisect_left(
                range(1, len(ids)), end, key=lambda count: len(self.detokenizer.text(ids[:count]))
            )
            return text[:start]
        if self.reason is not None:
            return text
        text = text.rstrip(INCOMPLETE)
        return text[: len(text) - max((_begun(text, stop) for stop in self.stops), default=0)]


def _begun(text: str, stop: str) -> int:
    """How many characters at the end of ``text`` could begin ``stop``."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
