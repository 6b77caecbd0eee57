"""From a request to the rows that answer it; what cannot be decoded is refused before it is queued."""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from coda.generate import Decoding
from coda.model import CoDAGenerationConfig, CoDALanguageModel
from coda.serving.encoding import PromptEncoder, Turn
from coda.serving.errors import ApiError
from coda.serving.protocol import IGNORED, SEEDS, UNSUPPORTED, ChatRequest, CompletionRequest, Generation, Sampler
from coda.serving.rows import Event, Row
from coda.serving.text import Detokenizer

Emit = Callable[[Event], None]
NAMES = tuple(Sampler.model_fields)
NEW_TOKENS = 256  # of requests that do not say how many: room for an answer, which ends itself earlier


class Gap(NamedTuple):
    """Token ids before and behind a gap."""

    head: list[int]
    tail: list[int]


class Asked(NamedTuple):
    """The rows of one request.

    Attributes:
        rows: One per choice.
        prompt_tokens: Tokens given, every prompt counted once.
    """

    rows: list[Row]
    prompt_tokens: int


class Reader:
    """Reads requests.

    Args:
        model: The one that is served.
        tokenizer: Its own.
        name: What clients call it.
        defaults: Settings of requests that do not give them, ``max_new_tokens`` too; over the model's own generation
            config, over the defaults of ``python -m coda.generate``.
        max_rows: Rows that a request may have.

    Raises:
        ValueError: For defaults that cannot be decoded.
    """

    def __init__(
        self,
        model: CoDALanguageModel,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        defaults: dict[str, Any],
        max_rows: int,
    ) -> None:
        self.model, self.name, self.max_rows = model, name, max_rows
        self.encoder = PromptEncoder(tokenizer)
        self.positions = int(model.config.max_position_embeddings)
        for setting in defaults:
            if setting not in (*NAMES, "max_new_tokens"):
                allowed = ", ".join((*NAMES, "max_new_tokens"))
                raise ValueError(f"sampler.{setting} is not a setting of the server; those are {allowed}")
        config = CoDAGenerationConfig.from_model_config(model.config).updated(_of_command())
        config = config.updated(_of_model(model)).updated(defaults)
        config.eos_token_id = list(Detokenizer(tokenizer).ends)
        self.new_tokens = int(config.max_new_tokens)
        config.max_new_tokens = 0  # canvases are laid out here, with their gaps
        self.config = config

    @property
    def defaults(self) -> dict[str, Any]:
        """Settings of requests that do not give them."""
        return {name: getattr(self.config, name) for name in NAMES} | {"max_tokens": self.new_tokens}

    def completion(self, request: CompletionRequest, emit: Emit) -> Asked:
        """Rows of a continuation or an infilling. Raises ApiError for one that cannot be decoded."""
        given = request.prompt
        several = isinstance(given, list) and not isinstance(given[0], int)
        prompts: Sequence[Any] = given if several else [given]  # type: ignore[assignment]
        self._check_rows(len(prompts), request.n or 1)
        tail = self.encoder.text(request.suffix) if request.suffix else []
        return self._rows(request, request.max_tokens, [Gap(self._head(prompt), tail) for prompt in prompts], emit)

    def chat(self, request: ChatRequest, emit: Emit) -> Asked:
        """Rows of an answer. Raises ApiError for one that cannot be decoded."""
        if not self.encoder.chats:
            why = "this model's tokenizer has no chat template; ask /v1/completions, or serve an instruction-tuned one"
            raise ApiError(400, why, param="messages")
        self._check_rows(1, request.n or 1)
        turns = []
        for message in request.messages:
            parts = message.content
            content = parts if isinstance(parts, str) else "".join(part.text for part in parts)
            turns.append(Turn("system" if message.role == "developer" else message.role, content))
        try:
            head = self.encoder.chat(turns)
        except ValueError as error:
            raise ApiError(400, str(error), param="messages") from error
        return self._rows(request, request.max_completion_tokens or request.max_tokens, [Gap(head, [])], emit)

    def _head(self, prompt: str | list[int]) -> list[int]:
        if isinstance(prompt, str):
            return self.encoder.prompt(prompt)
        size, mask = self.model.config.vocab_size, self.model.config.mask_token_id
        for token in prompt:
            if not 0 <= token < size or token == mask:
                why = "is the mask token; give a suffix instead" if token == mask else f"is outside [0, {size})"
                raise ApiError(400, f"prompt: the token id {token} {why}", param="prompt")
        return prompt

    def _rows(self, request: Generation, length: int | None, gaps: list[Gap], emit: Emit) -> Asked:
        self._check_model(request)
        config = self._config(request)
        given = [len(gap.head) + len(gap.tail) for gap in gaps]
        room = self.positions - max(given)
        masks = length or max(min(self.new_tokens, room), 1)
        if masks > room:
            text = f"{max(given)} tokens of prompt and suffix and a gap of {masks} are {max(given) + masks}"
            message = f"{text}; the model has {self.positions} positions: shorten the prompt or lower max_tokens"
            raise ApiError(400, message, param="prompt", code="context_length_exceeded")
        seed = secrets.randbelow(SEEDS) if request.seed is None else request.seed
        stops = [request.stop] if isinstance(request.stop, str) else request.stop or []
        key = tuple(getattr(config, name) for name in NAMES)
        rows: list[Row] = []
        for gap in gaps:
            ids = [*gap.head, *[int(self.model.config.mask_token_id)] * masks, *gap.tail]
            self._check(ids, config)
            for _ in range(request.n or 1):
                place = slice(len(gap.head), len(gap.head) + masks)
                row = Row(len(rows), ids, place, seed + len(rows), config, key, emit, tuple(stops))
                row.streams = bool(request.stream)
                row.drafts = bool(request.stream and request.stream_drafts)
                rows.append(row)
        return Asked(rows, sum(given))

    def _check_model(self, request: Generation) -> None:
        if request.model not in (None, self.name):
            message = f"model is {request.model!r}; this server has {self.name!r}"
            raise ApiError(404, message, param="model", code="model_not_found")

    def _check_rows(self, prompts: int, n: int) -> None:
        if prompts * n > self.max_rows:
            message = (
                f"{prompts} prompts with n {n} are {prompts * n} choices; this server takes {self.max_rows} at once"
            )
            raise ApiError(400, message, param="n")

    def _check(self, ids: list[int], config: CoDAGenerationConfig) -> None:
        """Lay the canvas out without evaluating the network: the sampler itself says what it cannot decode."""
        try:
            self.model.diffusion_decoder(torch.tensor([ids]), generation_config=config, seed=[0])
        except ValueError as error:
            raise _of_setting(error) from error

    def _config(self, request: Generation) -> CoDAGenerationConfig:
        extra = dict(request.__pydantic_extra__ or {})
        for name, nothing in UNSUPPORTED.items():
            if name in extra and extra[name] not in nothing:
                raise ApiError(400, f"{name} is not supported by this server; leave it out", param=name)
        unknown = [name for name in extra if name not in (*UNSUPPORTED, *IGNORED)]
        if unknown:
            known = ", ".join(sorted(type(request).model_fields))
            raise ApiError(400, f"{unknown[0]} is no field of this request; those are {known}", param=unknown[0])
        asked = {name: value for name in NAMES if (value := getattr(request, name)) is not None}
        try:
            return self.config.updated(asked)
        except ValueError as error:
            raise _of_setting(error) from error


def _of_command() -> dict[str, Any]:
    """The defaults of ``python -m coda.generate``, with more room."""
    given = asdict(Decoding(max_new_tokens=NEW_TOKENS))
    return {name: given[name] for name in (*NAMES, "max_new_tokens") if given.get(name) is not None}


def _of_model(model: CoDALanguageModel) -> dict[str, Any]:
    """What the model's own generation config says that no other would."""
    plain = CoDAGenerationConfig()
    own = {name: getattr(model.generation_config, name) for name in (*NAMES, "max_new_tokens")}
    return {name: value for name, value in own.items() if value != getattr(plain, name)}


def _of_setting(error: ValueError) -> ApiError:
    """Messages of the sampler begin with the setting that is wrong."""
    first = str(error).split(" ", 1)[0]
    return ApiError(400, str(error), param=first if first in NAMES else None)


__all__ = ["Asked", "Event", "Reader"]
