"""The LightningDataModule for pre-training and mid-training corpora."""

from typing import Any

from transformers import PreTrainedTokenizerBase

from coda.data.datamodule import PreparedDataModule
from coda.data.encoders import Encoder, TextEncoder
from coda.data.mixture import Mixture
from coda.data.packing import PackedRows
from coda.data.sources import Source
from coda.data.store import TokenStream
from coda.data.text import StandardLibrary


class CorpusDataModule(PreparedDataModule):
    """Packed rows of text corpora. With ``segments``, batches also hold ``segment_ids`` int64 [B, L].

    Args:
        sequence_length: See :class:`PreparedDataModule`.
        global_batch_size: See :class:`PreparedDataModule`.
        sources: Text corpora; None is Python's standard library, or all of ``prepared``.
        segments: Keep attention and predictions inside documents.
        shuffle_window: Shuffle rows within windows of this many, and the windows among each other, so that a remote store
            needs only a part of each corpus on local disk at a time; None shuffles each corpus as a whole.
        **options: See :class:`PreparedDataModule`.
    """

    def __init__(
        self,
        sequence_length: int,
        global_batch_size: int,
        sources: list[Source] | None = None,
        *,
        segments: bool = False,
        shuffle_window: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(sequence_length, global_batch_size, sources, **options)
        if shuffle_window is not None and shuffle_window < 1:
            raise ValueError(f"data.shuffle_window is {shuffle_window}; give at least 1 row, or null for no windows")
        self.segments = segments
        self.window = shuffle_window

    def default_sources(self) -> list[Source]:
        """See :meth:`PreparedDataModule.default_sources`."""
        return [StandardLibrary()]

    def encoder(self, tokenizer: PreTrainedTokenizerBase) -> Encoder:
        """See :meth:`PreparedDataModule.encoder`."""
        return TextEncoder(tokenizer)

    def count(self, stream: TokenStream) -> int:
        """See :meth:`PreparedDataModule.count`."""
        return stream.tokens // self.sequence_length

    def dataset(self, streams: list[TokenStream], mixture: Mixture) -> PackedRows:
        """See :meth:`PreparedDataModule.dataset`."""
        return PackedRows(streams, mixture, self.sequence_length, self.segments)
