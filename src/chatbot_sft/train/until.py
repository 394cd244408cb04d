"""Ends a training at a step, with the schedule of the whole: a replay of a run that did not come to its end."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback


class Until(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop |= state.global_step >= self.step
