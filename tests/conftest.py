"""What the tests of data and callbacks share: a tiny corpus, and the parts of a fit that takes a second."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import huggingface_hub.constants
import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from coda.data import CorpusDataModule, TextFiles
from coda.masking import MaskingStrategy, RandomMasking
from coda.model import ScratchBackbone
from coda.module import DiffusionModule

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "head_dim": 16, "num_attention_heads": 2}


@dataclass
class Tiny:
    """Builds the parts of a small fit; ``corpus`` holds 40 Python files, ``folder`` is new for every test."""

    corpus: Path
    folder: Path

    def data(self, sequence_length: int = 32, global_batch_size: int = 4, **options: Any) -> CorpusDataModule:
        options = {"vocab_size": 280, "val_fraction": 0.25, "cache_dir": str(self.corpus.parent / "cache"), **options}
        return CorpusDataModule(sequence_length, global_batch_size, [TextFiles([str(self.corpus)])], **options)

    def module(self, masking: MaskingStrategy | None = None, **options: Any) -> DiffusionModule:
        backbone = ScratchBackbone(**SIZES, num_key_value_heads=1, max_position_embeddings=128)
        options = {"optimizer": lambda groups: torch.optim.AdamW(groups, lr=1e-3), **options}
        return DiffusionModule(backbone, masking or RandomMasking(), **options)

    def trainer(self, *callbacks: Callback, **options: Any) -> Trainer:
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
        here = {"accelerator": "cpu", "devices": 1, "default_root_dir": self.folder, "use_distributed_sampler": False}
        if "logger" not in options:
            options["logger"] = TensorBoardLogger(self.folder, name=None)
        return Trainer(callbacks=list(callbacks), **{**quiet, **here, "num_sanity_val_steps": 0, **options})

    def fit(self, *callbacks: Callback, masking: MaskingStrategy | None = None, **options: Any) -> Trainer:
        """Train with all else at the defaults above."""
        trainer = self.trainer(*callbacks, **{"log_every_n_steps": 1, **options})
        trainer.fit(self.module(masking), self.data())
        return trainer


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Models this small lose more by waiting for a second thread than they gain, twenty times so on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _offline() -> None:
    """No test may wait for a hub: neither in this process, which has read the variable, nor in its children."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    huggingface_hub.constants.HF_HUB_OFFLINE = True


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    """A fit may open a process group and note its port in the environment, where the next one would look for its own."""
    with mock.patch.dict(os.environ):
        yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "corpus"
    folder.mkdir()
    for i in range(40):
        lines = [f"def f{i}(x):", f"    return x + {i * i}", "", "", f"class C{i}:", f"    value = f{i}({i % 7})", ""]
        (folder / f"{i:02}.py").write_text("\n".join(lines))
    return folder


@pytest.fixture
def tiny(corpus: Path, tmp_path: Path) -> Tiny:
    return Tiny(corpus, tmp_path)
