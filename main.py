"""Train, validate, test and predict: ``python main.py fit --config configs/stage2.yaml``; ``--help`` tells the rest.

The imports make short class names available on the command line, e.g. ``--model.masking BlockMasking``.
"""

from coda import data, masking, model, objective, optimization  # noqa: F401
from coda.cli import CodaCLI
from coda.command import one_line_errors
from coda.module import DiffusionModule


def main() -> None:
    """Run the command line; a setting that does not fit is one line, or all of it under ``CODA_TRACEBACK=1``."""
    with one_line_errors():
        CodaCLI(DiffusionModule)


if __name__ == "__main__":
    main()
