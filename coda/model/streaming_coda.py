"""Streaming a decoding: drafts as they form, and text as it becomes final."""

from typing import Any

from torch import Tensor
from transformers.generation.streamers import BaseStreamer


class RowStreamers(BaseStreamer):
    """Streams every row of a batch to a streamer of its own; those of transformers take one row.

    Args:
        streamers: One per row. Those without ``put_draft`` receive final text only.
    """

    def __init__(self, streamers: list[Any]) -> None:
        self.streamers = streamers

    def put_draft(self, value: Tensor, **kwargs: Any) -> None:
        """Pass on the drafts [B, n], a row to each."""
        for streamer, row in zip(self.streamers, value.split(1), strict=True):
            if hasattr(streamer, "put_draft"):
                streamer.put_draft(row, **kwargs)

    def put(self, value: Tensor) -> None:
        """Pass on final tokens [B, n], a row to each."""
        for streamer, row in zip(self.streamers, value.split(1), strict=True):
            streamer.put(row)

    def end(self) -> None:
        """End all streams."""
        for streamer in self.streamers:
            streamer.end()


class Stream:
    """Feeds a streamer as transformers' diffusion models do: the prompt, then drafts and final text in turn.

    ``put`` receives each column once, from the left: when no row has a masked token up to it and a block has ended.
    ``put_draft`` receives the columns that are not final yet.

    Args:
        streamer: Receives int64 [B, n] on the CPU.
        mask_id: Id of the absorbing state.
    """

    def __init__(self, streamer: BaseStreamer, mask_id: int) -> None:
        self.streamer = streamer
        self.mask_id = mask_id
        self.sent = 0

    def final(self, drafts: Tensor, finished: bool = False) -> None:
        """Send what has become final of ``drafts`` [B, L]; all of it if ``finished``."""
        clear = (~(drafts == self.mask_id).any(dim=0)).int().cumprod(dim=0).sum()
        reached = drafts.shape[1] if finished else int(clear)
        if reached > self.sent:
            self.streamer.put(drafts[:, self.sent : reached].cpu())
            self.sent = reached
        if finished:
            self.streamer.end()

    def draft(self, drafts: Tensor) -> None:
        """Send what is not final of ``drafts`` [B, L]."""
        if hasattr(self.streamer, "put_draft"):
            self.streamer.put_draft(drafts[:, self.sent :].cpu())


__all__ = ["RowStreamers", "Stream"]
