"""Check an exported folder the way its readers will use it: in a clean process, without this package."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from coda.model import CoDALanguageModel

TEXT = "def add(a, b):\n    return <|mask|>"
LENGTH = 16
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}  # of the largest logit


def verify(folder: Path, model: CoDALanguageModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Load ``folder`` in a clean process and compare logits and tokens with those of ``model`` and ``tokenizer``.

    The process sees no network and nothing of this package; it uses the folder's own code.

    Raises:
        ValueError: If it does not load there, or computes something else.
    """
    ids = torch.randint(model.config.vocab_size, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    ids[:, 1::3] = model.config.mask_token_id
    with torch.no_grad():
        expected = model.eval()(ids.to(model.device)).logits.cpu()
    with tempfile.TemporaryDirectory() as temporary:
        question, answer = Path(temporary) / "question.pt", Path(temporary) / "answer.pt"
        torch.save({"ids": ids, "text": TEXT}, question)
        _run_elsewhere(folder, question, answer)
        found = torch.load(answer, weights_only=True)
    for loader in ("AutoModel", "AutoModelForMaskedLM"):
        _compare(found[loader], expected, loader)
    ours = {"tokens": tokenizer(TEXT)["input_ids"], "mask": tokenizer.mask_token_id}
    for what, value in ours.items():
        if found[what] != value:
            raise ValueError(f"the exported tokenizer differs from its source: {what} {found[what]} for {value}")


def _run_elsewhere(folder: Path, question: Path, answer: Path) -> None:
    # -E and -P: neither PYTHONPATH nor the current folder lead to this package. Its name is blocked there as well.
    command = [
        sys.executable,
        "-E",
        "-P",
        str(Path(__file__).with_name("elsewhere.py")),
        str(folder.resolve()),
        str(question),
        str(answer),
    ]
    clean = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(question.parent), "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(
        command, env=os.environ | clean, cwd=question.parent, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise ValueError(f"the exported folder does not load in a process without this package: {last[0]}")


def _compare(found: Tensor, expected: Tensor, loader: str) -> None:
    """Raise ValueError unless both [B, L, V] logits are the same, up to rounding in their own type."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        raise ValueError(
            f"{loader} gives {list(found.shape)} {found.dtype} logits of the exported folder, but its source gives "
            f"{list(expected.shape)} {expected.dtype}"
        )
    allowed = TOLERANCE.get(expected.dtype, 1e-4) * float(expected.float().abs().max())
    difference = float((found.float() - expected.float()).abs().max())
    if not difference <= allowed:  # nan is not
        raise ValueError(
            f"{loader} gives other logits of the exported folder than its source: they differ by {difference:.2g}, and "
            f"{allowed:.2g} is allowed"
        )
