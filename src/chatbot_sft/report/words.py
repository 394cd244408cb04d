"""Figures in words: how a loss moved, and a number that may be none."""

from __future__ import annotations

import math


def moved(before: float | None, after: float | None) -> str:
    """ "33% lower", "202% higher", "unchanged"; nothing where no share can be told."""
    if before is None or after is None or not (math.isfinite(before) and math.isfinite(after)) or before <= 0:
        return ""
    percent = round(100 * (after / before - 1))
    return "unchanged" if percent == 0 else f"{abs(percent):,}% {'higher' if percent > 0 else 'lower'}"


def number(value: float | None, form: str = ".3f") -> str:
    """`value` in the format `form`; "no number" for NaN, infinity and null, as which JSON keeps both."""
    return format(value, form) if value is not None and math.isfinite(value) else "no number"
