"""The LightningDataModule for pre-training and mid-training corpora."""

import warnings
from pathlib import Path
from typing import Any

import lightning as L
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from coda.data.packing import PackedRows, RowOrder
from coda.data.sources import StandardLibrary, TextSource
from coda.data.store import TokenStore, open_store
from coda.data.tokenizer import load_tokenizer, open_trained_tokenizer
from coda.files import default_cache


class CorpusDataModule(L.LightningDataModule):
    """Packed rows of text corpora, tokenised once and cached.

    Batches are dicts of ``input_ids`` int64 [B, L], ``maskable`` bool [B, L] and, with ``segments``, ``segment_ids``
    int64 [B, L].

    Args:
        sequence_length: L, tokens per row.
        global_batch_size: Rows per optimizer step, over all ranks and accumulated micro-batches. The micro-batch of a
            rank follows: global_batch_size / (ranks * trainer.accumulate_grad_batches).
        sources: Corpora, concatenated; None is Python's standard library.
        tokenizer: Folder or hub name; None trains a byte-level BPE on the sources, once.
        vocab_size: Size of a tokenizer trained here.
        segments: Keep attention and predictions inside documents.
        val_fraction: Share of the documents held out for validation; 0 trains without.
        num_workers: Processes that read rows; 0 reads in the training process, which memory-mapped rows allow.
        cache_dir: Where tokenised corpora are kept; None is ``$CODA_CACHE`` or ``~/.cache/coda``.
        seed: Of the order of rows.
    """

    def __init__(
        self,
        sequence_length: int,
        global_batch_size: int,
        sources: list[TextSource] | None = None,
        tokenizer: str | None = None,
        vocab_size: int = 2048,
        segments: bool = False,
        val_fraction: float = 0.02,
        num_workers: int = 0,
        cache_dir: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if sequence_length < 2:
            raise ValueError(f"data.sequence_length is {sequence_length}; a row needs at least 2 tokens")
        if global_batch_size < 1:
            raise ValueError(f"data.global_batch_size is {global_batch_size}; it needs at least 1 row")
        if not 0.0 <= val_fraction < 1.0:
            raise ValueError(f"data.val_fraction is {val_fraction}; hold out a share of at least 0 and below 1")
        if sources is not None and not sources:
            raise ValueError("data.sources is empty; list at least one corpus, or null for Python's standard library")
        self.sequence_length = sequence_length
        self.global_batch_size = global_batch_size
        self.sources: list[TextSource] = [StandardLibrary()] if sources is None else sources
        self.tokenizer_path = tokenizer
        self.vocab_size = vocab_size
        self.segments = segments
        self.val_fraction = val_fraction
        self.num_workers = num_workers
        self.cache = Path(cache_dir) if cache_dir is not None else default_cache()
        self.seed = seed
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._store: TokenStore | None = None
        self._resume = {"epoch": 0, "start": 0}

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, with a mask token; trained or loaded on first use."""
        if self._tokenizer is None:
            if self.tokenizer_path is not None:
                self._tokenizer = load_tokenizer(self.tokenizer_path)
            else:
                self._tokenizer = open_trained_tokenizer(self.sources, self.vocab_size, self.cache)
        return self._tokenizer

    @property
    def store(self) -> TokenStore:
        """The tokenised corpus; written on first use."""
        if self._store is None:
            self._store = open_store(self.sources, self.tokenizer, self.val_fraction, self.cache)
        return self._store

    def prepare_data(self) -> None:
        """Tokenise the corpus, on one process per node."""
        self.store  # noqa: B018

    def setup(self, stage: str) -> None:
        """Check that the corpus fills at least one batch.

        Raises:
            ValueError: If it does not, or if the trainer would deal the rows out a second time.
        """
        assert self.trainer is not None
        if self.trainer.world_size > 1 and self.trainer._accelerator_connector.use_distributed_sampler:
            raise ValueError(
                "trainer.use_distributed_sampler is true, but the rows are dealt out already; set it to false"
            )
        train = self.global_batch_size if stage == "fit" else 0
        val = self.micro_batch * self.trainer.world_size if self.val_fraction > 0 else 0
        for split, needed in (("train", train), ("val", val)):
            rows = len(self.rows(split))
            if rows < needed:
                tokens = self.store.manifest["tokens"][split]
                also = ", or change data.val_fraction (0 for none)" if split == "val" else ""
                raise ValueError(
                    f"the {split} split has {tokens} tokens, {rows} rows of data.sequence_length "
                    f"{self.sequence_length}, fewer than the {needed} rows of one batch; add text, shorten the rows or "
                    f"lower data.global_batch_size{also}"
                )

    @property
    def micro_batch(self) -> int:
        """Rows per rank and forward pass."""
        assert self.trainer is not None
        parts = self.trainer.world_size * self.trainer.accumulate_grad_batches
        if self.global_batch_size % parts:
            raise ValueError(
                f"data.global_batch_size is {self.global_batch_size}, which {self.trainer.world_size} ranks times "
                f"trainer.accumulate_grad_batches {self.trainer.accumulate_grad_batches} do not divide; change either"
            )
        return self.global_batch_size // parts

    def rows(self, split: str) -> PackedRows:
        """The packed rows of ``train`` or ``val``."""
        return PackedRows(self.store, split, self.sequence_length, self.segments)

    def train_dataloader(self) -> DataLoader[Any]:
        """Rows in a new order each epoch."""
        assert self.trainer is not None
        return self._loader("train", seed=self.seed, accumulate=self.trainer.accumulate_grad_batches, **self._resume)

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Held-out rows in order."""
        return self._loader("val", seed=None) if self.val_fraction > 0 else []

    def test_dataloader(self) -> DataLoader[Any] | list[Any]:
        """The same rows as validation."""
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader[Any] | list[Any]:
        """The same rows as validation."""
        return self.val_dataloader()

    def _loader(self, split: str, **order: Any) -> DataLoader[Any]:
        assert self.trainer is not None
        rows = self.rows(split)
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        return DataLoader(
            rows,
            batch_size=self.micro_batch,
            sampler=RowOrder(len(rows), self.micro_batch, rank, world_size, **order),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=self.trainer.strategy.root_device.type == "cuda",
        )

    def state_dict(self) -> dict[str, int]:
        """Where in the order of rows training stands, counted over all ranks."""
        assert self.trainer is not None
        batches = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
        return {"epoch": self.trainer.current_epoch, "rows": batches * self.micro_batch * self.trainer.world_size}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continue from there."""
        # Lightning looks for this state in the loader, and would warn that it is not there.
        warnings.filterwarnings("ignore", ".*your dataloader is not resumable.*")
        self._resume = {"epoch": state_dict["epoch"], "start": state_dict["rows"]}
