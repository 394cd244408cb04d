"""Where every row of the files went: trained, held out, bad, or left out, and why. The figures add up to the rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from chatbot_sft.data.preferences import NO_COUNTERPART, NO_THUMB
from chatbot_sft.data.split import HELD_OUT_ELSEWHERE, TRAINED_ELSEWHERE, Split

if TYPE_CHECKING:
    import numpy as np
    import pyarrow

    from chatbot_sft.data.content import Found

TOO_LONG = "over model.max_seq_length"
PERSONAL = "personal data"
WITHOUT = "nothing to train within model.max_seq_length"


def accounts(
    table: pyarrow.Table, about: Mapping[str, Any], chosen: Split, found: Found, bad: np.ndarray
) -> dict[str, Any]:
    """`trained`, `held_out`, `bad` and `left_out` (why → how many) of the rows as the files have them, each once,
    however many pieces, answers or repetitions became of it. `about` is the entry's, `bad` those of its `table`.
    """
    import numpy as np

    place = _places(table)
    trained = np.unique(place[chosen.once])
    held_out = np.setdiff1d(place[chosen.held_out], trained)
    used = np.union1d(trained, held_out)
    left = about["rows"] - len(used)
    not_used = min(left, about["bad_rows"] - int(np.isin(np.unique(place[bad]), used).sum()))
    left -= not_used
    left_out: dict[str, int] = {}
    for why, count in _reasons(place, about, chosen, found, np.union1d(used, place[bad])):
        if count := min(count, left):
            left_out[why] = left_out.get(why, 0) + count
            left -= count
    if left:
        left_out[WITHOUT] = left
    return {"trained": len(trained), "held_out": len(held_out), "bad": not_used, "left_out": left_out}


def _reasons(
    place: np.ndarray, about: Mapping[str, Any], chosen: Split, found: Found, known: np.ndarray
) -> Iterator[tuple[str, int]]:
    """(why, how many rows) of those left out; each by the first reason that there is."""
    import numpy as np

    for kind, rows in found.drops.items():
        if found.policies[kind] == "drop":
            here = np.setdiff1d(place[np.array(rows, np.int64)], known)
            known = np.union1d(known, here)
            yield kind, len(here)
    # Of rows that are no longer in the table only their number is known.
    yield PERSONAL, (about["personal_data"] or {"left_out": 0})["left_out"]
    yield TOO_LONG, about["dropped_rows"]
    for kind in (HELD_OUT_ELSEWHERE, TRAINED_ELSEWHERE):
        yield kind, chosen.notes.kinds.get(kind, {"count": 0})["count"]
    for kind in (NO_THUMB, NO_COUNTERPART):
        yield kind.removesuffix(": left out"), about["notes"].get(kind, {"count": 0})["count"]


def _places(table: pyarrow.Table) -> np.ndarray:
    """A number for each file and row, shape (rows of the table,)."""
    import numpy as np

    from chatbot_sft.data.store import numbers

    files = table.column("file").dictionary_encode().combine_chunks()
    return np.from_dlpack(files.indices).astype(np.int64) << 40 | numbers(table, "row").astype(np.int64)
