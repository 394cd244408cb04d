"""When a training loss has left the rails: a rolling median against the lowest one seen. Pure numbers."""

from __future__ import annotations

import math
from collections import deque
from itertools import pairwise
from statistics import median

FIRST = 3  # losses that make a first reference
SURE = 8  # losses that make a reliable one, and the fewest that are judged
WINDOW = (16, 64)
SIGMAS = 8  # standard errors of the reference's median that noise is granted


def ruin_limit(before: float, vocabulary: int) -> float:
    """The loss after training from which a model counts as ruined, by its loss on the same conversations
    before: the rails of a reliable reference.

    Half a nat above chance, where every token is as likely as another, a model knows nothing any more,
    whatever it was before.
    """
    return max(before + 0.5, min(2 * before, math.log(vocabulary) + 0.5))


class Rails:
    """Judges one loss per optimizer step, in nats.

    A run has left the rails where the median of its last `window` losses lies above twice the lowest such
    median, at least 0.5 nats above it, and above what noise of the spread seen there explains. The first
    three to seven losses count as a reference of their own, with wider rails (four times, at least 3 nats): a
    run whose learning rate is far too high has no good window.
    """

    def __init__(self, max_steps: int) -> None:
        self.window = min(max(max_steps // 10, WINDOW[0]), WINDOW[1])
        self.losses: deque[float] = deque(maxlen=self.window)
        self.limit = math.inf
        self.lowest = math.inf  # the median that set the limit

    def add(self, loss: float) -> bool:
        """Whether the run has left the rails with `loss`."""
        self.losses.append(loss)
        middle, count = median(self.losses), len(self.losses)
        left = count >= SURE and middle > self.limit
        limit = self._limit(middle, count)
        if limit < self.limit:
            self.limit, self.lowest = limit, middle
        return left

    @property
    def doubtful(self) -> bool:
        """Whether the last three losses lie beyond the rails: such weights are not worth keeping."""
        return median(list(self.losses)[-3:] or [0.0]) > self.limit

    def _limit(self, middle: float, count: int) -> float:
        if count < FIRST:
            return math.inf
        wide = max(4 * middle, middle + 3)
        if count < SURE:
            return wide
        # From one loss to the next, so that a curve that falls steeply does not pass for noise.
        logs = [math.log(max(loss, 1e-6)) for loss in self.losses]
        changes = [after - before for before, after in pairwise(logs)]
        centre = median(changes)
        spread = 1.4826 * median(abs(change - centre) for change in changes) / math.sqrt(2)
        error = 1.2533 * spread / math.sqrt(count)  # of a median, as a share of it
        return min(wide, max(2 * middle, middle + 0.5, middle * math.exp(min(SIGMAS * error, 20.0))))
