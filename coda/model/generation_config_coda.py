"""The settings of diffusion decoding: one flat JSON, every entry of which is read or refused."""

import copy
from typing import Any

from transformers import GenerationConfig

from .cache_coda import CACHES
from .prediction_coda import CONFIDENCE
from .selection_coda import RULES

RELEASED_NAMES = {"diffusion_steps": "steps", "max_tokens": "max_new_tokens"}
RELEASED_ALGORITHMS = {"original": "origin"}
REMASKINGS = ("remdm", "confidence_drop")
DEFAULTS: dict[str, Any] = {  # of what transformers' own class does not have
    "steps": None,
    "tokens_per_step": None,
    "threshold": None,
    "factor": None,
    "entropy_bound": None,
    "commit": None,
    "alg": "entropy",
    "alg_temp": 0.0,
    "eps": 1e-3,
    "block_length": None,
    "cache": "none",
    "cache_refresh": None,
    "remasking": None,
    "remasking_rate": None,
    "guide": None,
    "guide_weight": 0.0,
    "seed": None,
    "mask_token_id": None,
    "pad_to_multiple_of": None,
    "output_history": False,
}
INHERITED = (  # what is read of transformers' own
    *("max_new_tokens", "max_length", "num_return_sequences", "temperature", "top_p", "top_k"),
    *("eos_token_id", "pad_token_id", "return_dict_in_generate"),
)
SETTINGS = (*DEFAULTS, *INHERITED)
UNUSED = ("bos_token_id", "transformers_version", "use_cache")  # of every checkpoint, without a meaning here
PACES = ("steps", *RULES)


class CoDAGenerationConfig(GenerationConfig):
    """Settings of :meth:`CoDAGenerationMixin.diffusion_generate`; the released models' names are understood too.

    Args:
        max_new_tokens: Masked tokens appended to the prompt; 0 fills only the masks already in it.
        max_length: Length of the whole canvas, instead of ``max_new_tokens``.
        num_return_sequences: Samples of each prompt.
        steps: Denoising steps; None commits one token per step. At most one of this and the next four:
        tokens_per_step: Commit this many tokens at every step.
        threshold: Commit all tokens of at least this probability (Fast-dLLM, arXiv 2505.22618).
        factor: Commit the n most probable tokens with (n + 1)(1 - p_n) below this (Fast-dLLM).
        entropy_bound: Commit tokens while their summed minus largest entropy is at most this (EB-Sampler, 2505.24857).
        alg: Which tokens to commit: ``origin`` (each with probability 1 - s/t), ``maskgit_plus`` (most probable first),
            ``topk_margin`` (largest gap between the two best candidates first), ``entropy`` (lowest entropy first).
        alg_temp: Randomness in that choice: Gumbel noise on confidence / alg_temp. 0 is deterministic.
        eps: Time at which denoising ends.
        block_length: Decode blocks of this many tokens from left to right; None decodes the canvas as one.
        cache: ``none`` is exact; ``prefix`` and ``dual`` reuse keys and values from outside the block (Fast-dLLM).
        cache_refresh: Compute all of them again every so many steps within a block; 1 is exact.
        remasking: ``remdm`` (arXiv 2503.00307) or ``confidence_drop`` make committed tokens masks again.
        remasking_rate: Its largest probability per step (remdm), the fall in probability (confidence_drop).
        guide: ``self`` verifies drafts with the model's own weights under a causal mask (APD, arXiv 2506.00413).
        guide_weight: Of the draft in the distribution that the guide checks; 0 is the guide's alone.
        temperature: Of the tokens' distribution; 0 takes the most probable.
        top_p: Sample from the smallest set of tokens with this much probability.
        top_k: Sample from this many most probable tokens.
        seed: Of all randomness; an int numbers the rows (row b draws from seed + b), a list gives each row its own. A
            row's result depends on its own prompt and seed alone. None draws seeds from torch's global generator.
        mask_token_id: Id of the absorbing state; None takes the model's.
        eos_token_id: Tokens that end a row: nothing behind them is computed. None fills the whole canvas.
        pad_token_id: What stands behind the end.
        pad_to_multiple_of: Round lengths up to this and keep all shapes from step to step, for compilers (XLA).
        return_dict_in_generate: Return a :class:`CoDAGenerationOutput` instead of the token ids.
        output_history: Keep the canvas after every denoising step in it.

    Raises:
        ValueError: For a setting that is unknown, impossible or contradicts another.
    """

    steps: int | None
    tokens_per_step: int | None
    threshold: float | None
    factor: float | None
    entropy_bound: float | None
    commit: Any
    alg: Any
    alg_temp: float
    eps: float
    block_length: int | None
    cache: Any
    cache_refresh: int | None
    remasking: Any
    remasking_rate: float | None
    guide: Any
    guide_weight: float
    seed: int | list[int] | None
    mask_token_id: int | None
    pad_to_multiple_of: int | None
    output_history: bool

    def __init__(self, **kwargs: Any) -> None:
        kwargs = _current_names(kwargs)
        for name, default in DEFAULTS.items():
            value = kwargs.pop(name, None)
            setattr(self, name, default if value is None else value)
        asked = [name for name, value in kwargs.items() if value not in (None, False) and not name.startswith("_")]
        _refuse_unknown([name for name in asked if name not in (*INHERITED, *UNUSED)])
        super().__init__(**kwargs)

    @classmethod
    def from_model_config(cls, model_config: Any) -> "CoDAGenerationConfig":
        """Take the special tokens from a model's config and nothing else."""
        names = ("mask_token_id", "pad_token_id", "eos_token_id", "bos_token_id")
        return cls(**{name: getattr(model_config, name, None) for name in names})

    def updated(self, overrides: dict[str, Any]) -> "CoDAGenerationConfig":
        """Return a copy with ``overrides``. Raises ValueError as the constructor does.

        An override of how many tokens a step commits replaces whatever the config says of it.
        """
        settings = copy.deepcopy(self)
        overrides = _current_names(overrides)
        _refuse_unknown([name for name in overrides if name not in SETTINGS])
        replaced = {"max_new_tokens"} if "max_length" in overrides else set()
        if any(overrides.get(name) is not None for name in PACES):
            replaced.update(PACES)
        for name in replaced - overrides.keys():
            setattr(settings, name, None)
        for name, value in overrides.items():
            setattr(settings, name, DEFAULTS.get(name) if value is None else value)
        settings.validate()
        return settings

    def new_tokens(self, prompt_length: int) -> int:
        """Masked tokens to append to a prompt."""
        if self.max_new_tokens is not None:
            return int(self.max_new_tokens)
        return max((self.max_length or 0) - prompt_length, 0)

    def validate(self, *args: Any, **kwargs: Any) -> None:
        """Check every setting of diffusion decoding.

        Raises:
            ValueError: Naming the setting, its value and what is allowed.
        """
        for name, valid, allowed in self._ranges():
            value = getattr(self, name)
            if value is not None and not valid(value):
                raise ValueError(f"{name} is {value}; it must be {allowed}")
        for wrong, message in self._contradictions():
            if wrong:
                raise ValueError(message)

    def _ranges(self) -> list[tuple[str, Any, str]]:
        def named(choices: Any) -> Any:
            return lambda value: not isinstance(value, str) or value in choices  # components may be objects, too

        counts = [
            ("steps", "at least 1, or null for one token per step"),
            ("tokens_per_step", "at least 1"),
            ("block_length", "at least 1, or null for the whole canvas"),
            ("cache_refresh", "at least 1, or null for the start of a block"),
            ("top_k", "at least 1, or null for all tokens"),
            ("num_return_sequences", "at least 1"),
            ("pad_to_multiple_of", "at least 1"),
        ]
        return [
            *((name, lambda value: value >= 1, allowed) for name, allowed in counts),
            *((name, lambda value: value >= 0, "0 or more") for name in ("alg_temp", "temperature", "max_new_tokens")),
            *((name, lambda value: value > 0, "above 0") for name in ("threshold", "factor")),
            ("entropy_bound", lambda value: value >= 0, "0 or more"),
            ("alg", named(CONFIDENCE), f"one of {', '.join(CONFIDENCE)}"),
            ("eps", lambda value: 0 <= value < 1, "in [0, 1)"),
            ("top_p", lambda value: 0 < value <= 1, "in (0, 1]"),
            ("cache", named(("none", *CACHES)), f"one of none, {', '.join(CACHES)}"),
            ("remasking", named(REMASKINGS), f"one of {', '.join(REMASKINGS)}, or null"),
            ("remasking_rate", lambda value: 0 < value < 1, "in (0, 1)"),
            ("guide", named(("self",)), "self, or a model"),
            ("guide_weight", lambda value: 0 <= value <= 1, "in [0, 1]"),
        ]

    def _contradictions(self) -> list[tuple[bool, str]]:
        paces = [name for name in (*PACES, "commit") if getattr(self, name) is not None]
        first, other = (*paces, "", "")[:2]
        cached = self.cache != "none"
        adaptive = any(name != "steps" for name in paces)
        new = self.max_new_tokens
        return [
            (len(paces) > 1, f"{other} contradicts {first}: both say how many tokens a step commits; give one of them"),
            (
                self.alg == "origin" and adaptive,
                f"{first} contradicts alg origin, which draws how many tokens a step commits; choose another alg",
            ),
            (
                self.cache == "dual" and self.block_length is None,
                "cache is dual, which caches what follows a block, but there is no block_length; set one",
            ),
            (
                self.cache_refresh is not None and not cached,
                f"cache_refresh is {self.cache_refresh}, but cache is none; choose prefix or dual, or remove it",
            ),
            (
                bool(self.block_length and new and self.block_length > new),
                f"block_length is {self.block_length}, longer than the canvas of max_new_tokens {new}; lower it",
            ),
            (
                self.remasking in REMASKINGS and self.remasking_rate is None,
                f"remasking is {self.remasking}, which needs a remasking_rate",
            ),
            (
                self.remasking_rate is not None and self.remasking not in REMASKINGS,
                f"remasking_rate is {self.remasking_rate}, but remasking is {self.remasking}; choose one or remove it",
            ),
            (
                self.remasking == "remdm" and adaptive,
                f"{first} contradicts remasking remdm, whose rate follows a schedule; give steps instead",
            ),
            *self._guide_contradictions(bool(paces)),
        ]

    def _guide_contradictions(self, paced: bool) -> list[tuple[bool, str]]:
        guided = self.guide is not None
        return [
            (guided and paced, "guide decides how many tokens a step commits; remove steps, threshold and the like"),
            (guided and self.remasking is not None, "guide contradicts remasking: what it has verified stays"),
            (guided and self.alg == "origin", "guide contradicts alg origin, whose choice of tokens is random"),
            (
                guided and self.pad_to_multiple_of is not None,
                "guide contradicts pad_to_multiple_of: how much it reads depends on what it accepts; remove one",
            ),
            (
                not guided and self.guide_weight != 0,
                f"guide_weight is {self.guide_weight}, but there is no guide; give one, or remove it",
            ),
        ]


def _current_names(values: dict[str, Any]) -> dict[str, Any]:
    """The released names replaced by ours, where ours are not given; the released algorithm names as well."""
    values = dict(values)
    for released, name in RELEASED_NAMES.items():
        if released in values:
            value = values.pop(released)
            if values.get(name) is None:
                values[name] = value
    if isinstance(values.get("alg"), str):
        values["alg"] = RELEASED_ALGORITHMS.get(values["alg"], values["alg"])
    return values


def _refuse_unknown(names: list[str]) -> None:
    if names:
        raise ValueError(f"{names[0]} is not a setting of diffusion_generate; those are {', '.join(sorted(SETTINGS))}")


__all__ = ["CoDAGenerationConfig"]
