"""leaderboard.csv and leaderboard.html in a directory, each written in one step."""

from __future__ import annotations

import os
from pathlib import Path

from chatbot_sft.report.leaderboard import csv_file
from chatbot_sft.report.leaderboard.board import Board
from chatbot_sft.report.leaderboard.page import page
from chatbot_sft.sweep.directory import Sweep


def write(board: Board, folder: Path) -> None:
    """Raises OSError where they cannot be written; earlier ones then stay."""
    there = Sweep(folder)
    _write(there.table_file, csv_file.text(board, folder))
    _write(there.leaderboard_file, page(board))


def _write(target: Path, text: str) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        # Half of a surrogate pair has no UTF-8; for a reference a browser shows the replacement character.
        temporary.write_text(text, encoding="utf-8", errors="xmlcharrefreplace", newline="\n")
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
