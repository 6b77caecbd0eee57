"""A row's noise level and mask are a function of (seed, step, number of the row), not of the batch it stands in."""

from typing import Any

import pytest
import torch
from torch import Tensor

from coda.masking import BlockMasking, MaskingStrategy, ProgressiveMasking, RandomMasking, TruncatedSuffix
from coda.model.sampling_coda import row_noise
from coda.module import DiffusionModule
from tests.conftest import Tiny

STRATEGIES: dict[str, MaskingStrategy] = {
    "random": RandomMasking(),
    "S2": TruncatedSuffix(0.5),
    "S3": BlockMasking([2, 4, 8], 0.5),
    "progressive": ProgressiveMasking(0.3, 0.3, 0.5, [2, 4, 8]),
}
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES.keys())
ROWS, LENGTH = 32, 40


def draws(strategy: MaskingStrategy, seeds: Tensor, t: float = 0.5) -> dict[str, Tensor]:
    ids = torch.ones(len(seeds), LENGTH, dtype=torch.long)
    times = torch.full((len(seeds),), t)
    options = {"mask_token_id": 9, "pad_token_id": 0, "seeds": seeds}
    out = strategy(ids, torch.ones_like(ids, dtype=torch.bool), times, 0.5, **options)
    return {"masked": out.masked, "targets": out.target_ids, "maskable": out.maskable, **out.applied}


@every_strategy
def test_a_mask_depends_on_the_seed_of_its_row_alone(strategy: MaskingStrategy) -> None:
    seeds = torch.arange(1000, 1000 + ROWS)
    whole = draws(strategy, seeds)
    for rows in (torch.arange(ROWS).flip(0), torch.arange(8, 16), torch.tensor([31]), torch.tensor([3, 3, 0])):
        part = draws(strategy, seeds[rows])
        assert all(torch.equal(part[name], whole[name][rows]) for name in whole)


@every_strategy
def test_drawing_with_seeds_leaves_the_global_random_state(strategy: MaskingStrategy) -> None:
    state = torch.get_rng_state()
    draws(strategy, torch.arange(ROWS))
    assert torch.equal(torch.get_rng_state(), state)


@every_strategy
def test_other_seeds_give_other_masks(strategy: MaskingStrategy) -> None:
    masks = torch.cat([draws(strategy, torch.arange(ROWS) + offset)["masked"] for offset in (0, 10**6, 2**61)])
    assert len(masks.unique(dim=0)) > 2.7 * ROWS  # short rows may be masked alike


@pytest.mark.parametrize("counters", [(0, 1), (1, 2), (0, 7)])
def test_draws_of_a_row_are_independent(counters: tuple[int, int]) -> None:
    """The noise level says nothing of the mask, nor one draw of the next, nor a row of its neighbour."""
    rows, bound = 20_000, 5 / 20_000**0.5
    first, second = (row_noise(torch.arange(rows + 1), counter, 3) for counter in counters)
    for a, b in ((first[1:], second[1:]), (first[1:], second[:-1]), (first[:-1], second[1:]), (first[1:], first[:-1])):
        together = torch.corrcoef(torch.cat([a, b], dim=1).T)[:3, 3:]
        assert together.abs().max() < bound


def test_consecutive_seeds_are_uniform_together() -> None:
    """Pairs of neighbouring rows fill a 10 x 10 grid evenly: chi-squared, below its mean plus 5 sigma."""
    noise = row_noise(torch.arange(100_000), 0, 1)[:, 0]
    cells = (noise[:-1] * 10).long() * 10 + (noise[1:] * 10).long()
    expected = len(cells) / 100
    statistic = ((cells.bincount(minlength=100) - expected) ** 2 / expected).sum()
    assert statistic < 99 + 5 * (2 * 99) ** 0.5


@pytest.fixture(autouse=True)
def _halfway(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DiffusionModule, "progress", 0.5)


def step_draws(
    tiny: Tiny, samples: Tensor, micro_batch: int, training: bool = True, **options: Any
) -> dict[str, Tensor]:
    """Noise levels and masks of one optimizer step, as the module draws them in micro-batches."""
    module = tiny.module(ProgressiveMasking(0.3, 0.3, 0.5, [2, 4]), **options)
    module.trainer = tiny.trainer(logger=False)
    module.backbone = module.backbone_source.build(tiny.data().tokenizer, load_weights=False)
    module.train(training)
    drawn = []
    for part in samples.split(micro_batch):
        ids = torch.full((len(part), 32), 7)
        batch = {"input_ids": ids, "maskable": torch.ones_like(ids, dtype=torch.bool), "sample": part}
        _, masked, t = module.diffuse(batch, module.masking, module.objective, len(samples))
        drawn.append((t, masked.masked))
    return {"t": torch.cat([t for t, _ in drawn]), "masked": torch.cat([masked for _, masked in drawn])}


def test_training_draws_the_same_in_any_micro_batches(tiny: Tiny) -> None:
    samples = torch.arange(48, 64)
    whole = step_draws(tiny, samples, 16)
    for micro_batch in (1, 4, 8):
        parts = step_draws(tiny, samples, micro_batch)
        assert torch.equal(parts["t"], whole["t"])
        assert torch.equal(parts["masked"], whole["masked"])
    backwards = step_draws(tiny, samples.flip(0), 4)
    assert torch.equal(backwards["t"].flip(0), whole["t"])
    assert torch.equal(backwards["masked"].flip(0), whole["masked"])


def test_the_rows_of_a_step_take_one_noise_level_each(tiny: Tiny) -> None:
    t = step_draws(tiny, torch.arange(10**9, 10**9 + 16), 4)["t"]
    assert ((t.double() - 1e-3) / 0.999 * 16).floor().long().sort().values.tolist() == list(range(16))


@pytest.mark.parametrize("options", [{"seed": 1}, {"training": False}], ids=["seed", "validation"])
def test_other_seeds_and_validation_have_noise_of_their_own(tiny: Tiny, options: dict[str, Any]) -> None:
    samples = torch.arange(16)
    one, other = step_draws(tiny, samples, 16), step_draws(tiny, samples, 16, **options)
    assert not (one["t"] == other["t"]).any()
    assert not (one["masked"] == other["masked"]).all(dim=1).any()
