"""Every test of masking that seeds a generator runs once more with a seed per row: the statistics are the same."""

from typing import Any

import pytest
import torch
from torch import Tensor

from coda.masking import MaskedBatch, MaskingStrategy


@pytest.fixture(params=["generator", "seeds"], autouse=True)
def _randomness(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Consecutive seeds, as training numbers its rows."""
    if request.param == "generator":
        return
    call = MaskingStrategy.__call__

    def seeded(self: MaskingStrategy, input_ids: Tensor, *args: Any, **options: Any) -> MaskedBatch:
        generator = options.pop("generator", None)
        if generator is not None:
            first = torch.randint(1 << 61, (1,), generator=generator)
            options["seeds"] = first + torch.arange(len(input_ids))
        return call(self, input_ids, *args, **options)

    monkeypatch.setattr(MaskingStrategy, "__call__", seeded)
