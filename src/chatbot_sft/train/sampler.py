"""The order in which rows are trained: shuffled, then by length within each optimizer step.

The eight rows of a 2 × 4 step give the same gradient in any order; laid side by side with rows of their own length they need less padding.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from typing import Any


def epoch_order(lengths: Sequence[int], effective_batch_size: int, seed: int, shuffle: bool) -> list[int]:
    """Row indices of one epoch: a seeded permutation (or the given order), cut into optimizer steps, each sorted from long to short."""
    order = list(range(len(lengths)))
    if shuffle:
        random.Random(seed).shuffle(order)
    steps = [order[start : start + effective_batch_size] for start in range(0, len(order), effective_batch_size)]
    return [row for step in steps for row in sorted(step, key=lambda index: -lengths[index])]


class StepSampler:
    """A sampler over `epoch_order`, another permutation each epoch. The trainer calls `set_epoch`; a resumed run sees the same order."""

    def __init__(self, lengths: Sequence[int], effective_batch_size: int, seed: int, shuffle: bool) -> None:
        self.lengths = lengths
        self.effective_batch_size = effective_batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter(epoch_order(self.lengths, self.effective_batch_size, self.seed + self.epoch, self.shuffle))

    def __len__(self) -> int:
        return len(self.lengths)

    def rows_of_step(self, step: int) -> list[int]:
        """The row indices of one optimizer step, counted from 0 over all epochs."""
        size = self.effective_batch_size
        epoch, place = divmod(step, math.ceil(len(self.lengths) / size))
        return epoch_order(self.lengths, size, self.seed + epoch, self.shuffle)[place * size : (place + 1) * size]


def row_lengths(dataset: Any) -> list[int]:
    """Tokens per row, counted in Arrow: the ids themselves never become Python numbers."""
    import pyarrow.compute

    lengths: list[int] = []
    for batch in dataset.select_columns(["input_ids"]).with_format("arrow").iter(1000):
        lengths += pyarrow.compute.list_value_length(batch["input_ids"]).to_pylist()
    return lengths
