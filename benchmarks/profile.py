"""Where a training step goes: the parts of ``python main.py fit``, callbacks and all.

``python -m benchmarks.profile`` profiles the quickstart; ``--config stage3b.yaml --options=[...]`` any other.
"""

import contextlib
import io
import tempfile

from jsonargparse import auto_cli

from benchmarks.tables import print_command
from callbacks.profiler import StepProfiler
from coda.cli import CodaCLI
from coda.module import DiffusionModule

QUIET = (
    "--sampling.at_validation=false",
    "--sampling.every_n_steps=0",
    "--export.enabled=false",
    "--trainer.enable_progress_bar=false",
)


def profile(config: str, steps: int, options: list[str], folder: str) -> StepProfiler:
    """Fit for ``steps`` optimizer steps under the profiler, with the run's files in ``folder``."""
    args = ["fit", f"--config={config}", *options, f"--trainer.max_steps={steps}", *QUIET]  # options may be configs
    args += [f"--trainer.logger.init_args.save_dir={folder}", "--trainer.profiler=callbacks.profiler.StepProfiler"]
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = CodaCLI(DiffusionModule, args=args).trainer
    assert isinstance(trainer.profiler, StepProfiler)  # type: ignore[attr-defined]
    return trainer.profiler  # type: ignore[attr-defined]


def main(config: str = "quickstart.yaml", steps: int = 60, options: list[str] | None = None) -> None:
    """Print the table.

    Args:
        config: A stage or the quickstart.
        steps: Optimizer steps.
        options: Further arguments of ``main.py fit``.
    """
    with tempfile.TemporaryDirectory() as folder:
        profiler = profile(config, steps, options or [], folder)
    about = f"{config}, wall time per micro-batch, means of {profiler.steps}"
    print_command("profile", about, profiler._lightning_module.device)  # type: ignore[attr-defined]
    print(profiler.summary())


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
