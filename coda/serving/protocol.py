"""OpenAI's requests and answers, with the settings of diffusion decoding beside them."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

# Fields of OpenAI's that ask for what this server does not do; these values of them ask for nothing.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "echo": (None, False),
    "best_of": (None, 1),
    "logit_bias": (None, {}),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "web_search_options": (None,),
}
# Fields of OpenAI's that change nothing of the text.
IGNORED = (
    *("user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier", "prompt_cache_key"),
    *("prompt_cache_retention", "reasoning_effort", "verbosity"),
)
SEEDS = 2**62  # seeds are numbers of 64 bits, and every row takes the next

Tokens = Annotated[list[int], Field(min_length=1)]
StopString = Annotated[str, Field(min_length=1)]


class StreamOptions(BaseModel):
    """What a stream holds besides text."""

    model_config = ConfigDict(strict=True)
    include_usage: bool | None = Field(None, description="End with a chunk that has the usage of the whole request.")


class Sampler(BaseModel):
    """Settings of diffusion decoding, see ``CoDAGenerationConfig``, which checks them; null takes the server's."""

    # Other fields are kept: those of OpenAI's that are unsupported or ignored, or else a mistake, which is named.
    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    steps: int | None = Field(None, description="Denoising steps; at most one of this and the next four.")
    tokens_per_step: int | None = Field(None, description="Commit this many tokens at every step.")
    threshold: float | None = Field(None, description="Commit all tokens of at least this probability.")
    factor: float | None = Field(None, description="Commit the n best tokens with (n + 1)(1 - p_n) below this.")
    entropy_bound: float | None = Field(None, description="Commit while summed minus largest entropy is at most this.")
    alg: str | None = Field(None, description="Which are committed: origin, maskgit_plus, topk_margin or entropy.")
    alg_temp: float | None = Field(None, description="Randomness in that order.")
    eps: float | None = Field(None, description="Time at which denoising ends.")
    temperature: float | None = Field(None, description="0 takes the most probable token.")
    top_p: float | None = Field(None, description="Sample from the smallest set with this much probability.")
    top_k: int | None = Field(None, description="Sample from this many most probable tokens.")
    block_length: int | None = Field(None, description="Decode blocks of this many tokens from left to right.")
    cache: str | None = Field(None, description="none, prefix or dual.")
    cache_refresh: int | None = Field(None, description="Compute cached columns again every so many steps.")
    remasking: str | None = Field(None, description="remdm or confidence_drop.")
    remasking_rate: float | None = Field(None, description="Its largest probability per step, or fall in probability.")
    guide: Literal["self"] | None = Field(None, description="self: the model's own causal pass verifies drafts.")
    guide_weight: float | None = Field(None, description="Of the draft in the distribution that the guide checks.")


class Generation(Sampler):
    """What both kinds of request share."""

    model: str | None = Field(None, description="The one that is served; may be left out.")
    max_tokens: Annotated[int, Field(ge=1)] | None = Field(None, description="Length of the gap to fill, in tokens.")
    n: Annotated[int, Field(ge=1)] | None = Field(None, description="Samples of each prompt.")
    seed: Annotated[int, Field(ge=-SEEDS, lt=SEEDS)] | None = Field(
        None, description="The same seed and settings give the same text; the i-th row takes seed + i."
    )
    stop: StopString | Annotated[list[StopString], Field(max_length=16)] | None = Field(
        None, description="The text ends before the first of these."
    )
    stream: bool | None = Field(None, description="Answer with server-sent events.")
    stream_options: StreamOptions | None = None
    stream_drafts: bool | None = Field(
        None, description="With stream: an event named draft after every denoising step, with the tokens it changed."
    )


class CompletionRequest(Generation):
    """Continue a prompt, or fill the gap between a prompt and a suffix."""

    prompt: str | Annotated[list[str] | Tokens | list[Tokens], Field(min_length=1)] = Field(
        description="A text or token ids, or a list of either."
    )
    suffix: str | None = Field(None, description="What follows the gap of max_tokens tokens.")


class ContentPart(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(strict=True)
    type: Literal["text"]
    text: str


class Message(BaseModel):
    """A turn of a conversation."""

    model_config = ConfigDict(strict=True)
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[ContentPart]


class ChatRequest(Generation):
    """Answer a conversation."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = Field(None, description="Another name of max_tokens.")


class Usage(BaseModel):
    """Tokens read and written; ``denoising_steps`` are network evaluations, summed over the choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    denoising_steps: int


class CompletionChoice(BaseModel):
    """A text."""

    index: int
    text: str
    logprobs: None = None
    finish_reason: Literal["stop", "length"]


class Completion(BaseModel):
    """The answer to a :class:`CompletionRequest`."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class AssistantMessage(BaseModel):
    """What the model says."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """A message."""

    index: int
    message: AssistantMessage
    logprobs: None = None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(BaseModel):
    """The answer to a :class:`ChatRequest`."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class ModelCard(BaseModel):
    """The model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "coda"
    max_model_len: int = Field(description="Tokens of prompt, gap and suffix together.")
    chat: bool = Field(description="Whether it has a chat template.")
    sampler: dict[str, Any] = Field(description="Settings of requests that do not give them.")


class ModelList(BaseModel):
    """All models: one."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class ErrorDetail(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(BaseModel):
    """Every error."""

    error: ErrorDetail
