"""Whether one model answers more cases right than another, or only other ones: McNemar's test, exact."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Comparison:
    """Of the cases that were judged of both: how many turned right and wrong, and how likely a difference of that
    size, or a larger one, is where neither model is better: the two-sided p of a fair coin.
    """

    pairs: int
    turned_right: int
    turned_wrong: int
    p: float


def compared(before: Sequence[bool | None], after: Sequence[bool | None]) -> Comparison:
    """Whether each case passed, in the same order; None where that is not known."""
    pairs = [
        (first, second)
        for first, second in zip(before, after, strict=True)
        if first is not None and second is not None
    ]
    right = sum(second and not first for first, second in pairs)
    wrong = sum(first and not second for first, second in pairs)
    return Comparison(len(pairs), right, wrong, mcnemar(right, wrong))


def mcnemar(right: int, wrong: int) -> float:
    """The two-sided exact p of `right` and `wrong` turns, both as likely; 1 where nothing turned."""
    turned = right + wrong
    tail = sum(math.comb(turned, count) for count in range(min(right, wrong) + 1))
    return min(1.0, 2 * tail / 2**turned)
