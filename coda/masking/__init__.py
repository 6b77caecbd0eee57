"""Masking strategies: which tokens of a batch are replaced by the absorbing state, and which are only context.

Every strategy has one call, documented in :class:`MaskingStrategy`, and is swapped by ``class_path``.
"""

from coda.masking.base import Draft, MaskedBatch, MaskingStrategy
from coda.masking.block import BlockMasking
from coda.masking.instruction import InstructionMasking
from coda.masking.prefix import UnmaskablePrefix
from coda.masking.progressive import ProgressiveMasking
from coda.masking.random import RandomMasking
from coda.masking.schedules import Constant, Linear, PerEpoch, Schedule
from coda.masking.truncation import TruncatedSuffix

__all__ = [
    "BlockMasking",
    "Constant",
    "Draft",
    "InstructionMasking",
    "Linear",
    "MaskedBatch",
    "MaskingStrategy",
    "PerEpoch",
    "ProgressiveMasking",
    "RandomMasking",
    "Schedule",
    "TruncatedSuffix",
    "UnmaskablePrefix",
]
