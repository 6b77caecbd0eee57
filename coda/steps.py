"""How the Trainer divides training: where an optimizer step ends, and into how many tensors a batch goes."""

import lightning as L


def ends_step(trainer: L.Trainer, batch_idx: int) -> bool:
    """Whether an optimizer step ends with this micro-batch."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch


def replicas(trainer: L.Trainer) -> int:
    """How many tensors a micro-batch is divided into: one per rank, but one in all where the compiler divides it."""
    return int(getattr(trainer.strategy, "replicas", trainer.world_size))
