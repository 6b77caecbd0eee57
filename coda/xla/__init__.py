"""Training on TPUs through PyTorch/XLA: everything that imports torch_xla, and only when it is used."""

from coda.xla.sharding import ShardingMap
from coda.xla.strategy import XLASPMDStrategy

__all__ = ["ShardingMap", "XLASPMDStrategy"]
