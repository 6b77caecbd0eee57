"""What Lightning asks about hardware and processes: one logical device, one process per host.

Under SPMD a process sees all its chips as one device, and the compiler divides the work. ``PJRT_DEVICE`` picks the
hardware: ``TPU``, or ``CPU`` with ``CPU_NUM_DEVICES`` devices, which are real XLA devices.
"""

import importlib.util
import os
from typing import Any

import torch
from lightning.fabric.plugins.environments.xla import XLAEnvironment
from lightning.pytorch.accelerators import XLAAccelerator

INSTALL = "pip install 'coda-diffusion[tpu]' -f https://storage.googleapis.com/libtpu-releases/index.html"
# Of a chip, which is one device from v4 on: cloud.google.com/tpu/docs, system architecture. By Google's names.
PEAK_FLOPS = {"v4": 275e12, "v5litepod": 197e12, "v5p": 459e12, "v6e": 918e12}


def check_runtime() -> None:
    """Raise ValueError if torch_xla is not installed, or nobody said which hardware to use."""
    if importlib.util.find_spec("torch_xla") is None:
        raise ValueError(
            f"trainer.strategy coda.xla.XLASPMDStrategy needs torch_xla, which is not installed: {INSTALL}"
        )
    if not os.environ.get("PJRT_DEVICE"):
        raise ValueError(
            "the environment variable PJRT_DEVICE is not set, and torch_xla would guess the hardware; set "
            "PJRT_DEVICE=TPU, or PJRT_DEVICE=CPU CPU_NUM_DEVICES=4 for four devices of a CPU"
        )
    # Errors alone: XLA warns of its partitioner at every compilation.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def peak_flops() -> float | None:
    """Peak bfloat16 FLOPs per second of a device here; None where that is not known."""
    import torch_xla.runtime as xr
    from torch_xla._internal import tpu

    if xr.device_type() != "TPU":
        return None
    try:
        return PEAK_FLOPS.get(tpu.get_tpu_type().lower())
    except Exception:  # it asks the network, and training needs no answer
        return None


def wait_for_devices() -> None:
    """Run what is traced, and wait until it is done."""
    import torch_xla

    torch_xla.sync(wait=True)


class SPMDAccelerator(XLAAccelerator):
    """All chips of this host as the one device that SPMD makes of them.

    Lightning's own counts the TPU chips on the PCI bus, and wants a process for each.
    """

    @staticmethod
    def is_available() -> bool:  # type: ignore[override]
        """Whether torch_xla is installed and knows its hardware."""
        return importlib.util.find_spec("torch_xla") is not None and bool(os.environ.get("PJRT_DEVICE"))

    @staticmethod
    def auto_device_count() -> int:  # type: ignore[override]
        """One."""
        return 1

    @staticmethod
    def parse_devices(devices: int | str | list[int]) -> int:
        """Raise ValueError for anything but ``auto`` or 1."""
        if str(devices) not in ("auto", "1"):
            raise ValueError(
                f"trainer.devices is {devices}, but SPMD trains on all devices of a host as one; set it to auto, and "
                "the shape in trainer.strategy.init_args.mesh"
            )
        return 1

    @staticmethod
    def get_parallel_devices(devices: int | list[int]) -> list[torch.device]:
        """The one device."""
        return [torch.device("xla", 0)]


class SPMDEnvironment(XLAEnvironment):
    """One process per host, started from outside; Lightning's own says rank 0 of 1 on every host under SPMD."""

    @property
    def creates_processes_externally(self) -> bool:
        """Always."""
        return True

    def world_size(self) -> int:  # type: ignore[override]
        """Number of hosts."""
        import torch_xla.runtime as xr

        return int(xr.process_count())

    def global_rank(self) -> int:  # type: ignore[override]
        """Which of the hosts this is."""
        import torch_xla.runtime as xr

        return int(xr.process_index())

    def local_rank(self) -> int:  # type: ignore[override]
        """Always 0: there is one process on a host."""
        return 0

    def node_rank(self) -> int:  # type: ignore[override]
        """Which of the hosts this is."""
        return self.global_rank()

    def validate_settings(self, *args: Any, **kwargs: Any) -> None:
        """Accept any ``trainer.num_nodes``: how many hosts there are, the runtime knows."""
