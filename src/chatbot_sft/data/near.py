"""Rows that say nearly the same as another: among the training rows, and between those and held-out ones.

Nearly the same are two rows that have `threshold` of their shingles in common, and of their answers' half:
many questions about one long text are not one row. System prompts are left out, or one prompt for all rows
would make them alike. `minhash` proposes pairs, and each is then compared exactly: what is reported is nearly
the same.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from chatbot_sft.data import minhash
from chatbot_sft.data.shingles import digest, distinct, in_common, normalised, shingles

if TYPE_CHECKING:
    import numpy as np

ANSWERS = 0.5
FEW = 1_000  # rows that are compared without datasketch
TRIES = 4  # of the pairs proposed for a row, the likeliest first, that are compared
KEPT = 1_024  # rows whose shingles are kept for the next comparison: 160 MB where all are as long as may be


class Said(NamedTuple):
    """What is compared of a row: all that is said but for system prompts, and the answers among it."""

    whole: str
    answers: str


Read = Callable[[int], Said]


@dataclass(frozen=True)
class Alike:
    """`inside`: row → the earlier one that says nearly the same, and is itself like none before it.
    `across`: (training row, held-out row) that say nearly the same.
    """

    inside: dict[int, int]
    across: list[tuple[int, int]]


def enough(rows: int) -> bool:
    """Whether so many rows can be compared with what is installed."""
    return rows <= FEW or minhash.available()


def find(rows: Sequence[int], held_out: Sequence[int], read: Read, threshold: float) -> Alike:
    """Compare `rows`, in their order, with each other and with those `held_out`.

    Raises:
        UserError: there are many, and datasketch is not installed.
    """
    ours, theirs = Group(), Group()
    new = map(shingles, itertools.chain(ours.new(rows, read), theirs.new(held_out, read)))
    if len(rows) + len(held_out) <= FEW:
        sets = [distinct(one) for one in new]
        pairs = minhash.proposed_of_few(sets, len(ours.members), threshold)
    else:
        pairs = minhash.proposed(minhash.signatures(new), len(ours.members), threshold)
    alike = Comparison(read, threshold).alike
    own, firsts = len(ours.members), [*ours.firsts, *theirs.firsts]
    inside = _inside(firsts, pairs[pairs[:, 1] < own], alike)
    for first, *copies in ours.members.values():
        inside |= dict.fromkeys(copies, inside.get(first, first))
    across = [(mine, theirs.members[name]) for name, mine in ours.members.items() if name in theirs.members]
    across += [
        (ours.of(firsts[one]), theirs.of(firsts[other]))
        for one, other in _some(pairs[pairs[:, 1] >= own])
        if alike(firsts[one], firsts[other])
    ]
    both = {(row, others[0]) for mine, others in across for row in mine}
    both |= {(mine[0], other) for mine, others in across for other in others}
    return Alike(inside, sorted(both))


class Group:
    """Rows by what they say: those that say the same but for case and punctuation are looked at once."""

    def __init__(self) -> None:
        self.members: dict[int, list[int]] = {}

    def new(self, rows: Iterable[int], read: Read) -> Iterator[str]:
        """What each row says that says something new, normalised."""
        for row in rows:
            said = read(row)
            whole = normalised(said.whole)
            name = digest(f"{whole}\0{normalised(said.answers)}")
            if name not in self.members:
                self.members[name] = [row]
                yield whole
            else:
                self.members[name].append(row)

    @functools.cached_property
    def firsts(self) -> list[int]:
        return [rows[0] for rows in self.members.values()]

    @functools.cached_property
    def _by_first(self) -> dict[int, list[int]]:
        return {rows[0]: rows for rows in self.members.values()}

    def of(self, first: int) -> list[int]:
        """All that say what `first` does."""
        return self._by_first[first]


class Comparison:
    """Compares rows exactly."""

    def __init__(self, read: Read, threshold: float) -> None:
        self.threshold = threshold
        self._sets = functools.lru_cache(KEPT)(functools.partial(_sets, read))

    def alike(self, one: int, other: int) -> bool:
        """Whether two rows say nearly the same."""
        (whole, answers), (other_whole, other_answers) = self._sets(one), self._sets(other)
        return (
            in_common(whole, other_whole) >= self.threshold and in_common(answers, other_answers) >= ANSWERS
        )


def _sets(read: Read, row: int) -> tuple[np.ndarray, np.ndarray]:
    said = read(row)
    return distinct(shingles(normalised(said.whole))), distinct(shingles(normalised(said.answers)))


def _inside(rows: Sequence[int], pairs: np.ndarray, alike: Callable[[int, int], bool]) -> dict[int, int]:
    """Row → the one it is nearly the same as, which is kept: so no kept row is like another kept one."""
    found: dict[int, int] = {}
    for places in _groups(pairs):
        row = rows[places[0, 1]]
        kept = (rows[earlier] for earlier in places[:, 0] if rows[earlier] not in found)
        first = next((one for one in itertools.islice(kept, TRIES) if alike(one, row)), None)
        if first is not None:
            found[row] = first
    return found


def _groups(pairs: np.ndarray) -> Iterator[np.ndarray]:
    """The pairs of each later one."""
    import numpy as np

    edges = np.flatnonzero(np.diff(pairs[:, 1], prepend=-1, append=-1))
    return (pairs[begin:end] for begin, end in itertools.pairwise(edges.tolist()))


def _some(pairs: np.ndarray) -> list[list[int]]:
    """Of `pairs`, the likeliest first, the first `TRIES` of each earlier and of each later one."""
    import numpy as np

    chosen = np.zeros(len(pairs), bool)
    for side in (0, 1):
        order = np.argsort(pairs[:, side], kind="stable")
        sorted_side = pairs[order, side]
        rank = np.arange(len(pairs)) - np.searchsorted(sorted_side, sorted_side)
        chosen[order[rank < TRIES]] = True
    return pairs[chosen].tolist()


class Likeness:
    """How much each of some sets has in common with another."""

    def __init__(self, sets: Sequence[np.ndarray]) -> None:
        import numpy as np

        self.sizes = np.array([len(one) for one in sets])
        values, owners = np.concatenate(sets), np.repeat(np.arange(len(sets)), self.sizes)
        order = np.argsort(values, kind="stable")
        self.values, self.owners = values[order], owners[order]

    def to(self, one: np.ndarray, threshold: float) -> list[int]:
        """The places of those that have at least `threshold` in common with `one`."""
        import numpy as np

        size = len(one)
        if not ((self.sizes >= threshold * size) & (self.sizes * threshold <= size)).any():
            return []
        begins, ends = (np.searchsorted(self.values, one, side) for side in ("left", "right"))
        counts = ends - begins
        places = np.repeat(ends - np.cumsum(counts), counts) + np.arange(counts.sum())
        both = np.bincount(self.owners[places], minlength=len(self.sizes))
        return np.flatnonzero(both >= threshold * (self.sizes + size - both)).tolist()


def asked(
    questions: Mapping[int, str], rows: Iterable[int], read: Callable[[int], Iterable[str]], threshold: float
) -> dict[int, list[int]]:
    """Question → those of `rows` that ask nearly that; `read` gives what a row asks."""
    numbers = list(questions)
    if not numbers:
        return {}
    like = Likeness([distinct(shingles(normalised(questions[number]))) for number in numbers])
    found: dict[int, list[int]] = {}
    seen: dict[int, list[int]] = {}
    for row in rows:
        for plain in {normalised(text): None for text in read(row)}:
            name = digest(plain)
            if name not in seen:
                seen[name] = like.to(distinct(shingles(plain)), threshold)
            for place in seen[name]:
                of_it = found.setdefault(numbers[place], [])
                if row not in of_it[-1:]:
                    of_it.append(row)
    return found
