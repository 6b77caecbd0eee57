"""Reads back what a fit wrote for TensorBoard."""

from typing import Any

from lightning import Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def _events(trainer: Trainer) -> EventAccumulator:
    assert trainer.log_dir is not None
    return EventAccumulator(trainer.log_dir, {"scalars": 0, "tensors": 0}).Reload()


def scalars(trainer: Trainer) -> dict[str, dict[int, float]]:
    """For each tag the value at each step."""
    events: Any = _events(trainer)
    return {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def texts(trainer: Trainer) -> dict[str, dict[int, str]]:
    """For each tag the text at each step."""
    events: Any = _events(trainer)
    return {
        tag.removesuffix("/text_summary"): {
            event.step: event.tensor_proto.string_val[0].decode() for event in events.Tensors(tag)
        }
        for tag in events.Tags()["tensors"]
    }
