"""leaderboard.csv: a line a job, in the order of the table."""

from __future__ import annotations

import csv
import io
import os
import re
from pathlib import Path

from chatbot_sft.report.leaderboard import columns
from chatbot_sft.report.leaderboard.board import Board
from chatbot_sft.report.leaderboard.rows import by_data
from chatbot_sft.report.masking import masked
from chatbot_sft.report.plain import plain_line

FIGURES = (
    "held_out_loss",
    "steps",
    "tokens_per_second",
    "peak_gb",
    "seconds",
)
NUMBER = re.compile(r"[+-]?[\d.]+(e[+-]?\d+)?", re.IGNORECASE)
TAIL = ("mean", "spread", *FIGURES, "status", "error", "folder")


def text(board: Board, beside: Path) -> str:
    """`rank` is the row's, which jobs that differ in their seed alone share, as its `mean` and `spread`; `folder` is
    the job's from the file's own, which is `beside`; `data` is there where not all jobs had the same, `sweep` where
    they are of several: then `job` is the number in that.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    rewards = [figure for figure in columns.figures(board) if figure in columns.REWARDS.values()]
    names = [figure.title.replace(" ", "_") for figure in rewards]
    data = ["data"] if len(by_data(board.jobs)) > 1 else []
    head = ["rank", *(["sweep"] if board.several_sweeps else []), "job"]
    writer.writerow([*head, *map(_text, (*board.keys, *data, board.metric)), *TAIL, *names])
    for rank, row in enumerate(board.rows, 1):
        for job in row.jobs:
            figures = (job.held_out, job.steps, job.tokens_per_second, job.peak_gb, job.seconds)
            settings = [job.settings.get(key, "") for key in board.keys]
            if data:
                settings.append(job.data.short if job.data else "")
            folder = _from(beside, job.folder)
            sweep = [_from(beside, job.sweep) if job.sweep else ""] if board.several_sweeps else []
            ending = (str(job.status), job.error, folder)
            own = [figure.of(job) for figure in rewards]
            numbers = [job.value, row.mean, row.spread, *figures]
            cells = [rank, *sweep, job.own_number, *settings, *numbers, *ending, *own]
            writer.writerow([_text(cell) if isinstance(cell, str) else cell for cell in cells])
    return out.getvalue()


def _from(beside: Path, folder: Path) -> str:
    return str(masked(os.path.relpath(folder, beside)))


def _text(cell: str) -> str:
    """As a spreadsheet shows it, and does not compute it: a formula begins so (OWASP, "CSV Injection")."""
    formula = cell.startswith(("=", "+", "-", "@")) and not NUMBER.fullmatch(cell)
    return f"'{plain_line(cell)}" if formula else plain_line(cell)
