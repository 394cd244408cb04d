"""What is looked at in judged answers all together: are both kinds there, does length alone tell them apart, does
one row say the opposite of another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from chatbot_sft.data.preferences import (
    ANSWERS,
    CHOSEN,
    CONVERSATIONS,
    DESIRABLE,
    NO_COUNTERPART,
    NO_THUMB,
    PAIRS,
    REJECTED,
    UNDESIRABLE,
    UNITS,
)
from chatbot_sft.data.split import Split, note_repeats
from chatbot_sft.data.store import flat, numbers

if TYPE_CHECKING:
    import numpy as np
    import pyarrow

SWAPPED = "swapped pair"
BOTH = "liked and disliked"
FEW = 10  # answers of each kind, under which their lengths say nothing
LENGTH_TELLS = 0.5  # correlation of length and being liked, from which it is said


@dataclass
class Judgement:
    """What data_report.json has beside the rest of rows that an `objective` compares.

    `kinds` counts the training answers, `lengths` are their medians in tokens, by kind; `correlation` is that of
    an answer's length (its logarithm) with being liked, `longer` the share of pairs whose chosen answer is longer.
    """

    objective: str
    kinds: dict[str, int] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    correlation: float | None = None
    longer: float | None = None

    @property
    def unit(self) -> str:
        return UNITS[self.objective]

    @property
    def remark(self) -> str | None:
        """That liked answers are longer throughout; None where they are not."""
        if (self.correlation or 0) < LENGTH_TELLS or min(self.kinds.values()) < FEW:
            return None
        good, bad = (CHOSEN, REJECTED) if self.unit == PAIRS else (DESIRABLE, UNDESIRABLE)
        share = "" if self.longer is None else f" in {100 * self.longer:.0f}% of the pairs"
        return (
            f"{good} answers are longer than {bad} ones{share} (median {self.lengths[good]:,} to"
            f" {self.lengths[bad]:,} tokens; correlation of length and being {good} {self.correlation:.2f}): the"
            " model may learn to write more, and nothing else"
        )

    def refusal(self, path: str, notes: Mapping[str, Any], bad_rows: int) -> str | None:
        """Why nothing can be learned from these; None where something can."""
        alone = notes.get(NO_COUNTERPART, {"count": 0})["count"]
        if not self.kinds and not bad_rows and alone:
            return (
                f"{path}: none of the {alone:,} answers has one to pair it with, to the same prompt and of the"
                " other kind; objective=kto learns from single answers"
            )
        if not self.kinds and not bad_rows and NO_THUMB in notes:
            return f"{path}: no answer has a thumb; objective=sft learns from conversations"
        if self.unit == ANSWERS and len(self.kinds) == 1:
            ((kind, count),) = self.kinds.items()
            return (
                f"{path}: all {count:,} answers to train on are {kind}: objective={self.objective} learns from"
                " the difference; add some of the other kind, or learn the answers themselves with objective=sft"
            )
        return None


def judgement(objective: str, table: pyarrow.Table, training: np.ndarray) -> Judgement:
    """Of the rows `training` of `table`; nothing where these are conversations."""
    import numpy as np

    made = Judgement(objective)
    if made.unit == CONVERSATIONS or not len(training):
        return made
    length = flat(table, "trained_of_parts")[training]
    liked = _liked(table)[training]
    names = {True: CHOSEN, False: REJECTED} if made.unit == PAIRS else {True: DESIRABLE, False: UNDESIRABLE}
    for good, name in names.items():
        if len(of_kind := length[liked == good]):
            made.kinds[name] = len(of_kind)
            made.lengths[name] = int(np.median(of_kind))
    if len(made.kinds) == 2 and len(np.unique(length)) > 1:
        logs = np.log(np.maximum(length, 1)).ravel()
        made.correlation = round(float(np.corrcoef(logs, liked.ravel())[0, 1]), 3)
    if made.unit == PAIRS:
        made.longer = round(float((length[:, 0] > length[:, 1]).mean()), 3)
    return made


def note_opposites(objective: str, table: pyarrow.Table, chosen: Split) -> None:
    """Name the rows that say the opposite of an earlier one: a pair the other way round, an answer that is liked
    here and disliked there.
    """
    import numpy as np

    if UNITS[objective] == CONVERSATIONS or not len(table):
        return
    said, opposite = numbers(table, "said"), numbers(table, "opposite")
    rows = np.union1d(chosen.once, chosen.held_out).astype(np.int64)
    first = {int(hashed): row for row, hashed in zip(rows[::-1].tolist(), said[rows[::-1]], strict=True)}
    once = sorted(first.values())  # a duplicate is said to be one already
    later = np.array([row for row in once if first.get(int(opposite[row]), row) < row], np.int64)
    kind = SWAPPED if UNITS[objective] == PAIRS else BOTH
    says = "the other way round" if kind == SWAPPED else "of the other kind"
    note_repeats(chosen.notes, kind, table, opposite, rows, later, f"{says} in", said)


def _liked(table: pyarrow.Table) -> np.ndarray:
    """Of each part whether it is one to learn, shape (rows, parts)."""
    import numpy as np

    kinds = table.column("kinds").to_pylist()
    return np.array([[kind in (CHOSEN, DESIRABLE) for kind in row] for row in kinds], bool)
