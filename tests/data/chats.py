"""Conversations in memory, of many lengths, and a data module over them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from coda.data import InstructionDataModule
from coda.data.sources import Conversation, Document, Message, Skipped
from tests.data.conftest import Texts


def conversation(number: int) -> Conversation:
    """Asks for ``number``, answers with up to 30 tokens."""
    answer = " ".join(["x"] * (number * 7 % 30)) + f" = {number}"
    return Message("user", f"Give {number}."), Message("assistant", answer)


class Chats(Texts):
    """``count`` conversations."""

    def __init__(self, count: int, **mixing: Any) -> None:
        super().__init__([str(number) for number in range(count)], **mixing)

    def read(self, part: int) -> Iterator[Document | Skipped]:
        self.reads += 1
        yield from (conversation(int(text)) for text in self.texts)


def chat_data(
    folder: Path, count: int = 40, sequence_length: int = 96, global_batch_size: int = 8, **options: Any
) -> InstructionDataModule:
    """A data module that caches in ``folder``."""
    options = {"vocab_size": 280, "val_fraction": 0.0, "cache_dir": str(folder / "cache"), **options}
    if "prepared" not in options:
        options.setdefault("sources", [Chats(count)])
    return InstructionDataModule(sequence_length, global_batch_size, **options)
