"""In which sizes the packed conversations of a run come: few enough to be captured, close enough to waste
little. Imports no torch.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chatbot_sft.train.batches import Batches, Pack
    from chatbot_sft.train.layout import Layout

GRAIN = 128  # tokens: the tiles of attention and matrix products
LOOKED_AT = 1000  # steps of a run, at most: its conversations come in the same sizes again
# Tokens that are trained in the time that capturing another size takes: 0.27 s, at 30,000 tokens/s (3B, H200).
CAPTURE = 8_000


@dataclass(frozen=True)
class PackedShapes:
    """What every packed micro-batch of a run fits into: `sizes` in tokens, from small to large, at most `rows`
    sequences, none of them longer than `longest`. What they leave of a size is filled with pieces that are
    no longer either: the attention kernel is told of no longer one.
    """

    sizes: tuple[int, ...]
    rows: int
    longest: int

    def size(self, tokens: int) -> int:
        """The smallest size that holds so many tokens; beyond the last of them, a multiple of GRAIN."""
        place = bisect.bisect_left(self.sizes, tokens)
        return self.sizes[place] if place < len(self.sizes) else _whole(tokens) * GRAIN

    @property
    def bounds(self) -> int:
        """Conversations and pieces, at most."""
        gaps = [end - start for start, end in itertools.pairwise((0, *self.sizes))]
        return self.rows - (-max(GRAIN, *gaps, 0) // self.longest)


def shapes(batches: Batches, steps: int, layout: Layout) -> PackedShapes:
    """Those of a run of `steps` in `layout`. Where it is captured, each new size costs time."""
    own = _own_steps(batches, steps)
    totals = [
        _tokens(batches, step[start : start + layout.packs])
        for step in own
        for start in range(0, len(step), layout.packs)
    ]
    if batches.beside_lengths:
        totals += [
            sum(batches.beside_lengths[row] for pack in step[start : start + layout.packs] for row in pack)
            for step in own
            for start in range(0, len(step), layout.packs)
        ]
    most = batches.sequences * sum(heapq.nlargest(batches.batch_size, map(len, batches.packs)))
    passes = steps * len(totals) / max(1, len(own))
    sizes = cheapest(totals, passes) if layout.captured else ()
    return PackedShapes(sizes, most, batches.longest)


def largest(batches: Batches, steps: int) -> list[Pack]:
    """The packs of the step with the most tokens."""
    return max(_own_steps(batches, steps), key=lambda step: _tokens(batches, step))


def tokens(batches: Batches, steps: int) -> int:
    """How many tokens this process trains in a run of `steps`, about."""
    own = _own_steps(batches, steps)
    return steps * sum(_tokens(batches, step) for step in own) // max(1, len(own))


def cheapest(totals: Sequence[int], passes: float) -> tuple[int, ...]:
    """The sizes, multiples of GRAIN, in which `passes` over micro-batches of `totals` tokens end first: each
    size costs a capture, each token that is filled up its own time.

    From small to large, the best sizes up to each total follow from those up to a smaller one.
    """
    counts = sorted(Counter(map(_whole, totals)).items())
    passes_each = passes / max(1, len(totals))
    batches = list(itertools.accumulate((count for _, count in counts), initial=0))
    filled = list(itertools.accumulate((size * count for size, count in counts), initial=0))
    costs, before = [0.0], [0]
    for place, (size, _) in enumerate(counts, 1):
        cost, start = min(
            (
                costs[start]
                + passes_each
                * GRAIN
                * (size * (batches[place] - batches[start]) - (filled[place] - filled[start])),
                start,
            )
            for start in range(place)
        )
        costs.append(cost + CAPTURE)
        before.append(start)
    found, place = [], len(counts)
    while place:
        found.append(counts[place - 1][0] * GRAIN)
        place = before[place]
    return tuple(reversed(found))


def _whole(tokens: int) -> int:
    """Grains that hold so many tokens."""
    return -(-tokens // GRAIN)


def _own_steps(batches: Batches, steps: int) -> list[list[Pack]]:
    epochs = range(-(-min(steps, LOOKED_AT) // batches.per_epoch))
    return [batches.own(step) for epoch in epochs for step in batches.epoch(epoch)]


def _tokens(batches: Batches, step: Sequence[Pack]) -> int:
    return sum(batches.lengths[row] for pack in step for row in pack)
