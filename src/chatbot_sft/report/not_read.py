"""The columns and keys of the data that nothing was made of, in words."""

from __future__ import annotations

from collections.abc import Mapping


def sentence(counts: Mapping[str, int], most: int = 10) -> str:
    """`history (12 rows), messages[].score (40)`."""
    parts = [
        f"{name} ({rows:,}{'' if number else ' row' if rows == 1 else ' rows'})"
        for number, (name, rows) in enumerate(counts.items())
    ]
    return ", ".join(parts[:most]) + (f" and {len(parts) - most:,} more" if len(parts) > most else "")
