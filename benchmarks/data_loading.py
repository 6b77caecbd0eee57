"""Reading prepared corpora: tokens per second of a seven-corpus mixture at length 8192, in-process and through workers.

``python -m benchmarks.data_loading`` (part of ``make bench``)
"""

import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from benchmarks.tables import print_command, table
from coda.data.mixture import Mixture, Portion, divide, permute
from coda.data.packing import PackedRows, SampleOrder
from coda.data.plan import FORMAT
from coda.data.shards import DOCUMENT, Shard, write_shard
from coda.data.store import MANIFEST, TokenStore
from coda.files import write_json

WEIGHTS = [60.17, 50.75, 38.22, 12.98, 9.18, 5.41, 3.24]  # stage 1, billions of tokens
LENGTH, BATCH, ROUNDS = 8192, 8, 5
SHARD_TOKENS, DOCUMENT_TOKENS = 1 << 23, 1 << 10
SAMPLES = 4096


def write_store(folder: Path) -> TokenStore:
    """Seven corpora of one shard each, of documents of one size: what is read matters here, not what it says."""
    rng = np.random.default_rng(0)
    manifest: dict[str, Any] = {"format": FORMAT, "corpora": {}, "unigram_entropy": 0.0}
    documents = np.zeros(SHARD_TOKENS // DOCUMENT_TOKENS, dtype=DOCUMENT)
    documents["tokens"] = DOCUMENT_TOKENS
    for i in range(len(WEIGHTS)):
        tokens = {"train": rng.integers(0, 1000, SHARD_TOKENS, dtype=np.uint32), "val": np.zeros(0, np.uint32)}
        shard = Shard("00000-00000", 0, len(documents), True)
        (folder / f"corpus{i}").mkdir()
        write_shard(folder / f"corpus{i}", shard, tokens, documents, 1000)
        manifest["corpora"][f"corpus{i}"] = {
            "tokens": shard.tokens, "documents": shard.documents, "skipped": {}, "shards": [vars(shard)]
        }  # fmt: skip
    write_json(folder / MANIFEST, manifest)
    return TokenStore(folder)


def tokens_per_second(rows: PackedRows, workers: int) -> float:
    """Median over rounds of the rate at which batches arrive, after the first one."""
    rates = []
    for number in range(ROUNDS):
        order = SampleOrder(SAMPLES, BATCH, 0, 1, first=lambda number=number: number * SAMPLES)  # type: ignore[misc]
        batches = iter(DataLoader(rows, BATCH, sampler=order, num_workers=workers, collate_fn=rows.collate))
        next(batches)
        start = time.perf_counter()
        count = sum(batch["input_ids"].numel() for batch in batches)
        rates.append(count / (time.perf_counter() - start))
    return median(rates)


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        store = write_store(Path(folder))
        streams = [store.stream(corpus, "train") for corpus in store.corpora()]
        counts = [stream.tokens // LENGTH for stream in streams]
        portions = [Portion(corpus, weight) for corpus, weight in zip(store.corpora(), WEIGHTS, strict=True)]
        mixture = Mixture(counts, *divide(portions, counts), seed=0)
        about = f"rows of {LENGTH} in batches of {BATCH}, medians of {ROUNDS} passes of {SAMPLES} rows"
        print_command("data_loading", about)
        found: list[tuple[str, str]] = []
        for segments in (False, True):
            rows = PackedRows(streams, mixture, LENGTH, segments)
            for workers in (0, 2):
                where = f"{workers} workers" if workers else "in-process"
                found.append((f"{where}{', with segments' * segments}", f"{tokens_per_second(rows, workers):.2e}"))
        start = time.perf_counter()
        for sample in range(20_000):
            mixture.locate(sample)
        found.append(("where a sample is (samples per second)", f"{20_000 / (time.perf_counter() - start):.2e}"))
        start = time.perf_counter()
        for index in range(20_000):
            permute(index, 22_000_000, 1)
        found.append(("one permutation (samples per second)", f"{20_000 / (time.perf_counter() - start):.2e}"))
        print(table(["reading", "tokens per second"], found))


if __name__ == "__main__":
    main()
