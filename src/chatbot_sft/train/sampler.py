"""Which conversations each optimizer step trains: shuffled, packed where asked, cut into steps, shared among the processes.

A step is a set of conversations; `layout` decides how the machine runs them. So the gradient of a step depends on nothing but this file.
"""

from __future__ import annotations

import bisect
import random
from collections.abc import Iterator, Sequence
from typing import Any

Pack = list[int]  # row numbers that fill one sequence of model.max_seq_length; without packing a single one


def best_fit(lengths: Sequence[int], capacity: int) -> list[Pack]:
    """Rows packed by best-fit decreasing: longest first, each into the fullest pack that still takes it (Johnson 1974; TRL's "bfd").

    Every row is in exactly one pack; a pack holds at most `capacity` tokens, or one row that alone is longer.
    """
    packs: list[Pack] = []
    room: list[tuple[int, int]] = []  # (tokens left, pack), sorted
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        place = bisect.bisect_left(room, (lengths[row], -1))
        if place < len(room):
            left, pack = room.pop(place)
            packs[pack].append(row)
        else:
            left, pack = max(capacity, lengths[row]), len(packs)
            packs.append([row])
        bisect.insort(room, (left - lengths[row], pack))
    return packs


def epoch_steps(packs: Sequence[Pack], lengths: Sequence[int], batch_size: int, seed: int, shuffle: bool) -> list[list[Pack]]:
    """The packs of each optimizer step of one epoch: a seeded permutation (or the given order), `batch_size` a step, each from long to short."""
    order = list(packs)
    if shuffle:
        random.Random(seed).shuffle(order)
    steps = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return [sorted(step, key=lambda pack: -sum(lengths[row] for row in pack)) for step in steps]


class StepSampler:
    """A batch sampler: yields the packs of one optimizer step that this process trains, another permutation each epoch.

    The trainer calls `set_epoch`; a resumed run sees the same order. With several processes each takes every `processes`-th pack of a step, so
    that the step is the one that a single process would train.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        seed: int,
        shuffle: bool,
        capacity: int | None = None,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.process, self.processes = process, processes
        self.packs = [[row] for row in range(len(lengths))] if capacity is None else best_fit(lengths, capacity)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def steps(self) -> list[list[Pack]]:
        """The packs of every step of this epoch, over all processes."""
        return epoch_steps(self.packs, self.lengths, self.batch_size, self.seed + self.epoch, self.shuffle)

    def __iter__(self) -> Iterator[list[Pack]]:
        for step in self.steps():
            yield step[self.process :: self.processes]

    def __len__(self) -> int:
        return -(-len(self.packs) // self.batch_size)


def row_lengths(dataset: Any) -> list[int]:
    """Tokens per row, counted in Arrow: the ids themselves never become Python numbers."""
    import pyarrow.compute

    lengths: list[int] = []
    for batch in dataset.select_columns(["input_ids"]).with_format("arrow").iter(1000):
        lengths += pyarrow.compute.list_value_length(batch["input_ids"]).to_pylist()
    return lengths
