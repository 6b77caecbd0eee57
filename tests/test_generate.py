"""``python -m coda.generate``: what it prints, and how it fails."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from coda.checkpoint import RECORD, describe
from coda.data.chat import TEMPLATE
from coda.data.tokenizer import load_tokenizer, train_tokenizer
from coda.export import export
from coda.generate import DraftStreamer, build_canvas, main, text_of
from coda.model import CoDALanguageModel, ScratchBackbone

ROOT = Path(__file__).parents[1]
QWEN3_TOKENIZER = ROOT.parent / "shared" / "tokenizer" / "qwen3"
PROMPT, SUFFIX = "def f(x):\n", "\n    return y\n"
CLEAR = "\0338\033[J"  # what wipes a draft off the terminal


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer([PROMPT + SUFFIX] * 3, 280)


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast) -> CoDALanguageModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "max_position_embeddings": 64}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "initializer_range": 0.3}
    return ScratchBackbone(**sizes | heads).build(tokenizer).eval()


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, model: CoDALanguageModel, tokenizer: PreTrainedTokenizerFast
) -> str:
    path = tmp_path_factory.mktemp("generate") / "model"
    export(model, tokenizer, path)
    return str(path)


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "coda.generate", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def printed(capsys: pytest.CaptureFixture[str], *arguments: Any, **settings: Any) -> str:
    main(*arguments, **{"device": "cpu", "max_new_tokens": 6} | settings)
    return capsys.readouterr().out


@pytest.mark.slow
def test_the_command_streams_drafts_and_prints_prompt_text_and_suffix(folder: str) -> None:
    done = command("--model", folder, "--prompt", PROMPT, "--suffix", SUFFIX, "--max_new_tokens=5", "--stream")
    assert done.returncode == 0, done.stderr
    *drafts, final = done.stdout.split(CLEAR)
    assert [draft.count("░") for draft in drafts] == [4, 3, 2, 1, 0]
    assert final.startswith(PROMPT)
    assert final.endswith(SUFFIX + "\n")
    assert "\033" not in final
    assert "░" not in final


@pytest.mark.slow
def test_an_unknown_model_ends_the_command_with_one_line(tmp_path: Path) -> None:
    done = command("--model", f"{tmp_path}/nothing", "--prompt", "x")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(
        f"error: no model at '{tmp_path}/nothing'; give a .ckpt, an exported folder or a hub name"
    )
    assert len(done.stderr.splitlines()) == 1


def test_folder_and_checkpoint_give_the_same_text(
    folder: str,
    model: CoDALanguageModel,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    weights = {f"backbone.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": weights, RECORD: describe(model, tokenizer)}, tmp_path / "x.ckpt")
    settings = {"prompt": PROMPT, "suffix": SUFFIX}
    from_checkpoint = printed(capsys, f"{tmp_path}/x.ckpt", **settings)
    assert from_checkpoint.startswith(PROMPT)
    assert from_checkpoint.endswith(SUFFIX + "\n")
    assert from_checkpoint == printed(capsys, folder, **settings)


def test_backslashes_of_the_prompt_stay_as_they_are(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Source code is full of them."""
    assert printed(capsys, folder, prompt=r'print("\n")', suffix=r"\t").startswith(r'print("\n")')


def test_the_seed_decides(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"prompt": PROMPT, "temperature": 1.0, "top_p": None, "max_new_tokens": 20}
    texts = [printed(capsys, folder, seed=seed, **settings) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_without_a_prompt_a_document_is_begun(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, folder, max_new_tokens=4)
    assert "<|endoftext|>" not in text
    assert "<|mask|>" not in text


@pytest.mark.parametrize(
    "settings",
    [
        {"threshold": 0.9, "block_length": 3, "cache": "dual"},
        {"entropy_bound": 0.5, "cache": "prefix", "cache_refresh": 2},
        {"steps": 3, "remasking": "remdm", "remasking_rate": 0.2},
        {"guide": "self", "block_length": 4},
        {"gap_lengths": [2, 5]},
        {"factor": 1.0, "alg": "maskgit_plus"},
    ],
    ids=str,
)
def test_every_method_is_at_hand(folder: str, capsys: pytest.CaptureFixture[str], settings: dict[str, Any]) -> None:
    text = printed(capsys, folder, prompt=PROMPT, suffix=SUFFIX, **settings)
    assert text.startswith(PROMPT)
    assert text.endswith(SUFFIX + "\n")
    assert "<|mask|>" not in text


def test_several_samples_are_printed_one_after_the_other(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, folder, prompt=PROMPT, suffix=SUFFIX, num_return_sequences=3)
    assert text.count(PROMPT) == 3


def test_one_draft_is_streamed_at_a_time(folder: str) -> None:
    for settings in ({"num_return_sequences": 2}, {"gap_lengths": [2]}):
        with pytest.raises(ValueError, match="stream shows one draft"):
            main(folder, stream=True, **settings)


def test_a_guide_with_other_token_ids_is_refused(folder: str, model: CoDALanguageModel, tmp_path: Path) -> None:
    export(model, train_tokenizer(["other = words(here)"] * 3, 280), tmp_path / "other")
    with pytest.raises(ValueError, match="whose tokenizer is another; give a model with the tokenizer of --model"):
        main(folder, prompt=PROMPT, guide=str(tmp_path / "other"), device="cpu")


def test_a_model_guides_itself_from_its_folder(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [printed(capsys, folder, prompt=PROMPT, guide=guide) for guide in ("self", folder)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    "settings", [{"steps": 0}, {"alg": "beam"}, {"max_new_tokens": 0}, {"max_new_tokens": 100}], ids=str
)
def test_bad_settings_are_errors(folder: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"steps is 0|alg is beam|raise max_new_tokens|lower max_new_tokens"):
        main(folder, prompt=PROMPT, device="cpu", **settings)


def test_the_canvas_is_prompt_masks_and_suffix(tokenizer: PreTrainedTokenizerFast) -> None:
    ids, gap = build_canvas(tokenizer, PROMPT, SUFFIX, masks=3)
    assert ids.shape[0] == 1
    assert ids[0, gap].tolist() == [tokenizer.mask_token_id] * 3
    assert tokenizer.decode(ids[0, : gap.start]) == PROMPT
    assert tokenizer.decode(ids[0, gap.stop :]) == SUFFIX


def test_an_empty_prompt_becomes_the_end_of_text(tokenizer: PreTrainedTokenizerFast) -> None:
    ids, gap = build_canvas(tokenizer, "", "", masks=2)
    assert tokenizer.convert_ids_to_tokens(ids[0].tolist()) == ["<|endoftext|>", "<|mask|>", "<|mask|>"]
    assert gap == slice(1, 3)


@pytest.mark.parametrize("end", ["<|endoftext|>", "<|im_end|>"])
def test_text_stops_at_the_first_end(tokenizer: PreTrainedTokenizerFast, end: str) -> None:
    ids = torch.tensor(tokenizer(f"x = 1{end}y{end}")["input_ids"])
    assert text_of(tokenizer, ids) == "x = 1"
    assert text_of(tokenizer, ids[:3]) == tokenizer.decode(ids[:3])


def test_drafts_show_masks_as_blocks_and_are_wiped(
    tokenizer: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture[str]
) -> None:
    streamer = DraftStreamer(tokenizer)
    ids, _ = build_canvas(tokenizer, "x", "y", masks=2)
    streamer.put_draft(ids)
    assert "x░░y" in capsys.readouterr().out
    streamer.put_draft(ids)
    assert capsys.readouterr().out.startswith(CLEAR)
    streamer.put(ids)
    streamer.end()
    assert capsys.readouterr().out == CLEAR


def test_the_real_tokenizer_keeps_code_as_it_is() -> None:
    if not QWEN3_TOKENIZER.is_dir():
        pytest.skip(f"Qwen3's tokenizer is not at {QWEN3_TOKENIZER}")
    real: PreTrainedTokenizerBase = load_tokenizer(str(QWEN3_TOKENIZER))
    ids, gap = build_canvas(real, PROMPT, SUFFIX, masks=2)
    assert ids[0, gap].tolist() == [151_669] * 2
    assert real.decode(ids[0, : gap.start]) == PROMPT
    assert real.decode(ids[0, gap.stop :]) == SUFFIX
    assert build_canvas(real, "", "", masks=1)[0].tolist() == [[151_643, 151_669]]
    assert text_of(real, torch.tensor([*real("x = 1")["input_ids"], 151_645, 0])) == "x = 1"


def test_gaps_written_into_the_prompt_are_filled_and_shown(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, folder, prompt="def f(<|mask|><|mask|>):\n", max_new_tokens=0)
    assert "<|mask|>" not in text
    assert text.startswith("def f(")


@pytest.fixture(scope="module")
def chat_folder(
    tmp_path_factory: pytest.TempPathFactory, model: CoDALanguageModel, tokenizer: PreTrainedTokenizerFast
) -> str:
    """The same model, whose tokenizer has a chat template."""
    path = tmp_path_factory.mktemp("chat") / "model"
    tokenizer.save_pretrained(path / "tokenizer")
    chatting = load_tokenizer(str(path / "tokenizer"))
    chatting.chat_template = TEMPLATE
    export(model, chatting, path / "model")
    return str(path / "model")


@pytest.mark.parametrize("suffix", ["", "\n    return y\n"])
def test_in_a_chat_the_answer_alone_is_printed(
    chat_folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    """And the prompt is put as a user's turn, in the template, before the gap."""
    canvases: list[Any] = []
    decode = CoDALanguageModel.diffusion_generate

    def watched(self: CoDALanguageModel, ids: Any, **options: Any) -> Any:
        canvases.append(ids[0].tolist())
        sequences = decode(self, ids, **options)
        gap = (ids[0] == self.config.mask_token_id).nonzero().squeeze(1)
        sequences[0, gap] = torch.tensor(load_tokenizer(chat_folder)("x = 1<|im_end|>y ")["input_ids"])[: len(gap)]
        return sequences

    monkeypatch.setattr(CoDALanguageModel, "diffusion_generate", watched)
    length = len(load_tokenizer(chat_folder)("x = 1<|im_end|>y ")["input_ids"])
    assert (
        printed(capsys, chat_folder, prompt="do", suffix=suffix, chat=True, max_new_tokens=length) == f"x = 1{suffix}\n"
    )
    asked = f"<|im_start|>user\ndo<|im_end|>\n<|im_start|>assistant\n{'<|mask|>' * length}{suffix}"
    assert load_tokenizer(chat_folder).decode(canvases[0]) == asked


def test_without_chat_the_template_is_not_used(chat_folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, chat_folder, prompt=PROMPT).startswith(PROMPT)


def test_a_chat_needs_a_template(folder: str) -> None:
    with pytest.raises(ValueError, match="--chat needs a chat template, which this model's tokenizer lacks"):
        main(folder, prompt=PROMPT, chat=True, device="cpu")


@pytest.mark.slow
def test_the_command_takes_chat_as_a_flag(chat_folder: str, folder: str) -> None:
    done = command("--model", chat_folder, "--prompt", "do", "--max_new_tokens=5", "--chat")
    assert done.returncode == 0, done.stderr
    assert "<|" not in done.stdout and "user" not in done.stdout
    refused = command("--model", folder, "--prompt", "do", "--chat")
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].startswith("error: --chat needs a chat template")
