"""Tokenise corpora into shards, by any number of processes, resumable at any point.

Every source is split into parts. A process takes one part at a time and writes it as shards; a shard records how far its
part was read, so a run that was killed goes on behind the last finished shard of every part. Once all parts are done,
the corpora are put together (:mod:`coda.data.assemble`), which makes the folder a store.
"""

import hashlib
import json
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from coda.data.assemble import assemble
from coda.data.encoders import Encoded
from coda.data.plan import Plan, shard_name
from coda.data.shards import Shard, ShardWriter, read_shard
from coda.data.sources import Document, Skipped, Source
from coda.data.store import MANIFEST, TokenStore
from coda.files import locked, write_json

BATCH_DOCUMENTS, BATCH_CHARACTERS = 256, 1 << 20  # the tokenizer's threads share a batch
PLAN = "plan.json"
Task = tuple[int, int, Any]  # which source, which of its parts, and the part


def prepare(plan: Plan, output: Path, processes: int = 1) -> TokenStore:
    """Write the store of ``plan`` into ``output``, or what is missing of it, and open it.

    Args:
        plan: What to write.
        output: A folder that is new, or was begun with the same plan.
        processes: How many read and tokenise; 1 does it in this one, with the tokenizer's own threads.

    Raises:
        ValueError: If a source cannot be read or holds nothing, or the folder was begun with another plan.
    """
    with locked(output):
        _check_plan(plan, output)
        if not (output / MANIFEST).is_file():
            plan.encoder.tokenizer.save_pretrained(output / "tokenizer")
            tasks = [
                (index, number, part)
                for index, source in enumerate(plan.sources)
                for number, part in enumerate(source.parts())
            ]
            with tqdm(desc="Tokenising", unit=" tokens", unit_scale=True) as bar:
                if processes > 1:
                    _in_processes(plan, output, tasks, processes, bar)
                else:
                    _in_order(plan, output, tasks, bar)
            assemble(plan, output)
    return TokenStore(output)


def _check_plan(plan: Plan, output: Path) -> None:
    ours = json.loads(json.dumps(plan.fingerprint(), default=str))
    path = output / PLAN
    if not path.is_file():
        write_json(path, ours)
        return
    theirs = json.loads(path.read_text())
    differing = [key for key in ours if ours[key] != theirs.get(key)]
    if differing:
        raise ValueError(
            f"{output} was begun with other settings: {', '.join(differing)}; choose another output, or delete it"
        )


class _Budget:
    """Knows when enough of a corpus is there: its tokens from the first part on, without a gap, reach ``max_tokens``."""

    def __init__(self, sources: list[Source]) -> None:
        self.limits = [source.max_tokens for source in sources]
        self.done: dict[tuple[int, int], int] = {}

    def finish(self, index: int, number: int, tokens: int) -> None:
        self.done[index, number] = tokens

    def left(self, index: int) -> int | None:
        limit, number = self.limits[index], 0
        if limit is None:
            return None
        while (index, number) in self.done:
            limit -= self.done[index, number]
            number += 1
        return max(limit, 0)


def _in_order(plan: Plan, output: Path, tasks: list[Task], bar: tqdm) -> None:
    budget = _Budget(plan.sources)
    for index, number, part in tasks:
        left = budget.left(index)
        if left != 0:
            budget.finish(index, number, sum(_write_part(plan, output, index, number, part, left, bar.update)))


def _in_processes(plan: Plan, output: Path, tasks: list[Task], processes: int, bar: tqdm) -> None:
    # Spawned: a fork of a process with threads (the tokenizer's, pyarrow's) can hang.
    context = multiprocessing.get_context("spawn")
    written, stop = context.Value("q", 0), context.Event()
    budget, waiting = _Budget(plan.sources), iter(tasks)
    running: dict[Future[int], tuple[int, int]] = {}
    with ProcessPoolExecutor(processes, context, _start_worker, (plan, output, written, stop)) as pool:
        try:
            while True:
                while len(running) < 2 * processes and (task := next(waiting, None)) is not None:
                    left = budget.left(task[0])
                    if left != 0:
                        running[pool.submit(_work, *task, left)] = task[:2]
                if not running:
                    return
                finished, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in finished:
                    budget.finish(*running.pop(future), future.result())
                bar.update(written.value - bar.n)
        except BrokenProcessPool as error:
            raise ValueError(
                f"one of {processes} processes was killed, perhaps for want of memory; run the same command again, "
                "which goes on where it stopped, with fewer of them"
            ) from error
        finally:
            stop.set()  # what still runs after an error ends at its next batch
            pool.shutdown(cancel_futures=True)


_worker: tuple[Plan, Path, Any, Any]


def _start_worker(plan: Plan, output: Path, written: Any, stop: Any) -> None:
    global _worker
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread for each of many processes
    _worker = plan, output, written, stop
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # nobody waits for the rest, and a second run may be writing it already


def _work(index: int, number: int, part: Any, left: int | None) -> int:
    plan, output, written, stop = _worker

    def report(tokens: int) -> None:
        if stop.is_set():
            raise ValueError("stopped")
        with written.get_lock():
            written.value += tokens

    return sum(_write_part(plan, output, index, number, part, left, report))


def _write_part(
    plan: Plan, output: Path, index: int, number: int, part: Any, left: int | None, report: Callable[[int], object]
) -> Iterator[int]:
    """Write the unfinished shards of a part, up to ``left`` tokens; yield the tokens of every shard, old and new."""
    folder = output / plan.sources[index].corpus
    piece, records, taken = 0, 0, 0
    while (shard := read_shard(folder, shard_name(number, piece))) is not None:
        taken += sum(shard.tokens.values())
        yield sum(shard.tokens.values())
        if shard.last:
            return
        piece, records = piece + 1, shard.records
    items = islice(plan.sources[index].read(part), records, None)
    writer = ShardWriter(plan.vocab_size)
    while True:
        batch = _next_batch(items)
        records += len(batch)
        added = _add(plan, writer, batch)
        report(added)
        taken += added
        last = not batch or (left is not None and taken >= left)
        if last or writer.tokens >= plan.shard_tokens:
            writer.write(folder, Shard(shard_name(number, piece), number, records, last))
            yield writer.tokens
            piece, writer = piece + 1, ShardWriter(plan.vocab_size)
        if last:
            return


def _next_batch(items: Iterator[Document | Skipped]) -> list[Document | Skipped]:
    batch: list[Document | Skipped] = []
    characters = 0
    for item in items:
        batch.append(item)
        characters += len(item) if isinstance(item, str) else 0
        if len(batch) >= BATCH_DOCUMENTS or characters >= BATCH_CHARACTERS:
            break
    return batch


def _add(plan: Plan, writer: ShardWriter, items: list[Document | Skipped]) -> int:
    """Encode and add a batch; return its tokens."""
    before = writer.tokens
    documents = [item for item in items if not isinstance(item, Skipped)]
    writer.skipped.update(item.reason for item in items if isinstance(item, Skipped))
    for document, encoded in zip(documents, plan.encoder(documents), strict=True):
        if isinstance(encoded, Encoded):
            text = document if isinstance(document, str) else json.dumps(document)
            digest = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).digest()
            position = int.from_bytes(digest[:6], "big") / 2**48
            writer.add(encoded, digest, position < plan.val_fraction)
            writer.skipped.update([encoded.note] if encoded.note else [])
        else:
            writer.skipped[encoded.reason] += 1
    return writer.tokens - before
