"""One display for all jobs of a sweep whose workers are other processes: a line for each. Imports no torch.

What it shows is what the jobs have written into their directories, so that it is the same for workers on this
machine and on others.
"""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from chatbot_sft.report.leaderboard import board
from chatbot_sft.report.leaderboard.job import Job
from chatbot_sft.report.leaderboard.terminal import COLOURS
from chatbot_sft.report.plain import shown_line
from chatbot_sft.run.directory import Run
from chatbot_sft.run.report import Status
from chatbot_sft.train.progress import duration

TAIL = 1 << 14  # bytes of a run.log in which its last step is looked for
# What train/progress.py writes: "… step 3/30  loss 2.310  1,200 tokens/s  0:12 left".
STEP = re.compile(
    r"^(?P<time>\S+ \S+) INFO .*: step (?P<step>\d+)/(?P<steps>\d+)  loss (?P<loss>\S+)  .*  (?P<left>[\d:]+) left$",
    re.MULTILINE,
)
FIRST = (Status.RUNNING, Status.FAILED)  # of more jobs than there are lines


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

    @classmethod
    def of(cls, job: Job) -> Line:
        settings = "  ".join(f"{key}={value}" for key, value in job.settings.items())
        held_out = "" if job.held_out is None else f"{job.held_out:.3f}"
        plain = cls(shown_line(job.name), job.status, held_out=held_out, settings=shown_line(settings))
        if job.status == Status.RUNNING and (last := last_step(Run(job.folder))):
            since = time.time() - datetime.fromisoformat(last["time"]).timestamp()
            left = duration(max(0.0, _seconds(last["left"]) - since))
            step = f"{last['step']}/{last['steps']}"
            return cls(plain.name, plain.status, step, last["loss"], held_out, left, plain.settings)
        training = job.report.training if job.report else None
        step = str(job.steps) if job.steps else ""
        loss = "" if training is None or training.loss_last is None else f"{training.loss_last:.3f}"
        return cls(plain.name, plain.status, step, loss, held_out, "", plain.settings, shown_line(job.error))

    @property
    def text(self) -> str:
        """Without the time left: that alone is no news."""
        step, loss = self.step and f"step {self.step}", self.loss and f"loss {self.loss}"
        held_out = self.held_out and f"held out {self.held_out}"
        parts = (self.name, self.status, step, loss, held_out, self.settings, self.error)
        return "  ".join(part for part in parts if part)


class Display:
    """On a terminal a table that is drawn anew; elsewhere a line for each change of a job."""

    def __init__(self, folder: Path, console: Console) -> None:
        self.folder, self.console = folder, console
        self._said: dict[str, str] = {}
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> Display:
        # What an earlier start has ended is no change.
        self._said = {line.name: line.text for line in self._lines()}
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.update()
        if self._live:
            self._live.stop()

    def update(self) -> None:
        lines = self._lines()
        if self._live:
            self._live.update(table(lines, self.console.height - 4), refresh=True)
            return
        for line in lines:
            if self._said.get(line.name) != line.text:
                self._said[line.name] = line.text
                left = f"  {line.left} left" if line.left else ""
                print(f"{line.text}{left}", file=self.console.file, flush=True)

    def say(self, text: str) -> None:
        """A line above the table."""
        self.console.print(Text(shown_line(text)), soft_wrap=True)

    def _lines(self) -> list[Line]:
        return [Line.of(job) for job in board.of_sweep(self.folder).jobs]


def last_step(run: Run) -> re.Match[str] | None:
    """The last step that a run has told of; None before the first."""
    try:
        with run.log_file.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
            tail = file.read().decode("utf-8", "replace")
    except OSError:
        return None
    return max(STEP.finditer(tail), key=re.Match.start, default=None)


def table(lines: Sequence[Line], most: int) -> Table:
    """At most so many jobs, those that run before the others, and how many there are of each kind."""
    shown = sorted(lines, key=lambda line: line.status not in FIRST)[: max(1, most)]
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption_justify="left")
    for title in ("job", "status", "step", "loss", "held out", "left", ""):
        right = title in ("step", "loss", "held out", "left")
        drawn.add_column(title, justify="right" if right else "left", no_wrap=bool(title))
    for line in sorted(shown, key=lines.index):
        status = Text(line.status, style=COLOURS.get(line.status, ""))
        more = "  ".join(part for part in (line.settings, line.error) if part)
        drawn.add_row(line.name, status, line.step, line.loss, line.held_out, line.left, Text(more))
    if len(shown) < len(lines):
        counts = Counter(line.status for line in lines)
        drawn.caption = "of " + ", ".join(f"{count} {status}" for status, count in counts.items())
    return drawn


def _seconds(text: str) -> float:
    """`1:01:40` in seconds."""
    total = 0
    for part in text.split(":"):
        total = total * 60 + int(part)
    return total
