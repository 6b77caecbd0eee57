"""Training on TPUs through PyTorch/XLA: everything that imports torch_xla, and only when it is used."""

from coda.xla.attention import register
from coda.xla.sharding import ShardingMap
from coda.xla.strategy import XLASPMDStrategy

register()

__all__ = ["ShardingMap", "XLASPMDStrategy"]
