"""How a problem is put to a model, and how what it writes becomes a program: one component per format."""

from abc import ABC, abstractmethod
from typing import Any, Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from coda.evaluation.extraction import extract
from coda.evaluation.problem import Problem
from coda.generate import in_chat

HEAD_TASK = "Write a solution to the following problem and make sure that it passes the tests:\n"
WORDED_TASK = "You are an expert Python programmer, and here is your task: "
TESTS_SHOWN = 3


class Prompt(NamedTuple):
    """What stands before the gap, what behind it, and how many tokens the gap has; None leaves that to the sampler."""

    prefix: str
    suffix: str = ""
    length: int | None = None


class PromptFormat(ABC):
    """Puts problems to a model."""

    def check(self, tokenizer: PreTrainedTokenizerBase) -> None:  # noqa: B027
        """Raise ValueError if a model with this tokenizer cannot be asked in this format."""

    @abstractmethod
    def prompt(self, problem: Problem, tokenizer: PreTrainedTokenizerBase) -> Prompt:
        """Write the prompt of a problem."""

    @abstractmethod
    def program(self, problem: Problem, completion: str) -> str:
        """Make a program of what the model wrote into the gap, as text up to its end of turn."""

    def describe(self) -> dict[str, Any]:
        """Everything that shapes prompts and programs, as JSON."""
        return {"format": type(self).__name__, **vars(self)}


class InstructFormat(PromptFormat):
    """The report's format (arXiv 2510.03270, section 5): zero-shot, in the chat template, the answer begun with a block.

    Args:
        prefill: What the assistant's answer begins with.
        repeat_head: Repeat a function head at the end of that, as lm-eval's ``humaneval_instruct`` does.
    """

    def __init__(self, prefill: str = "```python\n", repeat_head: bool = False) -> None:
        self.prefill = prefill
        self.repeat_head = repeat_head

    def check(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """See :class:`PromptFormat`."""
        if tokenizer.chat_template is None:
            raise ValueError(
                "prompt_format is InstructFormat, but the model's tokenizer has no chat template; choose BaseFormat, or "
                "give an instruction-tuned model"
            )

    def prompt(self, problem: Problem, tokenizer: PreTrainedTokenizerBase) -> Prompt:
        """See :class:`PromptFormat`."""
        head = problem.context if self.repeat_head else ""
        return Prompt(in_chat(tokenizer, instruction(problem)) + self.prefill + head)

    def program(self, problem: Problem, completion: str) -> str:
        """See :class:`PromptFormat`."""
        continues = self.repeat_head and bool(problem.context)
        return extract(completion, problem.entry_point, problem.context, continues)


class BaseFormat(PromptFormat):
    """Completion by a model that was not tuned to follow instructions: the code so far, and nothing else.

    A function head as it is; a problem in words with its tests as a docstring, which the function follows.
    """

    def prompt(self, problem: Problem, tokenizer: PreTrainedTokenizerBase) -> Prompt:
        """See :class:`PromptFormat`."""
        if problem.context:
            return Prompt(problem.context)
        tests = "\n".join(problem.extra["tests"][:TESTS_SHOWN])
        return Prompt(f'"""\n{problem.prompt}\n{tests}\n"""\n')

    def program(self, problem: Problem, completion: str) -> str:
        """See :class:`PromptFormat`."""
        return extract(completion, problem.entry_point, problem.context, continues=bool(problem.context))


class InfillingFormat(PromptFormat):
    """Prefix and suffix stand in place around the gap, as in training.

    Args:
        length: Tokens of the gap; ``oracle`` takes as many as the text that was cut out has, which no user knows.
    """

    def __init__(self, length: int | Literal["oracle"] = "oracle") -> None:
        if length != "oracle" and length < 1:
            raise ValueError(f"infilling length is {length}; give at least 1 token, or oracle")
        self.length = length

    def prompt(self, problem: Problem, tokenizer: PreTrainedTokenizerBase) -> Prompt:
        """See :class:`PromptFormat`."""
        length = self.length
        if length == "oracle":
            length = max(len(tokenizer(problem.extra["middle"], add_special_tokens=False)["input_ids"]), 1)
        return Prompt(problem.prompt, problem.extra["suffix"], int(length))

    def program(self, problem: Problem, completion: str) -> str:
        """See :class:`PromptFormat`. Nothing is extracted: the gap is all that the model writes."""
        return problem.prompt + completion + problem.extra["suffix"]


def instruction(problem: Problem) -> str:
    """The task in words (SPEC of the report's evaluation): a function head in a block, or a text and its tests."""
    if problem.context:
        return f"{HEAD_TASK}```python\n{problem.context.strip()}\n```"
    tests = "\n".join(problem.extra["tests"][:TESTS_SHOWN])
    return f"{WORDED_TASK}{problem.prompt} Your code should pass these tests:\n\n{tests}"
