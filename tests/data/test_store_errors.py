"""Stores that cannot be read: one sentence that names the file and the way out."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from coda.data import CorpusDataModule
from coda.data.store import TokenStore
from coda.data.tokenizer import train_tokenizer
from tests.data.conftest import Texts
from tests.data.helpers import prepared

DOCUMENTS = [f"def f{i}(x):\n    return x * {i}\n" for i in range(50)]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(DOCUMENTS, 280)


@pytest.fixture(scope="module")
def written(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    prepared([Texts(DOCUMENTS, corpus="a"), Texts(DOCUMENTS[::-1], corpus="b")], tokenizer, folder, 0.2)
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """A store to damage."""
    return Path(shutil.copytree(written, tmp_path / "store"))


def change_manifest(folder: Path, **values: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


SHARD = "b/00000-00000"
BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (shutil.rmtree, r"is no prepared corpus: it has no manifest\.json; run [^\n]*coda\.data\.prepare"),
    "no manifest": (lambda store: (store / "manifest.json").unlink(), r"is no prepared corpus: it has no manifest"),
    "half a manifest": (
        lambda store: (store / "manifest.json").write_text((store / "manifest.json").read_text()[:200]),
        r"/manifest\.json is damaged \([^\n]+; prepare the corpora again",
    ),
    "a newer format": (lambda store: change_manifest(store, format=99), r"has format 99, this version reads \d+;"),
    "no format": (lambda store: change_manifest(store, format=None), r"has format None, this version reads \d+;"),
    "a missing shard": (
        lambda store: (store / f"{SHARD}.train.tokens").unlink(),
        rf"/{SHARD}\.train\.tokens is missing",
    ),
    "a missing table": (
        lambda store: (store / f"{SHARD}.documents.npy").unlink(),
        rf"/{SHARD}\.documents\.npy is miss",
    ),
    "a truncated shard": (
        lambda store: (store / f"{SHARD}.val.tokens").write_bytes((store / f"{SHARD}.val.tokens").read_bytes()[:-1]),
        rf"/{SHARD}\.val\.tokens has \d+ bytes instead of \d+: it was cut short",
    ),
    "an emptied shard": (
        lambda store: (store / f"{SHARD}.train.tokens").write_bytes(b""),
        rf"/{SHARD}\.train\.tokens has 0 bytes instead of \d+",
    ),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_store_that_is_not_whole_is_refused_at_the_opening(folder: Path, broken: str) -> None:
    breaks, message = BROKEN[broken]
    TokenStore(folder)
    breaks(folder)
    with pytest.raises(ValueError, match=rf"\A{folder}[^\n]*{message}[^\n]*\Z".replace("[^\n]*/", "/")):
        TokenStore(folder)


@pytest.mark.parametrize("position", [0, 1001, -1])
@pytest.mark.parametrize("ending", ["train.tokens", "val.tokens", "documents.npy"])
def test_verifying_finds_a_single_wrong_bit(folder: Path, ending: str, position: int) -> None:
    path = folder / f"{SHARD}.{ending}"
    TokenStore(folder).verify()
    flip(path, min(position, path.stat().st_size - 1))
    store = TokenStore(folder)
    with pytest.raises(ValueError, match=rf"\A{path} has checksum \w+ instead of \w+: [^\n]+\Z"):
        store.verify()


@pytest.mark.parametrize("verify", [True, False])
def test_a_data_module_verifies_if_asked(folder: Path, verify: bool) -> None:
    flip(folder / f"{SHARD}.train.tokens", 5)
    data = CorpusDataModule(8, 1, prepared=str(folder), verify=verify)
    if verify:
        with pytest.raises(ValueError, match=r"has checksum"):
            data.prepare_data()
    else:
        data.prepare_data()


def test_another_tokenizer_than_that_of_the_store_is_refused(folder: Path, tmp_path: Path) -> None:
    other = train_tokenizer(DOCUMENTS, 270)
    other.save_pretrained(tmp_path / "other")
    data = CorpusDataModule(8, 1, prepared=str(folder), tokenizer=str(tmp_path / "other"))
    message = rf"\Adata\.prepared {folder} was written with another tokenizer than {tmp_path}/other; "
    with pytest.raises(ValueError, match=rf"{message}[^\n]+\Z"):
        _ = data.tokenizer


def test_the_tokenizer_of_the_store_is_taken_or_may_be_named(
    folder: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path / "same")
    for path in (None, str(tmp_path / "same")):
        data = CorpusDataModule(8, 1, prepared=str(folder), tokenizer=path)
        assert data.tokenizer.get_vocab() == tokenizer.get_vocab()


def test_a_tokenizer_changed_in_the_store_is_refused(folder: Path) -> None:
    train_tokenizer(DOCUMENTS, 270).save_pretrained(folder / "tokenizer")
    with pytest.raises(ValueError, match=r"was written with another tokenizer"):
        _ = CorpusDataModule(8, 1, prepared=str(folder)).tokenizer


def test_a_corpus_that_was_not_prepared_is_named(folder: Path) -> None:
    data = CorpusDataModule(8, 1, [Texts([], corpus="a"), Texts([], corpus="c")], prepared=str(folder))
    with pytest.raises(ValueError, match=rf"\Adata\.prepared {folder} has no corpus 'c', but a, b; [^\n]+\Z"):
        data.rows("train")


def test_sources_pick_and_order_the_corpora_of_a_store_and_are_not_read(folder: Path) -> None:
    source = Texts([], corpus="b")
    picked = CorpusDataModule(8, 1, [source], prepared=str(folder))
    assert [stream.corpus for stream in picked.rows("train").streams] == ["b"]  # type: ignore[attr-defined]
    everything = CorpusDataModule(8, 1, prepared=str(folder))
    assert [stream.corpus for stream in everything.rows("val").streams] == ["a", "b"]  # type: ignore[attr-defined]
    assert source.reads == 0
