"""Adapters (LoRA, DoRA) through peft: small matrices learn beside frozen weights, and are merged into them at export."""

from abc import ABC, abstractmethod
from typing import Any

from torch import nn

from coda.model.modeling_coda import CoDALanguageModel

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
SETTINGS = "adapter_settings"  # the attribute in which an adapted model carries them


class Adapter(ABC):
    """What learns instead of the weights. Any method of peft that can be merged is one: say its settings."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Plain data: ``peft_type`` and the arguments of that type's peft config; what a checkpoint records."""

    def __call__(self, model: CoDALanguageModel) -> None:
        """Attach the adapter to ``model``; see :func:`attach`."""
        attach(model, self.settings)


class LoRA(Adapter):
    """Low-rank adaptation (arXiv 2106.09685), and with ``use_dora`` its weight-decomposed kind, DoRA (arXiv 2402.09353).

    Args:
        rank: Of the matrices.
        alpha: The update is scaled by alpha / rank.
        dropout: Of the input of the adapter.
        target_modules: Names of the linear layers that are adapted: all of a Transformer layer's by default.
        use_rslora: Scale by alpha / sqrt(rank) instead (arXiv 2312.03732).
        use_dora: Learn the magnitude of each output apart from its direction.
    """

    def __init__(
        self,
        rank: int = 16,
        alpha: float = 32.0,
        dropout: float = 0.0,
        target_modules: list[str] | None = None,
        use_rslora: bool = False,
        use_dora: bool = False,
    ) -> None:
        if rank < 1:
            raise ValueError(f"model.adapter rank is {rank}; it must be at least 1")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"model.adapter dropout is {dropout}; it must be in [0, 1)")
        self.rank = rank
        self.alpha = alpha
        self.dropout = dropout
        self.target_modules = list(target_modules or (*ATTENTION, *MLP))
        self.use_rslora = use_rslora
        self.use_dora = use_dora
        unknown = sorted(set(self.target_modules) - {*ATTENTION, *MLP})
        if unknown:  # the objective multiplies by the head's own weight, and embeddings have rows that never learn
            raise ValueError(
                f"model.adapter target_modules names {', '.join(unknown)}; choose among {', '.join((*ATTENTION, *MLP))}"
            )

    @property
    def settings(self) -> dict[str, Any]:
        """See :class:`Adapter`."""
        return {
            "peft_type": "LORA",
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "target_modules": self.target_modules,
            "use_rslora": self.use_rslora,
            "use_dora": self.use_dora,
        }


def attach(model: CoDALanguageModel, settings: dict[str, Any]) -> None:
    """Put the adapter that ``settings`` describe into ``model``, in place; nothing but it learns from then on.

    Raises:
        ValueError: If peft is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise ValueError(f'adapters need peft; pip install "coda-diffusion[adapter]" ({error})') from error
    peft.inject_adapter_in_model(peft.PeftConfig.from_peft_type(**settings), model)
    setattr(model, SETTINGS, settings)


def adapter_of(model: CoDALanguageModel) -> dict[str, Any] | None:
    """Settings of the adapter in ``model``; None if it has none."""
    settings: dict[str, Any] | None = getattr(model, SETTINGS, None)
    return settings


def merge(model: CoDALanguageModel) -> None:
    """Add what the adapter has learned to the weights of ``model``, in place, and take it away."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in list(model.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            base = layer.get_base_layer()
            assert isinstance(base, nn.Module)
            model.set_submodule(name, base)
    delattr(model, SETTINGS)
    delattr(model, "peft_config")
    model.requires_grad_(True)


def check_adapter(model: CoDALanguageModel, recorded: dict[str, Any] | None) -> None:
    """Raise ValueError if a checkpoint to go on with has another adapter than ``model``."""
    ours = adapter_of(model)
    if ours != recorded:
        raise ValueError(
            f"model.adapter is {ours}, but the checkpoint's is {recorded}; set it alike to go on, or start from its "
            "weights with model.init_from"
        )
