"""The last step of preparing corpora: surplus and duplicates are removed, and the manifest is written."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from coda.data.plan import Plan, shard_name
from coda.data.shards import SPLITS, Shard, keep_documents, read_shard
from coda.data.sources import Source
from coda.data.store import MANIFEST
from coda.files import write_json

SHARD_FILE = re.compile(r"\.?\d{5}-\d{5}(-kept)?\.")


def assemble(plan: Plan, output: Path) -> None:
    """Put the finished shards in ``output`` together; the manifest, written last, makes them a store.

    A corpus is cut behind the document that reaches its ``max_tokens``; among the documents that are left, the first of
    equal ones stays. Shards that lose documents are written anew, the others stay as they are. Beside one shard, only
    25 bytes per document are held in memory, and those only for a cut or to find duplicates.

    Raises:
        ValueError: If a corpus holds nothing.
    """
    written = {source.corpus: _finished(output / source.corpus) for source in plan.sources}
    kept, repeated = _kept(plan, output, written)
    manifest: dict[str, Any] = plan.fingerprint() | {"corpora": {}}
    counts = np.zeros(plan.vocab_size, dtype=np.int64)
    for source in plan.sources:
        folder = output / source.corpus
        shards: list[Shard] = []
        for shard in written[source.corpus]:
            keep = kept.get((source.corpus, shard.name))
            if not any(shard.documents.values()) or (keep is not None and not keep.any()):
                continue
            if keep is not None and not keep.all():
                shard = keep_documents(folder, shard, keep, plan.vocab_size)
            shards.append(shard)
            counts += np.load(folder / f"{shard.name}.counts.npy")
        if not shards:
            raise ValueError(
                f"corpus {source.corpus!r} of data.sources holds no text: {source.fingerprint()}; leave it out"
            )
        manifest["corpora"][source.corpus] = _describe(
            shards, _skipped(source, written[source.corpus]) | {"repeated": repeated[source.corpus]}
        )
    frequency = counts[counts > 0] / counts.sum()
    manifest["unigram_entropy"] = float(-(frequency * np.log(frequency)).sum())
    write_json(output / MANIFEST, manifest)
    _clean_up(output, manifest)


def _finished(folder: Path) -> list[Shard]:
    """All shards of a corpus in order, up to the first part that was never begun or never finished for lack of need."""
    shards: list[Shard] = []
    number = piece = 0
    while (shard := read_shard(folder, shard_name(number, piece))) is not None:
        shards.append(shard)
        number, piece = (number + 1, 0) if shard.last else (number, piece + 1)
    return shards


def _kept(
    plan: Plan, output: Path, written: dict[str, list[Shard]]
) -> tuple[dict[tuple[str, str], np.ndarray], Counter[str]]:
    """Which documents of which shard stay, bool [N], only for corpora that may lose some; and repetitions per corpus."""
    kept: dict[tuple[str, str], np.ndarray] = {}
    hashes = []
    for source in plan.sources:
        if source.max_tokens is None and not plan.deduplicate:
            continue
        taken = 0
        for shard in written[source.corpus]:
            documents = np.load(output / source.corpus / f"{shard.name}.documents.npy")
            sizes = documents["tokens"].astype(np.int64)
            before = taken + sizes.cumsum() - sizes
            kept[source.corpus, shard.name] = before < (source.max_tokens or np.inf)
            taken += int(sizes.sum())
            hashes.append(documents["hash"])
    repeated: Counter[str] = Counter()
    if plan.deduplicate:
        within = np.concatenate(list(kept.values()))
        again = _repeated(np.concatenate(hashes), within)
        start = 0
        for key, keep in kept.items():
            here = again[start : start + len(keep)]
            repeated[key[0]] += int(here.sum())
            kept[key] = keep & ~here
            start += len(keep)
    return kept, repeated


def _repeated(hashes: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Which rows of ``hashes`` [N, 2] are equal to an earlier one, looking only at those ``among``, bool [N]."""
    index = among.nonzero()[0]
    order = index[np.lexsort((hashes[index, 0], hashes[index, 1]))]  # a stable sort: equal ones stay in order
    again = (hashes[order][1:] == hashes[order][:-1]).all(axis=1)
    repeated = np.zeros(len(hashes), dtype=bool)
    repeated[order[1:][again]] = True
    return repeated


def _skipped(source: Source, shards: list[Shard]) -> dict[str, int]:
    """How many records were skipped or changed, by reason, in the shards up to the cut, also in those without documents."""
    skipped: Counter[str] = Counter()
    taken = 0
    for shard in shards:
        if source.max_tokens is None or taken < source.max_tokens:
            skipped.update(shard.skipped)
        taken += sum(shard.tokens.values())
    return dict(skipped)


def _describe(shards: list[Shard], skipped: dict[str, int]) -> dict[str, Any]:
    names = ("name", "tokens", "documents", "checksums")
    return {
        "tokens": {split: sum(shard.tokens[split] for shard in shards) for split in SPLITS},
        "documents": {split: sum(shard.documents[split] for shard in shards) for split in SPLITS},
        "skipped": {reason: number for reason, number in skipped.items() if number},
        "shards": [{name: getattr(shard, name) for name in names} for shard in shards],
    }


def _clean_up(output: Path, manifest: dict[str, Any]) -> None:
    """Delete the shards that are not used, token counts, and what killed runs left half-written; nothing of others."""
    for corpus, description in manifest["corpora"].items():
        used = {
            f"{shard['name']}.{ending}" for shard in description["shards"] for ending in (*shard["checksums"], "json")
        }
        for path in (output / corpus).iterdir():
            if SHARD_FILE.match(path.name) and (path.name not in used or path.name.endswith(".counts.npy")):
                path.unlink()
