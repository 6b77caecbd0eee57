"""Generate code: continue a prompt, or fill in what stands between a prompt and a suffix.

``python -m coda.generate --model DIR_OR_HUB_ID --prompt "def f(x):" --suffix "    return y" --stream``
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from jsonargparse import ActionYesNo, ArgumentParser
from torch import Tensor
from transformers import PreTrainedTokenizerBase, TextDiffusionStreamer

from coda.checkpoint import load_model
from coda.command import one_line_errors
from coda.data.tokenizer import separator_id
from coda.model import CoDAGenerationConfig, CoDALanguageModel


class DraftStreamer(TextDiffusionStreamer):
    """Shows each draft in place behind the final text, with a light block for every token that is still masked."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(tokenizer)
        self.final: list[int] = []

    def put_draft(self, value: Tensor, **kwargs: Any) -> None:
        """Print the draft [1, n] over the last one."""
        text = self.tokenizer.decode(self.final + value[0].tolist()).replace(self.tokenizer.mask_token, "░")
        self._clear_draft()
        print(f"\0337\033[33m{text}\033[0m", end="", flush=True)
        self._has_draft = True

    def put(self, value: Tensor) -> None:
        """Remember final text [1, n]; the caller prints the result."""
        self.final += value[0].tolist()
        self._clear_draft()

    def end(self) -> None:
        """Clear the draft."""
        self._clear_draft()


def build_canvas(tokenizer: PreTrainedTokenizerBase, prompt: str, suffix: str, masks: int) -> tuple[Tensor, slice]:
    """Tokenise ``prompt``, ``masks`` masked tokens and ``suffix`` into int64 [1, L]; also return where the masks are.

    An empty prompt becomes the end of text, which stands before every document in training.
    """
    head = tokenizer(prompt, add_special_tokens=False)["input_ids"] or [separator_id(tokenizer)]
    tail = tokenizer(suffix, add_special_tokens=False)["input_ids"] if suffix else []
    ids = [*head, *[tokenizer.mask_token_id] * masks, *tail]
    return torch.tensor([ids]), slice(len(head), len(head) + masks)


def in_chat(tokenizer: PreTrainedTokenizerBase, instruction: str) -> str:
    """The prompt that asks for an answer to ``instruction``. Raises ValueError if the tokenizer has no chat template."""
    if tokenizer.chat_template is None:
        raise ValueError(
            "--chat needs a chat template, which this model's tokenizer lacks; take an instruction-tuned one"
        )
    turns = [{"role": "user", "content": instruction}]
    return str(tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))


def text_of(tokenizer: PreTrainedTokenizerBase, ids: Tensor) -> str:
    """Decode generated ``ids`` [N] up to the first end of text or of turn."""
    last = [token for token in (separator_id(tokenizer), tokenizer.eos_token_id) if token is not None]
    ends = torch.isin(ids, torch.tensor(last, device=ids.device)).nonzero()
    return str(tokenizer.decode(ids[: int(ends[0])] if len(ends) else ids))


@dataclass
class Decoding:
    """How to decode. What the network is not asked for under a method, and which of them are exact: see the README.

    Args:
        max_new_tokens: Length of the gap, in tokens; 0 fills only gaps written as <|mask|>.
        num_return_sequences: Samples to print.
        steps: Denoising steps; null commits one token per step. At most one of this and the next four.
        tokens_per_step: Commit this many tokens at every step.
        threshold: Commit all tokens of at least this probability.
        factor: Commit the n most probable tokens with (n + 1)(1 - p_n) below this.
        entropy_bound: Commit tokens while their summed minus largest entropy is at most this.
        alg: origin, maskgit_plus, topk_margin or entropy.
        alg_temp: Randomness in the order of decoding.
        temperature: 0 takes the most probable token.
        top_p: Sample from the smallest set of tokens with this much probability.
        top_k: Sample from this many most probable tokens.
        block_length: Decode blocks of this many tokens from left to right; null decodes the gap as one.
        cache: none, prefix or dual: keys and values from outside the block are reused.
        cache_refresh: Compute them again every so many steps within a block.
        remasking: remdm or confidence_drop make committed tokens masks again.
        remasking_rate: Its largest probability per step, or the fall in probability.
        guide_weight: Of the draft in the distribution that a guide checks.
        seed: Of all randomness.
    """

    max_new_tokens: int = 64
    num_return_sequences: int = 1
    steps: int | None = None
    tokens_per_step: int | None = None
    threshold: float | None = None
    factor: float | None = None
    entropy_bound: float | None = None
    alg: str = "entropy"
    alg_temp: float = 0.0
    temperature: float = 0.1
    top_p: float | None = 0.9
    top_k: int | None = None
    block_length: int | None = None
    cache: str = "none"
    cache_refresh: int | None = None
    remasking: str | None = None
    remasking_rate: float | None = None
    guide_weight: float = 0.0
    seed: int = 0


def main(
    model: str,
    prompt: str = "",
    suffix: str = "",
    gap_lengths: list[int] | None = None,
    guide: str | None = None,
    chat: bool = False,
    stream: bool = False,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
    **decoding: Any,
) -> None:
    """Generate code with a diffusion language model and print it.

    Args:
        model: An exported folder, a .ckpt or a Hugging Face name.
        prompt: Text before the gap, as it is (in bash, $'...\\n' writes line breaks).
        suffix: Text behind the gap.
        gap_lengths: Lengths of the gap to try, for example [4,8,16]; the most probable text per token is kept.
        guide: Verifies drafts from left to right: an autoregressive model, or "self" for this one's causal pass.
        chat: Put the prompt as an instruction, in the tokenizer's chat template, and print the answer alone.
        stream: Show the drafts as they form.
        device: Where to run.
        **decoding: See :class:`Decoding`.
    """
    settings = asdict(Decoding(**decoding))
    masks = settings.pop("max_new_tokens")
    CoDAGenerationConfig(**settings, guide=guide and "self")  # says what is wrong before the weights are read
    if stream and (gap_lengths or settings["num_return_sequences"] > 1):
        raise ValueError("stream shows one draft; leave out gap_lengths and num_return_sequences, or do not stream")
    language_model, tokenizer = load_model(model)
    language_model.eval().to(device)
    settings["guide"] = load_guide(guide, tokenizer, device)
    asked, shown = (in_chat(tokenizer, prompt), "") if chat else (prompt, prompt)
    if gap_lengths:
        head, tail = (build_canvas(tokenizer, text, "", 0)[0][0].tolist() if text else [] for text in (asked, suffix))
        filled = language_model.diffusion_infill([head or [separator_id(tokenizer)], tail], gap_lengths, **settings)
        print(shown + text_of(tokenizer, filled.gaps[0]) + suffix)
        return
    ids, gap = build_canvas(tokenizer, asked, suffix, masks)
    streamer = DraftStreamer(tokenizer) if stream else None
    sequences = language_model.diffusion_generate(ids.to(device), max_new_tokens=0, streamer=streamer, **settings)
    for sequence in sequences:
        if str(tokenizer.mask_token) in prompt + suffix:  # gaps of the caller's own, filled as well
            print(tokenizer.decode(sequence))
        else:
            print(shown + text_of(tokenizer, sequence[gap]) + suffix)


def load_guide(source: str | None, tokenizer: PreTrainedTokenizerBase, device: str) -> CoDALanguageModel | str | None:
    """Load the model that verifies drafts. Raises ValueError if its tokens have other ids."""
    if source is None or source == "self":
        return source
    model, theirs = load_model(source)
    ours = tokenizer.get_vocab()
    if any(ours.get(token) != index for token, index in theirs.get_vocab().items()):
        raise ValueError(f"guide is {source}, whose tokenizer is another; give a model with the tokenizer of --model")
    return model.eval().to(device)


if __name__ == "__main__":
    parser = ArgumentParser(
        prog="python -m coda.generate", description="Generate code with a diffusion language model."
    )
    parser.add_function_arguments(main, as_positional=False, skip={"stream", "chat"})
    parser.add_argument("--chat", action=ActionYesNo, default=False, help="put the prompt as an instruction")
    parser.add_argument("--stream", action=ActionYesNo, default=False, help="show the drafts as they form")
    with one_line_errors():
        main(**parser.parse_args().as_dict())
