"""Decoding: CPU time per network evaluation against the released sampler's way, and what the host loop costs.

``python -m benchmarks.decoding`` at a CPU-sized, vocabulary-heavy shape. All variants run in turns in one process; the
tables have medians, and ratios to the released way of the same run.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from jsonargparse import auto_cli
from torch import Tensor, nn

from benchmarks.tables import print_command, table
from coda.model import CoDAConfig, CoDAGenerationConfig, CoDALanguageModel, CoDAOutput
from coda.model.generation_coda import CoDAGenerationMixin

VOCABULARY, MASK, PROMPT, NEW, BLOCK = 151_936, 151_669, 128, 256, 32
Decode = Callable[[CoDALanguageModel, Tensor], int]  # returns network evaluations
SAMPLED = {"temperature": 0.1, "top_p": 0.9}


@torch.no_grad()
def released(model: CoDALanguageModel, ids: Tensor, steps: int, temperature: float = 0.0, top_p: float = 1.0) -> int:
    """The released sampler's way: all logits, no cache, no early stop, confidence after temperature and a full sort."""
    ids = torch.nn.functional.pad(ids, (0, NEW), value=MASK)
    times = torch.linspace(1, 1e-3, steps + 1)
    for step in range(steps):
        masked = ids == MASK
        logits = model(ids).logits
        logits = torch.cat([logits[:, :1], logits[:, :-1]], dim=1)[masked]
        if temperature > 0:
            logits = logits / temperature
        if top_p < 1:
            falling, order = logits.sort(descending=True)
            removed = falling.softmax(dim=-1).cumsum(dim=-1) > top_p
            removed = removed.roll(1, dims=-1).index_fill(-1, torch.tensor([0]), False)
            logits = logits.masked_fill(torch.zeros_like(removed).scatter(-1, order, removed), torch.finfo().min)
        probs = logits.softmax(dim=-1)
        tokens = probs.multinomial(1).squeeze(1) if temperature > 0 else probs.argmax(dim=-1)
        confidence = (probs * (probs + 1e-10).log()).sum(dim=-1)
        share = 1 - times[step + 1] / times[step] if step < steps - 1 else 1.0
        best = confidence.topk(int(masked.sum() * share)).indices
        places = masked.nonzero()[best]
        ids[places[:, 0], places[:, 1]] = tokens[best]
    return steps


def ours(**settings: Any) -> Decode:
    """``diffusion_generate`` with ``settings``, to the end of the canvas."""

    def decode(model: CoDALanguageModel, ids: Tensor) -> int:
        fixed = {"max_new_tokens": NEW, "seed": 0, "return_dict_in_generate": True, "eos_token_id": None}
        output: Any = model.diffusion_generate(ids, **{"temperature": 0.0, **settings, **fixed})
        return int(output.nfe)

    return decode


def variants(steps: int) -> dict[str, Decode]:
    """What is compared. The released way takes a quarter of the steps: they cost the same, on average over a decode."""
    block = {"steps": steps, "block_length": BLOCK}
    few = max(steps // 4, 1)
    return {
        "released way": lambda model, ids: released(model, ids, few),
        "exact": ours(steps=steps),
        f"exact, blocks of {BLOCK}": ours(**block),
        "prefix cache": ours(cache="prefix", **block),
        "dual cache": ours(cache="dual", **block),
        "dual cache, refreshed every 2": ours(cache="dual", cache_refresh=2, **block),
        "released way, T .1, top-p .9": lambda model, ids: released(model, ids, few, **SAMPLED),
        "exact, T .1, top-p .9": ours(steps=steps, **SAMPLED),
        "dual cache, T .1, top-p .9": ours(cache="dual", **block, **SAMPLED),
    }


def build(scale: float) -> CoDALanguageModel:
    """Random weights, the head's ``scale`` times the usual, so that predictions are peaked."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "head_dim": 64}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "tie_word_embeddings": False}
    model = CoDALanguageModel(CoDAConfig(vocab_size=VOCABULARY, mask_token_id=MASK, **sizes, **heads)).eval()
    model.lm_head.weight.data *= scale
    return model


def measure(model: CoDALanguageModel, ids: Tensor, decodes: dict[str, Decode], rounds: int) -> dict[str, list[float]]:
    """CPU seconds per network evaluation of every variant, in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in decodes}
    for _ in range(rounds):
        for name, decode in decodes.items():
            start = time.process_time()  # of all threads: other programs on the machine do not count
            nfe = decode(model, ids)
            seconds[name].append((time.process_time() - start) / nfe)
    return seconds


@dataclass
class Shape:
    """Sizes of a model that does nothing."""

    hidden: int = 8
    vocabulary: int = 16


class Nothing(CoDAGenerationMixin, nn.Module):
    """Returns the same states for every input at once: what is left is the loop."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        sizes = {"mask_token_id": shape.vocabulary - 1, "vocab_size": shape.vocabulary, "shift": True}
        self.config = SimpleNamespace(**sizes, max_position_embeddings=4096)
        self.generation_config = CoDAGenerationConfig()
        self.states = torch.zeros(1, 1, shape.hidden)
        self.logits = torch.randn(NEW * 64, shape.vocabulary)

    def lm_head(self, hidden: Tensor) -> Tensor:
        """Logits that are there already."""
        return self.logits[: len(hidden)].clone()

    def forward(self, ids: Tensor, **kwargs: Any) -> CoDAOutput:
        """States that are there already."""
        return CoDAOutput(last_hidden_state=self.states.expand(*ids.shape, -1))


def host_loop(rounds: int, **settings: Any) -> float:
    """Milliseconds per step of the loop alone."""
    model, ids = Nothing(Shape()), torch.ones(1, PROMPT, dtype=torch.long)
    decode = ours(steps=64, block_length=BLOCK, **settings)
    times = []
    for _ in range(rounds + 1):
        start = time.process_time()
        nfe = decode(model, ids)  # type: ignore[arg-type]
        times.append((time.process_time() - start) / nfe)
    return 1e3 * statistics.median(times[1:])


def main(steps: int = 64, rounds: int = 3, scale: float = 10.0) -> None:
    """Print the tables.

    Args:
        steps: Denoising steps of our variants.
        rounds: Measurements of each.
        scale: Of the output head, see :func:`build`.
    """
    sizes = f"hidden 512, 8 layers, vocabulary {VOCABULARY:,}, prompt {PROMPT}, {NEW} new tokens in {steps} steps"
    print_command("decoding", f"{sizes}, fp32, batch 1; medians of {rounds}")
    model, ids = build(scale), torch.randint(0, 150_000, (1, PROMPT))
    seconds = {name: statistics.median(found) for name, found in measure(model, ids, variants(steps), rounds).items()}
    reference = ""
    rows: list[tuple[str, float, float | None]] = []
    for name, value in seconds.items():
        reference = name if name.startswith("released") else reference
        rows.append((name, 1e3 * value, seconds[reference] / value))
    rows.append(("the loop without a network", host_loop(20), None))
    print(table(["variant", "CPU ms per evaluation", "times faster"], rows))


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
