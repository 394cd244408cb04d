"""A run that pauses: what it says at a turn's end, and how a sweep ends it early. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Turn:
    """The run waits for its next turn after optimizer step `step`; `eval_loss` where it was just evaluated."""

    step: int
    eval_loss: float | None


class Pruned(Exception):
    """Thrown into a run that waits: others of its sweep are better. The message says why."""
