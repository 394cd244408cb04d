"""A run's turns: other runs of the same process go on while it waits for its next one."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Turn:
    """A run waits at `step` of `steps`; `eval_loss` is the last held-out loss of this turn, `passed` the last share
    of golden cases, None where it had none.
    """

    step: int
    eval_loss: float | None
    passed: float | None = None
    steps: int | None = None


class Pruned(Exception):
    """Thrown into a run that waits: others are better, it ends here. The message says why."""


def to_the_end(turns: Generator[Turn, None, T]) -> T:
    """What `turns` returns, without a pause."""
    while True:
        try:
            next(turns)
        except StopIteration as end:
            return end.value
