"""Confidence-guided diffusion decoding: start from masks, commit some tokens at every denoising step."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer
from transformers.utils import ModelOutput

from .sampling_coda import CONFIDENCE, row_noise, sample_token

LOGITS_CHUNK = 1024  # positions whose logits are held at once
RELEASED_NAMES = {"diffusion_steps": "steps", "max_tokens": "max_new_tokens"}
SETTINGS = (  # what the sampler reads; a setting that it would ignore is an error
    *("max_new_tokens", "max_length", "steps", "alg", "alg_temp", "temperature", "top_p", "top_k", "eps", "seed"),
    *("mask_token_id", "return_dict_in_generate", "output_history"),
)
RELEASED_ALGORITHMS = {"original": "origin"}


class CoDAGenerationConfig(GenerationConfig):
    """Settings of :meth:`CoDAGenerationMixin.diffusion_generate`; the released models' names are understood too.

    Args:
        max_new_tokens: Masked tokens appended to the prompt; 0 fills only the masks already in it.
        max_length: Length of the whole canvas, instead of ``max_new_tokens``.
        steps: Denoising steps; None commits one token per step.
        alg: Which tokens to commit: ``origin`` (each with probability 1 - s/t), ``maskgit_plus`` (most probable first),
            ``topk_margin`` (largest gap between the two best candidates first), ``entropy`` (lowest entropy first).
        alg_temp: Randomness in that choice: Gumbel noise on confidence / alg_temp. 0 is deterministic.
        temperature: Of the tokens' distribution; 0 takes the most probable.
        top_p: Sample from the smallest set of tokens with this much probability.
        top_k: Sample from this many most probable tokens.
        eps: Time at which denoising ends.
        seed: Of all randomness; an int numbers the rows (row b draws from seed + b), a list gives each row its own. A
            row's result depends on its own prompt and seed alone. None draws seeds from torch's global generator.
        mask_token_id: Id of the absorbing state; None takes the model's.
        return_dict_in_generate: Return a :class:`CoDAGenerationOutput` instead of the token ids.
        output_history: Keep the canvas after every denoising step in it.
    """

    def __init__(self, **kwargs: Any) -> None:
        for released, name in RELEASED_NAMES.items():
            value = kwargs.pop(released, None)
            if kwargs.get(name) is None:
                kwargs[name] = value
        self.steps: int | None = kwargs.pop("steps", None)
        alg = kwargs.pop("alg", "entropy")
        self.alg: str = RELEASED_ALGORITHMS.get(alg, alg)
        self.alg_temp: float = kwargs.pop("alg_temp", None) or 0.0
        self.eps: float = kwargs.pop("eps", 1e-3)
        self.seed: int | list[int] | None = kwargs.pop("seed", None)
        self.mask_token_id: int | None = kwargs.pop("mask_token_id", None)
        self.output_history: bool = kwargs.pop("output_history", False)
        super().__init__(**kwargs)

    @classmethod
    def from_model_config(cls, model_config: Any) -> "CoDAGenerationConfig":
        """Take the special tokens from a model's config and nothing else."""
        names = ("mask_token_id", "pad_token_id", "eos_token_id", "bos_token_id")
        return cls(**{name: getattr(model_config, name, None) for name in names})

    def validate(self, *args: Any, **kwargs: Any) -> None:
        """Check every setting of diffusion decoding.

        Raises:
            ValueError: Naming the setting, its value and what is allowed.
        """
        checks = [
            ("steps", self.steps, self.steps is None or self.steps >= 1, "at least 1, or null for one token per step"),
            ("alg", self.alg, self.alg in CONFIDENCE, f"one of {', '.join(CONFIDENCE)}"),
            ("alg_temp", self.alg_temp, self.alg_temp >= 0, "0 or more"),
            ("eps", self.eps, 0 <= self.eps < 1, "in [0, 1)"),
            ("temperature", self.temperature, (self.temperature or 0) >= 0, "0 or more"),
            ("top_p", self.top_p, self.top_p is None or 0 < self.top_p <= 1, "in (0, 1]"),
            ("top_k", self.top_k, self.top_k is None or self.top_k >= 1, "at least 1, or null for all tokens"),
            ("max_new_tokens", self.max_new_tokens, (self.max_new_tokens or 0) >= 0, "0 or more"),
        ]
        for name, value, valid, allowed in checks:
            if not valid:
                raise ValueError(f"{name} is {value}; it must be {allowed}")


@dataclass
class CoDAGenerationOutput(ModelOutput):
    """Result of decoding.

    Attributes:
        sequences: int64 [B, L], laid out as the input, new tokens behind it.
        history: If asked for, the canvas [B, L] after every denoising step.
        nfe: Network evaluations.
    """

    sequences: Tensor | None = None
    history: tuple[Tensor, ...] | None = None
    nfe: int | None = None


class CoDAGenerationMixin:
    """Adds :meth:`diffusion_generate` to a model whose output has ``last_hidden_state`` and which has an ``lm_head``."""

    @torch.no_grad()
    def diffusion_generate(
        self: Any,
        inputs: Tensor,
        attention_mask: Tensor | None = None,
        generation_config: CoDAGenerationConfig | None = None,
        streamer: BaseStreamer | None = None,
        **overrides: Any,
    ) -> Tensor | CoDAGenerationOutput:
        """Fill masked tokens: new ones behind the prompt, and those already in it (infilling).

        Args:
            inputs: int64 [B, L], prompts, padded left or right.
            attention_mask: [B, L], zero at padding; None means that there is none.
            generation_config: Settings; None takes the model's own.
            streamer: Receives the canvas through ``put_draft`` after every step and through ``put`` at the end.
            **overrides: Single settings, see :class:`CoDAGenerationConfig`.

        Returns:
            int64 [B, L + max_new_tokens], or a :class:`CoDAGenerationOutput`.

        Raises:
            ValueError: For a setting or prompt that cannot be decoded, before the first network evaluation.
        """
        settings = _resolve(generation_config or self.generation_config, overrides)
        mask_id = self.config.mask_token_id if settings.mask_token_id is None else settings.mask_token_id
        canvas = _Canvas(inputs, attention_mask, _new_tokens(settings, inputs), mask_id)
        canvas.check(self.config, mask_id)
        seeds = _row_seeds(settings.seed, canvas.ids)
        history, nfe = [], 0
        for step, commits in enumerate(_commit_schedule(canvas.masked.sum(dim=1).tolist(), settings)):
            if not any(commits) or not bool(canvas.masked.any()):
                continue
            outputs = self(canvas.ids, attention_mask=canvas.attention_mask, output_logits=False)
            position = canvas.masked.flatten().nonzero().squeeze(1)
            hidden = outputs.last_hidden_state.flatten(0, 1).index_select(0, position - int(self.config.shift))
            noise = row_noise(seeds, 2 * step, canvas.ids.shape[1]).flatten()[position]
            tokens, confidence = _predict(self.lm_head, hidden, noise, mask_id, settings)
            proposal = canvas.ids.flatten().index_copy(0, position, tokens).view_as(canvas.ids)
            scores = torch.full_like(canvas.masked, -torch.inf, dtype=confidence.dtype).flatten()
            scores = scores.index_copy(0, position, confidence).view_as(canvas.ids)
            chosen = _choose(scores, canvas.masked, commits, row_noise(seeds, 2 * step + 1, scores.shape[1]), settings)
            canvas.commit(chosen, proposal)
            nfe += 1
            if settings.output_history:
                history.append(canvas.restore())
            if streamer is not None and hasattr(streamer, "put_draft"):
                streamer.put_draft(canvas.restore().cpu())
        sequences = canvas.restore()
        if streamer is not None:
            streamer.put(sequences.cpu())
            streamer.end()
        if not settings.return_dict_in_generate:
            return sequences
        return CoDAGenerationOutput(sequences=sequences, history=tuple(history) or None, nfe=nfe)


class _Canvas:
    """The tokens being denoised, every row moved to the left edge so that padding on either side changes nothing."""

    def __init__(self, inputs: Tensor, attention_mask: Tensor | None, new_tokens: int, mask_id: int) -> None:
        given = torch.ones_like(inputs) if attention_mask is None else attention_mask
        layout = torch.nn.functional.pad(inputs, (0, new_tokens), value=mask_id)
        valid = torch.nn.functional.pad(given.bool(), (0, new_tokens), value=True)
        self.order = (~valid).int().argsort(dim=1, stable=True)
        self.ids = layout.gather(1, self.order)
        self.valid = valid.gather(1, self.order)
        self.masked = (self.ids == mask_id) & self.valid
        self.attention_mask = None if bool(self.valid.all()) else self.valid

    def check(self, config: Any, mask_id: int) -> None:
        """Raise ValueError if some row cannot be decoded."""
        if not 0 <= mask_id < config.vocab_size:
            raise ValueError(
                f"mask_token_id is {mask_id}, outside the model's vocabulary of {config.vocab_size}; give the id of the "
                "tokenizer's mask token, and grow the embedding if it has no row for it"
            )
        if not bool(self.masked.any()):
            raise ValueError(
                "nothing to generate: the prompt fills the canvas; raise max_new_tokens, or mask part of it"
            )
        longest = int(self.valid.sum(dim=1).max())
        if longest > config.max_position_embeddings:
            raise ValueError(
                f"prompt and new tokens take {longest} positions, the model has {config.max_position_embeddings}; "
                "shorten the prompt or lower max_new_tokens"
            )
        if config.shift and bool(self.masked[:, 0].any()):
            row = int(self.masked[:, 0].nonzero()[0])
            raise ValueError(
                f"prompt {row} starts with a masked token, which nothing predicts in a model with shifted logits; "
                "put a token before it, for example <|endoftext|>"
            )

    def commit(self, chosen: Tensor, proposal: Tensor) -> None:
        """Write ``proposal`` where ``chosen``, both [B, L]; nothing else ever changes."""
        self.ids = torch.where(chosen, proposal, self.ids)
        self.masked = self.masked & ~chosen

    def restore(self) -> Tensor:
        """The canvas [B, L] in the layout of the input."""
        return torch.empty_like(self.ids).scatter_(1, self.order, self.ids)


def _resolve(config: CoDAGenerationConfig, overrides: dict[str, Any]) -> CoDAGenerationConfig:
    settings = copy.deepcopy(config)
    overrides = {RELEASED_NAMES.get(name, name): value for name, value in overrides.items()}
    if "max_length" in overrides:
        overrides.setdefault("max_new_tokens", None)  # the config's would win
    for name, value in overrides.items():
        if name not in SETTINGS:
            raise ValueError(f"{name} is not a setting of diffusion_generate; those are {', '.join(SETTINGS)}")
        setattr(settings, name, value)
    settings.alg = RELEASED_ALGORITHMS.get(settings.alg, settings.alg)
    settings.validate()
    return settings


def _new_tokens(settings: CoDAGenerationConfig, inputs: Tensor) -> int:
    if settings.max_new_tokens is not None:
        return settings.max_new_tokens
    return max((settings.max_length or 0) - inputs.shape[1], 0)


def _commit_schedule(masked: list[int], settings: CoDAGenerationConfig) -> list[list[float]]:
    """For every denoising step and row, how many tokens to commit (``origin``: with which probability).

    Each row follows its own schedule: after step i of N, ``floor(masked * (N - 1 - i) / N)`` tokens are left. A number of
    tokens that depended on other rows would give a row another result in company than alone.
    """
    rows = [(count, settings.steps or max(count, 1)) for count in masked]
    schedule: list[list[float]] = []
    for i in range(max(steps for _, steps in rows)):
        if settings.alg == "origin":
            schedule.append([_transition(i, steps, settings.eps) if count else 0.0 for count, steps in rows])
        else:
            left = [(count * max(n - i, 0) // n, count * max(n - 1 - i, 0) // n) for count, n in rows]
            schedule.append([before - after for before, after in left])
    return schedule


def _transition(step: int, steps: int, eps: float) -> float:
    """Probability 1 - s/t that a masked token is committed at ``step``, with time falling linearly from 1 to eps."""
    if step >= steps - 1:
        return 1.0
    t, s = (1 - (1 - eps) * i / steps for i in (step, step + 1))
    return 1 - s / t


def _predict(
    lm_head: Callable[[Tensor], Tensor], hidden: Tensor, noise: Tensor, mask_id: int, settings: CoDAGenerationConfig
) -> tuple[Tensor, Tensor]:
    """Draw a token and its confidence for each of ``hidden`` [M, H], with ``noise`` [M] uniform in [0, 1)."""
    parts = []
    for states, uniform in zip(hidden.split(LOGITS_CHUNK), noise.split(LOGITS_CHUNK), strict=True):
        logits = lm_head(states)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        logits[:, mask_id] = -torch.inf  # a denoised token is never the absorbing state
        token = sample_token(logits, uniform, settings.temperature or 0.0, settings.top_p, settings.top_k)
        parts.append((token, CONFIDENCE[settings.alg](logits.log_softmax(dim=-1), token)))
    tokens, confidence = zip(*parts, strict=True) if parts else ([noise.long()], [noise])
    return torch.cat(list(tokens)), torch.cat(list(confidence))


def _choose(
    scores: Tensor, masked: Tensor, commits: list[float], noise: Tensor, settings: CoDAGenerationConfig
) -> Tensor:
    """Which tokens to commit, bool [B, L]: as many per row as ``commits`` says (``origin``: with that probability)."""
    amount = torch.tensor(commits, device=scores.device, dtype=torch.float32)[:, None]
    if settings.alg == "origin":
        return masked & (noise < amount)
    if settings.alg_temp > 0:
        scores = scores / settings.alg_temp - (-noise.clamp(min=1e-12).log()).log()
    order = scores.argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    return masked & (rank < amount)


def _row_seeds(seed: int | list[int] | None, ids: Tensor) -> Tensor:
    rows = ids.shape[0]
    if isinstance(seed, list | tuple) and len(seed) != rows:
        raise ValueError(f"seed lists {len(seed)} numbers for {rows} prompts; give one each, or a single int")
    if seed is None:
        seed = torch.randint(2**62, (rows,)).tolist()
    elif isinstance(seed, int):
        seed = [seed + row for row in range(rows)]
    return torch.tensor(seed, device=ids.device)


__all__ = ["CoDAGenerationConfig", "CoDAGenerationMixin", "CoDAGenerationOutput"]
