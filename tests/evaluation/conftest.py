"""What the tests of evaluation share: a tiny model, and benchmarks of two problems each in the layout of the real ones."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from coda.data.chat import TEMPLATE
from coda.data.tokenizer import train_tokenizer
from coda.export import export
from coda.model import CoDALanguageModel, ScratchBackbone

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
needs_shared_data = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the real benchmarks are not at {SHARED}")

HEADS = {"add": "def add(a, b):\n", "double": "import math\n\n\ndef double(a):\n"}
BODIES = {"add": "    return a + b\n", "double": "    return 2 * a\n"}
CHECKS = {"add": "assert candidate(2, 3) == 5", "double": "assert candidate(4) == 8"}
CALLS = {"add": ["add(1, 2) == 3", "add(0, 0) == 0", "add(5, 1) == 6"], "double": ["double(2) == 4", "double(0) == 0"]}
LOOP = "for i, (inp, exp) in enumerate(zip(inputs, results)):\n"


def humaneval(number: int, name: str) -> dict[str, Any]:
    """A record as HumanEval's."""
    head = f'{HEADS[name]}    """Compute it."""\n'
    test = f"\n\ndef check(candidate):\n    {CHECKS[name]}\n"
    record = {"task_id": f"HumanEval/{number}", "prompt": head, "entry_point": name}
    return {**record, "canonical_solution": BODIES[name], "test": test}


def mbpp(number: int, name: str) -> dict[str, Any]:
    """A record as MBPP's."""
    tests = [f"assert {call}" for call in CALLS[name]]
    code = HEADS[name] + BODIES[name]
    return {"task_id": number, "prompt": f"Write {name}.", "code": code, "test_imports": [], "test_list": tests}


def plus_test(name: str, indent: str = "") -> str:
    """Inputs and results as EvalPlus writes them."""
    inputs, results = {"add": ("[[1, 2], [0, 0]]", "[3, 0]"), "double": ("[[2], [5]]", "[4, 10]")}[name]
    called = "candidate" if indent else name
    lines = [f"inputs = {inputs}", f"results = {results}", LOOP.rstrip(), f"    assertion({called}(*inp), exp, 0)"]
    assertion = "def assertion(out, exp, atol):\n    assert out == exp\n\n"
    return assertion + ("def check(candidate):\n" if indent else "") + "".join(f"{indent}{line}\n" for line in lines)


def infilling(number: int, name: str) -> dict[str, Any]:
    """A record as HumanEval-Infilling's: the body's expression is the gap."""
    record = humaneval(number, name)
    prefix, middle = (
        record["prompt"] + "    return",
        record["canonical_solution"].removeprefix("    return").rstrip("\n"),
    )
    gap = {"task_id": f"RandomSpanInfillingLight/HumanEval/{number}/1", "prompt": prefix, "canonical_solution": middle}
    return {**record, **gap, "suffix": "\n"}


def write_gz(path: Path, records: list[dict[str, Any]]) -> None:
    """Write JSONL.gz."""
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


@pytest.fixture(scope="session")
def benchmarks_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmarks")
    names = list(enumerate(HEADS))
    write_gz(folder / "HumanEval.jsonl.gz", [humaneval(*one) for one in names])
    plus = [{**humaneval(*one), "test": plus_test(one[1], "    ")} for one in names]
    write_gz(folder / "HumanEvalPlus-OriginFmt.jsonl.gz", plus)
    write_gz(folder / "mbpp_sanitized.jsonl.gz", [mbpp(*one) for one in names])
    write_gz(folder / "MbppPlus-OriginFmt.jsonl.gz", [{**mbpp(*one), "test": plus_test(one[1])} for one in names])
    write_gz(folder / "HumanEval-RandomSpanInfillingLight.jsonl.gz", [infilling(*one) for one in names])
    return folder


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    texts = [head + body for head, body in zip(HEADS.values(), BODIES.values(), strict=True)]
    made = train_tokenizer(texts * 3, 300)
    made.chat_template = TEMPLATE
    return made


@pytest.fixture(scope="session")
def model(tokenizer: PreTrainedTokenizerFast) -> CoDALanguageModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "max_position_embeddings": 512}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "initializer_range": 0.3}
    return ScratchBackbone(**sizes, **heads).build(tokenizer).eval()


@pytest.fixture(scope="session")
def exported(
    tmp_path_factory: pytest.TempPathFactory, model: CoDALanguageModel, tokenizer: PreTrainedTokenizerFast
) -> str:
    path = tmp_path_factory.mktemp("evaluation") / "model"
    export(model, tokenizer, path)
    return str(path)
