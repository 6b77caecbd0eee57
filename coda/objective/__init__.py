"""The masked diffusion objective: noise levels, loss weights, and the cross-entropy of the masked tokens."""

from coda.objective.cross_entropy import masked_linear_cross_entropy
from coda.objective.diffusion import DiffusionObjective, ObjectiveOutput
from coda.objective.noise import LowDiscrepancyTime, TimeSampler, UniformTime
from coda.objective.weights import InverseTime, LossWeight, UniformWeight

__all__ = [
    "DiffusionObjective",
    "InverseTime",
    "LossWeight",
    "LowDiscrepancyTime",
    "ObjectiveOutput",
    "TimeSampler",
    "UniformTime",
    "UniformWeight",
    "masked_linear_cross_entropy",
]
