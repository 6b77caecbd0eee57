"""Masking: wall time and largest intermediate of S3 on [4, 8192] rows. ``python -m benchmarks.masking``"""

import statistics
import time

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.tables import print_command, table
from coda.masking import BlockMasking, MaskingStrategy, ProgressiveMasking, RandomMasking

ROWS, LENGTH = 4, 8192


class LargestTensor(TorchDispatchMode):
    """Remembers the size in bytes of the largest tensor any operation returns."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN204
        """Run the operation and look at its result."""
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, torch.Tensor):
                self.largest = max(self.largest, value.numel() * value.element_size())
        return result


def main(repeats: int = 200) -> None:
    """Print a table of medians."""
    strategies: dict[str, MaskingStrategy] = {
        "random": RandomMasking(),
        "block, k in {2, 4, 8}": BlockMasking([2, 4, 8]),
        "progressive (S1, S2 and S3)": ProgressiveMasking(0.2, 0.2, 0.25, [2, 4, 8]),
    }
    ids = torch.randint(0, 1000, (ROWS, LENGTH))
    maskable, t = torch.ones_like(ids, dtype=torch.bool), torch.rand(ROWS)
    rows = []
    for name, strategy in strategies.items():
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            strategy(ids, maskable, t, 0.5, mask_token_id=1001, pad_token_id=0)
            times.append(time.perf_counter() - start)
        with LargestTensor() as seen:
            strategy(ids, maskable, t, 0.5, mask_token_id=1001, pad_token_id=0)
        rows.append((name, 1e3 * statistics.median(times), seen.largest / ids.numel()))
    print_command("masking", f"[{ROWS}, {LENGTH}] rows, medians of {repeats} calls")
    print(table(["strategy", "ms", "largest tensor, bytes per token"], rows))


if __name__ == "__main__":
    main()
