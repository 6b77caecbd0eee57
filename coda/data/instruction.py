"""The LightningDataModule for instruction tuning."""

from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate
from transformers import PreTrainedTokenizerBase

from coda.data.chat import TEMPLATE, ChatEncoder, TooLong
from coda.data.conversations import StandardLibraryFunctions
from coda.data.datamodule import PreparedDataModule
from coda.data.encoders import Encoder
from coda.data.mixture import Mixture, mix, permute
from coda.data.packing import Rows
from coda.data.sources import Source
from coda.data.store import TokenStream

GROUPED_BATCHES = 64  # global batches, at most, that are sorted by length together


class InstructionRows(Rows):
    """One conversation per row, padded to its canvas: the prompt, the response, its end of turn, and padding.

    Args:
        streams: The corpora.
        mixture: Which conversation of which of them a sample is.
        sequence_length: Length of the canvas.
        canvas_multiple: Make it only as long as the conversation, rounded up to a multiple of this; None never does.
        pad_token_id: Of the padding.
        group: Samples per global batch, to fill batches with conversations of like length; 0 leaves them as they come.
    """

    def __init__(
        self,
        streams: list[TokenStream],
        mixture: Mixture,
        sequence_length: int,
        canvas_multiple: int | None,
        pad_token_id: int,
        group: int = 0,
    ) -> None:
        self.streams = streams
        self.mixture = mixture
        self.sequence_length = sequence_length
        self.canvas_multiple = canvas_multiple
        self.pad_token_id = pad_token_id
        self.group = group
        self.lengths = [stream.lengths() for stream in streams] if group else []
        # No more than a pass over the mixture: in two of them a conversation comes twice, and with itself into a batch.
        self.batches = min(GROUPED_BATCHES, max(mixture.length // group, 1)) if group else 0
        self._window, self._order = -1, np.zeros(0, dtype=np.int64)

    def __getitem__(self, sample: int) -> dict[str, Tensor]:
        """Return ``input_ids`` int64 [C], ``maskable`` bool [C] (False in the prompt), ``sample`` int64 []."""
        place = self.mixture.locate(self._grouped(sample) if self.group else sample)
        tokens, prompt = self.streams[place.corpus].document(place.row)
        canvas = self.sequence_length
        if self.canvas_multiple is not None:
            canvas = min(-(-len(tokens) // self.canvas_multiple) * self.canvas_multiple, canvas)
        ids = np.full(canvas, self.pad_token_id, dtype=np.int64)
        ids[: len(tokens)] = tokens
        return {
            "input_ids": torch.from_numpy(ids),
            "maskable": torch.arange(canvas) >= prompt,
            "sample": torch.tensor(sample),
        }

    def collate(self, rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Join rows to a batch, filled up to the longest of them."""
        if self.canvas_multiple is None:
            return default_collate(rows)
        longest = max(len(row["input_ids"]) for row in rows)
        return default_collate([self._fill(row, longest) for row in rows])

    def _fill(self, row: dict[str, Tensor], length: int) -> dict[str, Tensor]:
        canvas = len(row["input_ids"])
        filler = (0, length - canvas)
        return {
            "input_ids": torch.nn.functional.pad(row["input_ids"], filler, value=self.pad_token_id),
            "maskable": torch.nn.functional.pad(row["maskable"], filler),
            "attention_mask": torch.arange(length) < canvas,
            "sample": row["sample"],
        }

    def _grouped(self, sample: int) -> int:
        window, position = divmod(sample, self.batches * self.group)
        if window != self._window:
            self._window, self._order = window, self._sort(window)
        return int(self._order[position])

    def _sort(self, window: int) -> np.ndarray:
        """The samples of a window, ordered so that each global batch holds ones of like length, in a random order."""
        size = self.batches * self.group
        samples = np.arange(window * size, (window + 1) * size)
        places = [self.mixture.locate(sample) for sample in samples.tolist()]
        lengths = np.array([self.lengths[place.corpus][place.row] for place in places])
        batches = samples[lengths.argsort(kind="stable")].reshape(self.batches, self.group)
        key = mix(self.mixture.seed or 0, window)
        return batches[[permute(i, self.batches, key) for i in range(self.batches)]].reshape(-1)


class InstructionDataModule(PreparedDataModule):
    """Conversations, one per row: the prompt is never masked, everything behind it is.

    End of turn and padding are learned with the response, so the model knows where to stop. Where rows of a batch differ
    in length, ``attention_mask`` bool [B, L] hides what fills them up, which is no part of them.

    Args:
        sequence_length: See :class:`PreparedDataModule`.
        global_batch_size: See :class:`PreparedDataModule`.
        sources: Conversations; None takes functions of Python's standard library, or all of ``prepared``.
        too_long: ``truncate`` conversations longer than ``sequence_length``, or ``drop`` them; both are counted.
        canvas_multiple: Pad a conversation only to the next multiple of this many tokens, instead of to
            ``sequence_length``: cheaper, with less padding to learn from.
        group_by_length: Fill batches with conversations of like length, which with ``canvas_multiple`` leaves little to
            fill up. Only the order changes: a row's loss does not depend on its neighbours.
        **options: See :class:`PreparedDataModule`.
    """

    unit = "conversations"

    def __init__(
        self,
        sequence_length: int,
        global_batch_size: int,
        sources: list[Source] | None = None,
        *,
        too_long: TooLong = "truncate",
        canvas_multiple: int | None = None,
        group_by_length: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(sequence_length, global_batch_size, sources, **options)
        if canvas_multiple is not None and canvas_multiple < 1:
            raise ValueError(f"data.canvas_multiple is {canvas_multiple}; give 1 or more, or null for full rows")
        if group_by_length and canvas_multiple is None:
            raise ValueError("data.group_by_length saves nothing while all rows are padded alike; set canvas_multiple")
        self.too_long: TooLong = too_long
        self.canvas_multiple = canvas_multiple
        self.group_by_length = group_by_length

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """See :attr:`PreparedDataModule.tokenizer`; it takes the chat template along into checkpoints and exports."""
        tokenizer = self.load_tokenizer()
        tokenizer.chat_template = TEMPLATE
        return tokenizer

    def default_sources(self) -> list[Source]:
        """See :meth:`PreparedDataModule.default_sources`."""
        return [StandardLibraryFunctions()]

    def encoder(self, tokenizer: PreTrainedTokenizerBase) -> Encoder:
        """See :meth:`PreparedDataModule.encoder`."""
        return ChatEncoder(tokenizer, self.sequence_length, self.too_long)

    def count(self, stream: TokenStream) -> int:
        """See :meth:`PreparedDataModule.count`."""
        return stream.documents

    def order(self) -> dict[str, Any]:
        """See :meth:`PreparedDataModule.order`."""
        return super().order() | {"group_by_length": self.group_by_length}

    def dataset(self, streams: list[TokenStream], mixture: Mixture) -> InstructionRows:
        """See :meth:`PreparedDataModule.dataset`."""
        group = self.global_batch_size if self.group_by_length and mixture.seed is not None else 0
        return InstructionRows(
            streams, mixture, self.sequence_length, self.canvas_multiple, self.tokenizer.pad_token_id, group
        )
