"""The last line of a run."""

import logging
import re

import pytest

from callbacks import BoundReport
from tests.conftest import Tiny


def test_it_prints_bound_entropy_and_their_difference(tiny: Tiny, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        trainer = tiny.fit(BoundReport(), max_steps=2, val_check_interval=2)
    bound = float(trainer.callback_metrics["val/bound"])
    entropy = trainer.datamodule.store.unigram_entropy  # type: ignore[attr-defined]
    (line,) = (message for message in caplog.messages if "held-out bound" in message)
    numbers = [float(number) for number in re.findall(r"-?\d+\.\d+", line)]
    assert numbers == pytest.approx([bound, entropy, entropy - bound], abs=6e-4)


def test_a_run_without_validation_has_nothing_to_report(tiny: Tiny, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        tiny.fit(BoundReport(), max_steps=1, limit_val_batches=0)
    assert not [message for message in caplog.messages if "bound" in message]
