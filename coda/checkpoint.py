"""Self-contained checkpoints: a .ckpt carries the model's config and tokenizer, so weights never travel without them.

Written whole or not at all, and readable by a run with another number of micro-batches per step. One that a strategy
sharded over processes is a folder (:mod:`coda.sharded`) and is read like any other.
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

from coda.adapter import adapter_of, attach, merge
from coda.data.tokenizer import load_tokenizer
from coda.files import new_file
from coda.model.configuration_coda import CoDAConfig
from coda.model.generation_config_coda import CoDAGenerationConfig
from coda.model.modeling_coda import CoDALanguageModel, untie
from coda.sharded import is_sharded, read_rest, read_weights

RECORD = "coda"  # the checkpoint's entry for what this module adds
PREFIX = "backbone."  # the model's name inside the LightningModule
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def describe(model: CoDALanguageModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What a checkpoint must record besides weights: the configs, the adapter, and the tokenizer's files as text."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = {path.name: path.read_text(encoding="utf-8") for path in Path(folder).iterdir() if path.is_file()}
    return {
        "config": model.config.to_dict(),
        "generation": model.generation_config.to_diff_dict(),
        "adapter": adapter_of(model),
        "tokenizer": files,
    }


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
    """Load model and tokenizer from a ``.ckpt``, a sharded one, a folder or the Hugging Face hub.

    Args:
        source: Path or name.
        **options: Passed on to transformers, for example ``attn_implementation`` and ``dtype``; without one the weights
            keep theirs.

    Raises:
        ValueError: If nothing usable is there.
    """
    if is_checkpoint(source):
        checkpoint = read_checkpoint(source)
        model = build_model(checkpoint[RECORD], read_state(source, checkpoint), source, **options)
        return model, _tokenizer_from(checkpoint)
    try:
        return CoDALanguageModel.from_pretrained(source, **options), load_tokenizer(source)
    except (OSError, SafetensorError) as error:
        raise _absent("model", source, error) from error


def build_model(record: dict[str, Any], state: dict[str, Tensor], source: str, **options: Any) -> CoDALanguageModel:
    """Build the model that a checkpoint describes; an adapter is merged into the weights.

    Args:
        record: What :func:`describe` said of it.
        state: The state of the LightningModule.
        source: Where they are from, for messages.
        **options: As in :func:`load_model`.

    Raises:
        ValueError: If they do not fit each other.
    """
    weights = plain_weights(record, state, source)
    dtype = weights[EMBEDDING].dtype if EMBEDDING in weights else torch.float32
    model = CoDALanguageModel._from_config(CoDAConfig.from_dict(record["config"]), **{"dtype": dtype} | options)
    copy_weights(model, weights, source)
    if "generation" in record:
        model.generation_config = CoDAGenerationConfig.from_dict(record["generation"])
    return model


def plain_weights(record: dict[str, Any], state: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """The weights of the model, as without an adapter, in the ``state`` of a LightningModule (see :func:`build_model`)."""
    weights = {key.removeprefix(PREFIX): value for key, value in state.items() if key.startswith(PREFIX)}
    if record.get("adapter") is None:
        return weights
    adapted = CoDALanguageModel._from_config(CoDAConfig.from_dict(record["config"]), dtype=torch.float32)
    attach(adapted, record["adapter"])
    copy_weights(adapted, weights, source)
    merge(adapted)
    return dict(adapted.state_dict())


def read_config(source: str) -> CoDAConfig:
    """Read the model's configuration from ``source`` (as in :func:`load_model`). Raises ValueError if there is none."""
    if is_checkpoint(source):
        return CoDAConfig.from_dict(read_checkpoint(source)[RECORD]["config"])
    try:
        return CoDAConfig.from_pretrained(source)
    except OSError as error:
        raise _absent("model", source, error) from error


def is_checkpoint(source: str) -> bool:
    """Whether ``source`` names a checkpoint of training, rather than a Hugging Face folder or name."""
    return source.endswith(".ckpt") or is_sharded(source)


def read_checkpoint(path: str) -> dict[str, Any]:
    """Read a ``.ckpt`` of this project without loading its tensors into memory yet; those of a sharded one are left out.

    Raises:
        ValueError: If the file is missing, cut short or not one of ours.
    """
    if is_sharded(path):
        checkpoint = read_rest(path)
    elif not Path(path).is_file():
        raise ValueError(f"no checkpoint at {path!r}; give an existing .ckpt, an exported folder or a hub name")
    else:
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # torch raises many kinds for a damaged file
            raise ValueError(f"{path!r} is no readable checkpoint: {error}") from error
    if not isinstance(checkpoint, dict) or RECORD not in checkpoint:
        raise ValueError(f"{path!r} was not written by coda.module.DiffusionModule; export it and give the folder")
    return dict(checkpoint)


def read_state(path: str, checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The LightningModule's state in the checkpoint ``path``, which :func:`read_checkpoint` has read. Raises ValueError."""
    state: dict[str, Tensor] = read_weights(path) if is_sharded(path) else checkpoint["state_dict"]
    return state


def load_weights(model: CoDALanguageModel, source: str) -> None:
    """Copy the weights of ``source`` (as in :func:`load_model`) into ``model``.

    Raises:
        ValueError: If they do not fit, naming the first weight that differs.
    """
    if is_checkpoint(source):
        checkpoint = read_checkpoint(source)
        weights = plain_weights(checkpoint[RECORD], read_state(source, checkpoint), source)
    else:
        weights = load_model(source, dtype="float32")[0].state_dict()
    copy_weights(model, weights, source)


def copy_weights(model: CoDALanguageModel, weights: dict[str, Tensor], source: str) -> None:
    """Copy ``weights``, by their names in ``model``, into it; ``source`` is where they are from.

    Raises:
        ValueError: If they do not fit, naming the first weight that differs.
    """
    own = model.state_dict()
    differing = [key for key in sorted(own.keys() | weights.keys()) if _shape(own, key) != _shape(weights, key)]
    if differing:
        key, others = differing[0], f", and {len(differing) - 1} more" if len(differing) > 1 else ""
        raise ValueError(
            f"the weights of {source!r} do not fit the model: {key} is {_shape(weights, key)} there and "
            f"{_shape(own, key)} here{others}; give model.backbone the size of that checkpoint"
        )
    if model.config.tie_word_embeddings and not torch.equal(weights[HEAD], weights[EMBEDDING]):
        untie(model)
    model.load_state_dict(weights)


def check_tokenizer(source: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError if ``source`` (as in :func:`load_model`) was trained with other token ids than ``tokenizer``'s."""
    if is_checkpoint(source):
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


def check_mask(model: CoDALanguageModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError unless model and tokenizer have the same absorbing state."""
    ours, theirs, size = model.config.mask_token_id, tokenizer.mask_token_id, model.config.vocab_size
    if ours is None or not 0 <= ours < size or ours != theirs:
        raise ValueError(
            f"the model has no mask token to start from: its mask_token_id is {ours} in a vocabulary of {size}, its "
            f"tokenizer's is {theirs}; give a diffusion model, or the tokenizer that it was trained with"
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
