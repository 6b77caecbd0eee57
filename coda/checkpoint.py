"""Self-contained checkpoints: a .ckpt carries the model's config and tokenizer, so weights never travel without them.

Written whole or not at all, and readable by a run with another number of micro-batches per step.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_warn
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from coda.data.tokenizer import load_tokenizer
from coda.files import new_file
from coda.model.configuration_coda import CoDAConfig
from coda.model.modeling_coda import CoDALanguageModel, untie

RECORD = "coda"  # the checkpoint's entry for what this module adds
PREFIX = "backbone."  # the model's name inside the LightningModule
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def describe(model: CoDALanguageModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What a checkpoint must record besides weights: the config, and the tokenizer's files as text."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = {path.name: path.read_text(encoding="utf-8") for path in Path(folder).iterdir() if path.is_file()}
    return {"config": model.config.to_dict(), "tokenizer": files}


class WholeFileIO(TorchCheckpointIO):
    """Writes a checkpoint beside its final name and renames it once it is safe on disk.

    Lightning's own goes through a copy in memory, and through the temporary folder, from where a rename may be a copy.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write ``checkpoint`` to a local ``path``; what is behind a URL is left to Lightning."""
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with new_file(Path(path)) as file:
            torch.save(checkpoint, file)


def recount_micro_batches(fit_loop: dict[str, Any], accumulate: int, by_steps: bool) -> None:
    """Have the Trainer go on behind the last whole optimizer step; changes the state ``fit_loop`` of a checkpoint in place.

    Lightning counts micro-batches, which another accumulation makes larger or smaller, and goes on in a different way for
    every hook that may have written the checkpoint. This makes them one: the counts become those of a checkpoint written
    right behind a step. A step that was under way (validation may come in the middle) begins again: its gradients were
    not saved. A pass that was complete is not entered again.

    Args:
        fit_loop: State of the fit loop.
        accumulate: Micro-batches per step from now on.
        by_steps: Whether the length of training is given in steps, by which Lightning tells how to resume.
    """
    steps = fit_loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]
    batches, passes = fit_loop["epoch_loop.batch_progress"], fit_loop["epoch_progress"]
    ended = batches["is_last_batch"]
    for scope in ("total", "current"):
        done = steps[scope]["completed"] * accumulate
        batches[scope] = {"ready": done, "started": done, "processed": done, "completed": done - 1}
        begun = passes[scope]["started"]
        finished = begun if ended else begun - 1
        passes[scope] = {"ready": begun, "started": begun, "processed": finished, "completed": finished}
    batches["is_last_batch"] = False
    # The number of the next point in the logger. Lightning adds the step just done, unless it begins a pass afresh.
    afresh = ended and not by_steps
    fit_loop["epoch_loop.state_dict"]["_batches_that_stepped"] = steps["total"]["completed"] - (0 if afresh else 1)


def find_last(folders: list[Path]) -> Path | None:
    """The checkpoint in ``folders`` that was written last; one that cannot be read is passed over with a warning."""
    found = [path for folder in folders for path in folder.glob("*.ckpt")]
    for path in sorted(found, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        try:
            read_checkpoint(str(path))
            return path
        except ValueError as error:
            rank_zero_warn(f"passed over: {error}")
    return None


def load_model(source: str, **options: Any) -> tuple[CoDALanguageModel, PreTrainedTokenizerBase]:
    """Load model and tokenizer from a ``.ckpt``, a folder or the Hugging Face hub.

    Args:
        source: Path or name.
        **options: Passed on to transformers, for example ``attn_implementation`` and ``dtype``.

    Raises:
        ValueError: If nothing usable is there.
    """
    if source.endswith(".ckpt"):
        checkpoint = read_checkpoint(source)
        model = CoDALanguageModel._from_config(CoDAConfig.from_dict(checkpoint[RECORD]["config"]), **options)
        load_weights(model, source, checkpoint)
        return model, _tokenizer_from(checkpoint)
    try:
        return CoDALanguageModel.from_pretrained(source, **options), load_tokenizer(source)
    except (OSError, SafetensorError) as error:
        raise _absent("model", source, error) from error


def read_config(source: str) -> CoDAConfig:
    """Read the model's configuration from ``source`` (as in :func:`load_model`). Raises ValueError if there is none."""
    if source.endswith(".ckpt"):
        return CoDAConfig.from_dict(read_checkpoint(source)[RECORD]["config"])
    try:
        return CoDAConfig.from_pretrained(source)
    except OSError as error:
        raise _absent("model", source, error) from error


def read_checkpoint(path: str) -> dict[str, Any]:
    """Read a ``.ckpt`` of this project without loading its tensors into memory yet.

    Raises:
        ValueError: If the file is missing, cut short or not one of ours.
    """
    if not Path(path).is_file():
        raise ValueError(f"no checkpoint at {path!r}; give an existing .ckpt, an exported folder or a hub name")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise ValueError(f"{path!r} is no readable checkpoint: {error}") from error
    if not isinstance(checkpoint, dict) or RECORD not in checkpoint:
        raise ValueError(f"{path!r} was not written by coda.module.DiffusionModule; export it and give the folder")
    return dict(checkpoint)


def load_weights(model: CoDALanguageModel, source: str, checkpoint: dict[str, Any] | None = None) -> None:
    """Copy the weights of ``source`` (as in :func:`load_model`) into ``model``.

    Raises:
        ValueError: If they do not fit, naming the first weight that differs.
    """
    if source.endswith(".ckpt"):
        weights = (checkpoint or read_checkpoint(source))["state_dict"]
        weights = {key.removeprefix(PREFIX): value for key, value in weights.items() if key.startswith(PREFIX)}
    else:
        weights = load_model(source, dtype="float32")[0].state_dict()
    own = model.state_dict()
    for key in sorted(own.keys() | weights.keys()):
        if _shape(own, key) != _shape(weights, key):
            raise ValueError(
                f"the weights of {source!r} do not fit the model: {key} is {_shape(weights, key)} there and "
                f"{_shape(own, key)} here; give model.backbone the size of that checkpoint"
            )
    if model.config.tie_word_embeddings and not torch.equal(weights[HEAD], weights[EMBEDDING]):
        untie(model)
    model.load_state_dict(weights)


def check_tokenizer(source: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError if ``source`` (as in :func:`load_model`) was trained with other token ids than ``tokenizer``'s."""
    if source.endswith(".ckpt"):
        theirs = _tokenizer_from(read_checkpoint(source)).get_vocab()
    else:
        try:
            theirs = AutoTokenizer.from_pretrained(source).get_vocab()
        except (OSError, ValueError) as error:
            raise _absent("tokenizer", source, error) from error
    ours = tokenizer.get_vocab()
    differing = sum(ours.get(token) != index for token, index in theirs.items())
    if differing:
        raise ValueError(
            f"data.tokenizer does not fit {source!r}: {differing} of its {len(theirs)} tokens have other ids; "
            "set data.tokenizer to the tokenizer of that model"
        )


def _tokenizer_from(checkpoint: dict[str, Any]) -> PreTrainedTokenizerBase:
    with tempfile.TemporaryDirectory() as folder:
        for name, text in checkpoint[RECORD]["tokenizer"].items():
            (Path(folder) / name).write_text(text, encoding="utf-8")
        return load_tokenizer(folder)


def _absent(what: str, source: str, error: Exception) -> ValueError:
    return ValueError(f"no {what} at {source!r}; give a .ckpt, an exported folder or a hub name ({error})")


def _shape(weights: dict[str, Tensor], key: str) -> list[int] | str:
    return list(weights[key].shape) if key in weights else "absent"
