"""What the tests of decoding share: a small model in float64, and prompts of mixed lengths."""

from typing import Any

import torch
from torch import Tensor

from coda.model import CoDAConfig, CoDALanguageModel

VOCAB, MASK, PAD = 40, 39, 0
# Lengths differ, and so do the numbers of masks: several spans, at different places, and none at all.
PROMPTS = [
    [5, 8, MASK, MASK, 9, 4, MASK, 7, 21, MASK, MASK, MASK, 3],
    [11],
    [30, 2, MASK, 6, 6],
    [17, 18, 19, 20, 21, 22, 23, 24],
]
SEEDS = [11, 5, 2**40, -3]
NEW = 7


def small_model(seed: int = 0, **changes: Any) -> CoDALanguageModel:
    """Float64, and weights large enough for peaked and varied predictions."""
    torch.manual_seed(seed)
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    tokens = {"mask_token_id": MASK, "pad_token_id": PAD, "initializer_range": 0.3}
    return CoDALanguageModel._from_config(CoDAConfig(**sizes | heads | tokens | changes), dtype=torch.float64).eval()


def padded(side: str) -> tuple[Tensor, Tensor]:
    """``PROMPTS`` as one batch [B, L], filled up on ``side``, with the attention mask."""
    longest = max(map(len, PROMPTS))
    rows, masks = [], []
    for prompt in PROMPTS:
        fill, real = [PAD] * (longest - len(prompt)), [1] * len(prompt)
        rows.append(fill + prompt if side == "left" else prompt + fill)
        masks.append([0] * len(fill) + real if side == "left" else real + [0] * len(fill))
    return torch.tensor(rows), torch.tensor(masks)


def generate(model: CoDALanguageModel, inputs: Any, attention_mask: Tensor | None = None, **settings: Any) -> Any:
    settings = {"max_new_tokens": NEW, "return_dict_in_generate": True, "output_history": True} | settings
    return model.diffusion_generate(torch.as_tensor(inputs), attention_mask, **settings)


def assert_rows_are_independent(model: CoDALanguageModel, side: str = "left", **settings: Any) -> None:
    """Every row of a batch of mixed lengths is the row alone, token for token."""
    inputs, mask = padded(side)
    batch = generate(model, inputs, mask, seed=SEEDS, **settings)
    valid = torch.nn.functional.pad(mask.bool(), (0, NEW), value=True)
    for row, (prompt, seed) in enumerate(zip(PROMPTS, SEEDS, strict=True)):
        alone = generate(model, [prompt], seed=[seed], **settings)
        assert batch.sequences[row][valid[row]].tolist() == alone.sequences[0].tolist()
        assert batch.row_nfe[row] == alone.row_nfe[0]
