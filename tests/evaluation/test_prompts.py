"""What a model is shown, word for word, and what becomes of its answer."""

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from coda.data.tokenizer import load_tokenizer
from coda.evaluation.problem import Problem
from coda.evaluation.prompts import BaseFormat, InfillingFormat, InstructFormat, PromptFormat
from coda.evaluation.tasks import TASKS
from tests.evaluation.conftest import BODIES, HEADS, SHARED


def problem_of(folder: Path, task: str, number: int = 0) -> Problem:
    return TASKS[task].load(str(folder))[number]


def test_a_head_is_asked_for_as_in_the_report(benchmarks_folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    asked = InstructFormat().prompt(problem_of(benchmarks_folder, "humaneval"), tokenizer)
    assert asked.prefix == (
        "<|im_start|>user\nWrite a solution to the following problem and make sure that it passes the tests:\n"
        '```python\ndef add(a, b):\n    """Compute it."""\n```<|im_end|>\n<|im_start|>assistant\n```python\n'
    )
    assert (asked.suffix, asked.length) == ("", None)


def test_a_text_with_tests_is_asked_for_as_in_the_report(
    benchmarks_folder: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    asked = InstructFormat().prompt(problem_of(benchmarks_folder, "mbpp"), tokenizer)
    assert asked.prefix == (
        "<|im_start|>user\nYou are an expert Python programmer, and here is your task: Write add. Your code should pass "
        "these tests:\n\nassert add(1, 2) == 3\nassert add(0, 0) == 0\nassert add(5, 1) == 6<|im_end|>\n"
        "<|im_start|>assistant\n```python\n"
    )


def test_the_head_can_be_repeated_in_the_answer(benchmarks_folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    problem = problem_of(benchmarks_folder, "humaneval")
    repeating = InstructFormat(repeat_head=True)
    assert repeating.prompt(problem, tokenizer).prefix.endswith("```python\n" + problem.context)
    assert repeating.program(problem, BODIES["add"] + "```") == problem.canonical


def test_a_base_model_goes_on_with_the_head(benchmarks_folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    problem = problem_of(benchmarks_folder, "humaneval")
    assert BaseFormat().prompt(problem, tokenizer).prefix == problem.prompt
    assert BaseFormat().program(problem, BODIES["add"] + "\n\nadd(1)\n") == problem.canonical


def test_a_base_model_gets_a_text_as_a_docstring(benchmarks_folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    problem = problem_of(benchmarks_folder, "mbpp")
    tests = "\n".join(problem.extra["tests"])
    assert BaseFormat().prompt(problem, tokenizer).prefix == f'"""\nWrite add.\n{tests}\n"""\n'
    assert BaseFormat().program(problem, problem.canonical + "\nprint(1)\n") == problem.canonical


def test_a_gap_stands_between_prefix_and_suffix_with_its_true_length(
    benchmarks_folder: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    problem = problem_of(benchmarks_folder, "humaneval_infilling")
    asked = InfillingFormat().prompt(problem, tokenizer)
    assert (asked.prefix, asked.suffix) == (problem.prompt, "\n")
    assert asked.length == len(tokenizer(problem.extra["middle"])["input_ids"])
    assert InfillingFormat(9).prompt(problem, tokenizer).length == 9
    assert InfillingFormat().program(problem, problem.extra["middle"]) == problem.canonical


@pytest.mark.parametrize("prompt_format", [InstructFormat(), InstructFormat(repeat_head=True), BaseFormat()])
@pytest.mark.parametrize("task", ["humaneval", "mbpp"])
def test_a_whole_solution_is_a_program_in_every_format(
    benchmarks_folder: Path, prompt_format: PromptFormat, task: str
) -> None:
    for number, name in enumerate(HEADS):
        problem = problem_of(benchmarks_folder, task, number)
        assert HEADS[name].rpartition("\n\n")[2] in prompt_format.program(problem, HEADS[name] + BODIES[name])


def test_a_tokenizer_without_a_chat_template_cannot_be_instructed(tokenizer: PreTrainedTokenizerFast) -> None:
    template, tokenizer.chat_template = tokenizer.chat_template, None
    try:
        with pytest.raises(ValueError, match=r"prompt_format is InstructFormat, .* choose BaseFormat"):
            InstructFormat().check(tokenizer)
        BaseFormat().check(tokenizer)
    finally:
        tokenizer.chat_template = template


@pytest.mark.parametrize("length", [0, -4])
def test_a_gap_of_no_length_is_an_error(length: int) -> None:
    with pytest.raises(ValueError, match=f"infilling length is {length}"):
        InfillingFormat(length)


def test_formats_describe_themselves() -> None:
    assert InstructFormat().describe() == {"format": "InstructFormat", "prefill": "```python\n", "repeat_head": False}
    assert InfillingFormat(8).describe() == {"format": "InfillingFormat", "length": 8}


def test_the_real_tokenizer_puts_one_turn_and_opens_the_answer() -> None:
    folder = SHARED.parent / "tokenizer" / "qwen3"
    if not folder.is_dir():
        pytest.skip(f"Qwen3's tokenizer is not at {folder}")
    real = load_tokenizer(str(folder))
    problem = Problem("x", "def f():\n", "f", None, "", "def f():\n")  # type: ignore[arg-type]
    asked = InstructFormat().prompt(problem, real).prefix
    assert asked.count("<|im_start|>") == 2
    assert asked.endswith("```python\n")
    assert real(asked, add_special_tokens=False)["input_ids"].count(151644) == 2
