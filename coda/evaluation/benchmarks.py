"""Benchmarks end to end: problems, canvases, samples, programs, verdicts, scores."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_info
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from coda.checkpoint import check_mask
from coda.evaluation.generating import Request, check_requests, generate, make_requests, sampler_settings
from coda.evaluation.judging import TIME_LIMIT, judge_all
from coda.evaluation.passk import check_k
from coda.evaluation.problem import Problem
from coda.evaluation.prompts import InfillingFormat, InstructFormat, PromptFormat
from coda.evaluation.ranks import Ranks
from coda.evaluation.results import claim, write_problems
from coda.evaluation.samples import Sample, SampleFolder
from coda.evaluation.sandbox import Sandbox, SandboxError
from coda.evaluation.scores import Judged, evalplus, score
from coda.evaluation.tasks import Task, find_tasks
from coda.files import cache_key
from coda.model import CoDALanguageModel

InfillingLength = int | Literal["oracle"]


@dataclass(frozen=True)
class Run:
    """One task in one prompt format.

    Attributes:
        name: Of the task; for infilling with the length of the gap behind it.
        task: Where the problems come from.
        prompt_format: How they are put.
        problems: All of them.
    """

    name: str
    task: Task
    prompt_format: PromptFormat
    problems: list[Problem]

    def describe(self) -> dict[str, Any]:
        """The prompt format, and a hash of the problems with their tests: data sets on the hub change."""
        content = cache_key(*(problem.extra["content"] for problem in self.problems))
        return {"problems": len(self.problems), "content": content, **self.prompt_format.describe()}


class Benchmarks:
    """Draws samples of every problem of some tasks, and scores them.

    Args:
        tasks: Names of tasks, see :mod:`coda.evaluation.tasks`.
        data: A folder with their files as JSONL or JSONL.gz; None takes them from where they are published.
        limit: The first so many problems of each task; None takes all.
        prompt_format: How problems are put; infilling has its own format.
        infilling_lengths: Lengths of the gap, each scored for itself: a number of tokens, or ``oracle``, the true one.
        samples: Of each problem.
        k: For pass@k; none above ``samples``.
        sampler: Settings of ``diffusion_generate``, in place of the report's.
        batch_size: Canvases decoded at once, per rank.
        seed: Of the samples.
        time_limit: Seconds that a program may run.
        workers: Programs judged at a time; None takes all cores.
        allow_unsandboxed: Run programs even where nothing protects this machine's files from them.

    Raises:
        ValueError: For a setting that cannot work, naming it; problems are read, and found missing, here too.
    """

    def __init__(
        self,
        tasks: list[str],
        data: str | None = None,
        limit: int | None = None,
        prompt_format: PromptFormat | None = None,
        infilling_lengths: list[InfillingLength] | None = None,
        samples: int = 1,
        k: list[int] | None = None,
        sampler: dict[str, Any] | None = None,
        batch_size: int = 16,
        seed: int = 0,
        time_limit: float = TIME_LIMIT,
        workers: int | None = None,
        allow_unsandboxed: bool = False,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("workers", 1 if workers is None else workers)):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        if time_limit <= 0:
            raise ValueError(f"time_limit is {time_limit}; give a program some seconds to run")
        for each in (1, *(k or [])):
            check_k(samples, each)
        self.tasks = find_tasks(tasks)
        self.prompt_format = prompt_format or InstructFormat()
        if isinstance(self.prompt_format, InfillingFormat):
            raise ValueError("prompt_format is InfillingFormat, which only infilling tasks take; set infilling_lengths")
        self.lengths = [InfillingFormat(length) for length in infilling_lengths or ["oracle", 64]]
        self.samples, self.ks = samples, sorted({1, *(k or [])})
        self.sampler = sampler_settings(sampler or {})
        self.batch_size, self.seed = batch_size, seed
        self.time_limit, self.workers = time_limit, workers
        self.allow_unsandboxed = allow_unsandboxed
        self.data, self.limit = data, limit
        self.runs = list(self._runs())

    def _runs(self) -> Iterator[Run]:
        for task in self.tasks:
            problems = task.load(self.data, self.limit)
            if not task.infilling:
                yield Run(task.name, task, self.prompt_format, problems)
                continue
            for length in self.lengths:
                name = f"{task.name}/{'oracle' if length.length == 'oracle' else f'fixed_{length.length}'}"
                yield Run(name, task, length, problems)

    def check(self, model: CoDALanguageModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Find out before the first network evaluation what cannot be evaluated.

        Raises:
            ValueError: Naming the setting.
        """
        check_mask(model, tokenizer)
        for run in self.runs:
            run.prompt_format.check(tokenizer)
            check_requests(self._requests(run, tokenizer), model)

    def sandbox(self) -> Sandbox:
        """Where programs run. Raises ValueError if nothing here keeps them from this machine's files."""
        try:
            return Sandbox(allow_unsandboxed=self.allow_unsandboxed)
        except SandboxError as error:
            raise ValueError(str(error)) from error

    def describe(self) -> dict[str, Any]:
        """Everything here that shapes the scores, as JSON."""
        return {
            "tasks": {run.name: run.describe() for run in self.runs},
            "data": self.data or {task.name: [task.source, task.config, task.splits] for task in self.tasks},
            "limit": self.limit,
            "samples": self.samples,
            "sampler": self.sampler,
            "seed": self.seed,
            "time_limit": self.time_limit,
        }

    def run(
        self,
        model: CoDALanguageModel,
        tokenizer: PreTrainedTokenizerBase,
        sandbox: Sandbox | None,
        ranks: Ranks,
        output: Path | None = None,
        identity: dict[str, Any] | None = None,
        progress: bool = True,
    ) -> dict[str, dict[str, Any]]:
        """Generate on all ranks, judge on those with a sandbox, and return the scores by run (empty on the others).

        Args:
            model: In evaluation mode, on its device.
            tokenizer: The model's.
            sandbox: Where programs run; None on ranks that do not judge.
            ranks: Who shares the work.
            output: Keeps samples, which are not drawn again, and verdicts; None keeps nothing.
            identity: What tells samples apart besides the sampler, such as the model's fingerprint.
            progress: Show progress bars.
        """
        results = {}
        for run in self.runs:
            samples = self.generate(run, model, tokenizer, ranks, output, identity, progress)
            if sandbox is not None:
                judged = self.judge(run, samples, sandbox, progress)
                results[run.name] = score(run.problems, judged, self.ks, run.task.infilling)
                if output is not None:
                    write_problems(output / run.name, run.problems, judged)
        mean = evalplus(results)
        return results if mean is None else results | {"EvalPlus": {"evalplus": mean}}

    def generate(
        self,
        run: Run,
        model: CoDALanguageModel,
        tokenizer: PreTrainedTokenizerBase,
        ranks: Ranks,
        output: Path | None = None,
        identity: dict[str, Any] | None = None,
        progress: bool = True,
    ) -> list[Sample]:
        """The samples of a run, on every rank; see :meth:`run`."""
        folder = None if output is None else output / run.name
        # The first rank alone writes who may be here; the others hear whether that failed.
        error = None
        if folder is not None and ranks.first:
            error = _error_of(lambda: claim(folder, {**(identity or {}), "sampler": self.sampler, "seed": self.seed}))
        if error := ranks.gather(error)[0]:
            raise ValueError(error)
        kept = SampleFolder(folder, ranks.rank)
        before = len(kept.samples)
        if before and ranks.first:
            rank_zero_info(f"{run.name}: going on with {before} samples of {folder}")
        requests = self._requests(run, tokenizer)
        title = run.name if progress else None
        return generate(model, tokenizer, requests, self.sampler, self.batch_size, kept, ranks, title)

    def judge(self, run: Run, samples: list[Sample], sandbox: Sandbox, progress: bool = True) -> list[Judged]:
        """Run the program of every sample."""
        problems = {problem.task_id: problem for problem in run.problems}
        programs = [run.prompt_format.program(problems[one.task_id], one.completion) for one in samples]
        pairs = [(problems[one.task_id].judge, program) for one, program in zip(samples, programs, strict=True)]
        verdicts = judge_all(pairs, sandbox, self.time_limit, self.workers)
        bar = tqdm(verdicts, f"{run.name}: judging", total=len(pairs), disable=not progress, unit="program")
        return [Judged(*parts) for parts in zip(samples, programs, bar, strict=True)]

    def _requests(self, run: Run, tokenizer: PreTrainedTokenizerBase) -> list[Request]:
        return make_requests(run.problems, run.prompt_format, tokenizer, self.sampler, self.samples, self.seed)


def _error_of(action: Any) -> str | None:
    try:
        action()
    except ValueError as error:
        return str(error)
    return None
