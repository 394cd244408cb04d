"""The comparison in the terminal: a table, and what has to be said below it."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from chatbot_sft.report.leaderboard import columns
from chatbot_sft.report.leaderboard.board import Board
from chatbot_sft.report.leaderboard.rows import Row
from chatbot_sft.report.plain import shown_line

COLOURS = {"completed": "green", "failed": "red", "unreadable": "red", "running": "cyan", "pruned": "yellow"}


def lines(board: Board) -> list[str]:
    """Plain text, columns aligned, nothing cut off: for pipes, files and logs."""
    table = [_head(board), *(_cells(board, row) for row in board.rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    aligned = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]
    return [*aligned, *_below(board)]


def show(board: Board, console: Console) -> None:
    """In colour, as wide as the terminal is; in a pipe `lines`."""
    if not console.is_terminal:
        for line in lines(board):
            print(line, file=console.file)
        return
    head = _head(board)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    words = {"name", "curve", "status", *board.keys}
    for title in head:
        table.add_column(
            Text(title),
            justify="left" if title in words else "right",
            overflow="fold",
            no_wrap=title in ("name", "curve"),
        )
    for row in board.rows:
        cells = [Text(cell) for cell in _cells(board, row)]
        cells[-1].stylize(COLOURS.get(str(row.best.status), ""))
        table.add_row(*cells, style="bold" if row is board.rows[0] and row.completed else "")
    console.print(table)
    for line in _below(board):
        console.print(Text(line), soft_wrap=True)


def _head(board: Board) -> list[str]:
    names = [figure.title for figure in columns.figures(board)]
    return [shown_line(word) for word in ("name", *board.keys, board.metric_name, "curve", *names, "status")]


def _cells(board: Board, row: Row) -> list[str]:
    figures = []
    for figure in columns.figures(board):
        mean = figure.mean(row)
        figures.append("" if mean is None else figure.form(mean))
    keys = [columns.setting(row, key) for key in board.keys]
    cells = [row.name, *keys, columns.value(row), columns.bars(row.best.curve), *figures, row.status]
    return [shown_line(cell) for cell in cells]


def _below(board: Board) -> list[str]:
    """How many there are, what is undecided, and why jobs ended."""
    said = [board.counts, *board.notes, *_errors(board.rows)]
    return [shown_line(line) for line in said if line != board.fault]


def _errors(rows: Sequence[Row]) -> list[str]:
    jobs = sorted((job for row in rows for job in row.jobs if job.error), key=lambda job: job.number)
    return [f"{job.name} {job.status}: {job.error}" for job in jobs]
