"""Periodic diffusion sampling: what the model writes, while it learns."""

import ast
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from callbacks.throughput import paused
from coda.data.conversations import TASK
from coda.generate import build_canvas, in_chat, text_of
from coda.model import CoDAGenerationConfig
from coda.steps import ends_step

# (name, prompt, suffix): a prefix to continue, spans to fill in, and nothing at all.
PROMPTS = [
    ("prefix", "import os\n\n\ndef read_lines(path):\n", ""),
    ("prefix", "class Stack:\n    def __init__(self):\n", ""),
    ("infilling", "def add(a, b):\n    return ", "\n"),
    ("infilling", "for i in range(10):\n", "\n    print(i)\n"),
    ("unconditional", "", ""),
]
# What instruction tuning answers with a body.
FUNCTIONS = [
    'def read_lines(path):\n    """Return the lines of the text file at path."""\n',
    'def is_even(number):\n    """Tell whether the number is divisible by two."""\n',
    'def __len__(self):\n    """Return the number of items in the queue."""\n',
]


class DiffusionSampling(Callback):
    """Decodes fixed prompts with the real sampler and logs what comes out.

    Logs the samples as text, the denoising history of the first one, ``samples/parses`` (share that is valid Python)
    and, for packed rows, ``samples/infilling_exact_match`` (share of held-out spans restored token by token).

    Args:
        every_n_steps: Optimizer steps between samplings; 0 samples at validation only.
        at_validation: Also sample whenever the model is validated.
        max_new_tokens: Length of a continuation, in tokens; infillings get a quarter.
        steps: Denoising steps; None commits one token per step.
        alg: The sampler's choice of tokens.
        temperature: 0 takes the most probable token.
        top_p: Sample from the smallest set of tokens with this much probability.
        decoding: Further settings of the sampler, for example ``{block_length: 32, cache: dual, threshold: 0.9}``.
        exact_match_rows: Held-out rows for infilling exact match; 0 leaves it out.
        exact_match_span: Masked tokens in the middle of each of them.
        history_frames: Denoising steps shown of the first sample.
        chat: Ask for function bodies in the tokenizer's chat template instead, as instruction tuning does.
        seed: Of the samples.
    """

    def __init__(
        self,
        every_n_steps: int = 1000,
        at_validation: bool = True,
        max_new_tokens: int = 64,
        steps: int | None = None,
        alg: str = "entropy",
        temperature: float = 0.1,
        top_p: float | None = 0.9,
        decoding: dict[str, Any] | None = None,
        exact_match_rows: int = 16,
        exact_match_span: int = 4,
        history_frames: int = 8,
        chat: bool = False,
        seed: int = 0,
    ) -> None:
        if every_n_steps < 0:
            raise ValueError(f"sampling.every_n_steps is {every_n_steps}; give a number of steps, or 0 for never")
        self.every_n_steps = every_n_steps
        self.at_validation = at_validation
        self.max_new_tokens = max_new_tokens
        self.history_frames = history_frames
        self.chat = chat
        self.exact_match_rows = exact_match_rows
        self.exact_match_span = exact_match_span
        self.settings: dict[str, Any] = {"steps": steps, "alg": alg, "temperature": temperature, "top_p": top_p}
        self.settings["seed"] = seed
        self.settings |= decoding or {}
        CoDAGenerationConfig(**self.settings)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find out before the first step, not at the first sampling, what cannot be decoded.

        Raises:
            ValueError: If a sample does not fit the model, or a span to fill in the rows, or there is no chat template.
        """
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if self.chat and data.tokenizer.chat_template is None:
            raise ValueError("sampling.chat is true, but data.tokenizer has no chat template; set it to false")
        positions = int(pl_module.backbone.config.max_position_embeddings)  # type: ignore[arg-type, union-attr]
        longest = max(ids.shape[1] for _, _, _, ids, _ in self._canvases(data.tokenizer))
        if longest > positions:
            raise ValueError(
                f"sampling.max_new_tokens is {self.max_new_tokens}, which takes {longest} positions with the longest "
                f"prompt, but the model has {positions}; lower it"
            )
        if self.exact_match_rows and not 1 <= self.exact_match_span <= data.sequence_length - 2:
            raise ValueError(
                f"sampling.exact_match_span is {self.exact_match_span}; it must be at least 1 and leave a token of "
                f"the row (data.sequence_length {data.sequence_length}) on either side"
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Sample every N optimizer steps."""
        if self.every_n_steps and ends_step(trainer, batch_idx) and trainer.global_step % self.every_n_steps == 0:
            with paused(trainer):
                self.sample(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sample with validation, whose time does not count as training."""
        if self.at_validation and not trainer.sanity_checking:
            self.sample(trainer, pl_module)

    def sample(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decode all prompts and log texts and scores. Runs on every rank alike: a sharded model needs them all."""
        tokenizer = trainer.datamodule.tokenizer  # type: ignore[attr-defined]
        training = pl_module.training
        pl_module.eval()
        with trainer.precision_plugin.forward_context():
            texts, history = self._texts(pl_module, tokenizer)
            scores = {"samples/parses": sum(parses(text) for text in texts.values()) / len(texts)}
            if not self.chat and min(self.exact_match_rows, len(trainer.datamodule.rows("val"))) > 0:  # type: ignore[attr-defined]
                scores["samples/infilling_exact_match"] = self._exact_match(trainer, pl_module)
        pl_module.train(training)
        step = trainer.fit_loop.epoch_loop._batches_that_stepped  # where Lightning puts the bound of this validation
        for logger in trainer.loggers:
            logger.log_metrics(scores, step=step)
            if isinstance(logger, TensorBoardLogger):
                for name, text in {**texts, "denoising": history}.items():
                    # Four spaces make it a code block in TensorBoard's Markdown.
                    markdown = "\n".join(f"    {line}" for line in text.splitlines())
                    logger.experiment.add_text(f"samples/{name}", markdown, step)

    def _canvases(self, tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, str, str, Tensor, slice]]:
        if self.chat:
            for number, head in enumerate(FUNCTIONS):
                asked = in_chat(tokenizer, f"{TASK}{head.rstrip()}")
                yield f"function_{number}", head, "", *build_canvas(tokenizer, asked, "", self.max_new_tokens)
            return
        for number, (kind, prompt, suffix) in enumerate(PROMPTS):
            masks = self.max_new_tokens // 4 if kind == "infilling" else self.max_new_tokens
            yield f"{kind}_{number}", prompt, suffix, *build_canvas(tokenizer, prompt, suffix, max(masks, 1))

    def _texts(self, pl_module: LightningModule, tokenizer: PreTrainedTokenizerBase) -> tuple[dict[str, str], str]:
        texts, history = {}, ""
        for name, prompt, suffix, ids, gap in self._canvases(tokenizer):
            output = self._decode(pl_module, ids, output_history=not history, return_dict_in_generate=True)
            texts[name] = prompt + text_of(tokenizer, output.sequences[0, gap]) + suffix
            history = history or self._frames(tokenizer, output.history)
        return texts, history

    def _frames(self, tokenizer: PreTrainedTokenizerBase, canvases: tuple[Tensor, ...]) -> str:
        """The canvas at evenly spaced denoising steps, masks as light blocks."""
        picked = torch.linspace(0, len(canvases) - 1, min(self.history_frames, len(canvases))).long().tolist()
        frames = [
            f"# after denoising step {i + 1} of {len(canvases)}\n" + tokenizer.decode(canvases[i][0]) for i in picked
        ]
        return "\n\n".join(frames).replace(str(tokenizer.mask_token), "░")

    def _exact_match(self, trainer: Trainer, pl_module: LightningModule) -> float:
        """Mask a span in the middle of held-out rows and count the rows that come back whole."""
        rows = trainer.datamodule.rows("val")  # type: ignore[attr-defined]
        truth = torch.stack([rows[i]["input_ids"] for i in range(min(self.exact_match_rows, len(rows)))])
        start = (truth.shape[1] - self.exact_match_span) // 2
        span = slice(start, start + self.exact_match_span)
        ids = truth.clone()
        ids[:, span] = pl_module.backbone.config.mask_token_id  # type: ignore[assignment, union-attr]
        sequences = self._decode(pl_module, ids, temperature=0.0, return_dict_in_generate=True).sequences.cpu()
        return float((sequences[:, span] == truth[:, span]).all(dim=1).float().mean())

    def _decode(self, pl_module: LightningModule, ids: Tensor, **overrides: Any) -> Any:
        options = {**self.settings, "max_new_tokens": 0, **overrides}
        return pl_module.backbone.diffusion_generate(ids.to(pl_module.device), **options)  # type: ignore[operator, union-attr]


def parses(text: str) -> bool:
    """Whether ``text`` is valid Python, up to its last complete line if it stops in the middle of one."""
    for candidate in (text, text.rpartition("\n")[0]):
        try:
            with warnings.catch_warnings(action="ignore"):
                ast.parse(candidate)
        except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last two for thousands of nested operators
            continue
        return bool(candidate.strip())
    return False
