"""Resuming a fit in the middle of an epoch reads exactly the rows that were not read yet."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from coda.data import TextFiles
from tests.conftest import Tiny

STEPS_PER_EPOCH = 10  # 40 rows in batches of 4


class Reader(Callback):
    """Notes the rows of every optimizer step; may write a checkpoint after one of them."""

    def __init__(self, accumulate: int, save_after: int = 0, path: Path | None = None) -> None:
        self.accumulate = accumulate
        self.save_after = save_after
        self.path = path
        self.micro_batches: list[tuple[int, ...]] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.micro_batches += [tuple(row) for row in batch["input_ids"].tolist()]
        if len(self.micro_batches) == 4 * self.save_after:
            trainer.save_checkpoint(self.path)

    @property
    def steps(self) -> list[list[tuple[int, ...]]]:
        return [self.micro_batches[i : i + 4] for i in range(0, len(self.micro_batches), 4)]


def read(
    tiny: Tiny, accumulate: int, save_after: int = 0, resume: Path | None = None, workers: int = 0
) -> list[list[tuple[int, ...]]]:
    """Train for two and a half epochs and return the rows of each step."""
    reader = Reader(accumulate, save_after, resume or tiny.folder / "here.ckpt")
    trainer = tiny.trainer(reader, max_steps=25, accumulate_grad_batches=accumulate, logger=False)
    data = tiny.data(val_fraction=0.0, num_workers=workers, sequence_length=38)
    trainer.fit(tiny.module(), data, ckpt_path=resume)
    assert len(data.rows("train")) // 4 == STEPS_PER_EPOCH
    return reader.steps


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("after", [3, 10, 14], ids=["first epoch", "end of epoch", "second epoch"])
def test_a_resumed_fit_reads_the_rest(tiny: Tiny, accumulate: int, after: int) -> None:
    whole = read(tiny, accumulate, save_after=after)
    assert len(whole) == 25
    resumed = read(tiny, accumulate, resume=tiny.folder / "here.ckpt")
    assert resumed == whole[after:]


def test_worker_processes_resume_where_they_stopped(tiny: Tiny) -> None:
    """They read ahead: what they fetched, but training did not see, comes again."""
    whole = read(tiny, 1, save_after=14, workers=2)
    assert whole == read(tiny, 1)
    assert read(tiny, 1, resume=tiny.folder / "here.ckpt", workers=2) == whole[14:]


def test_steps_are_the_same_with_accumulation(tiny: Tiny) -> None:
    assert read(tiny, 2) == read(tiny, 1)


def test_a_checkpoint_written_at_the_end_of_an_epoch_goes_on_with_the_next(tiny: Tiny) -> None:
    saver = ModelCheckpoint(tiny.folder, "{epoch}", save_top_k=-1, every_n_epochs=1, save_on_train_epoch_end=True)

    def fit(resume: Path | None = None) -> list[list[tuple[int, ...]]]:
        reader = Reader(1)
        trainer = tiny.trainer(reader, saver, max_epochs=2, logger=False, enable_checkpointing=True)
        trainer.fit(tiny.module(), tiny.data(val_fraction=0.0, sequence_length=38), ckpt_path=resume)
        return reader.steps

    assert fit()[STEPS_PER_EPOCH:] == fit(tiny.folder / "epoch=0.ckpt")


def test_a_checkpoint_written_by_validation_goes_on_behind_it(tiny: Tiny) -> None:
    saver = ModelCheckpoint(tiny.folder, "{step}", save_top_k=-1)

    def fit(reader: Reader, resume: Path | None = None) -> list[list[tuple[int, ...]]]:
        options = {"enable_checkpointing": True, "val_check_interval": 3, "check_val_every_n_epoch": None}
        trainer = tiny.trainer(reader, saver, max_steps=9, logger=False, **options)
        trainer.fit(tiny.module(), tiny.data(), ckpt_path=resume)
        return reader.steps

    whole = fit(Reader(1))
    assert fit(Reader(1), tiny.folder / "step=6.ckpt") == whole[6:]


def test_the_weights_end_up_the_same(tiny: Tiny) -> None:
    """Rows, noise levels, masks, optimizer and schedule all go on where they were."""

    def fit(stop: int, resume: Path | None = None) -> torch.Tensor:
        trainer = tiny.trainer(Reader(1, stop, tiny.folder / "here.ckpt"), max_steps=13, logger=False)
        module = tiny.module()
        torch.manual_seed(0)
        trainer.fit(module, tiny.data(val_fraction=0.0), ckpt_path=resume)
        return torch.cat([parameter.detach().flatten() for parameter in module.backbone.parameters()])

    whole = fit(stop=11)
    assert torch.equal(fit(stop=0, resume=tiny.folder / "here.ckpt"), whole)


def test_a_checkpoint_counts_samples_over_all_micro_batches(tiny: Tiny) -> None:
    read(tiny, 2, save_after=14)
    state = torch.load(tiny.folder / "here.ckpt", weights_only=True)["CorpusDataModule"]
    assert state["samples"] == 14 * 4
    assert state["order"]["rows"][0] // 4 == STEPS_PER_EPOCH
    assert (state["order"]["seed"], state["order"]["sequence_length"]) == (0, 38)


@pytest.fixture
def checkpoint(tiny: Tiny) -> Path:
    """Behind the second step."""
    reader = Reader(1, 2, tiny.folder / "here.ckpt")
    tiny.trainer(reader, max_steps=2, logger=False).fit(tiny.module(), tiny.data())
    return tiny.folder / "here.ckpt"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"seed": 1}, "seed was 0, is 1"),
        ({"global_batch_size": 8}, "global_batch_size was 4, is 8"),
        ({"sequence_length": 16}, "sequence_length was 32, is 16"),
        ({"shuffle_window": 5}, "window was None, is 5"),
        ({"val_fraction": 0.5}, "rows was "),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_order_of_samples_is_refused(tiny: Tiny, checkpoint: Path, changed: dict[str, Any], words: str) -> None:
    """Before a step is taken; starting from the weights alone is the way out."""
    trainer = tiny.trainer(max_steps=4, logger=False)
    with pytest.raises(ValueError, match=f"read its data in another order .*{words}.*model.init_from"):
        trainer.fit(tiny.module(), tiny.data(**changed), ckpt_path=checkpoint)
    assert trainer.global_step in (0, 2)


def test_another_corpus_is_refused(tiny: Tiny, checkpoint: Path) -> None:
    """Of the same name and number of rows, but other documents: they are other samples."""
    data = tiny.data()
    (copy := tiny.folder / "corpus").mkdir()
    for path in tiny.corpus.iterdir():
        (copy / path.name).write_text(path.read_text().replace("x", "y"))
    data.sources = [TextFiles([str(copy)])]
    data.tokenizer_path = None
    with pytest.raises(ValueError, match="another order"):
        tiny.trainer(max_steps=4, logger=False).fit(tiny.module(), data, ckpt_path=checkpoint)


def test_segments_may_change(tiny: Tiny, checkpoint: Path) -> None:
    """They are no matter of order."""
    trainer = tiny.trainer(max_steps=4, logger=False)
    trainer.fit(tiny.module(), tiny.data(segments=True), ckpt_path=checkpoint)
    assert trainer.global_step == 4
