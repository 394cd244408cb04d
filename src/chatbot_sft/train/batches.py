"""Which conversations each optimizer step trains: shuffled, packed, cut into steps, shared by processes.

A step is a set of conversations; `layout` decides how the machine runs them. So the gradient of a step
depends on nothing but this file.
"""

from __future__ import annotations

import bisect
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from chatbot_sft.data.labels import IGNORED
from chatbot_sft.objective.sequences import MISMATCHED, PLAIN, Totals
from chatbot_sft.train.rows import Row, StepRows

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset

Pack = list[int]  # row numbers that fill one sequence of model.max_seq_length; without packing a single one


def best_fit(lengths: Sequence[int], capacity: int) -> list[Pack]:
    """Rows packed by best-fit decreasing: longest first, each into the fullest pack that still takes it.

    (Johnson 1974; TRL's "bfd".) Every row is in exactly one pack; a pack holds at most `capacity` tokens, or
    one row that alone is longer.
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


def epoch_steps(
    packs: Sequence[Pack], lengths: Sequence[int], batch_size: int, seed: int, shuffle: bool
) -> list[list[Pack]]:
    """The packs of each step of one epoch: a seeded permutation (or the given order), `batch_size` a step.

    Those of a step stand from long to short.
    """
    order = list(packs)
    if shuffle:
        random.Random(seed).shuffle(order)
    steps = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return [sorted(step, key=lambda pack: -sum(lengths[row] for row in pack)) for step in steps]


class Batches:
    """The conversations of every step of a run: a pure function of the seed and the step's number, from 1.

    With several processes each takes every `processes`-th pack of a step, so that the step is the one that a
    single process would train.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        seed: int,
        shuffle: bool,
        capacity: int | None = None,
        process: int = 0,
        processes: int = 1,
        beside: int | None = None,
    ) -> None:
        """`batch_size` is that of all processes; `capacity` the tokens of a pack, None without packing; `beside`
        as in `PackedDataset`.
        """
        self.rows = PackedDataset(dataset, beside)
        self.lengths, self.trained_lengths = row_counts(dataset)
        self.parts = Parts.of(dataset) if KINDS in dataset.column_names else None
        self.beside_lengths = beside_lengths(dataset, beside) if beside else []
        self.batch_size, self.seed, self.shuffle = batch_size, seed, shuffle
        self.process, self.processes = process, processes
        self.packs = (
            [[row] for row in range(len(self.lengths))]
            if capacity is None
            else best_fit(self.lengths, capacity)
        )
        self.per_epoch = -(-len(self.packs) // batch_size)  # optimizer steps
        self._epoch: tuple[int, list[list[Pack]]] = (-1, [])

    def epoch(self, number: int) -> list[list[Pack]]:
        """The packs of each step of that epoch, counted from 0, over all processes."""
        if self._epoch[0] != number:
            seed = self.seed + number
            steps = epoch_steps(self.packs, self.lengths, self.batch_size, seed, self.shuffle)
            self._epoch = (number, steps)
        return self._epoch[1]

    def step(self, number: int) -> list[Pack]:
        """The packs of step `number`, over all processes."""
        epoch, place = divmod(number - 1, self.per_epoch)
        return self.epoch(epoch)[place]

    def own(self, packs: list[Pack]) -> list[Pack]:
        """This process's share of a step."""
        return packs[self.process :: self.processes]

    def numbers(self, number: int) -> list[int]:
        """The rows of step `number`, over all processes."""
        return [row for pack in self.step(number) for row in pack]

    def tokens(self, number: int) -> tuple[int, int]:
        """(all, trained) tokens of step `number`, over all processes."""
        rows = self.numbers(number)
        return sum(self.lengths[row] for row in rows), sum(self.trained_lengths[row] for row in rows)

    def totals(self, number: int) -> Totals:
        """What step `number` has, over all processes."""
        tokens, trained_tokens = self.tokens(number)
        rows = self.numbers(number)
        if self.parts is None:
            return Totals(tokens, trained_tokens, {PLAIN: len(rows)}, {PLAIN: trained_tokens})
        return Totals(tokens, trained_tokens, *self.parts.count(rows))

    @property
    def longest(self) -> int:
        """The longest sequence that a pass may have."""
        own = self.lengths if self.parts is None else self.parts.lengths.tolist()
        return max([*own, *self.beside_lengths])

    @property
    def sequences(self) -> int:
        """Of a row, at most."""
        return 1 if self.parts is None else self.parts.most

    def load(self, first: int, last: int, workers: int = 0) -> Iterator[StepRows]:
        """This process's rows of the steps from `first` to `last`, by `workers` processes beside this one. A
        share that is a pack short of the others' has an empty one: every process runs as many micro-batches.

        One DataLoader an epoch, as in the field's trainers: each draws a number from torch's generator as it
        begins, which decides later dropout. An epoch that is gone on with has drawn its own before.
        """
        import torch
        from torch.utils.data import DataLoader

        while first <= last:
            epoch, place = divmod(first - 1, self.per_epoch)
            steps = self.epoch(epoch)[place : place + last - first + 1]
            yield from DataLoader(
                self.rows,  # type: ignore[arg-type]  # it takes whatever has a length and items, as torch says
                batch_sampler=[self.even(step) for step in steps],
                collate_fn=StepRows,
                num_workers=workers,
                generator=torch.Generator() if place else None,
            )
            first += len(steps)

    def even(self, packs: list[Pack]) -> list[Pack]:
        """This process's share of a step, with an empty pack where others have one more."""
        own = self.own(packs)
        return own + [[]] * (-(-len(packs) // self.processes) - len(own))


KINDS, PARTS = "kinds", "parts"  # columns of rows that have several sequences, or one of a kind


class PackedDataset:
    """Gives a DataLoader whole packs: an index is a list of row numbers of `dataset`. Without a column of
    labels every token is trained.

    With `beside` each row has beside it its prompt with the answer of another row, cut at so many tokens.
    `reference` (rows, sequences of a row and the one beside) are log-probabilities, once they are known.
    """

    def __init__(self, dataset: Dataset, beside: int | None = None) -> None:
        self.dataset, self.beside = dataset, beside
        self.reference: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, pack: Pack) -> list[Row]:
        if not pack:
            return []
        columns = self.dataset[pack]
        ids = columns["input_ids"]
        labels = columns.get("labels", ids)
        if KINDS not in columns:
            rows = [Row(*row) for row in zip(pack, ids, labels, strict=True)]
        else:
            rows = [Row(*row) for row in zip(pack, ids, labels, columns[PARTS], columns[KINDS], strict=True)]
        if self.reference is not None:
            rows = [replace(row, reference=self.reference[row.number].tolist()) for row in rows]
        return self._with_beside(rows) if self.beside else rows

    def _with_beside(self, rows: list[Row]) -> list[Row]:
        others = self.dataset[[other(row.number, len(self)) for row in rows]]
        return [
            replace(row, beside=mismatched(row, ids, labels, self.beside))
            for row, ids, labels in zip(rows, others["input_ids"], others["labels"], strict=True)
        ]


def other(row: int, rows: int) -> int:
    """The row of so many whose answer stands beside the prompt of `row`: always the same, so that the reference has
    to look at it once, and half the data away, as neighbours are often of one conversation.
    """
    return (row + rows // 2) % rows


def mismatched(row: Row, ids: list[int], labels: list[int], limit: int | None) -> Row:
    """The prompt of `row` with the answer of a row of those `ids` and `labels`."""
    own, theirs = _prompt(row.labels), _prompt(labels)
    return Row(
        row.number,
        (row.input_ids[:own] + ids[theirs:])[:limit],
        ([IGNORED] * own + labels[theirs:])[:limit],
        kinds=(MISMATCHED,),
        reference=row.reference[-1:],
    )


def _prompt(labels: Sequence[int]) -> int:
    """How many tokens come before the answer."""
    return next((place for place, label in enumerate(labels) if label != IGNORED), len(labels))


def beside_lengths(dataset: Dataset, limit: int) -> list[int]:
    """How long what stands beside each row is."""
    import numpy

    prompts: list[int] = []
    answers: list[int] = []
    for batch in dataset.select_columns(["labels"]).with_format("arrow").iter(1000):
        rows = batch["labels"].combine_chunks()
        sizes = rows.value_lengths().to_numpy(zero_copy_only=False)
        trained = numpy.flatnonzero(rows.flatten().to_numpy(zero_copy_only=False) != IGNORED)
        ends = numpy.cumsum(sizes)
        starts = ends - sizes
        firsts = numpy.append(trained, ends[-1:])[numpy.searchsorted(trained, starts)]
        prompts += (numpy.minimum(firsts, ends) - starts).tolist()
        answers += (ends - numpy.minimum(firsts, ends)).tolist()
    return [min(limit, prompt + answers[other(row, len(prompts))]) for row, prompt in enumerate(prompts)]


@dataclass(frozen=True)
class Parts:
    """The sequences of all rows, in order: whose `rows` they are, their `kinds` (numbers in `names`), `lengths` and
    `trained` tokens.
    """

    starts: np.ndarray  # (rows + 1,): where those of each row begin
    names: list[str]
    kinds: np.ndarray
    lengths: np.ndarray
    trained: np.ndarray

    @classmethod
    def of(cls, dataset: Dataset) -> Parts:
        import numpy

        kinds: list[str] = []
        counts: list[int] = []
        lengths: list[int] = []
        trained: list[int] = []
        for batch in dataset.select_columns(["labels", PARTS, KINDS]).with_format("arrow").iter(1000):
            table = batch.combine_chunks()
            parts = table[PARTS].combine_chunks()
            labels = table["labels"].combine_chunks().flatten().to_numpy(zero_copy_only=False) != IGNORED
            counts += parts.value_lengths().to_pylist()
            sizes = parts.flatten().to_numpy(zero_copy_only=False)
            kinds += table[KINDS].combine_chunks().flatten().to_pylist()
            starts = numpy.cumsum(sizes) - sizes
            labels[starts[sizes > 0]] = False  # the first token of a sequence is not predicted
            sums = numpy.concatenate([[0], numpy.cumsum(labels)])
            lengths += sizes.tolist()
            trained += (sums[starts + sizes] - sums[starts]).tolist()
        names = sorted(set(kinds))
        number = {name: place for place, name in enumerate(names)}
        return cls(
            numpy.concatenate([[0], numpy.cumsum(counts)]),
            names,
            numpy.array([number[kind] for kind in kinds]),
            numpy.array(lengths),
            numpy.array(trained),
        )

    @property
    def most(self) -> int:
        """Sequences of a row, at most."""
        return int((self.starts[1:] - self.starts[:-1]).max())

    def count(self, rows: Sequence[int]) -> tuple[dict[str, int], dict[str, int]]:
        """(sequences, trained tokens) of `rows`, by kind."""
        sequences: Counter[str] = Counter()
        trained: Counter[str] = Counter()
        for row in rows:
            for place in range(self.starts[row], self.starts[row + 1]):
                kind = self.names[self.kinds[place]]
                sequences[kind] += 1
                trained[kind] += int(self.trained[place])
        return sequences, trained


def row_counts(dataset: Dataset) -> tuple[list[int], list[int]]:
    """(tokens, trained tokens) of each row, counted in Arrow: no id ever becomes a Python number."""
    import numpy
    import pyarrow.compute

    name = "labels" if "labels" in dataset.column_names else "input_ids"
    lengths: list[int] = []
    trained: list[int] = []
    for batch in dataset.select_columns([name]).with_format("arrow").iter(1000):
        for rows in batch[name].chunks:
            sizes = pyarrow.compute.list_value_length(rows).to_numpy()
            labels = rows.flatten().to_numpy(zero_copy_only=False) != IGNORED
            starts = numpy.cumsum(sizes) - sizes
            labels[starts[sizes > 0]] = False  # a row's first token is not predicted
            sums = numpy.concatenate([[0], numpy.cumsum(labels)])
            lengths += sizes.tolist()
            trained += (sums[starts + sizes] - sums[starts]).tolist()
    return lengths, trained
