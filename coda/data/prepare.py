"""Prepare corpora for training: ``python -m coda.data.prepare --config configs/data/stage1.yaml --output DIR``.

The same command again goes on where it was stopped. Train on the result with ``--data.prepared DIR``.
"""

import os
from pathlib import Path

from jsonargparse import ArgumentParser

from coda.command import one_line_errors
from coda.data.datamodule import PreparedDataModule
from coda.data.ingest import prepare
from coda.data.shards import SPLITS
from coda.data.store import TokenStore


def main(config: PreparedDataModule | None, output: Path, processes: int, verify: bool) -> None:
    """Prepare the corpora of ``config`` in ``output``, or verify what is there already, and print it."""
    if verify:
        store = TokenStore(output)
        store.verify()
    elif config is None:
        raise ValueError("--config is missing; give the data section to prepare, for example configs/data/stage1.yaml")
    else:
        store = prepare(config.plan(), output, processes)
    for name, corpus in store.manifest["corpora"].items():
        counts = [f"{corpus['tokens'][split]:,} tokens ({split})" for split in SPLITS]
        skipped = [f"{number:,} {why}" for why, number in corpus["skipped"].items()]
        print(f"{name}: {sum(corpus['documents'].values()):,} documents, {', '.join([*counts, *skipped])}")


if __name__ == "__main__":
    parser = ArgumentParser(prog="python -m coda.data.prepare", description="Prepare corpora for training.")
    parser.add_argument(
        "--config", type=PreparedDataModule | None, sub_configs=True, help="data section, e.g. configs/data/stage1.yaml"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write; the same again goes on")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="how many read and tokenise")
    parser.add_argument("--verify", action="store_true", help="compare the checksums of a finished folder instead")
    with one_line_errors(OSError):  # a full disk
        main(**parser.instantiate(parser.parse_args()).as_dict())
