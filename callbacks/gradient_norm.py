"""Norm of the gradient."""

from lightning import Callback, LightningModule, Trainer
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from callbacks.steps import is_logged


class GradientNorm(Callback):
    """Logs ``train/gradient_norm``, before clipping, on logging steps."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Compute the norm over all parameters."""
        if is_logged(trainer, trainer.global_step + 1):
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            norm = get_total_norm(gradients)
            pl_module.log("train/gradient_norm", norm.full_tensor() if isinstance(norm, DTensor) else norm)
