"""When callbacks act."""

from lightning import Trainer

from coda.steps import ends_step


def is_logging_step(trainer: Trainer, batch_idx: int) -> bool:
    """Whether metrics are written after this micro-batch: the only time a callback may wait for the device."""
    return ends_step(trainer, batch_idx) and is_logged(trainer, trainer.global_step)


def is_logged(trainer: Trainer, steps: int) -> bool:
    """Whether metrics are written once ``steps`` optimizer steps are done."""
    every = int(trainer.log_every_n_steps)  # type: ignore[attr-defined]
    return every > 0 and steps % every == 0
