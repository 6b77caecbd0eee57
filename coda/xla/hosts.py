"""Lightning's strategy for XLA, made to run one process per host: what the processes tell each other."""

from typing import Any

from lightning.pytorch.strategies.xla import XLAStrategy
from lightning_utilities.core.rank_zero import rank_zero_only
from torch import Tensor

from coda.xla import consensus
from coda.xla.hardware import SPMDEnvironment


class HostsStrategy(XLAStrategy):
    """One process per host, started from outside; tensors are those of all hosts together.

    Attributes:
        replicas: How many tensors a batch is in: always one.
        split_rows: Whether each host reads rows of its own. Along the mesh's axis ``tensor``, hosts may share rows, so all
            of them read all rows.
    """

    replicas = 1
    split_rows = True

    def __init__(self, **parts: Any) -> None:
        super().__init__(sync_module_states=False, **parts)
        self.cluster_environment = SPMDEnvironment()
        self._launched = True  # nothing is spawned

    def _configure_launcher(self) -> None:
        self._launcher = None

    def set_world_ranks(self) -> None:
        """Tell Lightning which host this is."""
        rank_zero_only.rank = self.global_rank  # type: ignore[attr-defined]

    @property
    def distributed_sampler_kwargs(self) -> dict[str, int]:
        """Which part of the rows this host reads."""
        return {
            "num_replicas": self.world_size if self.split_rows else 1,
            "rank": self.global_rank if self.split_rows else 0,
        }

    def barrier(self, name: str | None = None, *args: Any, **kwargs: Any) -> None:
        """Wait for all hosts."""
        consensus.wait()

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """The ``obj`` of host ``src``."""
        return consensus.gather(obj)[src]

    def reduce(self, output: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        """Nothing to do: a tensor is that of all hosts already."""
        return output

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        """What all hosts decide, or any."""
        decisions = consensus.gather(decision)
        return min(decisions) if all else max(decisions)

    def all_gather(self, tensor: Tensor, group: Any = None, sync_grads: bool = False) -> Tensor:
        """Nothing to do: a tensor is that of all hosts already."""
        return tensor

    def remove_checkpoint(self, filepath: Any) -> None:
        """Remove a file or a folder, on one host."""
        if self.is_global_zero:
            self.checkpoint_io.remove_checkpoint(filepath)

    def teardown(self) -> None:
        """Move the model to main memory."""
        super().teardown()
        self._launched = True
