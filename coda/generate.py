"""Generate code: continue a prompt, or fill in what stands between a prompt and a suffix.

``python -m coda.generate --model DIR_OR_HUB_ID --prompt "def f(x):" --suffix "    return y" --stream``
"""

import sys
from typing import Any

import torch
from jsonargparse import ActionYesNo, ArgumentParser
from torch import Tensor
from transformers import PreTrainedTokenizerBase, TextDiffusionStreamer

from coda.checkpoint import load_model
from coda.data.tokenizer import separator_id


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


def text_of(tokenizer: PreTrainedTokenizerBase, ids: Tensor) -> str:
    """Decode generated ``ids`` [N] up to the first end of text or of turn."""
    last = [token for token in (separator_id(tokenizer), tokenizer.eos_token_id) if token is not None]
    ends = torch.isin(ids, torch.tensor(last, device=ids.device)).nonzero()
    return str(tokenizer.decode(ids[: int(ends[0])] if len(ends) else ids))


def main(
    model: str,
    prompt: str = "",
    suffix: str = "",
    max_new_tokens: int = 64,
    steps: int | None = None,
    alg: str = "entropy",
    temperature: float = 0.1,
    top_p: float | None = 0.9,
    top_k: int | None = None,
    alg_temp: float = 0.0,
    seed: int = 0,
    stream: bool = False,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
) -> None:
    """Generate code with a diffusion language model and print it.

    Args:
        model: An exported folder, a .ckpt or a Hugging Face name.
        prompt: Text before the gap, as it is (in bash, $'...\\n' writes line breaks).
        suffix: Text behind the gap.
        max_new_tokens: Length of the gap, in tokens; 0 fills only gaps written as <|mask|>.
        steps: Denoising steps; null commits one token per step.
        alg: origin, maskgit_plus, topk_margin or entropy.
        temperature: 0 takes the most probable token.
        top_p: Sample from the smallest set of tokens with this much probability.
        top_k: Sample from this many most probable tokens.
        alg_temp: Randomness in the order of decoding.
        seed: Of all randomness.
        stream: Show the drafts as they form.
        device: Where to run.
    """
    language_model, tokenizer = load_model(model)
    language_model.eval().to(device)
    ids, gap = build_canvas(tokenizer, prompt, suffix, max_new_tokens)
    sequences = language_model.diffusion_generate(
        ids.to(device),
        max_new_tokens=0,
        steps=steps,
        alg=alg,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        alg_temp=alg_temp,
        seed=seed,
        streamer=DraftStreamer(tokenizer) if stream else None,
    )
    if str(tokenizer.mask_token) in prompt + suffix:  # gaps of the caller's own, filled as well
        print(tokenizer.decode(sequences[0]))
    else:
        print(prompt + text_of(tokenizer, sequences[0, gap]) + suffix)


if __name__ == "__main__":
    parser = ArgumentParser(
        prog="python -m coda.generate", description="Generate code with a diffusion language model."
    )
    parser.add_function_arguments(main, as_positional=False, skip={"stream"})
    parser.add_argument("--stream", action=ActionYesNo, default=False, help="show the drafts as they form")
    try:
        main(**parser.parse_args().as_dict())
    except ValueError as error:
        sys.exit(f"error: {error}")
