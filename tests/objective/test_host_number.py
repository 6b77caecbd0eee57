"""A training step reads one number back from the device, that of the masked tokens, and asks for it before the body runs."""

import traceback
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from coda.masking import BlockMasking, MaskingStrategy, ProgressiveMasking, RandomMasking
from coda.model import CoDAConfig, CoDALanguageModel, ScratchBackbone
from coda.module import DiffusionModule
from coda.objective import DiffusionObjective
from coda.objective.selection import HostNumber

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "head_dim": 16, "vocab_size": 128}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1}
CONFIG = CoDAConfig(**SIZES, **HEADS, mask_token_id=127, **dict.fromkeys(("pad_token_id", "eos_token_id"), 0))
ROWS, LENGTH, MASKED = 4, 32, 17


def module(masking: MaskingStrategy, objective: DiffusionObjective) -> DiffusionModule:
    """A module in the middle of a fit, without its network."""
    made = DiffusionModule(ScratchBackbone(), masking, torch.optim.SGD, objective)
    made._trainer = SimpleNamespace(global_step=3, estimated_stepping_batches=10)  # type: ignore[assignment]
    return made


def step(made: DiffusionModule, documents: bool) -> None:
    """Forward and backward of a batch of rows with two documents each, or with one."""
    ids = torch.randint(0, 100, (ROWS, LENGTH))
    batch = {"input_ids": ids, "maskable": torch.ones_like(ids, dtype=torch.bool), "sample": torch.arange(ROWS)}
    if documents:
        batch["segment_ids"] = (torch.arange(LENGTH) // 20).expand(ROWS, LENGTH)
    output, _, _ = made.diffuse(batch, made.masking, made.objective, ROWS)
    output.loss_sum.backward()


def step_without_values(made: DiffusionModule, documents: bool) -> None:
    """:func:`step` where reading a value, or making a shape that depends on one, is an error."""
    failure = None
    try:
        with FakeTensorMode():
            made.backbone = CoDALanguageModel(CONFIG).train()
            step(made, documents)
    except Exception as error:
        failure = "".join(traceback.format_exception(error))
    assert failure is None, failure  # as text: pytest cannot show tensors without values


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[HostNumber]:
    """The numbers that were read; each is answered with 17."""
    found: list[HostNumber] = []

    def read(number: HostNumber) -> int:
        found.append(number)
        return MASKED

    monkeypatch.setattr(HostNumber, "__int__", read)
    return found


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize(
    "masking", [RandomMasking(), BlockMasking(sizes=[2, 4]), ProgressiveMasking(0.2, 0.2, 0.5, [2, 4])]
)
def test_a_step_reads_the_number_of_masked_tokens_and_nothing_else(
    masking: MaskingStrategy, documents: bool, reads: list[HostNumber]
) -> None:
    made = module(masking, DiffusionObjective())
    step_without_values(made, documents)
    assert len(reads) == 1
    assert all(parameter.grad is not None for parameter in made.backbone.parameters())


def test_the_number_is_asked_for_before_the_body_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    ask = HostNumber.__init__
    monkeypatch.setattr(HostNumber, "__init__", lambda number, value: (order.append("asked"), ask(number, value))[1])
    made = module(RandomMasking(), DiffusionObjective())
    made.backbone = CoDALanguageModel(CONFIG).train()
    made.backbone.register_forward_pre_hook(lambda *_: order.append("body"))
    step(made, documents=False)
    assert order == ["asked", "body"]


def test_without_values_a_reading_is_an_error() -> None:
    with pytest.raises(AssertionError, match="_local_scalar_dense"):
        step_without_values(module(RandomMasking(), DiffusionObjective()), documents=False)


def test_a_full_capacity_reads_nothing(reads: list[HostNumber]) -> None:
    step_without_values(module(RandomMasking(), DiffusionObjective(capacity=1.0)), documents=False)
    assert not reads


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_is_never_waited_for_but_for_that_number() -> None:
    made = module(RandomMasking(), DiffusionObjective())
    with torch.device("cuda"):
        made.backbone = CoDALanguageModel(CONFIG).train()
        step(made, documents=False)
        torch.cuda.set_sync_debug_mode("error")
        try:
            step(made, documents=False)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_a_selection_made_before_the_body_gives_the_same_loss() -> None:
    hidden, head = torch.randn(ROWS, LENGTH, 8), torch.randn(50, 8)
    masked = torch.rand(ROWS, LENGTH) < 0.5
    batch: dict[str, Any] = {"target_ids": torch.randint(0, 50, (ROWS, LENGTH)), "masked": masked}
    batch |= {"maskable": torch.ones_like(masked), "t": torch.full((ROWS,), 0.5)}
    for objective in (DiffusionObjective(), DiffusionObjective(shift=False), DiffusionObjective(capacity=0.5)):
        expected = objective(hidden, head, **batch)
        found = objective(hidden, head, **batch, chosen=objective.select(masked))
        assert torch.equal(found.loss_sum, expected.loss_sum)
        assert torch.equal(found.nll, expected.nll)
