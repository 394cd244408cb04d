"""The columns of the table, the same in the terminal and in the page: what stands in a row's cell, and a job's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from chatbot_sft.report.leaderboard.board import Board
from chatbot_sft.report.leaderboard.job import HELD_OUT, Job
from chatbot_sft.report.leaderboard.rows import Row
from chatbot_sft.report.leaderboard.settings import as_number
from chatbot_sft.run.report import dotted

BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Figure:
    """A column of numbers that reports have: of a row the mean of its jobs."""

    title: str
    of: Callable[[Job], float | None]
    form: Callable[[float], str]

    def mean(self, row: Row) -> float | None:
        known = [value for job in row.jobs if (value := self.of(job)) is not None]
        return sum(known) / len(known) if known else None


def metric(value: float) -> str:
    """Four digits behind the point of a loss; large and small numbers as they need it."""
    return f"{value:.4f}" if 0.01 <= abs(value) < 1000 or value == 0 else f"{value:.4g}"


def whole(value: float) -> str:
    return f"{value:,.0f}"


def short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 1 else f"{value:.2f}"


def share(value: float) -> str:
    return f"{value:.0%}"


FIGURES = (
    Figure("steps", lambda job: job.steps, whole),
    Figure("tokens/s", lambda job: job.tokens_per_second, whole),
    Figure("peak GB", lambda job: job.peak_gb, short),
    Figure("seconds", lambda job: job.seconds, short),
)
LOSS = Figure("held-out loss", lambda job: job.held_out, metric)
# Where an objective has rewards, by the metric that they are.
REWARDS = {
    "rewards/margins": Figure("reward margin", lambda job: job.margin, metric),
    "rewards/accuracies": Figure("reward accuracy", lambda job: job.accuracy, share),
}


def figures(board: Board) -> tuple[Figure, ...]:
    """The held-out loss has a column of its own where it is not the metric; rewards have one where a job has some."""
    jobs, the_metric = board.jobs, dotted(board.metric)
    rewards = [
        figure
        for name, figure in REWARDS.items()
        if dotted(name) != the_metric and any(figure.of(job) is not None for job in jobs)
    ]
    return (*(() if board.metric == HELD_OUT else (LOSS,)), *rewards, *FIGURES)


def setting(row: Row, key: str) -> str:
    """That of all jobs of the row, each value once."""
    values = dict.fromkeys(job.settings.get(key, "") for job in row.jobs)
    return ", ".join(sorted(values, key=lambda text: (as_number(text) is None, as_number(text) or 0, text)))


def value(row: Row) -> str:
    """`1.8423 ± 0.0031`."""
    if row.mean is None:
        return ""
    return metric(row.mean) + (f" {spread(row.spread)}" if row.spread is not None else "")


def spread(value: float) -> str:
    """`± 0.0031`: as many digits as the metric has, where it has them."""
    return f"± {value:.4f}" if 0.0005 <= value < 100 else f"± {value:.1g}"


def bars(curve: Sequence[tuple[int, float]], most: int = 12) -> str:
    """The curve in one line of text, its highest value as the highest bar."""
    losses = [loss for _, loss in curve]
    if len(losses) < 2:
        return ""
    if len(losses) > most:
        losses = [losses[round(at * (len(losses) - 1) / (most - 1))] for at in range(most)]
    low, high = min(losses), max(losses)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((loss - low) * scale)] for loss in losses)
