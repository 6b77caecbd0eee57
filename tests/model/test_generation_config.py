"""The settings file is read in full: what is unknown, impossible or contradictory is an error before the model runs."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from coda.model import CoDAGenerationConfig, CoDALanguageModel
from tests.model.decoding import MASK, VOCAB, small_model

BAD: list[tuple[dict[str, Any], str]] = [
    ({"threshold": 0.9, "steps": 8}, "threshold contradicts steps: both say how many tokens a step commits"),
    ({"factor": 1.0, "tokens_per_step": 2}, "factor contradicts tokens_per_step"),
    ({"entropy_bound": 0.1, "threshold": 0.9}, "entropy_bound contradicts threshold"),
    ({"threshold": 0.9, "alg": "origin"}, "threshold contradicts alg origin"),
    ({"threshold": 0.0}, "threshold is 0.0; it must be above 0"),
    ({"factor": -1.0}, "factor is -1.0; it must be above 0"),
    ({"entropy_bound": -0.1}, "entropy_bound is -0.1; it must be 0 or more"),
    ({"tokens_per_step": 0}, "tokens_per_step is 0; it must be at least 1"),
    ({"block_length": 0}, "block_length is 0; it must be at least 1"),
    ({"block_length": 9}, "block_length is 9, longer than the canvas of max_new_tokens 8; lower it"),
    ({"block_length": 2, "steps": 3}, "steps is 3, but a row has 4 blocks of block_length 2"),
    ({"cache": "dual"}, "cache is dual, which caches what follows a block, but there is no block_length; set one"),
    ({"cache": "full"}, "cache is full; it must be one of none, prefix, dual"),
    ({"cache_refresh": 2}, "cache_refresh is 2, but cache is none"),
    ({"cache": "prefix", "cache_refresh": 0}, "cache_refresh is 0; it must be at least 1"),
    ({"remasking": "remdm"}, "remasking is remdm, which needs a remasking_rate"),
    ({"remasking_rate": 0.1}, "remasking_rate is 0.1, but remasking is None"),
    ({"remasking": "remdm", "remasking_rate": 1.0}, r"remasking_rate is 1.0; it must be in \(0, 1\)"),
    ({"remasking": "always"}, "remasking is always; it must be one of remdm, confidence_drop"),
    ({"remasking": "remdm", "remasking_rate": 0.1, "threshold": 0.9}, "threshold contradicts remasking remdm"),
    ({"guide": "self", "steps": 4}, "guide decides how many tokens a step commits; remove steps"),
    ({"guide": "other"}, "guide is other; it must be self, or a model"),
    ({"guide": "self", "guide_weight": 1.5}, r"guide_weight is 1.5; it must be in \[0, 1\]"),
    ({"guide_weight": 0.5}, "guide_weight is 0.5, but there is no guide"),
    ({"guide": "self", "alg": "origin"}, "guide contradicts alg origin"),
    ({"guide": "self", "pad_to_multiple_of": 8}, "guide contradicts pad_to_multiple_of"),
    (
        {"guide": "self", "remasking": "confidence_drop", "remasking_rate": 0.1},
        "guide contradicts remasking: what it has verified stays",
    ),
    (
        {"guide": SimpleNamespace(config=SimpleNamespace(vocab_size=7))},
        "guide has a vocabulary of 7 tokens, the model of 40",
    ),
    ({"num_return_sequences": 0}, "num_return_sequences is 0; it must be at least 1"),
    ({"pad_to_multiple_of": 0}, "pad_to_multiple_of is 0; it must be at least 1"),
    ({"max_new_tokens": 64}, "take 66 positions, the model has 64; shorten the prompt or lower max_new_tokens"),
    ({"max_new_tokens": 0}, "the prompt fills the canvas; raise max_new_tokens, or mask part of it"),
    ({"num_beams": 4}, "num_beams is not a setting of diffusion_generate; those are alg, alg_temp, block_length"),
]


@pytest.fixture(scope="module")
def model() -> CoDALanguageModel:
    return small_model()


@pytest.mark.parametrize(("settings", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_bad_settings_are_one_sentence_before_the_first_evaluation(
    model: CoDALanguageModel, settings: dict[str, Any], message: str
) -> None:
    calls: list[int] = []
    hook = model.register_forward_pre_hook(lambda *args: calls.append(1))
    with pytest.raises(ValueError, match=message) as raised:
        model.diffusion_generate(torch.tensor([[1, 2]]), **{"max_new_tokens": 8} | settings)
    hook.remove()
    assert not calls
    assert "\n" not in str(raised.value)


def test_a_model_that_predicts_in_place_has_no_causal_pass_of_its_own() -> None:
    with pytest.raises(ValueError, match="guide is self, but this model predicts tokens in place"):
        small_model(shift=False).diffusion_generate(torch.tensor([[1, 2]]), max_new_tokens=4, guide="self")


def test_a_guide_cannot_predict_the_first_token(model: CoDALanguageModel) -> None:
    with pytest.raises(ValueError, match="prompt 0 starts with a masked token, which nothing predicts"):
        small_model(shift=False).diffusion_generate(torch.tensor([[MASK, 2]]), max_new_tokens=0, guide=model)


def saved(model: CoDALanguageModel, folder: Path, **settings: Any) -> Path:
    """Save the model, with ``settings`` written into its generation_config.json by hand."""
    model.save_pretrained(folder)
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return folder


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"treshold": 0.9}, "treshold is not a setting of diffusion_generate"),
        ({"repetition_penalty": 1.2}, "repetition_penalty is not a setting of diffusion_generate"),
        ({"threshold": 0.9, "steps": 4}, "threshold contradicts steps"),
        ({"cache": "dual"}, "cache is dual"),
    ],
    ids=str,
)
def test_a_settings_file_that_cannot_be_followed_is_refused(
    model: CoDALanguageModel, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        CoDALanguageModel.from_pretrained(saved(model, tmp_path, **settings))


def test_methods_named_in_the_settings_file_are_used(model: CoDALanguageModel, tmp_path: Path) -> None:
    chosen = {"block_length": 4, "cache": "dual", "threshold": 0.3, "max_new_tokens": 12, "alg": "maskgit_plus"}
    loaded = CoDALanguageModel.from_pretrained(saved(model, tmp_path, **chosen), dtype=torch.float64)
    prompt = torch.tensor([[1, 2]])
    assert torch.equal(loaded.diffusion_generate(prompt), model.diffusion_generate(prompt, **chosen))


def test_settings_survive_saving(tmp_path: Path) -> None:
    chosen = {"block_length": 4, "cache": "prefix", "cache_refresh": 3, "entropy_bound": 0.2, "remasking": None}
    CoDAGenerationConfig(**chosen).save_pretrained(tmp_path)
    loaded = CoDAGenerationConfig.from_pretrained(tmp_path)
    assert {name: getattr(loaded, name) for name in chosen} == chosen


def test_an_override_of_the_pace_replaces_that_of_the_file(model: CoDALanguageModel) -> None:
    config = CoDAGenerationConfig(max_new_tokens=8, steps=2)
    out = model.diffusion_generate(
        torch.tensor([[1]]), generation_config=config, threshold=1.01, return_dict_in_generate=True
    )
    assert out.nfe == 8
    assert config.steps == 2


def test_the_guide_must_share_the_vocabulary(model: CoDALanguageModel) -> None:
    assert model.config.vocab_size == VOCAB
    with pytest.raises(ValueError, match="give a guide with the same tokenizer"):
        model.diffusion_generate(torch.tensor([[1]]), max_new_tokens=2, guide=small_model(vocab_size=50))
