"""Evaluate a model on code: ``python -m coda.evaluate --model DIR --tasks humaneval,mbpp --output runs/evaluation``.

The same command again goes on where it was stopped. ``torchrun --nproc_per_node 8 -m coda.evaluate ...`` shares the work.
"""

from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from coda.data.sources import file_name
from coda.evaluation.benchmarks import Benchmarks
from coda.evaluation.held_out import measure
from coda.evaluation.likelihood import Likelihood
from coda.evaluation.ranks import Ranks
from coda.evaluation.results import RESULTS, environment, table
from coda.evaluation.subject import DEVICE, Subject, names_in, run_command
from coda.files import write_json


def main(
    model: str,
    output: str | None = None,
    tasks: str = "",
    limit: int | None = None,
    batch_size: int = 16,
    seed: int = 0,
    likelihood: str | None = None,
    likelihood_split: str = "val",
    likelihood_masks: int = 64,
    dtype: str | None = None,
    device: str = DEVICE,
    **options: Any,
) -> dict[str, Any]:
    """Evaluate a diffusion language model on code, and write down everything that shaped the numbers.

    Args:
        model: An exported folder, a .ckpt or a Hugging Face name.
        output: Folder for results.json, and for each task samples, programs and verdicts; samples are kept over a kill. Null
            is runs/evaluation/MODEL.
        tasks: Names with commas between them: humaneval, humaneval_plus, mbpp (sanitized), mbpp_full, mbpp_plus,
            humaneval_infilling (random spans, light) and its _random_span, _single_line and _multi_line.
        limit: The first so many problems of each task, and documents of held-out text; null takes all.
        batch_size: Canvases or masked rows given to the model at once, per process.
        seed: Of samples and masks.
        likelihood: Held-out text whose perplexity bound is estimated: a file or folder, or a prepared corpus.
        likelihood_split: Of a prepared corpus: val or train.
        likelihood_masks: Masks drawn per row of held-out text, an even number.
        dtype: Of weights and arithmetic; null is bfloat16 on GPUs and float32 elsewhere.
        device: Where to run.
        **options: See :class:`coda.evaluation.benchmarks.Benchmarks`.
    """
    if not tasks and likelihood is None:
        raise ValueError("there is nothing to evaluate; give tasks, likelihood or both")
    folder = Path(output or f"runs/evaluation/{file_name(model)}")
    benchmarks = sandbox = None
    ranks = Ranks.join()
    if tasks:
        benchmarks = Benchmarks(names_in(tasks), limit=limit, batch_size=batch_size, seed=seed, **options)
        sandbox = benchmarks.sandbox() if ranks.first else None
    subject = Subject.load(model, dtype, device)
    estimator = Likelihood(subject.model, likelihood_masks, batch_size, seed, title="likelihood")
    settings: dict[str, Any] = {**subject.settings, "ranks": ranks.size, "batch_size": batch_size, "seed": seed}
    report: dict[str, Any] = {"settings": settings, "environment": environment()}
    if benchmarks is not None:
        benchmarks.check(subject.model, subject.tokenizer)
    if likelihood is not None and ranks.first:
        report["likelihood"] = measure(estimator, subject.tokenizer, likelihood, likelihood_split, limit)
    if benchmarks is not None:
        settings |= benchmarks.describe()
        report["sandbox"] = sandbox and sandbox.level
        report["results"] = benchmarks.run(subject.model, subject.tokenizer, sandbox, ranks, folder, subject.identity)
    if ranks.first:
        write_json(folder / RESULTS, report)
        show(report, folder / RESULTS)
    return report


def show(report: dict[str, Any], path: Path) -> None:
    """Print the table, last."""
    rank_zero_info(f"everything that shaped these numbers is in {path}")
    if "results" in report:
        print(table(report["results"]))
    if "likelihood" in report:
        bound = report["likelihood"]
        low, high = bound["perplexity_interval"]
        print(
            f"{bound['source']}: perplexity at most {bound['perplexity']:.3f} ({low:.3f} - {high:.3f}), "
            f"{bound['nats_per_token']:.4f} nats per token (standard error {bound['standard_error']:.4f})"
        )


if __name__ == "__main__":
    run_command(main, "python -m coda.evaluate", "Evaluate a diffusion language model on code.")
