"""Judged answers that say the opposite of each other: a pair the other way round, an answer that is liked here and
disliked there. To exactly the same prompt, in other rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from chatbot_sft.data.store import numbers

if TYPE_CHECKING:
    import numpy as np
    import pyarrow

SWAPPED = "swapped pair"
BOTH = "liked and disliked"
SAYS = {SWAPPED: "the other way round", BOTH: "judged the other way round"}


def opposites(table: pyarrow.Table, rows: np.ndarray) -> Iterator[tuple[int, int]]:
    """(row, the first that says its opposite), of those among `rows`, in their order."""
    said, opposite = numbers(table, "said"), numbers(table, "opposite")
    first = {int(hashed): row for row, hashed in zip(rows[::-1].tolist(), said[rows[::-1]], strict=True)}
    for row in rows.tolist():
        other = first.get(int(opposite[row]))
        if other is not None:
            yield row, other
