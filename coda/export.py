"""Export: one folder with weights, config, tokenizer and the model's own source files, which transformers loads anywhere.

``python -m coda.export --checkpoint X.ckpt --output DIR``
"""

import sys
from pathlib import Path

from jsonargparse import auto_cli
from transformers import PreTrainedTokenizerBase

from coda.checkpoint import load_model
from coda.files import new_folder
from coda.model.modeling_coda import CoDALanguageModel


def export(model: CoDALanguageModel, tokenizer: PreTrainedTokenizerBase, output: Path) -> None:
    """Write ``model`` and ``tokenizer`` to the new folder ``output``, whole or not at all.

    Raises:
        ValueError: If ``output`` exists.
    """
    if output.exists():
        raise ValueError(f"--output {output} exists already; choose another folder, or remove it first")
    with new_folder(output) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def main(checkpoint: str, output: str) -> None:
    """Turn a training checkpoint into a Hugging Face folder.

    Args:
        checkpoint: A .ckpt written by training.
        output: Folder to create.
    """
    export(*load_model(checkpoint), Path(output))
    print(f"exported to {output}")


if __name__ == "__main__":
    try:
        auto_cli(main, as_positional=False)
    except ValueError as error:
        sys.exit(f"error: {error}")
