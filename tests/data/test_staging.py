"""Stores behind URLs: shards are staged to local disk, within a bound, checked, and shared by processes."""

import multiprocessing
import random
import shutil
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from coda.data import CorpusDataModule, TextFiles
from coda.data.store import TokenStore, TokenStream
from coda.data.tokenizer import tokenizer_fingerprint, train_tokenizer
from tests.data.helpers import content, prepared, write_jsonl

DOCUMENTS = [f"def f{i}(x):\n    return x * {i}\n" for i in range(240)]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(DOCUMENTS, 300)


@pytest.fixture(scope="module")
def written(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of eight shards."""
    folder = tmp_path_factory.mktemp("written")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("coda.data.ingest.BATCH_DOCUMENTS", 30)
        source = TextFiles([write_jsonl(folder / "a.jsonl", DOCUMENTS)], corpus="a")
        store = prepared([source], tokenizer, folder / "store", 0.1, shard_tokens=1)
    assert len(store.manifest["corpora"]["a"]["shards"]) == 8
    return folder / "store"


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, written: Path, tmp_path: Path) -> str:
    """A copy of the store behind a URL."""
    if request.param == "file":
        shutil.copytree(written, tmp_path / "remote")
        return f"file://{tmp_path}/remote"
    system = fsspec.filesystem("memory")
    for path in written.rglob("*"):
        if path.is_file():
            system.pipe(f"/{tmp_path.name}/{path.relative_to(written)}", path.read_bytes())
    return f"memory://{tmp_path.name}"


def overwrite(url: str, change: Any) -> None:
    """Replace the file at ``url`` by what ``change`` makes of its bytes."""
    with fsspec.open(url, "rb") as file:
        content = file.read()
    with fsspec.open(url, "wb") as file:
        file.write(change(content))


def shard_file(store: TokenStore, number: int = 0, ending: str = "train.tokens") -> str:
    return f"a/{store.manifest['corpora']['a']['shards'][number]['name']}.{ending}"


def staged(folder: Path) -> list[Path]:
    """The copies of shards, and whatever else lies among them."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")


def largest(store: TokenStore) -> int:
    return max(store.location.sizes()[shard_file(store, i)] for i in range(8))


def test_a_staged_store_is_the_store(url: str, written: Path, tmp_path: Path) -> None:
    for folder in (url, f"{url}/"):
        store = TokenStore(folder, tmp_path / "staging")
        store.verify()
        assert content(store) == content(TokenStore(written))


def test_a_shard_is_copied_when_it_is_read_and_not_before(url: str, tmp_path: Path) -> None:
    stream = TokenStore(url, tmp_path / "staging").stream("a", "train")
    assert staged(tmp_path) == staged(tmp_path / "remote")
    stream.read(0, 3)
    stream.read(1, 4)
    (copy,) = staged(tmp_path / "staging")
    assert copy.stat().st_size == 4 * stream.shards[0]["tokens"]["train"]


def test_what_was_copied_is_not_copied_again(url: str, tmp_path: Path) -> None:
    store = TokenStore(url, tmp_path / "staging")
    whole = content(store)
    system, inner = fsspec.core.url_to_fs(url)
    for i in range(8):
        for ending in ("train.tokens", "val.tokens", "documents.npy"):
            system.rm(f"{inner}/{shard_file(store, i, ending)}")
    stream = TokenStream(store.location, "a", "train", store.manifest["corpora"]["a"]["shards"])
    assert stream.read(0, stream.tokens).tolist() == whole["tokens"]["a", "train"]


def test_a_store_prepared_anew_under_the_same_url_is_copied_anew(
    url: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """The names of the shards are the same, and may be their sizes."""
    old = content(TokenStore(url, tmp_path / "staging"))
    other = train_tokenizer([text.upper() for text in DOCUMENTS], 300)
    texts = [text.replace("x", "y") for text in DOCUMENTS]
    new = prepared([TextFiles([write_jsonl(tmp_path / "b.jsonl", texts)], corpus="a")], other, tmp_path / "new", 0.1)
    system, inner = fsspec.core.url_to_fs(url)
    module = CorpusDataModule(8, 1, prepared=url, staging_dir=str(tmp_path / "staging"))
    assert tokenizer_fingerprint(module.tokenizer) == tokenizer_fingerprint(tokenizer)
    system.rm(inner, recursive=True)
    for path in (tmp_path / "new").rglob("*"):
        if path.is_file():
            system.makedirs(f"{inner}/{path.parent.relative_to(tmp_path / 'new')}", exist_ok=True)
            system.pipe(f"{inner}/{path.relative_to(tmp_path / 'new')}", path.read_bytes())
    again = TokenStore(url, tmp_path / "staging")
    assert content(again) == content(new) != old
    module = CorpusDataModule(8, 1, prepared=url, staging_dir=str(tmp_path / "staging"))
    assert tokenizer_fingerprint(module.tokenizer) == tokenizer_fingerprint(other)


@pytest.mark.parametrize("files", [1, 2, 3])
def test_copies_stay_within_the_bound(url: str, written: Path, tmp_path: Path, files: int) -> None:
    bound = files * largest(TokenStore(written))
    stream = TokenStore(url, tmp_path / "staging", bound).stream("a", "train")
    expected = TokenStore(written).stream("a", "train")
    draw = random.Random(files)
    most = 0
    for _ in range(60):
        start = draw.randrange(stream.tokens - 30)
        stream._map.cache_clear()  # as if many others were read in between
        assert stream.read(start, start + 30).tolist() == expected.read(start, start + 30).tolist()
        most = max(most, sum(path.stat().st_size for path in staged(tmp_path / "staging")))
    assert bound / 2 < most <= bound


def test_what_was_read_longest_ago_goes_first(url: str, tmp_path: Path) -> None:
    store = TokenStore(url, tmp_path / "staging", 2 * largest(TokenStore(url, tmp_path / "other")) + 50)
    shards = store.manifest["corpora"]["a"]["shards"]

    def copy(number: int) -> Path:
        return store.location.local(shard_file(store, number), shards[number]["checksums"]["train.tokens"])

    first, second = copy(0), copy(1)
    assert copy(0) == first
    third = copy(2)
    assert [path.exists() for path in (first, second, third)] == [True, False, True]


def test_a_shard_larger_than_the_bound_is_an_error(url: str, tmp_path: Path) -> None:
    stream = TokenStore(url, tmp_path / "staging", 100).stream("a", "train")
    with pytest.raises(ValueError, match=rf"\Adata\.staging_bytes is 100, but {url}/a/[^\n]* has \d+; raise it\Z"):
        stream.read(0, 3)
    assert staged(tmp_path / "staging") == []


def test_a_damaged_shard_is_an_error_and_leaves_no_file(url: str, tmp_path: Path) -> None:
    store = TokenStore(url, tmp_path / "staging")
    overwrite(f"{url}/{shard_file(store)}", lambda content: bytes([content[0] ^ 1]) + content[1:])
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"\A{url}/a/[^\n]* has checksum \w+ instead of \w+: [^\n]*\Z"):
            store.stream("a", "train").read(0, 3)
        assert staged(tmp_path / "staging") == []
    with pytest.raises(ValueError, match=r"has checksum"):
        store.verify()


def test_a_shard_cut_short_is_an_error_at_the_opening(url: str, tmp_path: Path) -> None:
    overwrite(f"{url}/{shard_file(TokenStore(url))}", lambda content: content[:-4])
    with pytest.raises(ValueError, match=r"train\.tokens has \d+ bytes instead of \d+: it was cut short"):
        TokenStore(url, tmp_path / "staging")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("memory://nothing/here", "it has no manifest.json"),
        ("file:///no/such/folder", "it has no manifest.json"),
        ("nosuchprotocol://bucket", "cannot be opened"),
    ],
)
def test_a_url_without_a_store_is_named(url: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"\A{url} [^\n]+\Z") as error:
        TokenStore(url, tmp_path)
    assert said in str(error.value)


def read_all(url: str, staging: Path, bound: int, seed: int, expected: np.ndarray, failures: Any) -> None:
    """Read here and there from a process of its own."""
    try:
        stream = TokenStore(url, staging, bound).stream("a", "train")
        draw = random.Random(seed)
        for _ in range(150):
            start = draw.randrange(stream.tokens - 30)
            stream._map.cache_clear()
            assert (stream.read(start, start + 30) == expected[start : start + 30]).all()
    except BaseException as error:
        failures.put(repr(error))
        raise


@pytest.mark.slow
def test_processes_share_the_copies_within_the_bound_of_one(written: Path, tmp_path: Path) -> None:
    """Each pulls the shard away from under the others again and again; none may fail or read something else."""
    store = TokenStore(written)
    stream = store.stream("a", "train")
    context = multiprocessing.get_context("fork")
    failures = context.SimpleQueue()
    arguments = (f"file://{written}", tmp_path, largest(store))
    expected = stream.read(0, stream.tokens)
    processes = [context.Process(target=read_all, args=(*arguments, seed, expected, failures)) for seed in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0] * 4, failures.get()
    assert len(staged(tmp_path)) == 1


def test_a_data_module_reads_a_store_behind_a_url(written: Path, tmp_path: Path) -> None:
    staging = str(tmp_path / "staging")
    roots = (str(written), f"file://{written}")
    here, there = (CorpusDataModule(16, 1, prepared=root, staging_dir=staging) for root in roots)
    rows = [[module.rows("train")[i]["input_ids"].tolist() for i in range(40)] for module in (here, there)]
    assert rows[0] == rows[1]
    assert here.tokenizer.get_vocab() == there.tokenizer.get_vocab()
