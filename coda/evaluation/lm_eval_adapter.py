"""The model as lm-eval's ``coda``, for comparison with published tables (extra ``eval``).

``python -m coda.evaluation.lm_eval_adapter run --model coda --model_args pretrained=DIR --tasks coda_humaneval_instruct
--apply_chat_template --metadata '{"data": "DIR"}' --confirm_run_unsafe_code`` is lm-eval's own command with this model and
our task files, which need no hub and judge in our sandbox.
"""

import sys
from pathlib import Path
from typing import Any

try:
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ImportError as error:
    raise ImportError("lm-eval is not installed; pip install 'coda-diffusion[eval]'") from error

from coda.data.tokenizer import separator_id
from coda.evaluation.generating import Request, check_requests, generate, sampler_settings, seed_of
from coda.evaluation.likelihood import Bound, Likelihood, continuation, windows_of
from coda.evaluation.ranks import Ranks
from coda.evaluation.samples import SampleFolder
from coda.evaluation.subject import DEVICE, Subject
from coda.generate import build_canvas

TASKS = Path(__file__).parent / "lm_eval_tasks"
# lm-eval's names for settings of an autoregressive sampler; how a diffusion model samples is said in --model_args.
IGNORED = ("do_sample", "temperature", "top_p", "top_k", "max_new_tokens")


@register_model("coda")
class CoDALM(LM):  # type: ignore[misc]
    """A diffusion language model.

    Log-likelihoods are estimates of the bound of eq. 6 (lower bounds of the true ones), the same for the same seed;
    whether a continuation is the greedy one is not found out and always told as False.

    Args:
        pretrained: An exported folder, a .ckpt or a Hugging Face name.
        batch_size: Canvases or masked rows given to the model at once.
        likelihood_masks: Masks drawn per log-likelihood, an even number.
        max_gen_toks: Tokens to generate where a task does not say it.
        seed: Of samples and masks.
        dtype: Of weights and arithmetic; None is bfloat16 on GPUs and float32 elsewhere.
        device: Where to run.
        **sampler: Settings of ``diffusion_generate`` in place of the report's.
    """

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 16,
        likelihood_masks: int = 64,
        max_gen_toks: int = 768,
        seed: int = 0,
        dtype: str | None = None,
        device: str | None = None,
        max_batch_size: int | None = None,
        **sampler: Any,
    ) -> None:
        super().__init__()
        self.settings = sampler_settings({"max_new_tokens": max_gen_toks, **sampler})
        self.subject = Subject.load(pretrained, dtype, device or DEVICE)
        self.ranks = Ranks.join()
        self._rank, self._world_size = 0, 1  # every process sees all requests, and shares their work itself
        self.batch_size, self.seed = int(batch_size), seed
        self.likelihood = Likelihood(self.subject.model, likelihood_masks, self.batch_size, seed)

    @property
    def tokenizer_name(self) -> str:
        """What lm-eval files its cache of prompts under."""
        return str(self.subject.tokenizer.name_or_path).replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The tokenizer's chat template."""
        return self.subject.tokenizer.chat_template or ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Put turns into it; without ``add_generation_prompt`` the last one, the assistant's, is left open."""
        return str(
            self.subject.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation given its context, in nats."""
        separator, positions = separator_id(self.subject.tokenizer), self.subject.model.config.max_position_embeddings
        rows = [continuation(*self._split(*request.args), separator, positions) for request in requests]
        return [(-bound.nats, False) for bound in self.likelihood.bounds(rows)]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, in nats."""
        separator, positions = separator_id(self.subject.tokenizer), self.subject.model.config.max_position_embeddings
        values = []
        for request in requests:
            ids = self._ids(request.args[0])
            rows = list(windows_of(ids, separator, positions, context=max(positions // 4, 1)))
            values.append(-Bound.total(self.likelihood.bounds(rows)).nats)
        return values

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Fill a gap behind each context, up to the first of the task's stop strings."""
        made = [self._request(number, request) for number, request in enumerate(requests)]
        if not made:
            return []
        check_requests(made, self.subject.model)
        samples = generate(
            self.subject.model,
            self.subject.tokenizer,
            made,
            self.settings,
            self.batch_size,
            SampleFolder(None),
            self.ranks,
            None if disable_tqdm else "generating",
        )
        texts = (sample.completion for sample in samples)
        return [until(text, request.args[1].get("until", [])) for text, request in zip(texts, requests, strict=True)]

    def _request(self, number: int, request: Instance) -> Request:
        context, given = request.args
        unknown = [name for name in given if name not in ("until", "max_gen_toks", *IGNORED)]
        if unknown:
            raise ValueError(
                f"task {request.task_name} sets {unknown[0]}, which the model coda does not read; remove it"
            )
        length = int(given.get("max_gen_toks", self.settings["max_new_tokens"]))
        ids, gap = build_canvas(self.subject.tokenizer, context, "", length)
        return Request((str(number), 0), seed_of(self.seed, str(number), 0), ids[0].tolist(), gap)

    def _split(self, context: str, choice: str) -> tuple[list[int], list[int]]:
        """Token ids of both. Spaces at the end of the context belong to the continuation, as in lm-eval's own models."""
        stripped = context.rstrip()
        context, choice = stripped, context[len(stripped) :] + choice
        given = self._ids(context)
        whole = self._ids(context + choice)
        return (given, whole[len(given) :]) if whole[: len(given)] == given else (given, self._ids(choice))

    def _ids(self, text: str) -> list[int]:
        return list(self.subject.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []


def until(text: str, stops: str | list[str]) -> str:
    """``text`` up to the first of ``stops``."""
    for stop in [stops] if isinstance(stops, str) else stops:
        if stop:
            text = text.split(stop)[0]
    return text


def main() -> None:
    """Run lm-eval's command with our task files beside its own."""
    if "run" in sys.argv[1:2] and "--include_path" not in sys.argv:
        sys.argv += ["--include_path", str(TASKS)]
    cli_evaluate()


if __name__ == "__main__":
    main()
