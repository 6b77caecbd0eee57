"""A tokenizer is trained once per corpus and size."""

from pathlib import Path

import pytest

from coda.data import CorpusDataModule, load_tokenizer
from coda.data.tokenizer import open_trained_tokenizer, tokenizer_fingerprint
from tests.data.conftest import Texts

TEXTS = [f"def f{i}(self, value):\n    return self.value + {i}\n" for i in range(30)]


def test_the_second_opening_neither_trains_nor_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, source = open_trained_tokenizer([Texts(TEXTS)], 300, tmp_path), Texts(TEXTS)
    monkeypatch.setattr("coda.data.tokenizer.train_tokenizer", pytest.fail)
    second = open_trained_tokenizer([source], 300, tmp_path)
    assert source.reads == 0
    assert tokenizer_fingerprint(second) == tokenizer_fingerprint(first)


@pytest.mark.parametrize(("texts", "size"), [(TEXTS[:-1], 300), (TEXTS, 301)], ids=["texts", "size"])
def test_another_corpus_or_size_trains_anew(tmp_path: Path, texts: list[str], size: int) -> None:
    open_trained_tokenizer([Texts(TEXTS)], 300, tmp_path)
    open_trained_tokenizer([Texts(texts)], size, tmp_path)
    assert len(list((tmp_path / "tokenizers").iterdir())) == 2


def test_all_sources_are_trained_on(tmp_path: Path) -> None:
    tokenizer = open_trained_tokenizer([Texts(["alpha " * 99]), Texts(["omega " * 99])], 280, tmp_path)
    assert len(tokenizer("alpha omega", add_special_tokens=False)["input_ids"]) <= 3


def test_a_failed_training_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.vocab_size is 100"):
        open_trained_tokenizer([Texts(TEXTS)], 100, tmp_path)
    assert list((tmp_path / "tokenizers").iterdir()) == []


def test_the_cached_folder_is_a_tokenizer_for_everyone(tmp_path: Path) -> None:
    tokenizer = open_trained_tokenizer([Texts(TEXTS)], 300, tmp_path)
    (folder,) = (tmp_path / "tokenizers").iterdir()
    assert load_tokenizer(str(folder)).get_vocab() == tokenizer.get_vocab()


def test_a_data_module_loads_the_tokenizer_it_is_given(tmp_path: Path) -> None:
    given = open_trained_tokenizer([Texts(TEXTS)], 300, tmp_path / "elsewhere")
    given.save_pretrained(tmp_path / "given")
    options = {"sources": [Texts(["x"])], "tokenizer": str(tmp_path / "given"), "cache_dir": str(tmp_path / "cache")}
    assert CorpusDataModule(8, 1, **options).tokenizer.get_vocab() == given.get_vocab()
    assert not (tmp_path / "cache").exists()


def test_the_cache_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODA_CACHE", str(tmp_path / "cache"))
    assert len(CorpusDataModule(8, 1, [Texts(TEXTS)], vocab_size=270).tokenizer) == 270
    assert (tmp_path / "cache" / "tokenizers").is_dir()
