"""What the gate found by reading the rows beside each other, in words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chatbot_sft.data.content import GOLDEN, HELD_OUT

SHOWN = 5  # rows that are named


def sentences(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One for each kind: how many of how many, the first rows, and what became of them."""
    return [
        f"{kind}: {_counted(tally)} ({_rows(kind, tally)}){_left_out(tally)}" for kind, tally in found.items()
    ]


def share(tally: Mapping[str, Any]) -> str:
    """How many rows of a kind, and which share where it is known of how many."""
    count = f"{tally['count']:,}"
    return f"{count} ({_percent(tally)})" if tally.get("of") else count


def _counted(tally: Mapping[str, Any]) -> str:
    return f"{tally['count']:,} of {tally['of']:,}, {_percent(tally)}"


def _percent(tally: Mapping[str, Any]) -> str:
    percent = 100 * tally["count"] / tally["of"]
    return f"{percent:.0f}%" if percent >= 1 else f"{percent:.2g}%"


def _rows(kind: str, tally: Mapping[str, Any]) -> str:
    named = [str(row["row"]) for row in tally["rows"][:SHOWN]]
    more = tally["count"] - len(named)
    rows = f"row{'s' if tally['count'] > 1 else ''} {', '.join(named)}{f' and {more:,} more' if more else ''}"
    return f"{rows} of {Path(tally['rows'][0]['file']).name}" if kind in (HELD_OUT, GOLDEN) else rows


def _left_out(tally: Mapping[str, Any]) -> str:
    left_out = tally.get("left_out")
    return f"; {left_out:,} training row{'s' if left_out > 1 else ''} left out" if left_out else ""
