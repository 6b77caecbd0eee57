"""Accelerators and machines, as their makers describe them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """Peaks of one chip: dense bf16 FLOP/s, bytes of HBM, and bytes/s of HBM."""

    flops: float
    memory: float
    bandwidth: float


@dataclass(frozen=True)
class Machine:
    """Chips and what connects them.

    ``interconnect`` is what a chip can receive in a ring all-gather, in bytes/s: on a torus, both directions of all
    three axes; half of it where an axis is too short to wrap around. ``xla``: programs have static shapes, so that all
    tokens reach the output head, and layers are recomputed as a whole or not at all.
    """

    chip: Chip
    count: int
    interconnect: float
    xla: bool = True


# cloud.google.com/tpu/docs/v4 and /v5p: 275 and 459 TFLOP/s, 32 and 95 GB of HBM, 1.2 and 2.765 TB/s. Links: J. Austin
# et al., How to Scale Your Model (2025), chapter 2: 45 and 90 GB/s in each direction of each of three axes.
V4 = Chip(275e12, 32e9, 1.2e12)
V5P = Chip(459e12, 95e9, 2.765e12)
# NVIDIA H200 data sheet (SXM): 989 TFLOP/s without sparsity, 141 GB, 4.8 TB/s, NVLink 450 GB/s in each direction.
H200 = Chip(989e12, 141e9, 4.8e12)

# The number in a TPU's name counts TensorCores, of which these chips have two.
MACHINES = {
    "v4-1024": Machine(V4, 512, 2 * 3 * 45e9),  # 8 x 8 x 8
    "v4-512": Machine(V4, 256, 2 * 3 * 45e9),  # 4 x 8 x 8
    "v5p-64": Machine(V5P, 32, 3 * 90e9),  # 2 x 4 x 4 does not wrap around
    "8xH200": Machine(H200, 8, 450e9, xla=False),
}
