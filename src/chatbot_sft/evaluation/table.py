"""The table of an evaluation on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from chatbot_sft.evaluation.report import Evaluation, Line
from chatbot_sft.report.plain import plain_line

WIDEST = 32  # characters of a tag


def table(evaluation: Evaluation) -> str:
    """A line for each tag and one for all, then what the differences come to, and what was not judged."""
    head = ["tag", "cases", *(column.title for column in evaluation.columns)]
    lines = list(evaluation.lines())
    if lines[-1].turned:
        head += ["turned right", "turned wrong"]
    rows = [head, *(_cells(line) for line in lines)]
    return "\n".join([*_aligned(rows), *_sentences(evaluation)])


def _cells(line: Line) -> list[str]:
    tag = plain_line(line.tag)
    cells = [tag if len(tag) <= WIDEST else f"{tag[: WIDEST - 1]}…", str(line.cases)]
    cells += [f"{passed} ({passed / line.cases:.0%})" for passed in line.passed]
    return cells + ([str(line.turned.turned_right), str(line.turned.turned_wrong)] if line.turned else [])


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = [
            first.ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)),
        ]
        yield "  ".join(cells)


def _sentences(evaluation: Evaluation) -> Iterator[str]:
    subject = evaluation.subject.title
    for title, one in evaluation.comparisons.items():
        turned = f"{one.turned_right} turned right, {one.turned_wrong} wrong"
        yield f"{title} → {subject}: {turned} of {one.pairs}; {chance(one.p)}"
    yield from evaluation.untold()


def chance(p: float) -> str:
    """The p of McNemar's test, and what it does not show."""
    return f"p = {p:.2g} (exact McNemar)" + ("" if p < 0.05 else ", no difference shown")
