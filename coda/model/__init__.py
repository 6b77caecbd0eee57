"""The bidirectional Qwen3 and its sampler, and the ways to obtain one.

The ``*_coda`` files travel with exported checkpoints as their remote code: they import torch, transformers (with the hub
package it brings) and each other only.
"""

from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

from coda.model.annealing import AttentionAnnealing, RandomAnnealing
from coda.model.backbone import Backbone, PretrainedBackbone, ScratchBackbone
from coda.model.configuration_coda import CoDAConfig
from coda.model.generation_coda import CoDAGenerationConfig, CoDAGenerationOutput, Infilling
from coda.model.modeling_coda import CoDALanguageModel, CoDAOutput
from coda.model.streaming_coda import RowStreamers

AutoConfig.register("CoDA", CoDAConfig)
AutoModel.register(CoDAConfig, CoDALanguageModel)
AutoModelForMaskedLM.register(CoDAConfig, CoDALanguageModel)

__all__ = [
    "AttentionAnnealing",
    "Backbone",
    "CoDAConfig",
    "CoDAGenerationConfig",
    "CoDAGenerationOutput",
    "CoDALanguageModel",
    "CoDAOutput",
    "Infilling",
    "PretrainedBackbone",
    "RandomAnnealing",
    "RowStreamers",
    "ScratchBackbone",
]
