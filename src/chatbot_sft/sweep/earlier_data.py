"""Whether the jobs of a sweep that goes on, those that have ended and those that go on from a checkpoint, had the
data, and the weights to begin with, that they would have now: they could not be held against the others otherwise.
And, as each job begins, whether somebody has edited the data meanwhile. Imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from chatbot_sft.config import Config
from chatbot_sft.config.schema import ROWS
from chatbot_sft.data.template import render_as_of
from chatbot_sft.data_names import is_hub_id
from chatbot_sft.errors import UserError, listed
from chatbot_sft.hydra_job import Job
from chatbot_sft.model.base import located
from chatbot_sft.model.earlier import adopt
from chatbot_sft.replay import evidence
from chatbot_sft.run.directory import Run
from chatbot_sft.run.fingerprint import FileMark, data_mark
from chatbot_sft.run.lock import Lock
from chatbot_sft.run.provenance import DATA, GOLDEN
from chatbot_sft.sweep.directory import Point, Sweep

TRAINED, HELD_OUT, ANSWERS, WEIGHTS = "training rows", "held-out rows", "golden answers", "weights"
CONFIG = "config.json"


@dataclass(frozen=True)
class Change:
    """Which `parts` of its data are not what a job had, and of which `files` they are, or ids of the hub."""

    parts: Sequence[str] = ()
    files: Sequence[str] = ()


def refuse(place: Sweep, trained: Sequence[tuple[Point, Job]], by_answers: bool) -> None:
    """Raises UserError where one of the jobs that were `trained`, to their end or a part of it, had other rows or
    weights than it would have now; or other golden answers, where jobs are judged `by_answers`.
    """
    data, other, same = Data(), dict[str, Change](), set[str]()
    for point, job in trained:
        run = place.run(point)
        if (change := data.change(run, job, by_answers)).parts:
            other[os.path.relpath(run.folder, place.folder)] = change
        else:
            same |= {mark.path for marks in data.marks(job).values() for mark in marks}
    if other:
        parts = dict.fromkeys(part for change in other.values() for part in change.parts)
        files = dict.fromkeys(file for change in other.values() for file in change.files)
        raise UserError(
            f"{place.folder}: the {' and '.join(parts)} of {listed(map(_shown, files), 3)} are not those that"
            f" {'job' if len(other) == 1 else 'jobs'} {listed(other, 5)} had; {_back(files, same)}name another"
            " directory for the sweep (hydra.sweep.dir=DIR), or move the directories of these away, so that they"
            " run again"
        )


def _shown(file: str) -> str:
    return Path(file).name if Path(file).is_absolute() else file


def _back(files: Iterable[str], same: Collection[str]) -> str:
    """Nothing is to put back of what the hub has, nor where jobs that are not refused were trained on the `same`."""
    there = [file for file in files if Path(file).is_absolute()]
    return "put it back as it was, " if there and not set(there).intersection(same) else ""


@dataclass
class Data:
    """What jobs would be trained on now, looked at once for all that name the same."""

    marked: dict[str, dict[str, list[FileMark]]] = field(default_factory=dict)
    prepared: dict[str, tuple[str, str] | None] = field(default_factory=dict)

    def change(self, run: Run, job: Job, by_answers: bool) -> Change:
        """Since `run` was trained. What cannot be had now is for those jobs to say that need it."""
        now, hub = self.marks(job), _of_the_hub(job.settings)
        lock = _lock(run)
        before = lock.provenance.files if lock and lock.provenance else {}
        if not now:
            return Change()
        had, has = before.get(DATA, []), now[DATA]
        changed = bool(had) and [mark.sha256 for mark in had] != [mark.sha256 for mark in has]
        parts, files = [], _others(had, has) if changed else hub or [mark.path for mark in has]
        if changed or hub or not had:
            parts = self._other_rows(run, lock, job, changed)
        files = files if parts else []
        for key in sorted(before.keys() & now.keys() - {DATA}):
            part = ANSWERS if key == GOLDEN else WEIGHTS
            # Whose config.json another version of a library may have written.
            was, is_now = (
                [mark for mark in of[key] if Path(mark.path).name != CONFIG] for of in (before, now)
            )
            if (by_answers or part == WEIGHTS) and (others := _others(was, is_now)):
                parts, files = [*parts, part], [*files, *others]
        return Change(parts, files)

    def marks(self, job: Job) -> dict[str, list[FileMark]]:
        """Of the files that its settings name, as a lock has them; {} where one is gone."""
        settings = job.settings
        key = repr((settings.dataset, settings.model, settings.objective, settings.evaluation.golden))
        if key not in self.marked:
            try:
                self.marked[key] = evidence.files(adopt(located(settings), job.named))
            except UserError:
                self.marked[key] = {}
        return self.marked[key]

    def _other_rows(self, run: Run, lock: Lock | None, job: Job, changed: bool) -> list[str]:
        """In which rows the data differ; where none can be made of it, in those to train if a file `changed`."""
        report = run.peek()
        had = report.dataset if report else None
        if lock:
            trained, started = str(lock.decides[ROWS]), lock.date
        elif report and had and had.fingerprint:
            trained, started = had.fingerprint[:16], report.started
        else:
            return []
        rows = self._rows(job, datetime.fromisoformat(started))
        if rows is None:
            return [TRAINED] if changed else []
        parts = [TRAINED] if rows[0][:16] != trained else []
        # A killed run has no report. What transformers' own tokenizer made of the rows in the end are other ones:
        # `DatasetLoader.prepare_for`.
        comparable = had if had and had.fingerprint.startswith(trained) else None
        if comparable and comparable.held_out_fingerprint not in ("", rows[1]):
            parts.append(HELD_OUT)
        return parts

    def _rows(self, job: Job, started: datetime) -> tuple[str, str] | None:
        """The fingerprints of those to train and to hold out, as of that day; None where they cannot be had."""
        from chatbot_sft import pipeline

        settings = job.settings
        training = (settings.rows_seed, settings.training.response_only, started.date())
        key = repr((settings.dataset, settings.model, settings.objective, *training))
        if key not in self.prepared:
            render_as_of(started)
            try:
                stages = pipeline.Stages.of(adopt(located(settings), job.named))
                found = pipeline.prepare(stages).statistics
                self.prepared[key] = found.fingerprint, found.held_out_fingerprint
            except UserError:
                self.prepared[key] = None
        return self.prepared[key]


@dataclass
class Edits:
    """What the jobs of this process found in the files of their data as they began."""

    by_answers: bool  # whether jobs are judged by golden answers, which count then too
    found: dict[str, tuple[str, int]] = field(
        default_factory=dict
    )  # by file: SHA-256, and the last job that had it

    def news(self, number: int, settings: Config) -> str:
        """What to say of files that have changed since the last job that names them; empty where none has. What is
        gone is for the job to say.
        """
        if settings.task != "train":
            return ""
        try:
            marks = evidence.data(settings)
        except UserError:
            return ""
        golden = Path(settings.evaluation.golden or "").expanduser()
        if self.by_answers and golden.is_file():
            marks = [*marks, data_mark(golden)]
        since = dict[str, int]()
        for mark in marks:
            content, last = self.found.get(mark.path, (mark.sha256, number))
            if content != mark.sha256:
                since[mark.path] = last
            self.found[mark.path] = mark.sha256, number
        if not since:
            return ""
        has, it = (
            ("has", "the file back as it was") if len(since) == 1 else ("have", "the files back as they were")
        )
        return (
            f"{listed(map(_shown, since), 3)} {has} changed since job {max(since.values())} began: job {number} is"
            " trained on what is there now, and rows with and without the change stand in one table; Ctrl-C ends the"
            f" sweep: put {it}, move the directory of job {number} away, and give the same command again, or name"
            " another directory for the new data (hydra.sweep.dir=DIR)"
        )


def _others(before: Sequence[FileMark], now: Sequence[FileMark]) -> list[str]:
    """Where the files are that had other bytes, or are gone."""
    had, has = ({mark.sha256 for mark in marks} for marks in (before, now))
    added = [mark.path for mark in now if mark.sha256 not in had]
    return added or [mark.path for mark in before if mark.sha256 not in has]


def _of_the_hub(settings: Config) -> list[str]:
    dataset = settings.dataset
    named = [*(source.data_path for source in dataset.mixture), dataset.eval_data_path or ""]
    return [name for name in named if is_hub_id(name)]


def _lock(run: Run) -> Lock | None:
    try:
        return run.lock()
    except UserError:
        return None
