"""Which job of a study is next for this process: the points in their order, those that no other worker has taken,
those that a sampler chooses as they are asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field

from chatbot_sft.config import SweepConfig
from chatbot_sft.errors import UserError
from chatbot_sft.jobs import Job as Entry
from chatbot_sft.sweep import study
from chatbot_sft.sweep.directory import Point, Study, Sweep
from chatbot_sft.sweep.points import bare, key_of
from chatbot_sft.sweep.sampling import Trials

# Of their steps those that a pruner lets jobs take, about: with halving, eight jobs took 500 to 600 of 1,600.
LEFT_BY_A_PRUNER = 1 / 3


@dataclass
class Queue:
    """The points of `study` for one worker, which puts into `entries` what it has of each."""

    place: Sweep
    study: Study
    settings: SweepConfig
    new_folder: Callable[[int, Sequence[str]], str]
    trials: Trials | None = None
    entries: list[Entry] = field(default_factory=list)
    deadline: float | None = None  # by time.monotonic

    def points(self) -> Generator[Point, None, None]:
        """Every point once."""
        self._note_trials()
        if self.settings.worker:
            yield from self._free()
            return
        number = 0
        while True:
            if number == len(self.study.points) and not self._ask():
                return
            if self.over():
                return
            yield self.study.points[number]
            number += 1

    def _free(self) -> Generator[Point, None, None]:
        """For one of several workers: points that no other has taken. After each job it begins at the first
        again: one of a worker that was killed is free.
        """
        while not self.over():
            known = {entry.number for entry in self.entries}
            for point in (point for point in self.study.points if point.number not in known):
                yield point
                if self.entries and self.entries[-1].number == point.number and self.entries[-1].began:
                    break
            else:
                if not self._ask():
                    return
            self.study = self.place.study() or self.study

    def _ask(self) -> bool:
        """Whether a sampler has chosen one more point."""
        if self.trials is None:
            return False
        with self.place.alone():
            more = self.trials.ask()
        if more:
            self._note_trials()
        return more

    def _note_trials(self) -> None:
        """Give every trial of a sampler that has no point its point."""
        if self.trials is None or self.settings.sampler is None:
            return
        with self.place.alone():
            self.study = self.place.study() or self.study
            for number, overrides in enumerate(self.trials.points()):
                if number == len(self.study.points):
                    point = Point(number, study.of_job(overrides), self._folder_of(number, overrides))
                    self.study.points.append(point)
            self.place.write_study(self.study)

    def _folder_of(self, number: int, overrides: Sequence[str]) -> str:
        """Its own number where the schema refuses the job, which has then no other name. A point that is drawn again
        has the name of the first, and its number behind it.
        """
        try:
            folder = self.new_folder(number, overrides)
        except UserError:
            return str(number)
        taken = {point.folder for point in self.study.points}
        return f"{folder}.{number}" if folder in taken else folder

    def over(self) -> bool:
        """Whether no other job may begin."""
        others = self.settings.worker  # those of other workers count too
        failed = sum(entry.status == "failed" and (entry.began or others) for entry in self.entries)
        most = 0 if self.settings.fail_fast else self.settings.max_failures
        return self.late or (most is not None and failed > most)

    def point(self, number: int) -> Point:
        return next(point for point in self.study.points if point.number == number)

    @property
    def runs_of_a_form(self) -> float:
        """How many whole runs this worker trains, about, for each model and shape of adapter that the points name."""
        forms = {
            frozenset(word for word in point.overrides if bare(key_of(word)).startswith(("model", "lora")))
            for point in self.study.points
        }
        jobs = max(len(self.study.points), self.settings.trials or 0)
        return self.share_of(jobs) / max(1, len(forms)) * (LEFT_BY_A_PRUNER if self.settings.pruner else 1)

    def share_of(self, jobs: int) -> float:
        """How many of `jobs` this worker has, about."""
        workers = self.settings.workers if self.settings.worker else 1
        return jobs / workers if isinstance(workers, int) else 1

    @property
    def left(self) -> int:
        """How many jobs this worker has not come to."""
        return len(self.study.points) - len(self.entries)

    @property
    def late(self) -> bool:
        """Whether sweep.timeout is over."""
        return self.deadline is not None and time.monotonic() >= self.deadline
