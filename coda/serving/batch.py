"""A batch of rows under way: takes denoising steps, and reports what each changed."""

from collections.abc import Sequence

import torch
from torch import Tensor

from coda.model import CoDALanguageModel
from coda.serving.rows import Change, Draft, Ended, Row, Text
from coda.serving.text import Detokenizer, Transcript


class _Progress:
    """What has been reported of a row."""

    def __init__(self, row: Row, detokenizer: Detokenizer) -> None:
        self.row = row
        self.detokenizer = detokenizer
        self.transcript = Transcript(detokenizer, row.stops)
        self.pieces: list[str | None] = [None] * (row.gap.stop - row.gap.start)
        self.pending = ""
        if row.drafts:
            length = len(self.pieces)
            row.emit(Draft(row.index, 0, length, length, []))

    def draft(self, gap: list[int], step: int) -> None:
        """Report which tokens have changed."""
        pieces = self.detokenizer.pieces(gap)
        pairs = enumerate(zip(self.pieces, pieces, strict=True))
        changes = [Change(position, new) for position, (old, new) in pairs if old != new]
        self.pieces = pieces
        self.row.emit(Draft(self.row.index, step, len(gap), pieces.count(None), changes))

    def read(self, gap: list[int], settled: int, evaluations: int) -> bool:
        """Report the text of the first ``settled`` tokens; return whether it has ended."""
        whole = settled >= len(gap)
        self.pending += self.transcript.read(gap[: max(settled, 0)], whole)
        if self.pending and (self.row.streams or self.transcript.reason):
            self.row.emit(Text(self.row.index, self.pending))
            self.pending = ""
        if self.transcript.reason is None:
            return False
        self.row.emit(Ended(self.row.index, self.transcript.reason, self.transcript.tokens, evaluations))
        return True


class Batch:
    """Rows that are decoded together. A row's text depends on its own canvas and seed alone.

    Args:
        model: In evaluation mode.
        detokenizer: Of the model's tokenizer.
        rows: Of equal ``key``.
    """

    def __init__(self, model: CoDALanguageModel, detokenizer: Detokenizer, rows: list[Row]) -> None:
        ids, given = padded([row.ids for row in rows], int(rows[0].config.pad_token_id or 0))
        self.decoder = model.diffusion_decoder(
            ids.to(model.device),
            None if bool(given.all()) else given.to(model.device),
            rows[0].config,
            seed=[row.seed for row in rows],
        )
        self.under_way = {place: _Progress(row, detokenizer) for place, row in enumerate(rows)}

    @property
    def rows(self) -> list[Row]:
        """The rows that are not finished."""
        return [progress.row for progress in self.under_way.values()]

    @torch.no_grad()
    def step(self) -> int:
        """Let cancelled rows leave, take a denoising step with the others, report; return how many those were."""
        self._leave([place for place, progress in self.under_way.items() if progress.row.cancelled])
        size = len(self.under_way)
        if size:
            self.decoder.step()
            self._report()
        return size

    def _report(self) -> None:
        running = set(self.decoder.running)
        if running >= self.under_way.keys() and not any(row.watched for row in self.rows):
            return
        settled = self.decoder.settled()
        canvas = self.decoder.canvas.restore()[0].tolist()
        ended = []
        for place, progress in self.under_way.items():
            row = progress.row
            if place in running and not row.watched:
                continue
            gap = canvas[place][row.gap]
            reached = settled[place] - row.gap.start if place in running else len(gap)
            if row.drafts:
                progress.draft(gap, self.decoder.steps)
            if progress.read(gap, reached, self.decoder.steps):
                ended.append(place)
        self._leave(ended)

    def _leave(self, places: list[int]) -> None:
        for place in places:
            del self.under_way[place]
        if places:
            self.decoder.drop(places)


def padded(rows: Sequence[list[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """``rows`` padded on the right to int64 [B, L], and which tokens are given, bool [B, L]."""
    width = max(map(len, rows))
    ids = torch.tensor([row + [pad_id] * (width - len(row)) for row in rows])
    return ids, torch.arange(width) < torch.tensor([[len(row)] for row in rows])
