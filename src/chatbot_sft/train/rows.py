"""The conversations of one optimizer step on their way from the dataset to a layout."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chatbot_sft.data.labels import IGNORED
from chatbot_sft.objective.sequences import PLAIN, Totals

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Row:
    """One conversation: its number in the dataset, `input_ids` and as many `labels`, the first never predicted.

    Of a preference it has several sequences, end to end: `parts` are their lengths and `kinds` what each is;
    `reference` is the log-probability that the reference gives each, once that is known. `beside` is what an
    objective looks at before the step.
    """

    number: int
    input_ids: list[int]
    labels: list[int]
    parts: Sequence[int] = ()  # none: one, the whole row
    kinds: Sequence[str] = (PLAIN,)
    reference: Sequence[float] = ()
    beside: Row | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def sequences(self) -> list[Row]:
        """Each sequence as a row."""
        if len(self.parts) < 2:
            return [self]
        ends = list(itertools.accumulate(self.parts))
        return [
            Row(
                self.number,
                self.input_ids[end - length : end],
                self.labels[end - length : end],
                kinds=(kind,),
                reference=self.reference[place : place + 1],
            )
            for place, (end, length, kind) in enumerate(zip(ends, self.parts, self.kinds, strict=True))
        ]

    @property
    def trained_tokens(self) -> int:
        if len(self.parts) < 2:
            return sum(label != IGNORED for label in self.labels[1:])
        return sum(sequence.trained_tokens for sequence in self.sequences)


def filler(token: int) -> Row:
    """A row that trains nothing, for a process that has nothing more to do in a step but to take part in it."""
    return Row(-1, [token, token], [IGNORED, IGNORED], kinds=())


def sequences(rows: Sequence[Row]) -> list[Row]:
    """All sequences of `rows`, in their order."""
    return [sequence for row in rows for sequence in row.sequences]


@dataclass(frozen=True)
class StepRows:
    """What one process trains in one step: packs of rows, from long to short; without packing of a row each."""

    packs: list[list[Row]]

    @property
    def rows(self) -> list[Row]:
        return [row for pack in self.packs for row in pack]

    @property
    def tokens(self) -> int:
        return sum(map(len, self.rows))

    @property
    def trained_tokens(self) -> int:
        return sum(row.trained_tokens for row in self.rows)

    @property
    def totals(self) -> Totals:
        """As if these were all rows of the step."""
        counts: Counter[str] = Counter()
        trained: Counter[str] = Counter()
        for sequence in sequences(self.rows):
            counts.update(sequence.kinds)
            trained.update(dict.fromkeys(sequence.kinds, sequence.trained_tokens))
        return Totals(self.tokens, self.trained_tokens, counts, trained)


def sequence_tensors(rows: Sequence[Row]) -> dict[str, torch.Tensor]:
    """Of the sequences of `rows`, on the CPU: trained `tokens` of each (int64), its `reference` (float32; 0 where
    that is not known), and under the name of each kind the places of such sequences.
    """
    import torch

    found = [sequence for sequence in sequences(rows) if sequence.kinds]
    places: dict[str, list[int]] = {}
    for place, sequence in enumerate(found):
        places.setdefault(sequence.kinds[0], []).append(place)
    return {
        "tokens": torch.tensor([sequence.trained_tokens for sequence in found], dtype=torch.long),
        "reference": torch.tensor([next(iter(sequence.reference), 0.0) for sequence in found]),
        **{kind: torch.tensor(place) for kind, place in places.items()},
    }


def padded(
    rows: Sequence[Row], pad_token_id: int, length: int | None = None, mask: bool = True
) -> dict[str, torch.Tensor]:
    """input_ids, labels and attention_mask of shape (sequences, longest or `length`), padded on the right.

    Padding is marked by position, so a pad token that equals the end token is still learned where it ends a
    turn. `mask=False` leaves the mask out: behind a causal attention no real token sees padding on its right.
    """
    import torch

    rows = sequences(rows)
    length = length or max(map(len, rows))
    shape = (len(rows), length)
    batch = {"input_ids": torch.full(shape, pad_token_id), "labels": torch.full(shape, IGNORED)}
    if mask:
        batch["attention_mask"] = torch.zeros(shape, dtype=torch.long)
    for index, row in enumerate(rows):
        batch["input_ids"][index, : len(row)] = torch.tensor(row.input_ids)
        batch["labels"][index, : len(row)] = torch.tensor(row.labels)
        if mask:
            batch["attention_mask"][index, : len(row)] = 1
    return batch


def padding_free(rows: Sequence[Row]) -> dict[str, torch.Tensor]:
    """input_ids, labels and position_ids of shape (1, all tokens); packed_seq_lengths of shape (sequences).

    Positions begin anew with each sequence: attention stays inside it.
    The first token of one has no loss: what it would be predicted from is the one before.
    """
    import torch

    rows = sequences(rows)
    return {
        "input_ids": torch.tensor([[token for row in rows for token in row.input_ids]]),
        "labels": torch.tensor([[label for row in rows for label in (IGNORED, *row.labels[1:])]]),
        "position_ids": torch.cat([torch.arange(len(row)) for row in rows])[None],
        "packed_seq_lengths": torch.tensor([len(row) for row in rows], dtype=torch.int32),
    }


def packed(
    rows: Sequence[Row], pad_token_id: int, size: int, bounds: int, longest: int
) -> dict[str, torch.Tensor]:
    """The conversations end to end in `size` tokens, in the shapes that a captured step always has.

    input_ids and position_ids are (1, size), positions begin anew with each conversation; what is left over
    are more conversations, of `longest` pad tokens at most. cu_seq_lens (bounds + 1,) int32 says where each
    begins and the last one ends; those that are not there are empty, at the end. `positions` (trained,) are
    those whose next token is trained, `targets` (trained,) these tokens.

    Raises:
        ValueError: these are more than `bounds` conversations.
    """
    import torch

    rows = sequences(rows)
    ids = [token for row in rows for token in row.input_ids]
    pieces = [min(longest, size - start) for start in range(len(ids), size, longest)]
    lengths = [*map(len, rows), *pieces]
    if len(lengths) > bounds:
        raise ValueError(f"{len(rows)} conversations and {len(pieces)} pieces are more than {bounds}")
    starts = [0, *itertools.accumulate(lengths)]
    predicted = [
        (start + place - 1, label)
        for start, row in zip(starts, rows, strict=False)
        for place, label in enumerate(row.labels)
        if place and label != IGNORED
    ]
    positions, targets = zip(*predicted, strict=True) if predicted else ((), ())
    return {
        "input_ids": torch.tensor([ids + [pad_token_id] * sum(pieces)]),
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "cu_seq_lens": torch.tensor(starts + [size] * (bounds + 1 - len(starts)), dtype=torch.int32),
        "positions": torch.tensor(positions, dtype=torch.long),
        "targets": torch.tensor(targets, dtype=torch.long),
    }
