"""The LightningModule: exact accumulation, independence of ranks, weights-only starts, exact resume."""

import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import Tensor

from coda.data import CorpusDataModule, TextFiles
from coda.masking import Draft, MaskingStrategy, ProgressiveMasking, RandomMasking
from coda.model import RandomAnnealing, ScratchBackbone
from coda.module import DiffusionModule
from coda.objective import DiffusionObjective, TimeSampler
from coda.optimization import LinearDecay

REPOSITORY = Path(__file__).resolve().parent.parent


class TokenMasking(MaskingStrategy):
    """Masks by token id alone, so that a row is masked alike in whatever micro-batch it stands."""

    def transform(self, draft: Draft, progress: Tensor, pad_token_id: int | None) -> None:
        draft.maskable = draft.maskable & (draft.target_ids % 3 != 0) & (draft.target_ids % 5 < 3)


class AlwaysOne(TimeSampler):
    """t = 1: every maskable token is masked."""

    def spread(self, index: Tensor, batch_size: int, noise: Tensor, rotation: int | Tensor) -> Tensor:
        return torch.ones_like(noise)


class Record(L.Callback):
    """Keeps the gradient of every optimizer step, the losses, and the rows that were read."""

    def __init__(self) -> None:
        self.gradients: list[Tensor] = []
        self.losses: list[float] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: object) -> None:
        gradients = [p.grad.flatten() for p in pl_module.parameters() if p.grad is not None]
        self.gradients.append(torch.cat(gradients).clone())

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: dict, *_: object) -> None:
        self.losses.append(float(outputs["output"].loss_sum))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """About 60 short documents."""
    path = tmp_path / "corpus"
    path.mkdir()
    for i in range(60):
        lines = [f"def function_{i}_{j}(x, y):\n    return x * {j} + y\n" for j in range(12)]
        (path / f"{i:02}.py").write_text("\n".join(lines))
    return path


def data(corpus: Path, **options: object) -> CorpusDataModule:
    settings = {"sequence_length": 32, "global_batch_size": 8, "vocab_size": 300, "val_fraction": 0.2}
    sources = [TextFiles([str(corpus)])]
    return CorpusDataModule(sources=sources, cache_dir=str(corpus.parent / "cache"), **{**settings, **options})


def module(**options: object) -> DiffusionModule:
    torch.manual_seed(0)
    backbone = ScratchBackbone(32, 64, 2, 2, 1, 16, max_position_embeddings=64)
    settings = {"backbone": backbone, "masking": RandomMasking(), "optimizer": lambda p: torch.optim.AdamW(p, lr=1e-2)}
    return DiffusionModule(**{**settings, **options})


def trainer(folder: Path, *callbacks: L.Callback, **options: object) -> L.Trainer:
    settings = {
        "accelerator": "cpu",
        "devices": 1,
        "max_steps": 4,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
        "use_distributed_sampler": False,
        "default_root_dir": folder,
    }
    return L.Trainer(callbacks=list(callbacks), **{**settings, **options})


def first_gradient(corpus: Path, denominator: str = "maskable", **options: object) -> Tensor:
    """The gradient of the first optimizer step, in float64."""
    record = Record()
    objective = DiffusionObjective(time=AlwaysOne(), denominator=denominator)
    fit = trainer(corpus.parent, record, max_steps=1, precision="64-true", **options)
    fit.fit(module(masking=TokenMasking(), objective=objective), data(corpus))
    return record.gradients[0]


@pytest.mark.parametrize("denominator", ["maskable", "tokens", "masked", "sequence"])
def test_accumulated_micro_batches_give_the_gradient_of_one_large_batch(corpus: Path, denominator: str) -> None:
    whole = first_gradient(corpus, denominator)
    for parts in (2, 8):
        accumulated = first_gradient(corpus, denominator, accumulate_grad_batches=parts)
        torch.testing.assert_close(accumulated, whole, rtol=1e-9, atol=1e-12)


def test_the_gradient_is_that_of_the_loss_written_out(corpus: Path) -> None:
    """Full logits, plain cross-entropy, one mean: no scaling is left over."""
    record, model, rows = (
        Record(),
        module(masking=TokenMasking(), objective=DiffusionObjective(AlwaysOne())),
        data(corpus),
    )
    trainer(corpus.parent, record, max_steps=1, precision="64-true", accumulate_grad_batches=2).fit(model, rows)

    fresh, reference = module(), data(corpus)
    fit = trainer(corpus.parent, max_steps=1, precision="64-true")
    fit.fit_loop.epoch_loop.max_steps = 0
    fit.fit(fresh, reference)
    ids = next(iter(reference.train_dataloader()))["input_ids"]
    masked = (ids % 3 != 0) & (ids % 5 < 3)
    masked[:, 0] = False
    noisy = torch.where(masked, fresh.backbone.config.mask_token_id, ids)
    logits = fresh.backbone.double()(noisy).logits[:, :-1]
    nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    (nll * masked[:, 1:].flatten()).sum().div(masked.sum()).backward()
    expected = torch.cat([p.grad.flatten() for p in fresh.backbone.parameters()])
    torch.testing.assert_close(record.gradients[0], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_two_ranks_give_the_gradient_of_one(corpus: Path, tmp_path: Path) -> None:
    """Real gloo processes, with accumulation."""
    whole = first_gradient(corpus)
    script = tmp_path / "ranks.py"
    script.write_text(
        "import sys, torch; from pathlib import Path; sys.path.insert(0, sys.argv[3])\n"
        "from test_module import first_gradient\n"
        "if __name__ == '__main__':\n"
        "    options = {'strategy': 'ddp', 'devices': 2, 'accumulate_grad_batches': 2}\n"
        "    torch.save(first_gradient(Path(sys.argv[1]), **options), sys.argv[2])\n"
    )
    output = tmp_path / "gradient.pt"
    command = [sys.executable, str(script), str(corpus), str(output), str(Path(__file__).parent)]
    subprocess.run(command, check=True, capture_output=True, cwd=REPOSITORY, env=child_environment())
    torch.testing.assert_close(torch.load(output), whole, rtol=1e-9, atol=1e-12)


def child_environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


def test_training_is_a_function_of_the_seed(corpus: Path) -> None:
    losses = []
    for seed in (1, 1, 2):
        record = Record()
        torch.rand(seed + len(losses))  # the global generator stands elsewhere each time
        trainer(corpus.parent, record).fit(module(seed=seed), data(corpus))
        losses.append(record.losses)
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_resuming_mid_epoch_continues_bit_for_bit(corpus: Path, tmp_path: Path, accumulate: int) -> None:
    """Weights, optimizer, schedule, masks and the order of rows."""
    options = {"accumulate_grad_batches": accumulate, "max_steps": 30}
    parts = {"masking": ProgressiveMasking(0.2, 0.2, 0.25, [2, 4]), "lr_schedule": LinearDecay(2)}
    whole = Record()
    trainer(tmp_path, whole, **options).fit(module(**parts), data(corpus))

    saved = L.pytorch.callbacks.ModelCheckpoint(
        tmp_path / "ckpt", filename="{step}", every_n_train_steps=7, save_top_k=-1
    )
    trainer(tmp_path, saved, enable_checkpointing=True, **options).fit(module(**parts), data(corpus))
    rest = Record()
    checkpoint, done = tmp_path / "ckpt" / "step=7.ckpt", 7
    trainer(tmp_path, rest, **options).fit(module(**parts), data(corpus), ckpt_path=checkpoint)
    assert rest.losses == whole.losses[done * accumulate :]


def test_resuming_takes_hyperparameters_from_the_configuration(corpus: Path, tmp_path: Path) -> None:
    """An optimizer's state holds its learning rate and weight decay; those of the checkpoint must not win."""
    fit = trainer(tmp_path)
    fit.fit(module(lr_schedule=LinearDecay()), data(corpus))
    fit.save_checkpoint(tmp_path / "old.ckpt")
    seen: list[tuple[float, float, float]] = []

    class Look(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *_: object) -> None:
            matrices, vectors = trainer.optimizers[0].param_groups
            seen.append((matrices["lr"], matrices["weight_decay"], vectors["weight_decay"]))

    changed = module(lr_schedule=LinearDecay(), optimizer=lambda p: torch.optim.AdamW(p, lr=0.5, weight_decay=0.25))
    trainer(tmp_path, Look(), max_steps=8).fit(changed, data(corpus), ckpt_path=tmp_path / "old.ckpt")
    assert seen == [(0.5 * (1 - step / 8), 0.25, 0.0) for step in range(4, 8)]


def test_the_next_stage_starts_from_weights_alone(corpus: Path, tmp_path: Path) -> None:
    first = module()
    fit = trainer(tmp_path)
    fit.fit(first, data(corpus))
    fit.save_checkpoint(tmp_path / "stage.ckpt")
    second = module(init_from=str(tmp_path / "stage.ckpt"), masking=ProgressiveMasking(0.1, 0.1, 0.1, [2]))
    record = Record()
    fit = trainer(tmp_path, record, max_steps=1)
    second_start: list[Tensor] = []
    fit.callbacks.append(_Peek(second_start))
    fit.fit(second, data(corpus))
    assert all(torch.equal(a, b) for a, b in zip(second_start, first.backbone.state_dict().values(), strict=True))
    assert fit.global_step == 1  # neither steps nor optimizer state came along


class _Peek(L.Callback):
    def __init__(self, seen: list[Tensor]) -> None:
        self.seen = seen

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.seen += [value.clone() for value in pl_module.backbone.state_dict().values()]


def test_validation_is_the_bound_whatever_the_training_and_repeats_exactly(corpus: Path, tmp_path: Path) -> None:
    fit = trainer(tmp_path, limit_val_batches=1.0)
    plain, progressive = module(), module(masking=ProgressiveMasking(0.4, 0.4, 1.0, [8]))
    values = []
    for model in (plain, progressive, plain):
        values.append(fit.validate(model, data(corpus), verbose=False)[0]["val/bound"])
        progressive.backbone = plain.backbone
    assert values[0] == values[1] == values[2]
    assert abs(values[0] - torch.tensor(320.0).log()) < 0.5  # random weights know no more than the uniform distribution


def test_the_bound_is_the_same_sum_in_half_precision(corpus: Path, tmp_path: Path) -> None:
    """Sums kept in bfloat16 stop growing after 256 terms of the same size."""
    model = module()
    trainer(tmp_path, limit_val_batches=1, precision="bf16-true").validate(model, data(corpus), verbose=False)
    for metric in (model.bound, model.accuracy):
        with torch.inference_mode():  # as in validation
            for _ in range(1000):
                metric.update(torch.tensor(5.0), torch.tensor(8191.0))
        assert metric.mean_value.dtype == metric.weight.dtype == torch.float32
        assert abs(float(metric.compute()) - 5.0) < 0.01


def test_weights_trained_without_shift_are_not_continued_with_it(corpus: Path, tmp_path: Path) -> None:
    fit = trainer(tmp_path, max_steps=1)
    fit.fit(module(objective=DiffusionObjective(shift=False)), data(corpus))
    fit.save_checkpoint(tmp_path / "unshifted.ckpt")
    with pytest.raises(ValueError, match=r"model\.init_from: .*shift False, but model\.objective\.shift is True"):
        trainer(tmp_path).fit(module(init_from=str(tmp_path / "unshifted.ckpt")), data(corpus))


def test_the_logged_loss_is_that_of_the_whole_step(corpus: Path, tmp_path: Path) -> None:
    logged = []
    for parts in (1, 4):
        objective = DiffusionObjective(time=AlwaysOne())
        fit = trainer(tmp_path, max_steps=1, precision="64-true", accumulate_grad_batches=parts, log_every_n_steps=1)
        fit.fit(module(masking=TokenMasking(), objective=objective), data(corpus))
        logged.append(float(fit.logged_metrics["train/loss"]))
    assert logged[0] == pytest.approx(logged[1], rel=1e-9)


def test_annealing_restricts_attention_early_and_not_at_the_end(corpus: Path, tmp_path: Path) -> None:
    restricted: list[bool] = []

    class Spy(RandomAnnealing):
        def visible(self, *args: object) -> object:
            found = super().visible(*args)
            restricted.append(found is not None)
            return found

    trainer(tmp_path).fit(module(annealing=Spy(until=0.5)), data(corpus))
    assert restricted == [True, True, False, False]


def test_document_segments_reach_the_model(corpus: Path, tmp_path: Path) -> None:
    """With segments, a document's first token is no target and its neighbours are unseen."""
    record, plain = Record(), Record()
    long = {"sequence_length": 64, "global_batch_size": 16}  # in which some document ends
    trainer(tmp_path, record, max_steps=1).fit(module(), data(corpus, **long, segments=True))
    trainer(tmp_path, plain, max_steps=1).fit(module(), data(corpus, **long))
    assert record.losses != plain.losses


@pytest.mark.parametrize(
    ("options", "data_options", "words"),
    [
        ({}, {"sequence_length": 128}, ["data.sequence_length is 128", "64 positions"]),
        ({"init_from": "missing.ckpt"}, {}, ["missing.ckpt"]),
        ({"init_from": "no-such-folder"}, {}, ["no-such-folder"]),
    ],
)
def test_what_does_not_fit_is_an_error_before_the_first_step(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict, data_options: dict, words: list[str]
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    record = Record()
    with pytest.raises(ValueError, match=words[0]) as error:
        trainer(tmp_path, record).fit(module(**options), data(corpus, **data_options))
    assert all(word in str(error.value) for word in words)
    assert not record.losses


def test_a_run_without_length_is_an_error(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"trainer\.max_steps"):
        trainer(tmp_path, max_steps=-1, max_epochs=-1).fit(module(), data(corpus))
