"""Finished samples on disk: written as they come, kept over a kill, never drawn twice."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

Key = tuple[str, int]  # task id, number of the sample


@dataclass(frozen=True)
class Sample:
    """What a model wrote for a problem.

    Attributes:
        task_id: The problem.
        sample: Number of the sample.
        seed: Of its decoding.
        canvas: Hash of the canvas that was filled.
        completion: What stands in the gap, up to the end of turn.
        nfe: Network evaluations that it took.
        seconds: Wall clock, its share of the batch's.
        tokens: Length of the gap.
    """

    task_id: str
    sample: int
    seed: int
    canvas: str
    completion: str
    nfe: int
    seconds: float
    tokens: int

    @property
    def key(self) -> Key:
        """What tells samples of a run apart."""
        return self.task_id, self.sample


class SampleFolder:
    """The samples of one run: a JSONL file per rank, one line per sample.

    A line is whole or it is not there: the half line that a kill may leave behind is cut off before more is written.

    Args:
        folder: Where they are; made if there is none. None keeps nothing.
        rank: Whose file to write.

    Raises:
        ValueError: If a file holds something else than samples.
    """

    def __init__(self, folder: Path | None, rank: int = 0) -> None:
        self.samples: dict[Key, Sample] = {}
        self.path = None if folder is None else folder / f"samples-{rank:05}.jsonl"
        if folder is None or self.path is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        _cut_half_line(self.path)
        for path in sorted(folder.glob("samples-*.jsonl")):
            self.samples.update((sample.key, sample) for sample in _read(path))

    def add(self, samples: list[Sample]) -> None:
        """Write finished samples."""
        if self.path is not None:
            lines = "".join(json.dumps(asdict(sample)) + "\n" for sample in samples)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(lines)
        self.samples.update((sample.key, sample) for sample in samples)


def _cut_half_line(path: Path) -> None:
    if path.exists():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with path.open("r+b") as file:
                file.truncate(whole)


def _read(path: Path) -> Iterator[Sample]:
    content = path.read_bytes()  # another rank may be writing: its half line is not read either
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), start=1):
        try:
            yield Sample(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number}, is no sample ({error}); remove the line, or choose another output folder"
            ) from error
