"""A program: what the strategy refuses, what it says of hosts and slices, its number formats and what it recomputes."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch_xla
import torch_xla.runtime as xr
from lightning import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import DeviceStatsMonitor, ModelCheckpoint

from callbacks import Preemption
from callbacks.export import full_weights
from coda.objective import DiffusionObjective
from coda.xla import ShardingMap, XLASPMDStrategy, consensus
from coda.xla.checkpointing import read_checkpoint
from coda.xla.mesh import build_mesh
from tests.xla.fits import adamw, data, folder, module, strategy, trainer, two_axes
from tests.xla.speeds import speeds


def fit(
    chosen: XLASPMDStrategy,
    *callbacks: Callback,
    rows: int = 8,
    sizes: dict[str, Any] | None = None,
    optimizer: Any = adamw,
    objective: DiffusionObjective | None = None,
    canvas_multiple: int | None = None,
    **options: Any,
) -> None:
    seed_everything(0, verbose=False)
    runner = trainer(chosen, *callbacks, **{"max_steps": 1, **options})
    model, rows_of_text = module(optimizer, **(sizes or {})), data(global_batch_size=rows)
    model.objective = objective or model.objective
    rows_of_text.canvas_multiple = canvas_multiple  # type: ignore[attr-defined]
    runner.fit(model, rows_of_text)


def on_one_of_two_hosts(**options: Any) -> None:
    chosen = strategy("1,4,1")
    with Faked(0, 2), mock.patch.object(consensus, "join_hosts"):
        fit(chosen, **options)


def refused(function: Callable[[], Any]) -> str:
    try:
        function()
    except (ValueError, RuntimeError) as error:  # the latter are torch's own
        return str(error)
    return "accepted"


def map_of(**parameters: Any) -> ShardingMap:
    return ShardingMap({name.replace("__", "."): axes for name, axes in parameters.items()})


REFUSED: dict[str, Callable[[], Any]] = {
    "mesh of 3": lambda: XLASPMDStrategy({"fsdp": 3}),
    "mesh of 8": lambda: XLASPMDStrategy({"data": 2, "fsdp": 4}),
    "unknown axis": lambda: XLASPMDStrategy({"expert": 4}),
    "two open axes": lambda: XLASPMDStrategy({"data": -1, "fsdp": -1}),
    "two slices": lambda: XLASPMDStrategy({"fsdp": 4}, slices={"data": 2}),
    "half precision": lambda: XLASPMDStrategy(precision="16-true"),  # type: ignore[arg-type]
    "rows": lambda: fit(strategy("1,4,1"), rows=6),
    "rows of a micro-batch": lambda: fit(strategy("1,4,1"), rows=8, accumulate_grad_batches=4),
    "heads": lambda: fit(
        XLASPMDStrategy({"tensor": 4}, sharding=two_axes(), precision="32-true"), sizes={"hidden_size": 64}
    ),
    "precision twice": lambda: fit(strategy("1,4,1"), precision="bf16-mixed"),
    "compiled layers": lambda: fit(strategy("1,4,1"), sizes={"compile_layers": True}),
    "selective": lambda: fit(strategy("1,4,1"), sizes={"gradient_checkpointing": "selective"}),
    "compiled loss": lambda: fit(strategy("1,4,1"), objective=DiffusionObjective(compile_loss=True)),
    "capacity": lambda: fit(strategy("1,4,1"), objective=DiffusionObjective(capacity=0.6, capacity_rows=4)),
    "lengths": lambda: on_one_of_two_hosts(canvas_multiple=16),
    "idle axis": lambda: fit(strategy("1,2,2", sharding=ShardingMap())),
    "sampler": lambda: fit(strategy("1,4,1"), use_distributed_sampler=True),
    "device statistics": lambda: fit(strategy("1,4,1"), DeviceStatsMonitor()),
    "torch's Adafactor": lambda: fit(strategy("1,4,1"), optimizer=torch.optim.Adafactor),
    "fused": lambda: fit(strategy("1,4,1"), optimizer=lambda groups: torch.optim.AdamW(groups, fused=True)),
    "two devices": lambda: trainer(strategy("1,4,1"), devices=2),
    "pattern": lambda: fit(strategy("1,4,1", sharding=map_of(model__layer=["fsdp"]))),
    "dimensions": lambda: fit(strategy("1,4,1", sharding=map_of(model__norm__weight=["fsdp", None]))),
    "odd length": lambda: fit(
        strategy("1,4,1", sharding=map_of(model__embed_tokens__weight=[None, "fsdp"])), sizes={"hidden_size": 30}
    ),
}


class Faked:
    """Another place in a pod."""

    def __init__(self, index: int, count: int) -> None:
        self.patches = [mock.patch.object(xr, "process_index", return_value=index)]
        self.patches.append(mock.patch.object(xr, "process_count", return_value=count))

    def __enter__(self) -> None:
        for patch in self.patches:
            patch.start()

    def __exit__(self, *_: Any) -> None:
        for patch in self.patches:
            patch.stop()


def rows_of(index: int, count: int, mesh: str) -> list[int]:
    """The samples of the first micro-batches that one of several hosts reads."""
    with Faked(index, count):
        runner, loaded = trainer(strategy(mesh), max_steps=4), data(global_batch_size=8)
        loaded.trainer = runner
        order = loaded.train_dataloader().sampler
        return list(order)[:8]


def places() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for index in range(4):
        with Faked(index, 4):
            chosen = strategy("1,4,1")
            runner = trainer(chosen, max_steps=4)
            found[f"host {index}"] = [
                runner.world_size,
                runner.global_rank,
                runner.local_rank,
                runner.is_global_zero,
                chosen.replicas,
            ]
    found["rows"] = [rows_of(index, 4, "1,4,1") for index in range(4)]
    found["shared rows"] = [rows_of(index, 4, "1,2,2") for index in range(4)]
    return found


def other_rows() -> str:
    """Another host that must read the same rows, and reads others."""
    told = iter(range(100))

    def differing(value: Any) -> list[Any]:
        changed = {name: f"{text}{next(told)}" if "rows" in name else text for name, text in value.items()}
        return [value, changed] if isinstance(value, dict) else [value]

    with mock.patch.object(consensus, "gather", lambda value: differing(value) if isinstance(value, dict) else [value]):
        return refused(lambda: fit(strategy("1,2,2")))


def slices() -> dict[str, Any]:
    """Two slices of eight chips as the TPU runtime would tell of them."""
    chips = [
        {
            "name": f"TPU:{i}",
            "coords": [i % 8 % 2, i % 8 // 2 % 2, i % 8 // 4],
            "core_on_chip": 0,
            "slice_index": i // 8,
        }
        for i in range(16)
    ]
    with (
        mock.patch.object(xr, "global_runtime_device_attributes", return_value=chips),
        mock.patch.object(xr, "global_runtime_device_count", return_value=16),
        mock.patch("torch_xla.core.xla_model.xla_device_hw", return_value="TPU"),
    ):
        mesh = build_mesh({"data": 2, "fsdp": -1}, {"data": 2})
        wrong = refused(lambda: build_mesh({"fsdp": 16}, {}))
        uneven = refused(lambda: build_mesh({"data": 1, "fsdp": 16}, {"data": 2}))
        for chip in chips:
            chip["slice_index"] = 0
        single = list(build_mesh({"fsdp": -1}, {}).mesh_shape)
    return {
        "single": single,
        "shape": list(mesh.mesh_shape),
        "halves": mesh.get_logical_mesh().tolist(),
        "wrong": wrong,
        "uneven": uneven,
    }


class Formats(Callback):
    def __init__(self) -> None:
        self.seen: dict[str, str] = {}
        self.divided: dict[str, str] = {}

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        layer = pl_module.backbone.model.layers[0]
        for name, part in {
            "projection": layer.self_attn.q_proj,
            "norm": layer.self_attn.q_norm,
            "layer": layer,
        }.items():
            part.register_forward_hook(lambda _, __, output, name=name: self.note(name, output))
        self.seen["rotary"] = str(pl_module.backbone.model.rotary_emb.inv_freq.dtype)

    def note(self, name: str, output: torch.Tensor) -> None:
        self.seen[name] = str(output.dtype)
        self.divided[name] = torch_xla._XLAC._get_xla_sharding_spec(output)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        parameter = pl_module.backbone.model.layers[0].self_attn.q_proj.weight
        tied = pl_module.backbone.lm_head.weight is pl_module.backbone.model.embed_tokens.weight
        self.seen |= {"weight": str(parameter.dtype), "gradient": str(parameter.grad.dtype), "tied": str(tied)}
        self.seen["XLA_USE_BF16"] = os.environ.get("XLA_USE_BF16", "unset")


def formats(precision: str) -> dict[str, str]:
    seen = Formats()
    fit(strategy("1,4,1", precision=precision), seen)
    return seen.seen


def divided(mesh: str) -> dict[str, str]:
    seen = Formats()
    fit(strategy(mesh), seen)
    return seen.divided


def products(gradient_checkpointing: bool) -> int:
    """Matrix products of the compiled training step; XLA writes its programs to the folder."""
    dumps = Path(os.environ["XLA_FLAGS"].split("--xla_dump_to=")[1].split()[0])
    before = set(dumps.glob("*after_optimizations.txt"))
    fit(strategy("1,4,1", gradient_checkpointing=gradient_checkpointing))
    texts = [path.read_text() for path in set(dumps.glob("*after_optimizations.txt")) - before]
    return max(text.count(" dot(") + text.count("__onednn$matmul") for text in texts)


class Exported(Callback):
    """What an export would write, whether checkpoints are sharded or full."""

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.weights = full_weights(trainer)


def names() -> dict[str, Any]:
    """Weights keep their names and are tied again after a fit; hooks are gone. Then the same model is tested."""
    model, exported = module(), Exported()
    runner = trainer(strategy("2,2,1"), exported, max_steps=1)
    runner.fit(model, data())
    head, embedding = model.backbone.lm_head.weight, model.backbone.model.embed_tokens.weight
    hooks = sum(len(part._forward_hooks) for part in model.modules())
    found = {"names": sorted(model.state_dict()), "tied": head is embedding, "device": head.device.type, "hooks": hooks}
    there = exported.weights
    found["exported"] = {
        "equal": there.keys() == model.state_dict().keys()
        and all(torch.equal(value, there[name]) for name, value in model.state_dict().items()),
        "tied": there["backbone.lm_head.weight"] is there["backbone.model.embed_tokens.weight"],
        "devices": sorted({value.device.type for value in there.values()}),
    }
    return found | others(model)


def others(model: Any) -> dict[str, Any]:
    """Test and predict, on the devices and on the CPU."""
    found: dict[str, Any] = {}
    model.backbone.generation_config.steps = 1  # in which all positions are predicted from the same canvas
    for place, chosen in (("there", strategy("1,4,1")), ("here", None)):
        runner = trainer(chosen, limit_predict_batches=1)
        (scores,) = runner.test(model, data(), verbose=False)
        (predicted,) = runner.predict(model, data())
        found[place] = {"bound": scores["test/bound"], "sequences": predicted["sequences"].tolist()}
    return {"elsewhere": found}


def preempted() -> dict[str, Any]:
    """SIGTERM in the third step, in a folder where another process was killed while it wrote."""
    left = folder() / "checkpoints" / ".step=1.ckpt.unfinished"
    (left / "part").mkdir(parents=True)
    keeper = ModelCheckpoint(left.parent, every_n_train_steps=100)
    runner = trainer(strategy("2,2,1"), Signal(), keeper, Preemption(), max_steps=9, enable_checkpointing=True)
    try:
        runner.fit(module(), data())
    except SystemExit as end:
        written = read_checkpoint(str(left.parent / "last.ckpt"))
        return {"code": end.code, "steps": written["global_step"], "left": left.exists()}
    return {"code": None}


class Signal(Callback):
    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    folder().mkdir(exist_ok=True)
    results = {
        "products": {str(choice): products(choice) for choice in (False, True)},
        "refused": {name: refused(function) for name, function in REFUSED.items()},
        "places": places(),
        "other rows": other_rows(),
        "slices": slices(),
        "formats": {name: formats(name) for name in ("32-true", "bf16-mixed", "bf16-true")},
        "divided": {mesh: divided(mesh) for mesh in ("2,2,1", "1,2,2")},
        "names": names(),
        "preempted": preempted(),
        "speeds": speeds(),
    }
    assert torch.get_default_dtype() == torch.float32
    print("RESULT" + json.dumps(results))
