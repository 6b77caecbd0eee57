"""Where the time of a training step goes, by parts with names of this project."""

import time
from typing import Any

import torch
from lightning.pytorch.profilers import Profiler
from torch import nn

PARTS = ("data", "mask", "body", "head and loss", "backward", "optimizer", "callbacks")
REST, CHECKPOINTS, OUTSIDE = "everything else", "checkpoints", "outside"
# What Lightning calls its actions, and the part that begins there; the first that is found counts.
BEGINS = (
    ("validation", OUTSIDE),
    ("_EvaluationLoop", OUTSIDE),
    ("val_dataloader", OUTSIDE),
    ("save_checkpoint", CHECKPOINTS),
    ("run_training_epoch", REST),
    ("[Callback]", "callbacks"),
    ("train_dataloader_next", "data"),
    ("batch_to_device", "data"),
    ("batch_transfer", "data"),
    (".training_step", "mask"),
    (".on_after_backward", "optimizer"),
    (".backward", "backward"),
    ("optimizer", "optimizer"),
    ("lr_scheduler", "optimizer"),
)


class StepProfiler(Profiler):
    """Divides the wall time of training steps among data, masking, body, head and loss, backward, optimizer, callbacks.

    ``--trainer.profiler callbacks.profiler.StepProfiler`` prints the table behind a fit. Every moment counts for exactly
    one part. The head's gradients are made with the loss, so that ``backward`` is nearly all the body's. On a GPU each
    part waits for the device, which costs a little; checkpoints and validation are not part of a step.

    Args:
        skip: Steps at the beginning that do not count.
        dirpath: Folder of ``filename``; None is the logger's.
        filename: Writes the table there, instead of printing it.
    """

    def __init__(self, skip: int = 3, dirpath: str | None = None, filename: str | None = None) -> None:
        super().__init__(dirpath, filename)
        self.skip = skip
        self.steps = -skip
        self.seconds: dict[str, float] = {}
        self.stack: list[tuple[str, str]] = []
        self.last = 0.0
        self.watched: nn.Module | None = None

    def start(self, action_name: str) -> None:
        """Begin the part that ``action_name`` belongs to; within an unknown action the part stays the same."""
        part = next((part for text, part in BEGINS if text in action_name), self._part)
        if self._part == OUTSIDE and part != REST:
            part = OUTSIDE
        if part == "mask":
            self._watch()
        self._mark()
        self.stack.append((action_name, part))

    def stop(self, action_name: str) -> None:
        """Go back to the part around ``action_name``."""
        self._mark()
        while self.stack and self.stack.pop()[0] != action_name:
            pass
        if action_name == "run_training_batch":
            self.steps += 1
            if self.steps == 0:
                self.seconds.clear()

    @property
    def _part(self) -> str:
        return self.stack[-1][1] if self.stack else OUTSIDE

    def _mark(self) -> None:
        """Give the time since the last mark to the present part."""
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[self._part] = self.seconds.get(self._part, 0.0) + now - self.last
        self.last = now

    def _watch(self) -> None:
        """Have the model tell when its part of a training step begins and ends."""
        module: Any = self._lightning_module  # type: ignore[attr-defined]  # the Trainer sets it
        if module.device.type == "xla":
            raise ValueError("trainer.profiler is StepProfiler, but XLA runs a step as one program; set it to null")
        model = module.backbone
        if model is not self.watched:
            model.register_forward_pre_hook(lambda module, args: self._turn("mask", "body"))
            model.register_forward_hook(lambda module, args, output: self._turn("body", "head and loss"))
            self.watched = model

    def _turn(self, before: str, after: str) -> None:
        if self._part == before:
            self._mark()
            self.stack[-1] = (self.stack[-1][0], after)

    def shares(self) -> dict[str, float]:
        """Share of the steps' time by part."""
        found = {part: self.seconds.get(part, 0.0) for part in (*PARTS, REST)}
        total = sum(found.values())
        return {part: seconds / total for part, seconds in found.items()} if total else {}

    def summary(self) -> str:
        """A Markdown table of milliseconds per micro-batch and shares."""
        total = sum(self.seconds.get(part, 0.0) for part in (*PARTS, REST))
        rows = [(part, share * total, share) for part, share in self.shares().items()]
        rows.append(("a step", total, 1.0))
        steps = max(self.steps, 1)
        lines = [f"| {part} | {1e3 * seconds / steps:.2f} | {share:.1%} |" for part, seconds, share in rows]
        return "\n".join(["| part | ms | share |", "| --- | --- | --- |", *lines])
