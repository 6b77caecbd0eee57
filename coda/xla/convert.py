"""Turn a sharded checkpoint into one plain file, which any strategy and plain torch load. Needs no torch_xla.

``python -m coda.xla.convert --checkpoint DIR --output X.ckpt``
"""

from pathlib import Path

from jsonargparse import auto_cli

from coda.checkpoint import WholeFileIO
from coda.command import one_line_errors
from coda.sharded import is_sharded
from coda.xla.checkpointing import read_checkpoint


def main(checkpoint: str, output: str) -> None:
    """Write weights, optimizer states and all else of a sharded checkpoint to one file.

    Args:
        checkpoint: A folder written by training.
        output: The file to write.
    """
    if not is_sharded(checkpoint):
        raise ValueError(f"--checkpoint {checkpoint} is no sharded checkpoint; give a folder that a training run wrote")
    if Path(output).exists():
        raise ValueError(f"--output {output} exists already; choose another name, or remove it first")
    WholeFileIO().save_checkpoint(read_checkpoint(checkpoint), output)
    print(f"wrote {output}")


if __name__ == "__main__":
    with one_line_errors():
        auto_cli(main, as_positional=False)
