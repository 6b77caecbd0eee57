"""The settings that every source has: its name, its limit and its share of the mixture."""

import math
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from coda.data import CorpusDataModule, HubDataset, InstalledPackage, StandardLibrary, TextFiles
from coda.data.plan import RESERVED
from coda.data.sources import file_name
from coda.data.tokenizer import train_tokenizer
from tests.data.conftest import Texts
from tests.data.helpers import plan_of


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(["x"], 260)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": 0}, r"TextFiles\.weight is 0; give a positive share, or leave the corpus out"),
        ({"weight": 0.0}, r"TextFiles\.weight is 0\.0"),
        ({"weight": -0.5}, r"TextFiles\.weight is -0\.5"),
        ({"weight": math.nan}, r"TextFiles\.weight is nan"),
        ({"weight": math.inf}, r"TextFiles\.weight is inf"),
        ({"epochs": 0}, r"TextFiles\.epochs is 0; read it a positive number of times"),
        ({"epochs": -1.5}, r"TextFiles\.epochs is -1\.5"),
        ({"epochs": math.nan}, r"TextFiles\.epochs is nan"),
        ({"epochs": math.inf}, r"TextFiles\.epochs is inf"),
        ({"weight": 2, "epochs": 3}, r"TextFiles has weight 2 and epochs 3; [^\n]*give one"),
        ({"max_tokens": 0}, r"TextFiles\.max_tokens is 0; take at least 1, or null"),
        ({"corpus": ""}, r"TextFiles\.corpus is ''; it names a folder"),
        ({"corpus": "a/b"}, r"TextFiles\.corpus is 'a/b'"),
        ({"corpus": ".."}, r"TextFiles\.corpus is '\.\.'"),
        ({"corpus": ".hidden"}, r"TextFiles\.corpus is '\.hidden'"),
        ({"corpus": "two words"}, r"TextFiles\.corpus is 'two words'"),
    ],
    ids=str,
)
def test_settings_that_cannot_work_are_refused_at_construction(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"\A{message}[^\n]*\Z"):
        TextFiles(["x"], **options)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (TextFiles(["/data/stack python"]), "stack-python"),
        (TextFiles(["s3://bucket/wiki/"]), "wiki"),
        (TextFiles(["a/b.jsonl.zst", "c"]), "b.jsonl.zst"),
        (TextFiles([".."]), "corpus"),
        (TextFiles(["/"]), "corpus"),
        (TextFiles([]), "corpus"),
        (HubDataset("owner/some-corpus"), "some-corpus"),
        (HubDataset("owner/some-corpus", "en:2023"), "some-corpus-en-2023"),
        (StandardLibrary(), "standard_library"),
        (InstalledPackage("numpy"), "numpy"),
        (InstalledPackage("numpy", corpus="mine"), "mine"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_corpus_is_named_after_what_it_reads(source: Any, name: str) -> None:
    assert source.corpus == name == file_name(name)


def test_two_corpora_of_the_same_name_are_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match=r"\Atwo of data\.sources are called 'texts'; [^\n]* as corpus\Z"):
        plan_of([Texts(["x"]), Texts(["y"], corpus="other"), Texts(["z"])], tokenizer)


@pytest.mark.parametrize("name", RESERVED)
def test_a_corpus_called_like_a_part_of_the_store_is_refused(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match=rf"\Aone of data\.sources is called '{name}', [^\n]* with corpus\Z"):
        plan_of([Texts(["x"], corpus=name)], tokenizer)


def data(*sources: Texts, **options: Any) -> CorpusDataModule:
    return CorpusDataModule(4, 1, [*sources], vocab_size=270, val_fraction=0.0, **options)


def test_some_weights_but_not_all_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\Acorpus 'b' of data\.sources has no weight, others have; [^\n]+\Z"):
        data(Texts(["x"], corpus="a", weight=1), Texts(["y"], corpus="b"))


def test_a_corpus_too_short_for_a_row_is_named(tmp_path: Any) -> None:
    module = data(Texts(["x"] * 9, corpus="long"), Texts(["y"], corpus="short"), cache_dir=str(tmp_path))
    with pytest.raises(ValueError, match=r"\Acorpus 'short' has 2 tokens, which is no row of data\.sequence_length 4"):
        module.rows("train")


@pytest.mark.parametrize(
    ("epochs", "samples"), [((1.0, 1.0), 10), ((2.0, 1.0), 15), ((0.4, 3.0), 17), ((5.0, 0.2), 26)]
)
def test_epochs_make_one_pass_longer_or_shorter(epochs: tuple[float, float], samples: int, tmp_path: Any) -> None:
    """Five rows each."""
    sources = [Texts([f"{name}"] * 10, corpus=name, epochs=times) for name, times in zip("ab", epochs, strict=True)]
    rows = data(*sources, cache_dir=str(tmp_path)).rows("train")
    assert rows.mixture.rows == [5, 5]
    assert len(rows) == samples
