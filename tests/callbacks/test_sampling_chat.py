"""Sampling in the chat template, as instruction tuning does."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch import Tensor

from callbacks import DiffusionSampling
from callbacks.sampling import FUNCTIONS, parses
from coda.data.conversations import TASK, StandardLibraryFunctions
from tests.callbacks.events import scalars, texts
from tests.conftest import Tiny
from tests.data.chats import chat_data

SETTINGS: dict[str, Any] = {"chat": True, "max_new_tokens": 8, "every_n_steps": 2}


@pytest.fixture(scope="module")
def trainer(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    tiny = Tiny(corpus, tmp_path_factory.mktemp("chat"))
    data = chat_data(tiny.folder, vocab_size=400, val_fraction=0.3, count=60)
    trainer = tiny.trainer(DiffusionSampling(**SETTINGS), max_steps=2, val_check_interval=2, log_every_n_steps=1)
    module = tiny.module()
    module.backbone_source.settings["max_position_embeddings"] = 512  # type: ignore[union-attr]
    trainer.fit(module, data)
    return trainer


def test_the_functions_are_asked_for_as_the_embedded_corpus_asks() -> None:
    (user, _) = next(StandardLibraryFunctions().documents())  # type: ignore[misc]
    assert user.content.startswith(TASK)  # type: ignore[union-attr]
    assert user.content == user.content.rstrip()  # type: ignore[union-attr]
    assert all(parses(f"{head}    return 1\n") and head.endswith('"""\n') for head in FUNCTIONS)


def test_every_function_is_logged_behind_its_head(trainer: Trainer) -> None:
    logged = texts(trainer)
    names = [f"samples/function_{number}" for number in range(len(FUNCTIONS))]
    assert logged.keys() == {*names, "samples/denoising"}
    for name, head in zip(names, FUNCTIONS, strict=True):
        assert logged[name].keys() == {1}
        sample = "\n".join(line[4:] for line in logged[name][1].split("\n"))
        assert sample.startswith(head.rstrip("\n"))
        assert "<|mask|>" not in sample and "<|im_end|>" not in sample and TASK.strip() not in sample


def test_the_history_shows_the_whole_chat(trainer: Trainer) -> None:
    history = texts(trainer)["samples/denoising"][1]
    asked = f"<|im_start|>user\n{TASK}{FUNCTIONS[0].rstrip()}<|im_end|>\n<|im_start|>assistant\n"
    assert asked.replace("\n", "\n    ") in history


def test_there_is_no_infilling_score(trainer: Trainer) -> None:
    """Nothing was trained to fill in a prompt."""
    values = scalars(trainer)
    assert "samples/infilling_exact_match" not in values
    assert values["samples/parses"].keys() == {1}


def test_the_model_is_asked_in_the_template(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = trainer.lightning_module
    tokenizer = trainer.datamodule.tokenizer  # type: ignore[attr-defined]
    asked: list[Tensor] = []
    decode = module.backbone.diffusion_generate

    def watched(ids: Tensor, **options: Any) -> Any:
        asked.append(ids[0])
        return decode(ids, **options)

    monkeypatch.setattr(module.backbone, "diffusion_generate", watched)
    DiffusionSampling(**SETTINGS).sample(trainer, module)  # type: ignore[arg-type]
    for ids, head in zip(asked, FUNCTIONS, strict=True):
        turns = [{"role": "user", "content": TASK + head.rstrip()}]
        prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        assert ids.tolist() == [*prompt, *[tokenizer.mask_token_id] * 8]


def test_a_sample_ends_at_the_end_of_turn(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = trainer.lightning_module
    tokenizer = trainer.datamodule.tokenizer  # type: ignore[attr-defined]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    decode = module.backbone.diffusion_generate

    def ended(ids: Tensor, **options: Any) -> Any:
        output = decode(ids, **options)
        output.sequences[0, -8:] = torch.tensor([tokenizer("x")["input_ids"][0], end, *[77] * 6])
        return output

    monkeypatch.setattr(module.backbone, "diffusion_generate", ended)
    samples, _ = DiffusionSampling(**SETTINGS)._texts(module, tokenizer)
    assert list(samples.values()) == [f"{head}x" for head in FUNCTIONS]


def test_a_tokenizer_without_a_template_is_refused_before_training(tiny: Tiny) -> None:
    trainer = tiny.trainer(DiffusionSampling(**SETTINGS), max_steps=2)
    with pytest.raises(ValueError, match=r"sampling\.chat is true, but data\.tokenizer has no chat template"):
        trainer.fit(tiny.module(), tiny.data())
    assert trainer.global_step == 0
