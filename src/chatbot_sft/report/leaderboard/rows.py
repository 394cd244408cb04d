"""Jobs that differ in their seed alone, and not in their data, are one row: its mean, its spread, and whether that
decides anything.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from chatbot_sft.report.leaderboard.job import Job

SEED = "seed"


@dataclass(frozen=True)
class Row:
    """One configuration: its `jobs`, the best first. `mean` and `spread` (standard deviation) are the metric's,
    of the completed ones where there are any; `spread` is None of a single one.
    """

    jobs: tuple[Job, ...]
    mean: float | None
    spread: float | None

    @property
    def best(self) -> Job:
        return self.jobs[0]

    @property
    def name(self) -> str:
        return self.best.name if len(self.jobs) == 1 else f"{self.best.name} +{len(self.jobs) - 1}"

    @property
    def status(self) -> str:
        counts = Counter(str(job.status) for job in self.jobs)
        if len(counts) == 1:
            return str(self.best.status)
        return ", ".join(f"{count} {status}" for status, count in counts.items())

    @property
    def completed(self) -> bool:
        return any(job.completed for job in self.jobs)


def rows(jobs: Sequence[Job], maximise: bool = False) -> list[Row]:
    """All jobs, each in one row, the best row first: completed ones, then those with a value, then the rest."""
    together: dict[object, list[Job]] = {}
    for job in jobs:
        together.setdefault(_configuration(job), []).append(job)
    sign = -1 if maximise else 1
    made = [
        _row(part, sign)
        for group in together.values()
        for alike in by_data(group)
        for part in _repeats(alike)
    ]
    return sorted(made, key=lambda row: (*_order(row.completed, row.mean, sign), row.best.number))


def _configuration(job: Job) -> object:
    """What the jobs of one row have in common. Without a seed among its keys a job is a row of its own."""
    if SEED not in job.settings:
        return job.number
    return frozenset((key, value) for key, value in job.settings.items() if key != SEED)


def by_data(jobs: Sequence[Job]) -> list[Sequence[Job]]:
    """Those of the same data together; those of which it is not known apart from others where these differ."""
    parts: dict[object, list[Job]] = {}
    for job in jobs:
        parts.setdefault(job.data and job.data.content, []).append(job)
    return [jobs] if len(parts.keys() - {None}) < 2 else list(parts.values())


def _repeats(jobs: Sequence[Job]) -> list[Sequence[Job]]:
    """Those of each sweep by themselves, where two have a seed in common: it would count twice."""
    if len({job.settings.get(SEED) for job in jobs}) == len(jobs):
        return [jobs]
    sweeps: dict[Path, list[Job]] = {}
    for job in jobs:
        sweeps.setdefault(job.folder.parent, []).append(job)
    return list(sweeps.values())


def _row(jobs: Sequence[Job], sign: int) -> Row:
    ordered = sorted(jobs, key=lambda job: (*_order(job.completed, job.value, sign), job.number))
    measured = [job for job in ordered if job.value is not None]
    completed = [job for job in measured if job.completed]
    values = [job.value for job in completed or measured if job.value is not None]
    spread = statistics.stdev(values) if len(values) > 1 else None
    return Row(tuple(ordered), statistics.fmean(values) if values else None, spread)


def _order(completed: bool, value: float | None, sign: int) -> tuple[bool, bool, float]:
    return value is None, not completed, sign * (value or 0.0)


def undecided(first: Row, second: Row) -> bool:
    """Whether the seeds' spread is larger than what the two differ by."""
    known = [row.spread for row in (first, second) if row.spread is not None]
    if not known or first.mean is None or second.mean is None:
        return False
    return abs(first.mean - second.mean) < max(known)


def rivals(table: Sequence[Row]) -> list[Row]:
    """The rows that the best cannot be told from."""
    return [row for row in table[1:] if row.completed and undecided(table[0], row)]


def differing(settings: Sequence[Mapping[str, str]]) -> list[str]:
    """The keys in which not all agree, in the order in which they were first written."""
    every = dict.fromkeys(key for one in settings for key in one)
    return [key for key in every if len({one.get(key) for one in settings}) > 1]
