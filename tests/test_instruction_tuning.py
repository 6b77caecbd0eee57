"""Instruction tuning through the LightningModule: what a row costs, whatever its batch, and what a run leaves behind."""

import copy
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from transformers import AutoTokenizer

from callbacks import DiffusionMonitor, DiffusionSampling, ModelExport, PredictionWriter, Throughput
from coda.checkpoint import load_model
from coda.data.chat import TEMPLATE
from coda.masking import InstructionMasking, MaskingStrategy, RandomMasking
from coda.module import DiffusionModule
from coda.objective import DiffusionObjective
from tests.conftest import Tiny
from tests.data.chats import chat_data

STRATEGIES: dict[str, MaskingStrategy] = {
    "random": RandomMasking(),
    "prompt given": InstructionMasking(),
    "prompt in part": InstructionMasking(ramp=0.5),
}
GROUPED = {"canvas_multiple": 8, "group_by_length": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chats")


@pytest.fixture
def module(tiny: Tiny, folder: Path) -> DiffusionModule:
    """In float64, at step 3 of 20."""
    torch.manual_seed(0)
    made = tiny.module()
    made.backbone = made.backbone_source.build(chat_data(folder).tokenizer).double()
    made._trainer = SimpleNamespace(global_step=3, estimated_stepping_batches=20)  # type: ignore[assignment]
    return made


def costs(module: DiffusionModule, masking: MaskingStrategy, batch: dict[str, Tensor]) -> dict[int, tuple[float, ...]]:
    """Unweighted loss, weighted loss, masked and maskable tokens and noise level of every row, by its number."""
    objective = DiffusionObjective()
    with torch.no_grad():
        output, masked, t = module.diffuse(batch, masking, objective, 8)
    assert torch.allclose(output.loss_sum, (output.nll / t).sum(), rtol=1e-6)  # t is float32
    assert output.denominator == output.maskable.sum()
    values = zip(output.nll, output.masked, output.maskable, t, strict=True)
    rows = [tuple(float(value) for value in row) for row in values]
    assert not (masked.masked & ~batch.get("attention_mask", torch.ones_like(masked.masked))).any()
    return dict(zip(batch["sample"].tolist(), rows, strict=True))


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("masking", STRATEGIES.values(), ids=STRATEGIES.keys())
def test_a_row_costs_the_same_alone_and_in_any_batch(
    module: DiffusionModule, masking: MaskingStrategy, training: bool, folder: Path
) -> None:
    module.train(training)
    rows = chat_data(folder, canvas_multiple=8).rows("train")
    samples = list(range(24))
    alone: dict[int, tuple[float, ...]] = {}
    for n in samples:
        alone |= costs(module, masking, rows.collate([rows[n]]))
    assert len({len(rows[n]["input_ids"]) for n in samples}) > 3
    assert min(row[1] for row in alone.values()) >= 0 < max(row[1] for row in alone.values())
    for size, order in (
        (4, samples),
        (8, samples[::-1]),
        (24, samples),
        (3, sorted(samples, key=lambda n: n * 7 % 24)),
    ):
        for i in range(0, 24, size):
            batch = rows.collate([rows[n] for n in order[i : i + size]])
            for n, row in costs(module, masking, batch).items():
                assert row == pytest.approx(alone[n], rel=1e-9), n
                assert row[1:] == alone[n][1:]


def test_a_conversation_costs_the_same_grouped_or_not(module: DiffusionModule, folder: Path) -> None:
    """With the same number, from which its noise is drawn."""
    plain, grouped = (chat_data(folder, canvas_multiple=8, group_by_length=g).rows("train") for g in (False, True))
    module.train()
    for start in (0, 8, 32):
        batch = grouped.collate([grouped[n] for n in range(start, start + 8)])
        costly = costs(module, STRATEGIES["prompt in part"], batch)
        for n in range(start, start + 8):
            row = plain[grouped._grouped(n)] | {"sample": torch.tensor(n)}  # type: ignore[attr-defined]
            (cost,) = costs(module, STRATEGIES["prompt in part"], plain.collate([row])).values()
            assert costly[n] == pytest.approx(cost, rel=1e-9)


def test_what_fills_up_a_batch_reaches_no_other_token(module: DiffusionModule, folder: Path) -> None:
    """If it did, the loss would change with what it is."""
    rows = chat_data(folder, canvas_multiple=8).rows("train")
    batch = rows.collate([rows[n] for n in range(8)])
    other = copy.deepcopy(batch)
    hidden = ~batch["attention_mask"]
    assert hidden.sum() > 20
    other["input_ids"][hidden] = torch.randint(5, 100, (int(hidden.sum()),))
    module.eval()
    masking = InstructionMasking()
    theirs, ours = (torch.tensor(list(costs(module, masking, b).values())) for b in (other, batch))
    assert torch.allclose(theirs, ours, rtol=1e-12)
    del other["attention_mask"]
    assert not torch.allclose(torch.tensor(list(costs(module, masking, other).values())), ours, rtol=1e-3)


class Losses(Callback):
    """Keeps every step's loss and what was maskable of it."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.maskable: list[int] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.losses.append(float(outputs["loss"]))
        self.maskable.append(int(outputs["output"].maskable.sum()))


@pytest.mark.parametrize("options", [{}, GROUPED], ids=["full rows", "grouped"])
def test_a_run_trains_validates_samples_and_predicts(tiny: Tiny, folder: Path, options: dict[str, Any]) -> None:
    losses = Losses()
    sampling = DiffusionSampling(every_n_steps=2, max_new_tokens=4, steps=2, chat=True)
    trainer = tiny.trainer(
        losses, sampling, DiffusionMonitor(), Throughput(), max_steps=4, val_check_interval=2, log_every_n_steps=1
    )
    data = chat_data(folder, count=60, val_fraction=0.4, **options)
    module = tiny.module(InstructionMasking())
    trainer.fit(module, data)
    assert len(losses.losses) == 4 and all(map(math.isfinite, losses.losses))
    assert float(trainer.callback_metrics["val/bound"]) > 0
    tiny.trainer(PredictionWriter(), limit_predict_batches=1).predict(module, data)


def test_less_and_less_of_the_prompt_is_scored_as_training_goes_on(tiny: Tiny, folder: Path) -> None:
    """Ten steps over the same forty rows, ramp over the first half."""
    losses = Losses()
    data = chat_data(folder)
    tiny.trainer(losses, max_steps=10, limit_val_batches=0).fit(tiny.module(InstructionMasking(ramp=0.5)), data)
    responses = 8 * 96 - torch.tensor([len_prompt(data, n) for n in range(80)]).view(10, 8).sum(dim=1)
    extra = torch.tensor(losses.maskable) - responses
    prompts = 8 * 96 - responses
    assert (extra[:5] > 0).all() and (extra[:5].diff() < 0).all() and (extra[5:] == 0).all()
    assert extra[0] == prompts[0] - 8  # all but the first token of each row
    for step in range(1, 5):
        lost = int(prompts[step] - extra[step])
        assert abs(lost - step / 5 * int(prompts[step])) <= 8  # floor


def len_prompt(data: Any, sample: int) -> int:
    return int(data.rows("train")[sample]["maskable"].long().argmax())


def test_checkpoint_and_export_carry_the_chat_template(tiny: Tiny, folder: Path) -> None:
    keeper = ModelCheckpoint(tiny.folder / "kept", filename="x", save_top_k=1, every_n_train_steps=1)
    export = ModelExport(str(tiny.folder / "export"))
    tiny.trainer(keeper, export, max_steps=1, limit_val_batches=0, enable_checkpointing=True).fit(
        tiny.module(InstructionMasking()), chat_data(folder)
    )
    assert load_model(str(tiny.folder / "kept" / "x.ckpt"))[1].chat_template == TEMPLATE
    assert load_model(str(tiny.folder / "export"))[1].chat_template == TEMPLATE
    assert AutoTokenizer.from_pretrained(tiny.folder / "export").chat_template == TEMPLATE
