"""LoRA and DoRA: only the adapter learns, a run goes on exactly, and what is read of a checkpoint is merged."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from callbacks import ModelExport
from coda.adapter import LoRA, adapter_of, attach, merge
from coda.checkpoint import build_model, describe, load_model, load_weights, read_checkpoint
from coda.data.tokenizer import train_tokenizer
from coda.model import CoDALanguageModel, ScratchBackbone
from coda.module import DiffusionModule
from tests.conftest import Tiny
from tests.test_export import TEXT, small_model

KINDS = {"lora": LoRA(rank=3, alpha=9), "dora": LoRA(rank=3, use_dora=True), "rslora": LoRA(rank=4, use_rslora=True)}
each_kind = pytest.mark.parametrize("adapter", KINDS.values(), ids=KINDS)
IDS = torch.arange(4, 20)[None]


def disturb(model: CoDALanguageModel) -> None:
    """Give an adapter, which begins at no effect, one."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter) * (1.0 if "lora" in name else 0.0))


def adapted(adapter: LoRA, **settings: Any) -> CoDALanguageModel:
    model = small_model(train_tokenizer([TEXT] * 3, 270), **settings)
    adapter(model)
    return model


@each_kind
def test_an_adapter_begins_at_no_effect(adapter: LoRA) -> None:
    plain = small_model(train_tokenizer([TEXT] * 3, 270))
    torch.testing.assert_close(adapted(adapter)(IDS).logits, plain(IDS).logits)


@each_kind
def test_nothing_but_the_adapter_learns(adapter: LoRA) -> None:
    model = adapted(adapter)
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learning == {name for name, _ in model.named_parameters() if "lora_" in name}
    for layer in range(2):
        for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj"):
            assert f"model.layers.{layer}.{name}.lora_A.default.weight" in learning


def test_chosen_layers_alone_are_adapted() -> None:
    model = adapted(LoRA(target_modules=["q_proj"]))
    assert {name.split(".")[-4] for name, p in model.named_parameters() if p.requires_grad} == {"q_proj"}


@each_kind
def test_merged_weights_compute_the_same_to_rounding(adapter: LoRA) -> None:
    model = adapted(adapter)
    before = model(IDS).logits
    disturb(model)
    with torch.no_grad():
        expected = model(IDS).logits
        merge(model)
        found = model(IDS).logits
    assert (expected - before).abs().max() > 0.1, "the adapter has no effect"
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
    assert adapter_of(model) is None
    assert model.state_dict().keys() == small_model(train_tokenizer([TEXT] * 3, 270)).state_dict().keys()
    assert all(parameter.requires_grad for parameter in model.parameters())


@each_kind
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_checkpoint_of_an_adapted_model_is_read_merged(tmp_path: Path, adapter: LoRA, tied: bool) -> None:
    tokenizer = train_tokenizer([TEXT] * 3, 270)
    model = small_model(tokenizer, tied)
    adapter(model)
    disturb(model)
    state = {f"backbone.{name}": value for name, value in model.state_dict().items()}
    torch.save({"state_dict": state, "coda": describe(model, tokenizer)}, tmp_path / "x.ckpt")
    loaded, _ = load_model(str(tmp_path / "x.ckpt"))
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(IDS).logits, model(IDS).logits, atol=2e-5, rtol=1e-5)
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
    into = small_model(tokenizer, tied)
    load_weights(into, str(tmp_path / "x.ckpt"))
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in into.state_dict().items())


def test_a_merge_is_done_in_full_precision_before_a_cast() -> None:
    model = adapted(LoRA(rank=3))
    disturb(model)
    record = {"config": model.config.to_dict(), "adapter": adapter_of(model)}
    state = {f"backbone.{name}": value for name, value in model.state_dict().items()}
    whole, cast = (build_model(record, state, "x", dtype=dtype) for dtype in ("float32", "bfloat16"))
    for name, value in cast.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name].bfloat16()), name
    assert cast.model.rotary_emb.inv_freq.dtype == torch.float32


class Tuned:
    """Fits of an adapter that go on from one another."""

    def __init__(self, tiny: Tiny, adapter: LoRA) -> None:
        self.tiny, self.adapter = tiny, adapter

    def module(self, **options: Any) -> DiffusionModule:
        return self.tiny.module(**{"adapter": self.adapter, **options})

    def fit(self, module: DiffusionModule, steps: int, *callbacks: Any, ckpt_path: Path | None = None) -> Path:
        folder = self.tiny.folder / "kept"
        keeper = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        trainer = self.tiny.trainer(
            keeper, *callbacks, max_steps=steps, limit_val_batches=0, enable_checkpointing=True, log_every_n_steps=1
        )
        torch.manual_seed(0)
        trainer.fit(module, self.tiny.data(), ckpt_path=ckpt_path)
        return folder / f"step={steps}.ckpt"


def weights(path: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = read_checkpoint(str(path))["state_dict"]
    return state


@each_kind
def test_training_changes_the_adapter_alone_and_goes_on_exactly(tiny: Tiny, adapter: LoRA) -> None:
    tuned = Tuned(tiny, adapter)
    last = tuned.fit(tuned.module(), 4)
    first, whole = weights(last.with_name("step=1.ckpt")), weights(last)
    changed = {name for name in whole if not torch.equal(first[name], whole[name])}
    assert changed == {name for name in whole if "lora_" in name}
    tuned.fit(tuned.module(), 4, ckpt_path=last.with_name("step=2.ckpt"))
    again = weights(last)
    assert all(torch.equal(value, again[name]) for name, value in whole.items())
    states = read_checkpoint(str(last))["optimizer_states"][0]["state"]
    assert len(states) == len(changed), "the optimizer holds state of weights that do not learn"


def test_the_export_is_merged_and_the_next_stage_starts_from_it(tiny: Tiny) -> None:
    tuned = Tuned(tiny, LoRA(rank=2))
    module = tuned.module()
    last = tuned.fit(module, 3, ModelExport(str(tiny.folder / "export"), verify=False))
    exported, _ = load_model(str(tiny.folder / "export"))
    with torch.no_grad():
        expected = module.backbone.eval()(IDS).logits
        torch.testing.assert_close(exported.eval()(IDS).logits, expected, atol=2e-5, rtol=1e-5)
    for source in (str(tiny.folder / "export"), str(last)):
        following = tuned.module(init_from=source)
        tuned.fit(following, 1)
        started = {name.replace(".base_layer", ""): value for name, value in following.backbone.state_dict().items()}
        assert all(torch.equal(value, started[name]) for name, value in exported.state_dict().items())


def test_recomputed_activations_give_the_adapter_its_gradients(tiny: Tiny) -> None:
    tokenizer = tiny.data().tokenizer
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "gradient_checkpointing": checkpointing}
        model = ScratchBackbone(**sizes).build(tokenizer).train()  # type: ignore[arg-type]
        LoRA(rank=2)(model)
        disturb(model)
        model(IDS).logits.square().mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    plain, recomputed = gradients
    assert all(float(gradient.abs().max()) > 0 for gradient in plain.values())
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient)


@pytest.mark.parametrize(
    ("before", "after"), [(LoRA(rank=2), LoRA(rank=3)), (LoRA(rank=2), None), (None, LoRA(rank=2))]
)
def test_a_run_does_not_go_on_with_another_adapter(tiny: Tiny, before: LoRA | None, after: LoRA | None) -> None:
    tuned = Tuned(tiny, LoRA())
    last = tuned.fit(tuned.module(adapter=before), 1)
    with pytest.raises(ValueError, match=r"model.adapter is .*, but the checkpoint's is .*; set it alike to go on"):
        tuned.fit(tuned.module(adapter=after), 2, ckpt_path=last)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "model.adapter rank is 0; it must be at least 1"),
        ({"dropout": 1.0}, "model.adapter dropout is 1.0; it must be in [0, 1)"),
        ({"target_modules": ["q_proj", "lm_head"]}, "model.adapter target_modules names lm_head; choose among q_proj,"),
    ],
)
def test_a_setting_that_cannot_be_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        LoRA(**settings)


def test_without_peft_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model(train_tokenizer([TEXT] * 3, 270))
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(ValueError, match=r'adapters need peft; pip install "coda-diffusion\[adapter\]"'):
        attach(model, LoRA().settings)
