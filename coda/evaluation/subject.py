"""The model that is evaluated, with everything about it that shapes a number."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jsonargparse import ActionYesNo, ArgumentParser
from transformers import PreTrainedTokenizerBase

from coda.checkpoint import check_mask, load_model
from coda.command import one_line_errors
from coda.evaluation.ranks import local_device
from coda.evaluation.results import fingerprint
from coda.model import CoDALanguageModel

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Subject:
    """A model, ready on its device.

    Attributes:
        model: In evaluation mode.
        tokenizer: The model's.
        identity: What tells samples of this model from those of another: its weights and arithmetic.
        settings: That, and where it was taken from and runs.
    """

    model: CoDALanguageModel
    tokenizer: PreTrainedTokenizerBase
    identity: dict[str, Any]
    settings: dict[str, Any]

    @classmethod
    def load(cls, source: str, dtype: str | None, device: str) -> "Subject":
        """Load a model.

        Args:
            source: An exported folder, a .ckpt or a Hugging Face name.
            dtype: Of weights and arithmetic; None is bfloat16 on GPUs and float32 elsewhere.
            device: Where to run.

        Raises:
            ValueError: If there is none, or it is no diffusion model.
        """
        dtype = dtype or ("bfloat16" if device.startswith("cuda") else "float32")
        model, tokenizer = load_model(source, dtype=dtype_named(dtype))
        check_mask(model, tokenizer)
        model.eval().to(local_device(device))
        identity = {"weights": fingerprint(model), "dtype": dtype}
        attention = model.config._attn_implementation
        return cls(model, tokenizer, identity, {"model": source, **identity, "device": device, "attention": attention})


def dtype_named(name: str) -> torch.dtype:
    """The floating-point type of this name. Raises ValueError if there is none."""
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"dtype is {name}; choose float32, bfloat16 or float16")
    return found


def names_in(text: str) -> list[str]:
    """Names with commas between them."""
    return [name.strip() for name in text.split(",") if name.strip()]


def run_command(main: Callable[..., Any], prog: str, description: str) -> None:
    """Run ``main`` with the arguments of the command line; a setting that does not fit is one line."""
    parser = ArgumentParser(prog=prog, description=description)
    parser.add_argument("--config", action="config", help="a YAML file with these settings")
    parser.add_function_arguments(main, as_positional=False, skip={"allow_unsandboxed"})
    parser.add_argument("--allow_unsandboxed", action=ActionYesNo, default=False, help="run programs without a sandbox")
    arguments = parser.instantiate(parser.parse_args()).as_dict()
    del arguments["config"]
    with one_line_errors():
        main(**arguments)
