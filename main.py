"""Train, validate, test and predict: ``python main.py fit --config configs/stage2.yaml``; ``--help`` tells the rest.

The imports make short class names available on the command line, e.g. ``--model.masking BlockMasking``.
"""

from coda import data, masking, model, objective, optimization  # noqa: F401
from coda.cli import CodaCLI
from coda.module import DiffusionModule


def main() -> None:
    """Run the command line."""
    CodaCLI(DiffusionModule)


if __name__ == "__main__":
    main()
