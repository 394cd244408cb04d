"""`python -m chatbot_sft.compare PATH …`: which configuration won, and why; which of several runs is better, and
in what they differ. Imports no torch.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from chatbot_sft import json_output
from chatbot_sft.arguments import Parser, ended
from chatbot_sft.errors import UserError
from chatbot_sft.report.leaderboard import as_json, differences, files, promotion, terminal
from chatbot_sft.report.leaderboard import board as boards
from chatbot_sft.report.leaderboard.board import Board
from chatbot_sft.report.plain import shown_line
from chatbot_sft.sweep.directory import Sweep

log = logging.getLogger(__name__)

METHODS = ("merged_16bit", "lora", "merged_4bit", "gguf")


def write(folder: Path) -> bool:
    """leaderboard.csv and leaderboard.html of the sweep in `folder`, as it stands now.

    Called while a sweep runs, so it never breaks one: what cannot be written is said, and False returned.
    """
    try:
        files.write(boards.of_sweep(folder), folder)
    except UserError as error:
        log.warning("leaderboard: %s", error)
    except OSError as error:
        log.warning("leaderboard: %s: %s", folder, error.strerror or error)
    else:
        return True
    return False


def table(folder: Path) -> list[str]:
    """The lines for the terminal of the sweep in `folder`, as it stands now."""
    try:
        return terminal.lines(boards.of_sweep(folder))
    except UserError as error:
        return [shown_line(str(error))]


def main() -> None:
    """What goes wrong is a line on stderr, with HYDRA_FULL_ERROR=1 a traceback."""
    with json_output.answering(json_output.FLAG in sys.argv[1:]) as values:
        arguments = parse()
        with ended():
            run(arguments, values)


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m chatbot_sft.compare",
        description="Compare the jobs of a sweep, or several runs: a table here, leaderboard.csv and"
        " leaderboard.html in the sweep's directory. Of two runs also what they differ in.",
    )
    add = parser.add_argument
    add("paths", metavar="PATH", nargs="+", type=Path, help="a sweep's directory, or several runs")
    add("--metric", metavar="NAME", help="a number of report.json (the sweep's, else training.eval_loss)")
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--maximise", action="store_const", const=True, default=None, help="the largest is best")
    way.add_argument(
        "--minimise", dest="maximise", action="store_const", const=False, help="the smallest is best"
    )
    add("--output", metavar="DIR", type=Path, help="where CSV file and page go (the sweep's directory)")
    add("--promote", metavar="best|N", help=f"take that job's model to {promotion.PROMOTED}/NAME")
    add("--name", metavar="NAME", help="of the promotion (made of the sweep's directory and the job)")
    add("--overwrite", action="store_true", help="replace an earlier promotion of that name")
    add(
        "--save",
        metavar="METHOD",
        choices=METHODS,
        default=METHODS[0],
        help=f"how a model that was not exported yet is saved: {', '.join(METHODS)} (%(default)s)",
    )
    add(json_output.FLAG, action="store_true", help="one JSON object in place of the table")
    given = parser.parse_args(words)
    if given.promote and len(given.paths) > 1:
        parser.error("--promote takes one PATH, a sweep's directory")
    if not given.promote and (given.name or given.overwrite):
        parser.error("--name and --overwrite belong to --promote")
    return given


def run(arguments: argparse.Namespace, values: dict[str, Any]) -> None:
    """Print, write, and promote what was asked for; with --json `values` gets what would be printed.

    Raises:
        UserError: nothing can be compared; or, after all that can be shown, no job has the metric.
    """
    paths: list[Path] = [path.expanduser() for path in arguments.paths]
    board = boards.of(paths, arguments.metric, arguments.maximise)
    if not board.rows:
        raise UserError(f"{paths[0]}: a sweep without jobs yet; wait for its first one")
    two_runs = len(paths) == len(board.jobs) == 2
    if arguments.json:
        values |= as_json.values(board, two_runs)
    else:
        terminal.show(board, Console(highlight=False))
    if two_runs and not arguments.json:
        _print(["", *differences.lines(*board.jobs)])
    if arguments.output or len(paths) == 1:
        _write_files(board, arguments.output or paths[0], asked=arguments.output is not None)
    if board.fault:
        raise UserError(board.fault)
    if arguments.promote:
        job = promotion.chosen(board, arguments.promote)
        target = promotion.promote(board, paths[0], job, arguments.name, arguments.overwrite, arguments.save)
        values["promoted"] = str(target)
        _print([promotion.told(target, job, board)])


def _write_files(board: Board, folder: Path, asked: bool) -> None:
    """A directory that takes no files is said, and no reason not to go on but where it was `asked` for."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files.write(board, folder)
    except OSError as error:
        if asked:
            raise UserError(
                f"--output {folder}: cannot be written: {error.strerror or error}; name a folder"
            ) from None
        print(f"warning: {shown_line(str(folder))}: not written: {error.strerror or error}", file=sys.stderr)
        return
    _print([f"page  {Sweep(folder).leaderboard_file}"])


def _print(lines: Sequence[str]) -> None:
    for line in lines:
        print(shown_line(line))


if __name__ == "__main__":
    main()
