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

SPARE = {"curve", *(figure.title for figure in columns.FIGURES)}  # what a narrow terminal leaves out
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
    head = [_broken(title, board) for title in _head(board)]
    cells = [_cells(board, row) for row in board.rows]
    table_columns = list(zip(head, *cells, strict=True))
    kept = _fitting(table_columns, console.width)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    words = {"name", "curve", "status", *(_broken(key, board) for key in board.keys)}
    for at in kept:
        table.add_column(
            Text(head[at]), justify="left" if head[at] in words else "right", overflow="fold", vertical="top"
        )
    for row, own in zip(board.rows, cells, strict=True):
        texts = [Text(own[at]) for at in kept]
        texts[-1].stylize(COLOURS.get(str(row.best.status), ""))
        table.add_row(*texts, style="bold" if row is board.rows[0] and row.completed else "")
    console.print(table)
    if left := [head[at] for at in range(len(head)) if at not in kept]:
        console.print(Text(f"not enough room for {', '.join(left)}"), style="dim")
    for line in _below(board):
        console.print(Text(line), soft_wrap=True)


def _fitting(table_columns: Sequence[Sequence[str]], width: int) -> list[int]:
    """Which columns there is room for: the figures before the status go first, from the right."""
    kept = list(range(len(table_columns)))
    sizes = [max(len(line) for cell in column for line in cell.split("\n")) + 3 for column in table_columns]
    spare = [at for at in kept if table_columns[at][0] in SPARE]
    while spare and sum(sizes[at] for at in kept) > width + 3:
        kept.remove(spare.pop())
    return kept


def _broken(title: str, board: Board) -> str:
    """A key with its section on a line of its own."""
    section, dot, name = title.rpartition(".")
    return f"{section}.\n{name}" if dot and title in board.keys else title


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
