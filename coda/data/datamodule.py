"""What the LightningDataModules share: a store of prepared documents, read as a mixture, in an order that resumes."""

import warnings
from abc import abstractmethod
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from coda.data.encoders import Encoder
from coda.data.ingest import prepare
from coda.data.mixture import Mixture, Portion, check_portions, divide
from coda.data.packing import Rows, SampleOrder
from coda.data.plan import Plan
from coda.data.sources import Source
from coda.data.store import TokenStore, TokenStream
from coda.data.tokenizer import load_tokenizer, open_trained_tokenizer
from coda.files import cache_key, default_cache


class PreparedDataModule(L.LightningDataModule):
    """Documents prepared once and read in an order that is a pure function of (seed, number of the sample).

    Batches are dicts of ``input_ids`` int64 [B, L], ``maskable`` bool [B, L] and ``sample`` int64 [B], the number of each
    row in the order of training, from which its noise level and mask are drawn.

    Args:
        sequence_length: L, tokens per row, at most.
        global_batch_size: Rows per optimizer step, over all ranks and accumulated micro-batches. The micro-batch of a
            rank follows: global_batch_size / (ranks * trainer.accumulate_grad_batches).
        sources: Corpora; their weights and epochs make the mixture. None takes the embedded default, or all of ``prepared``.
        tokenizer: Folder or hub name; None trains a byte-level BPE on the sources, once, or takes that of ``prepared``.
        vocab_size: Size of a tokenizer trained here.
        val_fraction: Share of the documents held out for validation; 0 trains without.
        deduplicate: Keep only the first of equal documents, over all corpora.
        prepared: What ``python -m coda.data.prepare`` wrote: a folder, or an fsspec URL whose shards are staged to local
            disk. None prepares the sources here, in the cache.
        verify: Compare the checksums of a prepared folder at the start, once per node (about 1 GB/s). Those of a remote
            one are compared whenever a shard arrives.
        staging_dir: Where the shards of a remote store go; None is ``staging`` in the cache.
        staging_bytes: How much of them to keep at a time; None keeps all.
        num_workers: Processes that read rows; 0 reads in the training process, which memory-mapped rows allow.
        cache_dir: Where tokenised corpora are kept; None is ``$CODA_CACHE`` or ``~/.cache/coda``.
        seed: Of the order of rows.
    """

    unit = "rows"  # what a corpus is counted in
    window: int | None = None  # of the mixture

    def __init__(
        self,
        sequence_length: int,
        global_batch_size: int,
        sources: list[Source] | None = None,
        *,
        tokenizer: str | None = None,
        vocab_size: int = 2048,
        val_fraction: float = 0.02,
        deduplicate: bool = False,
        prepared: str | None = None,
        verify: bool = True,
        staging_dir: str | None = None,
        staging_bytes: int | None = None,
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
            raise ValueError("data.sources is empty; list at least one corpus, or null for the embedded default")
        check_portions([Portion(source.corpus, source.weight, source.epochs) for source in sources or []])
        self.sequence_length = sequence_length
        self.global_batch_size = global_batch_size
        self.sources = sources
        self.tokenizer_path = tokenizer
        self.vocab_size = vocab_size
        self.val_fraction = val_fraction
        self.deduplicate = deduplicate
        self.prepared = prepared
        self.verify = verify
        self.staging = (Path(staging_dir) if staging_dir is not None else None, staging_bytes)
        self.num_workers = num_workers
        self.cache = Path(cache_dir) if cache_dir is not None else default_cache()
        self.seed = seed
        self._rows: dict[str, Rows] = {}

    @abstractmethod
    def default_sources(self) -> list[Source]:
        """The corpora where none are given: ones that every machine has."""

    @abstractmethod
    def encoder(self, tokenizer: PreTrainedTokenizerBase) -> Encoder:
        """How documents become tokens."""

    @abstractmethod
    def count(self, stream: TokenStream) -> int:
        """How many rows a corpus has."""

    @abstractmethod
    def dataset(self, streams: list[TokenStream], mixture: Mixture) -> Rows:
        """The dataset whose item n is the n-th sample."""

    # What there is

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, with a mask token; trained or loaded on first use."""
        return self.load_tokenizer()

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer, train one, or take that of ``prepared``."""
        if self.prepared is not None:
            return self.store.load_tokenizer(self.tokenizer_path)
        if self.tokenizer_path is not None:
            return load_tokenizer(self.tokenizer_path)
        return open_trained_tokenizer(self._sources, self.vocab_size, self.cache)

    def plan(self) -> Plan:
        """What to prepare."""
        return Plan(self._sources, self.encoder(self.tokenizer), self.val_fraction, self.deduplicate)

    @cached_property
    def store(self) -> TokenStore:
        """The prepared documents; written on first use unless they are already."""
        if self.prepared is not None:
            return TokenStore(self.prepared, *self.staging)
        plan = self.plan()
        return prepare(plan, self.cache / "corpora" / cache_key(plan.fingerprint()))

    @property
    def _sources(self) -> list[Source]:
        if self.sources is None:
            self.sources = self.default_sources()
        return self.sources

    def prepare_data(self) -> None:
        """Prepare the documents or verify those that are, on one process per node."""
        if self.verify and self.prepared is not None and not self.store.location.verifies:
            self.store.verify()
        skipped: Counter[str] = Counter()
        for corpus in self.store.manifest["corpora"].values():
            skipped.update(corpus["skipped"])
        if skipped:
            rank_zero_info("documents: " + ", ".join(f"{count:,} {reason}" for reason, count in skipped.items()))

    def setup(self, stage: str) -> None:
        """Check that every corpus fills a row and all together at least one batch.

        Raises:
            ValueError: If they do not, or if the trainer would deal the rows out a second time.
        """
        assert self.trainer is not None
        if self.trainer.world_size > 1 and self.trainer._accelerator_connector.use_distributed_sampler:
            raise ValueError(
                "trainer.use_distributed_sampler is true, but the rows are dealt out already; set it to false"
            )
        train = self.global_batch_size if stage == "fit" else 0
        val = self.micro_batch * self._part[1] if self.val_fraction > 0 else 0
        for split, needed in (("train", train), ("val", val)):
            rows = len(self.rows(split)) if needed else 0
            if rows < needed:
                also = ", or change data.val_fraction (0 for none)" if split == "val" else ""
                raise ValueError(
                    f"the {split} split has {self.store.tokens(split)} tokens, {rows} {self.unit} of "
                    f"data.sequence_length {self.sequence_length}, fewer than the {needed} rows of one batch; add text, "
                    f"shorten the rows or lower data.global_batch_size{also}"
                )

    # The order

    def rows(self, split: str) -> Rows:
        """The dataset of ``train`` or ``val``: its item n is the n-th sample."""
        if split not in self._rows:
            self._rows[split] = self._make_rows(split)
        return self._rows[split]

    def _make_rows(self, split: str) -> Rows:
        ours, theirs = self.encoder(self.tokenizer).fingerprint(), self.store.manifest["encoder"]
        if ours != theirs:
            raise ValueError(
                f"data.prepared {self.prepared} was written with {theirs}, but data asks for {ours}; set them alike, or "
                "prepare the corpora again"
            )
        portions = self._portions()
        streams = [self.store.stream(portion.corpus, split) for portion in portions]
        counts = [self.count(stream) for stream in streams]
        if split == "val":  # all rows once, in order
            used = [i for i, count in enumerate(counts) if count] or [0]  # of none, the mixture is empty
            rows = [counts[i] for i in used]
            return self.dataset([streams[i] for i in used], Mixture(rows, rows, sum(rows), seed=None))
        for stream, count in zip(streams, counts, strict=True):
            if not count:
                raise ValueError(
                    f"corpus {stream.corpus!r} has {stream.tokens} tokens, which is no row of data.sequence_length "
                    f"{self.sequence_length}; add text, shorten the rows or leave it out of data.sources"
                )
        shares, length = divide(portions, counts)
        return self.dataset(streams, Mixture(counts, shares, length, self.seed, self.window))

    def _portions(self) -> list[Portion]:
        if self.sources is None and self.prepared is not None:
            return [Portion(corpus) for corpus in self.store.corpora()]
        absent = [source.corpus for source in self._sources if source.corpus not in self.store.corpora()]
        if absent:
            raise ValueError(
                f"data.prepared {self.prepared} has no corpus {absent[0]!r}, but {', '.join(self.store.corpora())}; "
                "take it out of data.sources, or prepare the corpora again"
            )
        return [Portion(source.corpus, source.weight, source.epochs) for source in self._sources]

    @property
    def _part(self) -> tuple[int, int]:
        """Which part of the rows this process reads, and how many there are: its rank, unless ranks share rows."""
        assert self.trainer is not None
        part = self.trainer.distributed_sampler_kwargs or {}
        return part.get("rank", self.trainer.global_rank), part.get("num_replicas", self.trainer.world_size)

    @property
    def micro_batch(self) -> int:
        """Rows per rank and forward pass."""
        assert self.trainer is not None
        parts = self._part[1] * self.trainer.accumulate_grad_batches
        if self.global_batch_size % parts:
            raise ValueError(
                f"data.global_batch_size is {self.global_batch_size}, which {self._part[1]} ranks times "
                f"trainer.accumulate_grad_batches {self.trainer.accumulate_grad_batches} do not divide; change either"
            )
        return self.global_batch_size // parts

    def train_dataloader(self) -> DataLoader[Any]:
        """Samples behind those of the optimizer steps done, whole steps of them, one pass over the mixture long."""
        trainer = self.trainer
        assert trainer is not None
        rows = self.rows("train")
        steps = len(rows) // self.global_batch_size
        return self._loader(
            rows, steps * self.global_batch_size, first=lambda: trainer.global_step * self.global_batch_size
        )

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Held-out rows in order."""
        if self.val_fraction == 0:
            return []
        rows = self.rows("val")
        return self._loader(rows, len(rows))

    def test_dataloader(self) -> DataLoader[Any] | list[Any]:
        """The same rows as validation."""
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader[Any] | list[Any]:
        """The same rows as validation."""
        return self.val_dataloader()

    def _loader(self, rows: Rows, samples: int, **order: Any) -> DataLoader[Any]:
        assert self.trainer is not None
        rank, world_size = self._part
        return DataLoader(
            rows,
            batch_size=self.micro_batch,
            sampler=SampleOrder(samples, self.micro_batch, rank, world_size, **order),
            collate_fn=rows.collate,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=self.trainer.strategy.root_device.type == "cuda",
        )

    def order(self) -> dict[str, Any]:
        """Everything that decides which row the n-th sample is, as JSON."""
        mixture = self.rows("train").mixture
        return {
            "sequence_length": self.sequence_length,
            "global_batch_size": self.global_batch_size,
            "seed": self.seed,
            "corpora": [portion.corpus for portion in self._portions()],
            "content": self.store.content(),
            "rows": mixture.rows,
            "shares": mixture.shares,
            "window": mixture.window,
        }

    def state_dict(self) -> dict[str, Any]:
        """How many samples training has seen, and in which order: all there is to resume."""
        assert self.trainer is not None
        return {"samples": self.trainer.global_step * self.global_batch_size, "order": self.order()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check, before a fit goes on, that the samples come in the same order as before.

        Raises:
            ValueError: If the order has changed, naming what.
        """
        # Lightning looks for the position in the loader, and would warn that it is not there: the step tells it.
        warnings.filterwarnings("ignore", ".*your dataloader is not resumable.*")
        assert self.trainer is not None
        if self.trainer.state.fn != TrainerFn.FITTING:
            return
        ours, theirs = self.order(), state_dict["order"]
        changed = [f"{key} was {theirs.get(key)}, is {ours[key]}" for key in ours if ours[key] != theirs.get(key)]
        if changed:
            raise ValueError(
                f"the run to resume read its data in another order ({'; '.join(changed)}); set data back, or start anew "
                "from its weights with model.init_from"
            )
