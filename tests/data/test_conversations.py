"""Corpora of conversations: which turns they yield, in which form, and what becomes of bad ones."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coda.data import HubInstructions, InstructionFiles, Source
from coda.data.chat import ChatEncoder
from coda.data.conversations import InstructionColumns
from coda.data.ingest import prepare
from coda.data.plan import Plan
from coda.data.sources import Conversation, Document, Message, Skipped
from coda.data.tokenizer import train_tokenizer

ASKED = ("Add 1.\n", "x + 1\né 😀")
PAIR: Conversation = (Message("user", ASKED[0]), Message("assistant", ASKED[1]))
RECORDS: dict[str, dict[str, Any]] = {
    "pair": {"instruction": ASKED[0], "output": ASKED[1], "tag": "kept out"},
    "role": {"messages": [{"role": "user", "content": ASKED[0]}, {"role": "assistant", "content": ASKED[1]}]},
    "from": {"messages": [{"from": "human", "value": ASKED[0]}, {"from": "gpt", "value": ASKED[1]}]},
}


def chat(*turns: str) -> dict[str, Any]:
    """A record; ``"user: x"`` is a turn of the user, who says x."""
    parts = [turn.split(": ", 1) for turn in turns]
    return {"messages": [{"role": role, "content": content} for role, content in parts]}


def jsonl(folder: Path, records: list[Any], name: str = "chats.jsonl") -> InstructionFiles:
    (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    return InstructionFiles(paths=[str(folder / name)])


def table(records: list[dict[str, Any]]) -> pa.Table:
    return pa.table({column: [record.get(column) for record in records] for record in records for column in record})


def parquet(folder: Path, records: list[Any]) -> InstructionFiles:
    pq.write_table(table(records), folder / "chats.parquet")
    return InstructionFiles(paths=[str(folder)])


def hub(folder: Path, records: list[Any]) -> HubInstructions:
    jsonl(folder, records, "train.jsonl")
    return HubInstructions(path=str(folder))


def hub_parquet(folder: Path, records: list[Any]) -> HubInstructions:
    pq.write_table(table(records), folder / "train-00000-of-00001.parquet")
    return HubInstructions(path=str(folder))


WRITERS: list[Callable[[Path, list[Any]], InstructionColumns]] = [jsonl, parquet, hub, hub_parquet]
each_format = pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)


def items(source: Source) -> list[Document | Skipped]:
    return [item for part in source.parts() for item in source.read(part)]


@each_format
@pytest.mark.parametrize("form", RECORDS)
def test_every_form_is_the_same_conversation(write: Any, form: str, tmp_path: Path) -> None:
    assert items(write(tmp_path, [RECORDS[form]] * 2)) == [PAIR, PAIR]


@each_format
def test_forms_may_be_mixed_where_the_record_decides(write: Any, tmp_path: Path) -> None:
    """Parquet and the hub fill in the columns that a record lacks with nothing."""
    assert items(write(tmp_path, [RECORDS["pair"], RECORDS["role"]])) == [PAIR, PAIR]


@each_format
def test_columns_may_have_other_names(write: Any, tmp_path: Path) -> None:
    kind, reading = type(write(tmp_path, [{"ask": "a", "say": "b"}])), {}
    reading["path" if kind is HubInstructions else "paths"] = (
        str(tmp_path) if kind is HubInstructions else [str(tmp_path)]
    )
    assert items(kind(instruction="ask", output="say", **reading)) == [(("user", "a"), ("assistant", "b"))]
    (tmp_path / "other").mkdir()
    write(tmp_path / "other", [{"conversations": chat("user: a", "assistant: b")["messages"]}])
    reading = {key: str(tmp_path / "other") if key == "path" else [str(tmp_path / "other")] for key in reading}
    assert items(kind(messages="conversations", **reading)) == [(("user", "a"), ("assistant", "b"))]


def test_the_last_response_is_learned_and_what_follows_it_left_out(tmp_path: Path) -> None:
    turns = ["system: s", "user: a", "assistant: b", "user: c", "assistant: d", "user: e", "user: f"]
    (conversation,) = items(jsonl(tmp_path, [chat(*turns)]))
    assert [": ".join(turn) for turn in conversation] == turns[:5]  # type: ignore[arg-type, union-attr]


def test_names_of_other_collections_become_ours(tmp_path: Path) -> None:
    senders = ["system", "human", "gpt", "tool", "gpt"]
    record = {"messages": [{"from": sender, "value": sender} for sender in senders]}
    (conversation,) = items(jsonl(tmp_path, [record]))
    assert [turn[0] for turn in conversation] == ["system", "user", "assistant", "tool", "assistant"]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "record",
    [
        {"instruction": "x", "output": " \n"},
        {"instruction": "x", "output": None},
        {"instruction": "\t", "output": "y"},
        {"instruction": None, "output": "y"},
        chat("user: x", "assistant:  "),
        chat("system:  ", "user:  ", "assistant: y"),
        chat("assistant: y", "user: x"),
        chat("assistant: y"),
        chat("user: a", "assistant: b", "user: c", "assistant:  ", "user: d"),
    ],
    ids=str,
)
def test_empty_ones_are_skipped_and_counted(record: dict[str, Any], tmp_path: Path) -> None:
    assert items(jsonl(tmp_path, [record, RECORDS["pair"]])) == [Skipped("empty"), PAIR]


def test_a_prompt_may_have_an_empty_turn_among_others(tmp_path: Path) -> None:
    (conversation,) = items(jsonl(tmp_path, [chat("system: ", "user: x", "assistant: y")]))
    assert conversation == (("system", ""), ("user", "x"), ("assistant", "y"))


BAD: list[tuple[Any, str, str]] = [
    ([1, 2], "no object", "a bare list; write objects with a 'instruction'"),
    ("text", "no object", "a bare str"),
    ({"instruction": "x"}, "no column", r"no column 'output'; set the column to one of \['instruction'\]"),
    ({"prompt": "x", "output": "y"}, "no column", "no column 'instruction'"),
    ({"instruction": 3, "output": "y"}, "no text", "no text under 'instruction' but a value of type int"),
    ({"instruction": "x", "output": ["y"]}, "no text", "'output' but a value of type list"),
    ({"messages": "text"}, "no object", "a turn has no columns but a bare str"),
    ({"messages": [{"role": "user"}]}, "no column", "a turn has no column 'content'"),
    ({"messages": [{"content": "x"}]}, "no column", "a turn has no column 'role'"),
    ({"messages": [{"from": "human", "content": "x"}]}, "no column", "no column 'value'"),
    ({"messages": [{"role": "assistant", "content": {"text": "x"}}]}, "no text", "'content' but a value of type dict"),
    ({"messages": [{"role": 1, "content": "x"}]}, "no text", "'role' but a value of type int"),
    ({"messages": [{"role": None, "content": "x"}]}, "no role", "a turn of nobody; fill in 'role'"),
    ({"messages": {"role": ["user"], "content": ["x"]}}, "no text", "'role' but a value of type list"),
    (chat("user: x", "system: y"), "no response", "no turn of the assistant"),
    ({"messages": []}, "no response", "no turn of the assistant"),
]
each_bad = pytest.mark.parametrize(("record", "reason", "message"), BAD, ids=[json.dumps(bad[0]) for bad in BAD])


@each_bad
def test_a_bad_record_ends_the_reading_with_its_line(record: Any, reason: str, message: str, tmp_path: Path) -> None:
    source = jsonl(tmp_path, [RECORDS["pair"], record])
    with pytest.raises(ValueError, match=rf"chats\.jsonl, line 2,.* {message}.*, or on_error to skip\Z"):
        items(source)


@each_bad
def test_a_bad_record_is_skipped_and_counted_if_asked(record: Any, reason: str, message: str, tmp_path: Path) -> None:
    jsonl(tmp_path, [RECORDS["pair"], record, RECORDS["role"]])
    source = InstructionFiles(paths=[str(tmp_path)], on_error="skip")
    assert items(source) == [PAIR, Skipped(reason), PAIR]


def test_a_store_counts_what_was_skipped_by_reason(tmp_path: Path) -> None:
    (tmp_path / "chats.jsonl").write_text(
        "\n".join(json.dumps(record) for record in [RECORDS["pair"], *(bad[0] for bad in BAD)]) + "\n{broken\n\n"
    )
    source = InstructionFiles(paths=[str(tmp_path / "chats.jsonl")], on_error="skip", corpus="chats")
    encoder = ChatEncoder(train_tokenizer(ASKED, 280), 64, "truncate")
    described = prepare(Plan([source], encoder, 0.0), tmp_path / "store").manifest["corpora"]["chats"]
    assert described["documents"] == {"train": 1, "val": 0}
    reasons = [bad[1] for bad in BAD] + ["malformed"]
    assert described["skipped"] == {reason: reasons.count(reason) for reason in reasons}


def test_a_hub_record_without_the_columns_names_the_dataset(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=rf"HubInstructions {tmp_path} has no column 'instruction'; .*on_error to skip"
    ):
        items(hub(tmp_path, [{"question": "x", "answer": "y"}]))


@pytest.mark.parametrize("column", ["instruction", "output", "messages"])
def test_the_columns_are_part_of_the_fingerprint(column: str, tmp_path: Path) -> None:
    """Else a cached store of other columns would be taken for this one."""
    source = jsonl(tmp_path, [RECORDS["pair"]])
    same, other = (InstructionFiles(paths=source.paths, **{column: name}) for name in (column, "other"))
    assert other.fingerprint() != source.fingerprint() == same.fingerprint()


def test_lone_surrogates_become_question_marks(tmp_path: Path) -> None:
    (tmp_path / "chats.jsonl").write_text('{"instruction": "a\\ud800b", "output": "\\udfff!"}\n')
    assert items(InstructionFiles(paths=[str(tmp_path)])) == [(("user", "a?b"), ("assistant", "?!"))]
