"""In which sizes the packed conversations of a run come: few enough to be captured, close enough to waste
little. Imports no torch.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chatbot_sft.train.batches import Batches, Pack

GRAIN = 128  # tokens: the tiles of attention and matrix products
LOOKED_AT = 1000  # steps of a run, at most: its conversations come in the same sizes again
WORTH_A_SIZE = (
    25  # steps that share a size on the average: capturing another costs about as much as they save
)


@dataclass(frozen=True)
class PackedShapes:
    """What every packed micro-batch of a run fits into: a multiple of `grain` tokens, at most `rows`
    conversations, none of them longer than `longest`.
    """

    grain: int
    rows: int
    longest: int

    def size(self, tokens: int) -> int:
        """The smallest size that holds so many tokens."""
        return -(-tokens // self.grain) * self.grain


def shapes(batches: Batches, steps: int, captured: bool) -> PackedShapes:
    """Those of a run of `steps`. Where they are `captured`, each new size costs seconds."""
    totals = [_tokens(batches, step) for step in _own_steps(batches, steps)]
    share = -(-batches.batch_size // batches.processes)
    most = sum(heapq.nlargest(share, map(len, batches.packs)))
    return PackedShapes(grain(totals, steps) if captured else GRAIN, most, max(batches.lengths))


def largest(batches: Batches, steps: int) -> list[Pack]:
    """The packs of the step with the most tokens."""
    return max(_own_steps(batches, steps), key=lambda step: _tokens(batches, step))


def grain(totals: Sequence[int], steps: int) -> int:
    """Into multiples of what micro-batches of `totals` tokens are filled up: the finer, the more `steps` there
    are to win back what another size costs.
    """
    size = GRAIN
    while len({-(-total // size) for total in totals}) > max(1, steps // WORTH_A_SIZE):
        size *= 2
    return size


def _own_steps(batches: Batches, steps: int) -> list[list[Pack]]:
    epochs = range(-(-min(steps, LOOKED_AT) // batches.per_epoch))
    return [batches.own(step) for epoch in epochs for step in batches.epoch(epoch)]


def _tokens(batches: Batches, step: Sequence[Pack]) -> int:
    return sum(batches.lengths[row] for pack in step for row in pack)
