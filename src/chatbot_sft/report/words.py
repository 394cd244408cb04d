"""Figures in words: how many there are, how a loss moved, how long it takes, and a number that may be none."""

from __future__ import annotations

import math


def amount(number: float, noun: str, form: str = ",") -> str:
    """ "1 row", "1,234 rows", "2 processes": a `number` in the format `form`, and what of."""
    plural = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number:{form}} {noun}{plural}"


def moved(before: float | None, after: float | None) -> str:
    """ "33% lower", "202% higher", "unchanged"; nothing where no share can be told."""
    if before is None or after is None or not (math.isfinite(before) and math.isfinite(after)) or before <= 0:
        return ""
    percent = round(100 * (after / before - 1))
    return "unchanged" if percent == 0 else f"{abs(percent):,}% {'higher' if percent > 0 else 'lower'}"


def number(value: float | None, form: str = ".3f") -> str:
    """`value` in the format `form`; "no number" for NaN, infinity and null, as which JSON keeps both."""
    return format(value, form) if value is not None and math.isfinite(value) else "no number"


def duration(seconds: float) -> str:
    """`75` as "1:15", `3700` as "1:01:40"."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
