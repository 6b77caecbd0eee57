"""The benchmarks run in miniature, and their tables get into RESULTS.md where they belong, and nowhere else."""

import os
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import __main__ as suite
from benchmarks import gpu, gpu_variants, losses, peers, profile, training_step
from benchmarks.tables import RESULTS, cell, print_command, table, write
from coda.model import CoDAConfig, CoDALanguageModel
from coda.objective import DiffusionObjective

REPOSITORY = Path(__file__).resolve().parents[2]
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "head_dim": 16, "vocab_size": 128}
TINY = CoDAConfig(**SIZES, num_attention_heads=2, num_key_value_heads=1, mask_token_id=127, pad_token_id=0)
CPU = torch.device("cpu")


def test_a_table_replaces_what_is_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- begin one -->\nold\n<!-- end one -->\nb\n<!-- begin two -->\nkept\n<!-- end two -->\n")
    write("one", table(["x", "y"], [(1.23456, "z"), (None, 1234.5)]), page)
    new = "| x | y |\n| --- | --- |\n| 1.23 | z |\n|  | 1,234 |"
    expected = f"a\n<!-- begin one -->\n{new}\n<!-- end one -->\nb\n<!-- begin two -->\nkept\n<!-- end two -->\n"
    assert page.read_text() == expected
    with pytest.raises(ValueError, match="begin three"):
        write("three", "", page)


def test_every_benchmark_of_the_suite_has_its_place() -> None:
    text = RESULTS.read_text()
    for name in (*suite.SUITE, "gpu"):
        assert text.count(f"<!-- begin {name} -->\n") == text.count(f"<!-- end {name} -->\n") == 1
        assert (RESULTS.parent / f"{name}.py").is_file()


def test_the_command_and_the_machine_stand_above_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    print_command("masking", "what")
    line = capsys.readouterr().out
    assert line.startswith("`python -m benchmarks.masking`, 20")
    assert f"torch {torch.__version__}: what" in line
    assert cell(0.5) == "0.5"


def test_losses_are_one_and_the_same_number() -> None:
    """What is compared computes the same: full logits, masked ones, torch's function and ours."""
    ids = torch.arange(64).view(2, 32)
    found = []
    scores = {"full": losses.full_logits, "masked": losses.masked_logits, "ours": losses.ours(8)}
    if hasattr(torch.nn, "LinearCrossEntropyOptions"):
        scores["torch"] = losses.torch_linear_cross_entropy
    for score in scores.values():
        _, loss = losses.masked_by_us(score)(TINY, CPU)
        torch.manual_seed(1)
        found.append(float(loss(ids)))
    assert found == pytest.approx([found[0]] * len(found), rel=1e-5)
    _, apart = losses.masked_by_us(losses.ours(document=8))(TINY, CPU)
    torch.manual_seed(1)
    assert abs(float(apart(ids)) - found[0]) > 1e-6


def test_a_training_step_is_measured_by_parts() -> None:
    found = training_step.measure("ours", steps=1, length=16, vocabulary=512)
    assert found["step"] == pytest.approx(sum(found[part] for part in training_step.PARTS))
    assert found["process"] >= found["above"] >= 0
    other = {key: value * 2 for key, value in found.items()}
    lines = training_step.report({"ours": found, "full_logits": other}).splitlines()
    assert lines[-1].startswith("| `full_logits` | 0.5 |")


@pytest.mark.parametrize(("variable", "shift"), [("CODA_PEER_RELEASED", True), ("CODA_PEER_DLLM", False)])
def test_peers_at_hand_compute_our_loss_and_gradients(
    variable: str, shift: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same weights, rows, noise levels and masks, which are seen where they draw and embed them."""
    if not os.environ.get(variable):
        pytest.skip(f"{variable} names no checkout")
    monkeypatch.setattr(sys, "path", list(sys.path))
    theirs, loss = peers.PEERS[variable](TINY, CPU)
    drawn, noisy, rand = [], [], torch.rand
    monkeypatch.setattr(torch, "rand", lambda *args, **options: drawn.append(rand(*args, **options)) or drawn[-1])
    theirs.model.embed_tokens.register_forward_pre_hook(lambda _, args: noisy.append(args[0]))
    ids = torch.arange(1, 97).view(2, 48)
    torch.manual_seed(0)
    value = loss(ids)
    value.backward()

    ours = CoDALanguageModel(TINY).train()
    ours.load_state_dict(theirs.state_dict())
    t = 1e-3 + (1 - 1e-3) * [one for one in drawn if one.ndim == 1][-1]
    batch = {"target_ids": ids, "masked": noisy[0] != ids, "maskable": torch.ones_like(ids, dtype=torch.bool), "t": t}
    hidden = ours(noisy[0], output_logits=False).last_hidden_state
    output = DiffusionObjective(shift=shift, denominator="tokens")(hidden, ours.lm_head.weight, **batch)
    expected = output.loss_sum / output.denominator
    expected.backward()
    assert 0 < batch["masked"].sum() < ids.numel()
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=0)
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_a_peer_that_is_not_where_it_is_said_to_be_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODA_PEER_DLLM", str(tmp_path))
    with pytest.raises(ValueError, match="CODA_PEER_DLLM is"):
        peers.available()["dllm"](TINY, CPU)


@pytest.mark.slow
def test_the_benchmark_of_a_gpu_runs_in_miniature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the runner; sizes are doubled up to the limit."""
    monkeypatch.chdir(REPOSITORY)
    page = tmp_path / "page.md"
    page.write_text("<!-- begin gpu -->\n<!-- end gpu -->\n")
    names = ["plain transformers: full logits, eager", "ours, eager", "Liger's linear cross-entropy, compiled"]
    small = ["--model=configs/model/tiny.yaml", "--vocabulary=512", "--lengths=[64]", "--tokens=64", "--limit=3"]
    quoted = ",".join(f'"{name}"' for name in names)
    monkeypatch.setattr(gpu_variants, "find_spec", lambda name: None)
    suite.main(only=["gpu"], options=[*small, "--steps=1", "--rounds=1", f"--only=[{quoted}]"], output=page)
    lines = page.read_text().splitlines()
    assert len(lines) == 4 + 1 + len(names) + 1
    *measured, absent = ([part.strip() for part in line.strip("|").split("|")] for line in lines[-4:-1])
    for name, cells in zip(names[:2], measured, strict=True):
        assert [cells[0], cells[1], cells[2], cells[6]] == [name, "64", "1", "3"]
        assert all(float(cells[i].replace(",", "")) > 0 for i in (3, 5, 7))
    assert absent[:3] == [names[2], "64", "not measured: liger_kernel is not installed"]


@pytest.mark.parametrize("capacity", [1, 2, 3, 5, 7, 11, 40, 100])
def test_the_largest_batch_is_found_to_within_an_eighth(capacity: int) -> None:
    tried: list[int] = []

    def fits(rows: int) -> bool:
        tried.append(rows)
        return rows <= capacity

    found = gpu.largest(1, 1 << 20, fits)
    assert found <= capacity <= found + max(found // 8, 1) - 1
    assert len(tried) == len(set(tried)) <= 10
    assert gpu.largest(1, 6, lambda rows: True) == 6
    assert gpu.largest(4, 1, fits) == 4


def test_a_batch_that_does_not_fit_ends_the_search_and_other_errors_the_measurement(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def step_seconds(loss: Any, optimizer: Any, config: Any, rows: int, *_: Any) -> float:
        if rows > bound:
            raise RuntimeError(message)
        return 0.1 * rows

    monkeypatch.setattr(gpu, "step_seconds", step_seconds)
    bound, message = 5, "CUDA out of memory"
    variant = gpu_variants.Variant(optimizer="AdamW")
    found = gpu.measure(variant, TINY, 16, 32, 1, 64)
    assert (found["rows"], found["seconds"]) == (2, 0.2)
    assert (found["largest"], found["seconds_at_largest"]) == (5, 0.5)
    message = "misaligned address"
    with pytest.raises(RuntimeError, match="misaligned"):
        gpu.measure(variant, TINY, 16, 32, 1, 64)
    bound, message = 1, "CUDA out of memory"
    with pytest.raises(RuntimeError, match="out of memory"):
        gpu.measure(variant, TINY, 16, 32, 1, 64)


def test_rounds_take_turns_and_time_is_their_median(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, str]] = []

    def run(arguments: list[str]) -> Any:
        name, limit = arguments[0].partition("=")[2], arguments[2]
        calls.append((name, limit))
        if name == "ours, compiled":
            return "it broke"
        return {"seconds": [3.0, 1.0, 2.0][sum(name == other for other, _ in calls) - 1], "largest": len(calls)}

    monkeypatch.setattr(gpu, "run", run)
    names = ["ours, eager", "ours, compiled", "ours, eager, AdamW not fused"]
    found = gpu.in_turns(names, 64, 3, None, [])
    assert found[names[0]] == {"seconds": 2.0, "largest": 1}
    assert found[names[1]] == "it broke"
    first, _, third = names
    assert calls == [(name, "--limit=null") for name in names] + [(first, "--limit=1"), (third, "--limit=1")] * 2


def test_model_flops_count_the_head_where_it_is_computed() -> None:
    """A row of 2 seconds: the head at all tokens against the masked half."""
    found = {"rows": 1.0, "seconds": 2.0, "peak": 2.0**30, "largest": 2.0, "seconds_at_largest": 2.0}
    for name, share in (("plain transformers: full logits, eager", 1.0), ("ours, eager", 0.5)):
        assert gpu_variants.VARIANTS[name].predicted == share
    cells = gpu.row("ours, eager", 64, found, TINY)
    assert cells == ["ours, eager", 64, "1", "32", None, 1.0, "2", "64", None]


def test_every_variant_of_the_gpu_is_built_and_computes_a_loss() -> None:
    """But for compilation, which takes a minute each, and what needs a GPU or another package."""
    for name, variant in gpu_variants.VARIANTS.items():
        if variant.lacks() is not None or variant.needs is not None:
            continue
        config = deepcopy(TINY)
        model, loss = gpu_variants.build(variant, config, CPU)
        if variant.mode is not None:
            layer = model.model.layers[0]
            assert layer._compiled_call_impl is not None, name
            layer._compiled_call_impl = None
        if variant.backend is None and not variant.compile_loss and variant.attention == "sdpa":
            assert torch.isfinite(loss(torch.arange(64).view(2, 32))), name
        assert variant.optimizer in gpu_variants.OPTIMIZERS


@pytest.mark.slow
def test_the_profile_of_a_fit_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    small: list[Any] = ["--data.sequence_length=32", "--data.global_batch_size=4", "--trainer.accelerator=cpu"]
    (tmp_path / "longer.yaml").write_text("trainer: {max_steps: 500}\nsampling: {every_n_steps: 2}\n")
    small.append(f"--config={tmp_path / 'longer.yaml'}")
    profiler = profile.profile("quickstart.yaml", 8, small, str(tmp_path))
    assert profiler.steps == 5
    assert sum(profiler.shares().values()) == pytest.approx(1.0)
