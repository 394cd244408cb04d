"""Rows of judged answers: an answer behind its prompt is one sequence, the two of a pair stand end to end in one
row. Here is what can be wrong with two sequences that each alone are right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

from chatbot_sft.data.encode import EncodedRow, Part, Refused, text_hash
from chatbot_sft.data.preferences import CHOSEN, DESIRABLE, IDENTICAL, REJECTED, UNDESIRABLE

TOKENS_DIFFER = "no common beginning in tokens"
OTHER = {CHOSEN: REJECTED, REJECTED: CHOSEN, DESIRABLE: UNDESIRABLE, UNDESIRABLE: DESIRABLE}


def joined(encoded: Iterator[EncodedRow | Refused]) -> Iterator[EncodedRow | Refused]:
    """`encoded` with the two of each pair, which come one after the other, in one row."""
    for row in encoded:
        if row.part != CHOSEN:
            yield row if isinstance(row, Refused) or not row.part else _of([row])
            continue
        other = next(encoded)
        refused = next((one for one in (row, other) if isinstance(one, Refused)), None)
        if refused:
            detail = f"{refused.part}: {refused.detail}"
            yield Refused(refused.file, refused.row, refused.kind, detail)
        elif isinstance(row, EncodedRow) and isinstance(other, EncodedRow):
            yield _pair(row, other)


def _pair(chosen: EncodedRow, rejected: EncodedRow) -> EncodedRow:
    row = _of([chosen, rejected])
    if chosen.text == rejected.text:
        row.problems.append((IDENTICAL, "chosen and rejected become the same tokens"))
    begins = [one.trained[0][0] for one in (chosen, rejected) if one.trained]
    if len(begins) == 2 and (
        begins[0] != begins[1] or chosen.input_ids[: begins[0]] != rejected.input_ids[: begins[1]]
    ):
        detail = "the prompt becomes other tokens before the one answer than before the other"
        row.problems.append((TOKENS_DIFFER, f"{detail}: mostly white space at an answer's beginning"))
    return row


def _of(parts: Sequence[EncodedRow]) -> EncodedRow:
    """The parts end to end in one row."""
    trained, at = [], 0
    for part in parts:
        trained += [(at + begin, at + end) for begin, end in part.trained]
        at += len(part.input_ids)
    if not all(part.trained for part in parts):
        trained = []  # nothing to compare with: not even with dataset.on_bad_row=warn
    several, first = len(parts) > 1, parts[0]
    notes = list(dict.fromkeys(chain.from_iterable(part.notes for part in parts)))
    return EncodedRow(
        first.file,
        first.row,
        "".join(part.text for part in parts),
        list(chain.from_iterable(part.input_ids for part in parts)),
        trained,
        opening=first.opening,
        messages=first.messages,
        uses=first.uses,
        dialogue=first.dialogue,
        length=sum(part.length for part in parts),
        truncated=any(part.truncated for part in parts),
        kept=all(part.kept for part in parts),
        problems=[
            (kind, f"{part.part}: {detail}" if several else detail)
            for part in parts
            for kind, detail in part.problems
        ],
        notes=notes,
        parts=[
            Part(part.part, len(part.input_ids), _trained(part), len(part.text), part.length)
            for part in parts
        ],
        said=text_hash("\0".join(sorted(f"{part.part} {part.text}" for part in parts))),
        opposite=text_hash("\0".join(sorted(f"{OTHER[part.part]} {part.text}" for part in parts))),
    )


def _trained(row: EncodedRow) -> int:
    return sum(end - begin for begin, end in row.trained)
