"""Lightning callbacks: what is watched, sampled and written while the model trains."""

from callbacks.evaluation import BenchmarkEvaluation
from callbacks.export import ModelExport
from callbacks.gradient_norm import GradientNorm
from callbacks.monitor import DiffusionMonitor, NoiseLevelStatistics
from callbacks.prediction_writer import PredictionWriter
from callbacks.preemption import Preemption
from callbacks.progress_bar import DiffusionProgressBar
from callbacks.report import BoundReport
from callbacks.sampling import DiffusionSampling
from callbacks.throughput import Throughput

__all__ = [
    "BenchmarkEvaluation",
    "BoundReport",
    "DiffusionMonitor",
    "DiffusionProgressBar",
    "DiffusionSampling",
    "GradientNorm",
    "ModelExport",
    "NoiseLevelStatistics",
    "PredictionWriter",
    "Preemption",
    "Throughput",
]
