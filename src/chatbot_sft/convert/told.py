"""What became of a file, as it is shown: key by key, under four headings."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from chatbot_sft.config.aliases import plain
from chatbot_sft.convert.conversion import Conversion
from chatbot_sft.convert.rules import Kind, Line
from chatbot_sft.report.plain import shown_line
from chatbot_sft.report.words import amount

WIDTH, LONGEST = 118, 44


def lines(conversion: Conversion) -> Iterator[str]:
    """All of it; each key of the file stands under one heading."""
    count = len(conversion.lines)
    yield f"{shown_line(str(conversion.file))}: {conversion.peer.title}, {amount(count, 'key')}"
    for kind in (Kind.CARRIED, Kind.CHANGED):
        yield from _part(kind.value, [line for line in conversion.lines if line.kind is kind])
    yield from _part(
        f"defaults of {conversion.peer.title} that are others here: written", conversion.defaults
    )
    for kind in (Kind.NOT_NEEDED, Kind.NOT_CARRIED):
        yield from _part(kind.value, [line for line in conversion.lines if line.kind is kind])
    if missing := [*conversion.missing, *conversion.absent]:
        yield from ["", "missing", *(f"  {shown_line(one)}" for one in missing)]


def _part(heading: str, found: Sequence[Line]) -> Iterator[str]:
    if not found:
        return
    yield from ["", f"{heading} ({len(found)})"]
    width = min(LONGEST, max(len(shown_line(line.key)) for line in found)) + 2
    for line in found:
        yield from _told(line, width)


def _told(line: Line, width: int) -> Iterator[str]:
    settings = line.shown or ", ".join(
        f"{_path(path)}: {_value(value)}" for path, value in line.settings.items()
    )
    text = shown_line("; ".join(filter(None, (settings, line.note))))
    start = f"  {shown_line(line.key):<{width}}"
    if len(start) > width + 2:
        yield start.rstrip()
        start = " " * (width + 2)
    for part in textwrap.wrap(text, WIDTH - width - 2, break_on_hyphens=False) or [""]:
        yield f"{start}{part}".rstrip()
        start = " " * (width + 2)


def _path(path: str) -> str:
    return path.removeprefix("/")


def _value(value: object) -> str:
    text = plain(value)
    return text if len(text) <= 300 else f"{text[:299]}…"
