"""The rows that data_preview.html shows: bad ones, cut ones, the longest, and a seeded sample of the rest."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatbot_sft.data.encode import PIECE
from chatbot_sft.data.personal.detector import Detector
from chatbot_sft.data.preview import HIDDEN, PreviewRow, PreviewToken
from chatbot_sft.data.store import numbers, sequences
from chatbot_sft.data.template import ChatTokenizer
from chatbot_sft.report.masking import MASK, places

if TYPE_CHECKING:
    import numpy as np
    import pyarrow

SHOWN = 40
TOKENS = 60_000  # in all; a page of many long rows would be slow to open


def excerpt(
    table: pyarrow.Table,
    training: np.ndarray,
    held_out: np.ndarray,
    problems: Mapping[str, Any],
    tokenizer: ChatTokenizer,
    limit: int,
    seed: int,
    detector: Detector | None,
) -> list[PreviewRow]:
    """At most `SHOWN` rows of `table` and `TOKENS` tokens (rows are cut at `limit`), in the file's order."""
    import numpy as np

    complaints: dict[tuple[str, int], list[str]] = {}
    for kind, tally in problems.items():
        for entry in tally["rows"]:
            complaints.setdefault((entry["file"], entry["row"]), []).append(f"{kind}: {entry['detail']}")
    bad, cut, length = (numbers(table, name) for name in ("bad", "truncated", "length"))
    chosen = [int(i) for i in bad.nonzero()[0][:12]]
    chosen += [int(i) for i in (cut > bad).nonzero()[0][:6]]
    chosen += [int(i) for i in length.argsort()[::-1][:2]]
    used = [int(i) for i in {*training.tolist(), *held_out.tolist()}]
    # Not the stream of numbers that drew the held-out rows: the two choices would be correlated.
    chosen += random.Random(f"preview {seed}").sample(sorted(used), min(SHOWN, len(used)))
    unique = list(dict.fromkeys(chosen))[:SHOWN]
    total = np.cumsum(sequences(table, limit).sum(axis=1)[unique])
    unique = unique[: max(1, int((total <= TOKENS).sum()))]
    held = {int(i) for i in held_out}
    return [_row(table, index, index in held, complaints, tokenizer, detector) for index in sorted(unique)]


def _row(
    table: pyarrow.Table,
    index: int,
    held_out: bool,
    complaints: Mapping[tuple[str, int], Sequence[str]],
    tokenizer: ChatTokenizer,
    detector: Detector | None,
) -> PreviewRow:
    values = {
        name: table.column(name)[index].as_py()
        for name in ("text", "labels", "file", "row", "length", "truncated")
    }
    text, labels, tokens, parts = values["text"], values["labels"], [], []
    for kind, size, characters in _parts(table, index) or [("", len(labels), len(text))]:
        shown = _tokens(text[:characters], labels[:size], tokenizer, detector)
        tokens += shown
        parts.append((kind, len(shown)))
        text, labels = text[characters:], labels[size:]
    problems = tuple(complaints.get((values["file"], values["row"]), ()))
    return PreviewRow(
        Path(values["file"]).name,
        values["row"],
        tuple(tokens),
        values["length"],
        bool(values["truncated"]),
        held_out,
        problems,
        tuple(parts),
    )


def _parts(table: pyarrow.Table, index: int) -> list[tuple[str, int, int]]:
    """(kind, tokens, characters) of the sequences that stand in a row end to end; none where it is one."""
    if "parts" not in table.column_names:
        return []
    columns = (table.column(name)[index].as_py() for name in ("kinds", "parts", "characters_of_parts"))
    return list(zip(*columns, strict=True))


def _tokens(
    text: str, labels: Sequence[int], tokenizer: ChatTokenizer, detector: Detector | None
) -> list[PreviewToken]:
    """As many tokens of `text` as there are `labels`."""
    # Of a very long row no more than is shown.
    begin = text[: max(PIECE, 16 * len(labels))]
    encoding = tokenizer.backend.encode(begin, add_special_tokens=False)
    specials = set(tokenizer.special_tokens.values())
    secrets, told = hidden(begin, detector), None  # told: the secret that the token before was a part of
    tokens = []
    shown = 0  # characters that an earlier token has shown: the tokens of one character all have its range
    for number, (start, end), label in zip(encoding.ids, encoding.offsets, labels, strict=False):
        secret = next((place for place in secrets if place[0] < end and start < place[1]), None)
        if secret is None:
            piece, shown_id = text[max(start, shown) : end], number
        else:
            piece, shown_id = secret[2] if secret != told else "", HIDDEN
        tokens.append(PreviewToken(piece, shown_id, label >= 0, number in specials))
        told = secret
        shown = max(shown, end)
    return tokens


def hidden(text: str, detector: Detector | None) -> list[tuple[int, int, str]]:
    """(begin, end, what stands there instead) of the environment's secrets, and of personal data."""
    found = detector.find(text) if detector else []
    return [
        *((begin, end, MASK) for begin, end in places(text)),
        *((one.begin, one.end, one.placeholder) for one in found),
    ]
