"""lm-eval's own evaluation with our model and our task files, offline."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from coda.evaluation.likelihood import Likelihood, Row
from coda.evaluation.sandbox import Sandbox, SandboxError
from coda.model import CoDALanguageModel
from tests.evaluation.test_generating import environment

pytest.importorskip("lm_eval", reason="lm-eval comes with the extra eval")
from coda.evaluation.lm_eval_adapter import TASKS, CoDALM, until

SETTINGS: dict[str, Any] = {"device": "cpu", "likelihood_masks": 8, "max_gen_toks": 8, "steps": 4}


@pytest.fixture(scope="module")
def adapter(exported: str) -> CoDALM:
    return CoDALM(exported, **SETTINGS)


def requests(*arguments: tuple[Any, ...]) -> list[Any]:
    return [SimpleNamespace(args=given, task_name="a task") for given in arguments]


def test_the_model_is_registered_as_coda() -> None:
    from lm_eval.api.registry import get_model

    assert get_model("coda") is CoDALM


def test_every_task_file_names_itself() -> None:
    names = {f"coda_{task}_{kind}" for task in ("humaneval", "mbpp") for kind in ("instruct", "base")}
    names |= {f"coda_{task}_plus_{kind}" for task in ("humaneval", "mbpp") for kind in ("instruct", "base")}
    assert {path.stem for path in TASKS.glob("*.yaml")} == names
    assert all(f"task: {path.stem}\n" in path.read_text() for path in TASKS.glob("*.yaml"))


def test_a_loglikelihood_is_the_negative_bound(
    adapter: CoDALM, model: CoDALanguageModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    context, choice = "def add(a", ", b):\n    return a + b\n"
    given, whole = (tokenizer(text)["input_ids"] for text in (context, context + choice))
    row = Row(whole, [False] * len(given) + [True] * (len(whole) - len(given)))
    (bound,) = Likelihood(model, 8, 16).bounds([row])
    assert adapter.loglikelihood(requests((context, choice))) == [(pytest.approx(-bound.nats, rel=1e-4), False)]


def test_spaces_at_the_end_of_a_context_belong_to_the_continuation(adapter: CoDALM) -> None:
    (first,), (second,) = (adapter.loglikelihood(requests(pair)) for pair in (("x = ", "1"), ("x =", " 1")))
    assert first == second


def test_without_a_context_a_text_follows_the_separator(adapter: CoDALM) -> None:
    ((value, _),) = adapter.loglikelihood(requests(("", "return x")))
    (rolling,) = adapter.loglikelihood_rolling(requests(("return x",)))
    assert value == pytest.approx(rolling, rel=1e-6)
    assert value < 0


def test_long_texts_are_scored_in_windows(adapter: CoDALM) -> None:
    short, long = (adapter.loglikelihood_rolling(requests(("return x\n" * count,)))[0] for count in (10, 400))
    assert long < 10 * short


def test_generation_stops_where_the_task_says(adapter: CoDALM) -> None:
    whole, again = adapter.generate_until(
        requests(("def f(", {"until": []}), ("def f(", {"until": [], "max_gen_toks": 3}))
    )
    assert whole != "" or again != ""
    stop = whole[:1]
    assert adapter.generate_until(requests(("def f(", {"until": [stop]}))) == [""] or not stop


def test_text_is_cut_at_the_first_stop_string() -> None:
    assert until("a\nb\nc", ["\nc", "\nb"]) == "a"
    assert until("abc", "c") == "ab"
    assert until("abc", []) == "abc"


def test_a_task_s_setting_that_is_not_read_is_an_error(adapter: CoDALM) -> None:
    with pytest.raises(ValueError, match="a task sets num_beams, which the model coda does not read"):
        adapter.generate_until(requests(("x", {"num_beams": 4})))


def test_chats_end_open_where_the_answer_is_begun(adapter: CoDALM) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "```python\n"}]
    assert adapter.apply_chat_template(turns, add_generation_prompt=False).endswith(
        "<|im_start|>assistant\n```python\n"
    )
    assert adapter.apply_chat_template(turns[:1]).endswith("<|im_end|>\n<|im_start|>assistant\n")


def sandboxed() -> bool:
    try:
        return bool(Sandbox().level)
    except SandboxError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not sandboxed(), reason="no sandbox works here")
def test_lm_eval_s_command_runs_our_tasks_offline(exported: str, benchmarks_folder: Path, tmp_path: Path) -> None:
    tasks = "coda_humaneval_instruct,coda_mbpp_plus_base"
    arguments = [
        "run",
        "--model",
        "coda",
        "--model_args",
        f"pretrained={exported},max_gen_toks=8,steps=2",
        "--tasks",
        tasks,
    ]
    metadata = [
        "--metadata",
        f'{{"data": "{benchmarks_folder}"}}',
        "--confirm_run_unsafe_code",
        "--apply_chat_template",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "coda.evaluation.lm_eval_adapter", *arguments, *metadata, "--device", "cpu"],
        env=environment() | {"HF_DATASETS_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for task in tasks.split(","):
        assert task in done.stdout
    assert done.stdout.count("pass@1") == 2
