"""The one exception that means "the user can mend this"."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """What is wrong, where (file, row or key) and what to do, in one line. Shown without a traceback."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))


def listed(names: Iterable[object], most: int = 10) -> str:
    """Names for an error of one line: the first `most` of them, long ones cut, and how many more there are."""
    given = [str(name) for name in names]
    shown = [name if len(name) <= 60 else f"{name[:59]}…" for name in given[:most]]
    return ", ".join(shown) + (f" and {len(given) - most:,} more" if len(given) > most else "")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``"; did you mean X?"`` for the closest of `known`, or an empty string where nothing is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""
