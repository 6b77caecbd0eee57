"""The model card: what a folder is, how it was made and how to use it, filled in from the records of its runs."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData

from coda.model import CoDALanguageModel

LICENSE = "apache-2.0"  # of Qwen3 and of this code
USE = """```python
from transformers import AutoModel, AutoTokenizer

model = AutoModel.from_pretrained("PATH_OR_NAME", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("PATH_OR_NAME")
ids = tokenizer("def add(a, b):\\n    return <|mask|><|mask|><|mask|>\\n", return_tensors="pt").input_ids
print(tokenizer.decode(model.diffusion_generate(ids, max_new_tokens=0, steps=3)[0]))
```"""
ABOUT = """A masked diffusion language model: a Qwen3 whose attention looks to both sides, trained to restore masked tokens
after [CoDA: Coding LM via Diffusion Adaptation](https://arxiv.org/abs/2510.03270). It writes by denoising `<|mask|>`
tokens, in any order and several at a time, and fills gaps in the middle of a text."""


def write_card(path: Path, model: CoDALanguageModel, runs: Sequence[dict[str, Any]]) -> None:
    """Write the card of ``model``, the result of ``runs``, to ``path``."""
    sections = ["# " + (f"CoDA: {runs[-1]['name']}" if runs else "CoDA"), ABOUT, *_model(model), *_training(runs)]
    text = "\n\n".join([*sections, "## Use", USE])
    path.write_text(f"---\n{front_matter(runs).to_yaml()}\n---\n\n{text}\n", encoding="utf-8")


def front_matter(runs: Sequence[dict[str, Any]]) -> ModelCardData:
    """What the hub reads of a card."""
    return ModelCardData(
        base_model=runs[0]["base"] if runs else None,
        datasets=sorted({name for run in runs for name in _hub_names(run["config"].get("data"))}) or None,
        library_name="transformers",
        license=LICENSE,
        pipeline_tag="text-generation",
        tags=["code", "coda", "custom_code", "diffusion", "masked-diffusion"],
    )


def _model(model: CoDALanguageModel) -> Iterator[str]:
    config = model.config
    count = sum(weight.numel() for weight in model.parameters())
    reads = (
        "the logits at position i predict token i + 1" if config.shift else "the logits at position i predict token i"
    )
    yield "## Model"
    yield _table(
        ("", ""),
        [
            ("parameters", f"{count:,} in {str(model.dtype).removeprefix('torch.')}"),
            ("layers, width, heads", f"{config.num_hidden_layers}, {config.hidden_size}, {config.num_attention_heads}"),
            ("vocabulary", f"{config.vocab_size:,}; `<|mask|>` is {config.mask_token_id}"),
            ("positions", f"{config.max_position_embeddings:,}"),
            ("output head", "shared with the embedding" if config.tie_word_embeddings else "weights of its own"),
            ("prediction", reads),
        ],
    )


def _training(runs: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield "## Training"
    if not runs:
        yield "These weights carry no record of their training."
        return
    rows = []
    for run in runs:
        batch = run["batch"]
        tokens = run["steps"] * batch["rows"] * batch["length"]
        rows.append((run["name"], f"{run['steps']:,}", f"{batch['rows']:,} x {batch['length']:,}", f"{tokens:,}"))
    yield _table(("run", "steps", "rows x tokens per step", "tokens seen, at most"), rows)
    for run in runs:
        yield from _run(run)


def _run(run: dict[str, Any]) -> Iterator[str]:
    yield f"### {run['name']}"
    if run["base"]:
        yield f"Starts from [{run['base']}](https://huggingface.co/{run['base']})."
    if run["corpora"]:
        corpora = run["corpora"].items()
        rows = [(name, f"{int(corpus['tokens']):,}", f"{corpus['share']:.1%}") for name, corpus in corpora]
        yield _table(("corpus", "tokens", "share of the samples"), rows)
    if run["metrics"]:
        metrics = [(f"`{name}`", f"{value:.4g}") for name, value in sorted(run["metrics"].items())]
        yield _table(("metric, last value", ""), metrics)
    if run["config"]:
        yield f"```yaml\n{yaml.safe_dump(run['config'], sort_keys=False, width=100).strip()}\n```"
    yield "Versions: " + ", ".join(f"{name} {version}" for name, version in run["versions"].items()) + "."


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _hub_names(part: Any) -> Iterator[str]:
    """Names of the hub's data sets anywhere in the data section of a configuration."""
    if isinstance(part, list):
        for item in part:
            yield from _hub_names(item)
    elif isinstance(part, dict):
        path = part.get("init_args", {}).get("path") if str(part.get("class_path")).endswith(".HubDataset") else None
        if isinstance(path, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", path):
            yield path
        for item in part.values():
            yield from _hub_names(item)
