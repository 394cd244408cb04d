"""One display for all jobs of a sweep: a line for each. Imports no torch.

What it shows is what the jobs have written into their directories, so that it is the same for jobs of this
process and of others, on this machine and on others. As it looks at them, it writes the leaderboard anew
wherever a job has been evaluated or has ended.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from chatbot_sft import compare, logs
from chatbot_sft.errors import UserError
from chatbot_sft.report.leaderboard import board
from chatbot_sft.report.leaderboard.job import Job
from chatbot_sft.report.leaderboard.terminal import COLOURS
from chatbot_sft.report.plain import shown_line
from chatbot_sft.report.words import duration
from chatbot_sft.run.directory import Run
from chatbot_sft.run.report import Status

FIRST = (Status.RUNNING, Status.FAILED)  # of more jobs than there are lines
OFTEN = 1.0  # seconds between two looks at the jobs
SHARE = 20  # a look takes at most one in so many seconds: of many jobs there are fewer


@dataclass(frozen=True)
class Line:
    """What is shown of one job."""

    name: str
    status: str
    step: str = ""
    loss: str = ""
    held_out: str = ""
    left: str = ""
    settings: str = ""
    error: str = ""
    tenth: int | None = None  # of the run, from its first step on
    passed: str = ""  # golden cases, of those that are asked as it trains

    @classmethod
    def of(cls, job: Job) -> Line:
        settings = "  ".join(f"{key}={value}" for key, value in job.settings.items())
        held_out = "" if job.held_out is None else f"{job.held_out:.3f}"
        plain = cls(shown_line(job.name), job.status, held_out=held_out, settings=shown_line(settings))
        if job.status == Status.RUNNING and (last := progress(Run(job.folder))):
            step, left = f"{last['step']}/{last['steps']}", duration(last["left"])
            tenth = last["step"] * 10 // last["steps"]
            settings = plain.settings
            return cls(
                plain.name,
                plain.status,
                step,
                f"{last['loss']:.3f}",
                held_out,
                left,
                settings,
                tenth=tenth,
                passed=_share(last.get("passed")),
            )
        training = job.report.training if job.report else None
        step = str(job.steps) if job.steps else ""
        loss = "" if training is None or training.loss_last is None else f"{training.loss_last:.3f}"
        asked = job.report.evaluation if job.report else None
        passed = _share(asked.passed if asked else None)
        error = shown_line(job.error)
        return cls(plain.name, plain.status, step, loss, held_out, "", plain.settings, error, passed=passed)

    @property
    def news(self) -> object:
        """What has to have changed for another line in a log: every tenth of a run, every evaluation, its end."""
        return self.status, self.held_out, self.passed, self.error, self.tenth

    @property
    def text(self) -> str:
        step, loss = self.step and f"step {self.step}", self.loss and f"loss {self.loss}"
        held_out, left = self.held_out and f"held out {self.held_out}", self.left and f"{self.left} left"
        passed = self.passed and f"golden {self.passed}"
        parts = (self.name, self.status, step, loss, held_out, passed, self.settings, self.error, left)
        return "  ".join(part for part in parts if part)


class Display:
    """On a terminal a table that is drawn anew; elsewhere a line for each change of a job, but for those to a status
    that is `told` by others.
    """

    def __init__(self, folder: Path, console: Console, told: Collection[Status] = ()) -> None:
        self.folder, self.console, self.told = folder, console, told
        self._said: dict[str, object] = {}
        self._written: object = None  # the jobs as the leaderboard has them
        self.page_stands = True  # unless it could not be written
        terminal = console.is_terminal
        own = terminal and sys.stdout.isatty()
        self._live = (
            Live(console=console, auto_refresh=False, transient=True, redirect_stdout=own)
            if terminal
            else None
        )

    def __enter__(self) -> Display:
        # What an earlier start has ended is no change.
        self._said = {line.name: line.news for line in map(Line.of, self._jobs())}
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self.update()
        finally:
            if self._live:
                self._live.stop()

    @contextlib.contextmanager
    def by_itself(self) -> Iterator[None]:
        """Within it a thread keeps it up to date: this process trains the jobs."""
        over = threading.Event()

        def look() -> None:
            pause = OFTEN
            while not over.wait(pause):
                began = time.monotonic()
                with contextlib.suppress(UserError):  # the next look may find what this one did not
                    self.update()
                pause = max(OFTEN, SHARE * (time.monotonic() - began))

        thread = threading.Thread(target=look, daemon=True)
        with logs.one_display(), self:
            thread.start()
            try:
                yield
            finally:
                over.set()
                thread.join()

    def update(self) -> None:
        jobs = self._jobs()
        lines = [Line.of(job) for job in jobs]
        if self._live:
            self._live.update(table(lines, self.console.height - 4), refresh=True)
        else:
            self._tell(lines)
        if (now := [(job.number, job.status, len(job.curve)) for job in jobs]) != self._written:
            self._written = now
            self.page_stands = compare.write(self.folder)

    def _tell(self, lines: Sequence[Line]) -> None:
        for line in lines:
            if self._said.get(line.name) != line.news:
                self._said[line.name] = line.news
                if line.status not in self.told:
                    print(line.text, file=self.console.file, flush=True)

    def say(self, text: str) -> None:
        """A line above the table."""
        self.console.print(Text(shown_line(text)), soft_wrap=True)

    def _jobs(self) -> list[Job]:
        return board.of_sweep(self.folder).jobs


def progress(run: Run) -> dict[str, Any] | None:
    """How far a run was when it told it last, and the seconds that are left now; None before its first step."""
    try:
        known = run.progress()
        if known is not None:
            told = run.progress_file.stat().st_mtime
            known["left"] = max(0.0, known["left"] - (time.time() - told))
    except (OSError, KeyError, TypeError):
        return None
    return known


def _share(passed: float | None) -> str:
    return "" if passed is None else f"{passed:.0%}"


def table(lines: Sequence[Line], most: int) -> Table:
    """At most so many jobs, those that run before the others, and how many there are of each kind."""
    shown = sorted(lines, key=lambda line: line.status not in FIRST)[: max(1, most)]
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption_justify="left")
    golden = ["golden"] if any(line.passed for line in lines) else []
    figures = ("step", "loss", "held out", *golden, "left")
    for title in ("job", "status", *figures, ""):
        right = title in figures
        drawn.add_column(title, justify="right" if right else "left", no_wrap=True)
    for line in sorted(shown, key=lines.index):
        status = Text(line.status, style=COLOURS.get(line.status, ""))
        more = "  ".join(part for part in (line.settings, line.error) if part)
        passed = [line.passed] if golden else []
        drawn.add_row(line.name, status, line.step, line.loss, line.held_out, *passed, line.left, Text(more))
    if len(shown) < len(lines):
        counts = Counter(line.status for line in lines)
        drawn.caption = "of " + ", ".join(f"{count} {status}" for status, count in counts.items())
    return drawn
