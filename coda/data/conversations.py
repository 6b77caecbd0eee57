"""Corpora of conversations, for instruction tuning."""

import ast
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from coda.data.files import FileRecords
from coda.data.hub import HubRecords
from coda.data.sources import (
    BadRecordError,
    Conversation,
    Document,
    Message,
    RecordSource,
    Skipped,
    require_columns,
    require_text,
)
from coda.data.text import StandardLibrary

TASK = "Complete the function.\n"
ROLES = {"human": "user", "gpt": "assistant"}  # as ShareGPT calls them


class InstructionColumns(RecordSource):
    """Takes conversations from records: turns under one column, or an instruction and its answer under two.

    Turns are objects with ``role`` and ``content`` (or ``from`` and ``value``). The last turn of the assistant is what is
    learned, all before it is its prompt.

    Args:
        instruction: Column of the instruction.
        output: Column of the answer.
        messages: Column of the turns; a record that has it is a conversation, any other an instruction.
        **options: See the base classes.
    """

    def __init__(
        self,
        *args: Any,
        instruction: str = "instruction",
        output: str = "output",
        messages: str = "messages",
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self.instruction = instruction
        self.output = output
        self.messages = messages

    def document(self, record: Any, where: Callable[[], str]) -> Conversation | Skipped:
        """See :meth:`RecordSource.document`."""
        if isinstance(record, dict) and record.get(self.messages) is not None:
            turns = _turns(record[self.messages], where)
        else:
            columns = [self.instruction, self.output]
            texts = require_columns(record, columns, where)
            values = [require_text(texts[column], column, where) for column in columns]
            turns = [Message("user", values[0]), Message("assistant", values[1])]
        while turns and turns[-1].role != "assistant":
            turns.pop()
        if not turns[-1].content.strip() or not any(turn.content.strip() for turn in turns[:-1]):
            return Skipped("empty")
        return tuple(turns)

    def fingerprint(self) -> dict[str, Any]:
        """See :meth:`Source.fingerprint`."""
        columns = {"instruction": self.instruction, "output": self.output, "messages": self.messages}
        return super().fingerprint() | columns


class InstructionFiles(InstructionColumns, FileRecords):
    """Conversations in JSONL(.gz, .zst) and parquet files.

    Args:
        paths: Files, or folders that are searched through: local, or URLs such as ``s3://bucket/folder``.
        instruction: Column of the instruction.
        output: Column of the answer.
        messages: Column of the turns; a record that has it is a conversation, any other an instruction.
        **options: See :class:`coda.data.sources.RecordSource` and :class:`coda.data.sources.Source`.
    """


class HubInstructions(InstructionColumns, HubRecords):
    """Conversations of a dataset of the Hugging Face hub, streamed.

    Args:
        path: Name, for example ``OpenCoder-LLM/opc-sft-stage1``, or a folder laid out like one.
        name: Configuration of the dataset.
        split: Split.
        instruction: Column of the instruction.
        output: Column of the answer.
        messages: Column of the turns; a record that has it is a conversation, any other an instruction.
        data_files: Which of its files to read; None reads all.
        revision: Branch, tag or commit; pin it for a corpus that stays the same.
        **options: See :class:`coda.data.sources.RecordSource` and :class:`coda.data.sources.Source`.
    """


class StandardLibraryFunctions(StandardLibrary):
    """The documented functions of Python's standard library: from signature and docstring to the body.

    Args:
        least_docstring: Characters that a docstring must have.
        least_lines: Lines that a body must have.
        most_lines: Lines that it may have.
        **mixing: See :class:`coda.data.sources.Source`.
    """

    def __init__(self, least_docstring: int = 20, least_lines: int = 3, most_lines: int = 60, **mixing: Any) -> None:
        super().__init__(**mixing)
        self.bounds = (least_docstring, least_lines, most_lines)

    def default_name(self) -> str:
        """See :meth:`Source.default_name`."""
        return "standard_library_functions"

    def read(self, part: list[str]) -> Iterator[Document | Skipped]:
        """See :meth:`Source.read`: one record per documented function."""
        for path in part:
            text = Path(path).read_text(encoding="utf-8", errors="replace")
            try:
                with warnings.catch_warnings(action="ignore"):
                    tree = ast.parse(text)
            except SyntaxError:
                continue
            lines = text.split("\n")  # as ast counts them: a form feed, say, ends no line
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (pair := self._pair(node, lines)):
                    yield pair

    def fingerprint(self) -> dict[str, Any]:
        """See :meth:`Source.fingerprint`."""
        return super().fingerprint() | {"bounds": self.bounds}

    def _pair(self, function: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> Conversation | None:
        docstring = ast.get_docstring(function)
        if docstring is None or len(docstring) < self.bounds[0]:
            return None
        end = function.body[0].end_lineno or 0
        indent = lines[function.lineno - 1][: function.col_offset]  # which the lines of a string may lack
        head = [line.removeprefix(indent) for line in lines[function.lineno - 1 : end]]
        body = [line.removeprefix(indent) for line in lines[end : function.end_lineno]]
        if not self.bounds[1] <= len(body) <= self.bounds[2]:
            return None
        return Message("user", TASK + "\n".join(head)), Message("assistant", "\n".join(body))


def _turns(messages: Any, where: Callable[[], str]) -> list[Message]:
    """The turns of a conversation. Raises BadRecordError if they are none."""
    turns = []
    for turn in messages if isinstance(messages, list) else [messages]:
        names = ("from", "value") if isinstance(turn, dict) and "from" in turn else ("role", "content")
        values = require_columns(turn, names, lambda: f"{where()} a turn")
        role, content = (require_text(values[name], name, where) for name in names)
        if not role.strip():
            raise BadRecordError("no role", f"{where()} has a turn of nobody; fill in {names[0]!r}")
        turns.append(Message(ROLES.get(role, role), content))
    if not any(turn.role == "assistant" for turn in turns):
        raise BadRecordError("no response", f"{where()} has no turn of the assistant, the one to learn; leave it out")
    return turns
