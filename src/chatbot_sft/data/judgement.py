"""What is looked at in judged answers all together: are both kinds there, does length alone tell them apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from chatbot_sft.data import gate
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
from chatbot_sft.data.store import flat
from chatbot_sft.report.words import amount

if TYPE_CHECKING:
    import numpy as np
    import pyarrow

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

    def refusal(
        self, path: str, notes: Mapping[str, Any], bad_rows: int, problems: Mapping[str, Any]
    ) -> str | None:
        """Why nothing can be learned from these; None where something can. A bad row is told too: it may be the one
        that is missing.
        """
        alone = notes.get(NO_COUNTERPART, {"count": 0})["count"]
        if not self.kinds and not bad_rows and alone:
            return (
                f"{path}: none of the {amount(alone, 'answer')} has one to pair it with, to the same prompt and of"
                " the other kind; objective=kto learns from single answers"
            )
        if not self.kinds and not bad_rows and NO_THUMB in notes:
            return f"{path}: no answer has a thumb; objective=sft learns from conversations"
        if self.unit == ANSWERS and len(self.kinds) == 1:
            ((kind, count),) = self.kinds.items()
            return (
                f"{path}: each of the {amount(count, 'answer')} to train on is {kind}: objective={self.objective}"
                " learns from the difference; add some of the other kind, or learn the answers themselves with"
                " objective=sft"
                f"{_bad(bad_rows, problems)}"
            )
        return None


def _bad(count: int, problems: Mapping[str, Any]) -> str:
    """That so many rows could not be read, and what is wrong with the first of them."""
    if not count:
        return ""
    where = gate.first_of(problems)
    return f"; and {count:,} of the rows {'is' if count == 1 else 'are'} bad: row {where['row']}: {where['detail']}"


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


def _liked(table: pyarrow.Table) -> np.ndarray:
    """Of each part whether it is one to learn, shape (rows, parts)."""
    import numpy as np

    kinds = table.column("kinds").to_pylist()
    return np.array([[kind in (CHOSEN, DESIRABLE) for kind in row] for row in kinds], bool)
