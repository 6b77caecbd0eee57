"""Generation: batches of canvases over ranks, each sample from a seed of its own."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from coda.data.tokenizer import separator_id
from coda.evaluation.problem import Problem
from coda.evaluation.prompts import PromptFormat
from coda.evaluation.ranks import Ranks
from coda.evaluation.samples import Key, Sample, SampleFolder
from coda.generate import build_canvas, text_of
from coda.model import CoDAGenerationConfig, CoDALanguageModel

# The report's (arXiv 2510.03270, section 5): 768 new tokens in as many steps.
REPORT_SAMPLER = {
    "max_new_tokens": 768,
    "steps": None,
    "alg": "entropy",
    "temperature": 0.1,
    "top_p": 0.9,
    "alg_temp": 0.0,
}
# What evaluation decides itself, and where.
DECIDED = {
    "seed": "seed",
    "num_return_sequences": "samples",
    "max_length": "sampler.max_new_tokens",
    "eos_token_id": "the model's tokenizer",
    "pad_token_id": "the model's tokenizer",
    "mask_token_id": "the model's tokenizer",
    "return_dict_in_generate": "evaluation itself",
    "output_history": "evaluation itself",
}


@dataclass(frozen=True)
class Request:
    """One sample to draw: a canvas with a gap.

    Attributes:
        key: Problem and number of the sample.
        seed: Of its decoding.
        ids: Token ids of the canvas, masks in the gap.
        gap: Where the gap is.
    """

    key: Key
    seed: int
    ids: list[int]
    gap: slice

    @property
    def canvas(self) -> str:
        """Hash of the canvas: a sample of another one, under the same name, is not a sample of this one."""
        return hashlib.sha256(str(self.ids).encode()).hexdigest()[:16]

    def is_met_by(self, sample: Sample | None) -> bool:
        """Whether ``sample`` is what was asked for."""
        return sample is not None and (sample.seed, sample.canvas) == (self.seed, self.canvas)


def sampler_settings(given: dict[str, Any]) -> dict[str, Any]:
    """The report's sampler with ``given`` settings instead of its own.

    Raises:
        ValueError: For a setting that is unknown, impossible, or not to be set here.
    """
    for name in given:
        if name in DECIDED:
            raise ValueError(f"sampler.{name} cannot be set: {DECIDED[name]} decides it")
        if not hasattr(CoDAGenerationConfig(), name):
            raise ValueError(
                f"sampler.{name} is not a setting of diffusion_generate; see python -m coda.generate --help"
            )
    settings = {**REPORT_SAMPLER, **given}
    CoDAGenerationConfig(**settings).validate()
    if not isinstance(settings["max_new_tokens"], int) or settings["max_new_tokens"] < 1:
        raise ValueError(f"sampler.max_new_tokens is {settings['max_new_tokens']}; generate at least 1 token")
    return settings


def seed_of(seed: int, task_id: str, sample: int) -> int:
    """The seed of one sample, a pure function of these three: in [0, 2**62)."""
    digest = hashlib.sha256(f"{seed}/{task_id}/{sample}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 2


def make_requests(
    problems: list[Problem],
    prompt_format: PromptFormat,
    tokenizer: PreTrainedTokenizerBase,
    settings: dict[str, Any],
    samples: int,
    seed: int,
) -> list[Request]:
    """One request for every sample of every problem."""
    requests = []
    for problem in problems:
        prompt = prompt_format.prompt(problem, tokenizer)
        length = settings["max_new_tokens"] if prompt.length is None else prompt.length
        ids, gap = build_canvas(tokenizer, prompt.prefix, prompt.suffix, length)
        for sample in range(samples):
            key = (problem.task_id, sample)
            requests.append(Request(key, seed_of(seed, *key), ids[0].tolist(), gap))
    return requests


def check_requests(requests: list[Request], model: CoDALanguageModel) -> None:
    """Raise ValueError if some canvas does not fit the model."""
    longest = max(requests, key=lambda request: len(request.ids))
    positions = int(model.config.max_position_embeddings)
    if len(longest.ids) > positions:
        raise ValueError(
            f"{longest.key[0]} takes {len(longest.ids)} positions with its gap of {_length(longest)}, the model has "
            f"{positions}; lower sampler.max_new_tokens"
        )


def generate(
    model: CoDALanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: list[Request],
    settings: dict[str, Any],
    batch_size: int,
    folder: SampleFolder,
    ranks: Ranks,
    title: str | None = None,
) -> list[Sample]:
    """Draw what is not drawn yet, and return all samples in the order of ``requests``, on every rank.

    A sample depends on its canvas and seed alone, not on batches or ranks (up to rounding in sums of other shapes).

    Args:
        model: In evaluation mode, on its device.
        tokenizer: The model's.
        requests: The same on every rank.
        settings: Of the sampler, see :func:`sampler_settings`.
        batch_size: Canvases decoded at once, per rank.
        folder: Keeps finished samples.
        ranks: Who shares the work.
        title: Of the progress bar; None shows none.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; decode at least 1 canvas at a time")
    finished = {key: sample for part in ranks.gather(folder.samples) for key, sample in part.items()}
    left = [request for request in requests if not request.is_met_by(finished.get(request.key))]
    left.sort(key=lambda request: len(request.ids), reverse=True)
    mine = left[ranks.rank :: ranks.size]  # the longest first: what does not fit into memory shows at once
    drawn: list[Sample] = []
    with tqdm(total=len(mine), desc=title, disable=title is None or not ranks.first, unit="sample") as bar:
        for start in range(0, len(mine), batch_size):
            batch = mine[start : start + batch_size]
            fresh = decode(model, tokenizer, batch, settings)
            folder.add(fresh)
            drawn += fresh
            bar.update(len(batch))
    finished = finished | {sample.key: sample for part in ranks.gather(drawn) for sample in part}
    return [finished[request.key] for request in requests]


def decode(
    model: CoDALanguageModel, tokenizer: PreTrainedTokenizerBase, batch: Sequence[Request], settings: dict[str, Any]
) -> list[Sample]:
    """Decode one batch of canvases."""
    ids, given = _padded(batch, int(tokenizer.pad_token_id))
    config = CoDAGenerationConfig.from_model_config(model.config)
    config.eos_token_id = [separator_id(tokenizer), tokenizer.eos_token_id]
    start = time.perf_counter()
    output: Any = model.diffusion_generate(
        ids.to(model.device),
        None if bool(given.all()) else given.to(model.device),
        generation_config=config,
        **{**settings, "max_new_tokens": 0},
        seed=[request.seed for request in batch],
        return_dict_in_generate=True,
    )
    sequences = output.sequences.cpu()
    seconds = (time.perf_counter() - start) / len(batch)
    evaluations = getattr(output, "row_nfe", None)
    nfe = [output.nfe] * len(batch) if evaluations is None else evaluations.tolist()
    texts = [text_of(tokenizer, row[request.gap]) for request, row in zip(batch, sequences, strict=True)]
    return [
        Sample(*request.key, request.seed, request.canvas, text, int(count), seconds, _length(request))
        for request, text, count in zip(batch, texts, nfe, strict=True)
    ]


def _padded(batch: Sequence[Request], pad_id: int) -> tuple[Tensor, Tensor]:
    """Canvases padded on the right to int64 [B, L], and which tokens are given, bool [B, L]."""
    width = max(len(request.ids) for request in batch)
    rows = [request.ids + [pad_id] * (width - len(request.ids)) for request in batch]
    given = [[True] * len(request.ids) + [False] * (width - len(request.ids)) for request in batch]
    return torch.tensor(rows), torch.tensor(given)


def _length(request: Request) -> int:
    return request.gap.stop - request.gap.start
