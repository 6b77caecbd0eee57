"""Generation: the same samples in any batch, on any number of ranks, before and after a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from coda.evaluation.generating import (
    Request,
    check_requests,
    generate,
    make_requests,
    sampler_settings,
    seed_of,
)
from coda.evaluation.prompts import InfillingFormat, InstructFormat
from coda.evaluation.ranks import Ranks
from coda.evaluation.samples import Sample, SampleFolder
from coda.evaluation.tasks import TASKS
from coda.model import CoDALanguageModel

ROOT = Path(__file__).resolve().parents[2]
HOT = {"max_new_tokens": 12, "temperature": 1.0, "top_p": None}


def requests_of(folder: Path, tokenizer: PreTrainedTokenizerFast, samples: int = 3, seed: int = 0) -> list[Request]:
    """Canvases of several lengths."""
    made = []
    for task, prompt_format in (("humaneval", InstructFormat()), ("humaneval_infilling", InfillingFormat())):
        problems = TASKS[task].load(str(folder))
        made += make_requests(problems, prompt_format, tokenizer, sampler_settings(HOT), samples, seed)
    return made


@pytest.fixture
def requests(benchmarks_folder: Path, tokenizer: PreTrainedTokenizerFast) -> list[Request]:
    return requests_of(benchmarks_folder, tokenizer)


def drawn(
    model: CoDALanguageModel,
    tokenizer: PreTrainedTokenizerFast,
    requests: list[Request],
    batch_size: int = 4,
    folder: Path | None = None,
    **settings: Any,
) -> list[Sample]:
    options = sampler_settings(HOT | settings)
    return generate(model, tokenizer, requests, options, batch_size, SampleFolder(folder), Ranks())


def texts(samples: list[Sample]) -> list[tuple[Any, int, str]]:
    return [(sample.key, sample.seed, sample.completion) for sample in samples]


def test_batch_sizes_give_the_same_samples(
    model: CoDALanguageModel, tokenizer: PreTrainedTokenizerFast, requests: list[Request]
) -> None:
    one = texts(drawn(model, tokenizer, requests, batch_size=1))
    assert one == texts(drawn(model, tokenizer, requests, batch_size=8))
    assert [key for key, _, _ in one] == [request.key for request in requests]
    assert len({text for _, _, text in one}) > len(one) // 2


def test_samples_of_a_problem_differ_and_a_seed_repeats_them(
    model: CoDALanguageModel, tokenizer: PreTrainedTokenizerFast, benchmarks_folder: Path
) -> None:
    first, again, other = (
        texts(drawn(model, tokenizer, requests_of(benchmarks_folder, tokenizer, seed=seed))) for seed in (0, 0, 1)
    )
    assert first == again
    assert all(mine != theirs for mine, theirs in zip(first, other, strict=True))
    assert len({text for _, _, text in first[:3]}) == 3


def test_seeds_fit_the_sampler_and_are_apart() -> None:
    seeds = {
        seed_of(seed, f"x/{problem}", sample) for seed in range(3) for problem in range(50) for sample in range(10)
    }
    assert len(seeds) == 1500
    assert all(0 <= seed < 2**62 for seed in seeds)


def test_a_completion_is_what_stands_in_the_gap(
    model: CoDALanguageModel, tokenizer: PreTrainedTokenizerFast, requests: list[Request]
) -> None:
    for sample, request in zip(drawn(model, tokenizer, requests), requests, strict=True):
        assert sample.tokens == request.gap.stop - request.gap.start == request.ids.count(tokenizer.mask_token_id)
        assert "<|" not in sample.completion
        assert sample.nfe >= 1 and sample.seconds > 0


def test_the_sampler_is_given_its_settings(
    model: CoDALanguageModel, tokenizer: PreTrainedTokenizerFast, requests: list[Request]
) -> None:
    assert {sample.nfe for sample in drawn(model, tokenizer, requests[:2], steps=3)} == {3}


def test_finished_samples_are_not_drawn_again(
    model: CoDALanguageModel,
    tokenizer: PreTrainedTokenizerFast,
    requests: list[Request],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = drawn(model, tokenizer, requests, folder=tmp_path / "whole")
    part = drawn(model, tokenizer, requests[:5], folder=tmp_path / "part")
    rows, decode = [], CoDALanguageModel.diffusion_generate

    def counted(self: CoDALanguageModel, ids: torch.Tensor, *args: Any, **options: Any) -> Any:
        rows.append(len(ids))
        return decode(self, ids, *args, **options)

    monkeypatch.setattr(CoDALanguageModel, "diffusion_generate", counted)
    resumed = drawn(model, tokenizer, requests, folder=tmp_path / "part")
    assert texts(resumed) == texts(whole)
    assert resumed[:5] == part
    assert sum(rows) == len(requests) - 5


def test_a_half_written_line_is_dropped_and_drawn_again(
    model: CoDALanguageModel, tokenizer: PreTrainedTokenizerFast, requests: list[Request], tmp_path: Path
) -> None:
    whole = drawn(model, tokenizer, requests, folder=tmp_path)
    (path,) = tmp_path.glob("samples-*.jsonl")
    path.write_bytes(path.read_bytes()[:-20])
    assert len(SampleFolder(tmp_path).samples) == len(requests) - 1
    assert texts(drawn(model, tokenizer, requests, folder=tmp_path)) == texts(whole)
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == len(requests)


def test_a_sample_of_another_canvas_is_drawn_again(
    model: CoDALanguageModel, tokenizer: PreTrainedTokenizerFast, requests: list[Request], tmp_path: Path
) -> None:
    """Such as after a change of the prompt."""
    first = drawn(model, tokenizer, requests[:1], folder=tmp_path)
    changed = replace(requests[0], ids=[*requests[0].ids, 5])
    assert drawn(model, tokenizer, [changed], folder=tmp_path)[0].canvas != first[0].canvas


def test_a_damaged_line_is_an_error_with_its_number(tmp_path: Path) -> None:
    (tmp_path / "samples-00000.jsonl").write_text('{"task_id": 1}\n')
    with pytest.raises(ValueError, match=r"samples-00000\.jsonl, line 1, is no sample"):
        SampleFolder(tmp_path)


def test_a_canvas_that_does_not_fit_is_an_error_that_names_the_problem(
    model: CoDALanguageModel, benchmarks_folder: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    problems = TASKS["humaneval"].load(str(benchmarks_folder))
    long = make_requests(problems, InstructFormat(), tokenizer, sampler_settings({}), 1, 0)
    with pytest.raises(
        ValueError, match=r"HumanEval/1 takes \d+ positions with its gap of 768, the model has 512; lower"
    ):
        check_requests(long, model)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stepz": 3}, r"sampler\.stepz is not a setting"),
        ({"steps": 0}, r"steps is 0"),
        ({"alg": "beam"}, r"alg is beam"),
        ({"seed": 3}, r"sampler\.seed cannot be set: seed decides it"),
        ({"num_return_sequences": 3}, r"sampler\.num_return_sequences cannot be set: samples decides it"),
        ({"max_new_tokens": 0}, r"sampler\.max_new_tokens is 0"),
        ({"max_new_tokens": None}, r"sampler\.max_new_tokens is None"),
    ],
    ids=str,
)
def test_bad_sampler_settings_are_errors(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sampler_settings(settings)


def test_the_report_s_sampler_is_the_default() -> None:
    assert sampler_settings({"steps": 32}) == {
        "max_new_tokens": 768, "steps": 32, "alg": "entropy", "temperature": 0.1, "top_p": 0.9, "alg_temp": 0.0
    }  # fmt: skip


def command(model: str, folder: Path, output: Path, launcher: tuple[str, ...] = ()) -> list[str]:
    settings = ["--sampler.max_new_tokens=12", "--sampler.temperature=1.0", "--samples=4", "--device=cpu"]
    where = ["--model", model, "--data", str(folder), "--output", str(output), "--tasks=humaneval,humaneval_infilling"]
    return [sys.executable, *launcher, "-m", "coda.evaluate", *where, *settings, "--batch_size=1"]


def environment() -> dict[str, str]:
    return os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def lines(output: Path) -> dict[Any, str]:
    """What was written for each sample, over all ranks; a sample drawn twice is an error."""
    found: dict[Any, str] = {}
    for path in sorted(output.rglob("samples-*.jsonl")):
        for line in path.read_text().splitlines():
            record = json.loads(line)
            key = (path.parent.name, record["task_id"], record["sample"])
            assert key not in found
            found[key] = record["completion"]
    return found


@pytest.mark.slow
def test_two_ranks_and_a_killed_run_write_the_samples_of_one_whole_run(
    exported: str, benchmarks_folder: Path, tmp_path: Path
) -> None:
    def run(name: str, *launcher: str) -> dict[Any, str]:
        arguments = command(exported, benchmarks_folder, tmp_path / name, launcher)
        done = subprocess.run(arguments, env=environment(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return lines(tmp_path / name)

    whole = run("whole")
    assert len(whole) == 24
    ranks = run("ranks", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    assert len(list((tmp_path / "ranks").rglob("samples-*.jsonl"))) == 6
    assert ranks == whole
    killed = subprocess.Popen(
        command(exported, benchmarks_folder, tmp_path / "killed"), env=environment(), stderr=subprocess.DEVNULL
    )
    while killed.poll() is None and not list((tmp_path / "killed").rglob("samples-*.jsonl")):
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    before = lines(tmp_path / "killed")
    assert run("killed") == whole
    assert before.items() <= whole.items()
    assert len(before) < len(whole)
