"""Export: one folder with weights, config, tokenizer, model card and the model's own source files, which loads anywhere.

``python -m coda.export --checkpoint X.ckpt --output DIR``
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from jsonargparse import auto_cli
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase

from coda.checkpoint import check_mask, load_model
from coda.command import one_line_errors
from coda.files import new_folder, write_json
from coda.model.modeling_coda import CoDALanguageModel
from coda.release import record
from coda.release.card import write_card
from coda.release.layout import LAYOUTS, write_files
from coda.release.verify import verify as verify_folder


def export(
    model: CoDALanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    output: Path,
    runs: Sequence[dict[str, Any]] = (),
    layout: str = "coda",
    max_shard_size: str = "5GB",
    verify: bool = False,
) -> None:
    """Write ``model`` and ``tokenizer`` to the new folder ``output``, whole or not at all.

    Args:
        model: As it is: in its type, on its device.
        tokenizer: The model's, with ``<|mask|>``.
        output: Folder to create.
        runs: Records of the runs behind the weights, for the model card (:func:`coda.release.record.runs_of`).
        layout: ``coda``, or ``released`` for the one of the released models.
        max_shard_size: Weights are split into files of at most this size.
        verify: Load the folder in a clean process, and compare logits with ``model``'s, before it gets its name.

    Raises:
        ValueError: If ``output`` exists or cannot be written, if model and tokenizer do not fit each other or the layout,
            or if the folder does not pass the check.
    """
    check_output(output)
    check_settings(layout, max_shard_size)
    check_mask(model, tokenizer)
    try:
        with new_folder(output) as folder:
            write_files(model, tokenizer, folder, layout, max_shard_size)
            write_card(folder / "README.md", model, runs)
            if runs:
                write_json(folder / record.FILE, list(runs))
            if verify:
                verify_folder(folder, model, tokenizer)
    except (OSError, SafetensorError) as error:  # a full disk, a folder that may not be written
        raise ValueError(f"--output {output} could not be written, and nothing of it is left: {error}") from error


def check_output(output: Path) -> None:
    """Raise ValueError if ``output`` exists."""
    if output.exists():
        raise ValueError(f"--output {output} exists already; choose another folder, or remove it first")


def check_settings(layout: str, max_shard_size: str) -> None:
    """Raise ValueError for a layout that is unknown or a size that is none, before anything is loaded."""
    if layout not in LAYOUTS:
        raise ValueError(f"layout is {layout}; choose one of {', '.join(LAYOUTS)}")
    if not re.fullmatch(r"\d+(\.\d+)?\s*[KMGT]B", max_shard_size, re.IGNORECASE):
        raise ValueError(f"max_shard_size is {max_shard_size}; give a number of KB, MB, GB or TB, for example 5GB")


def main(
    checkpoint: str,
    output: str,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    layout: Literal["coda", "released"] = "coda",
    max_shard_size: str = "5GB",
    verify: bool = True,
) -> None:
    """Turn a training checkpoint into a Hugging Face folder.

    Args:
        checkpoint: A .ckpt or sharded checkpoint written by training; also a Hugging Face folder or name, to write it anew.
        output: Folder to create.
        dtype: Cast the weights; null keeps them as they are, which in training is float32.
        layout: coda, or released for a folder that the code of the released CoDA models reads as well.
        max_shard_size: Weights are split into files of at most this size.
        verify: Load the folder in a clean process without this package, and compare logits, before it gets its name.
    """
    check_output(Path(output))
    check_settings(layout, max_shard_size)
    model, tokenizer = load_model(checkpoint, **({} if dtype is None else {"dtype": dtype}))
    export(model, tokenizer, Path(output), record.runs_of(checkpoint), layout, max_shard_size, verify)
    print(f"exported to {output}")


if __name__ == "__main__":
    with one_line_errors():
        auto_cli(main, as_positional=False)
