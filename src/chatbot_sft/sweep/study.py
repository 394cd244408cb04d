"""The study of a sweep: which points it has, what became of each, and whether a command may go on with it.

Imports no torch, no Hydra and no Optuna.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from enum import StrEnum
from pathlib import Path

from chatbot_sft import start
from chatbot_sft.config import Config
from chatbot_sft.config.schema import OF_SWEEP
from chatbot_sft.errors import ALL, UserError, did_you_mean, listed, near, question
from chatbot_sft.jobs import finished
from chatbot_sft.model.base import located
from chatbot_sft.report.leaderboard.job import number_at
from chatbot_sft.report.masking import masked
from chatbot_sft.run.checkpoints import Checkpoint, last_in
from chatbot_sft.run.directory import Run
from chatbot_sft.run.report import PARTS, Report, Status, dotted, numbers_of_a_part
from chatbot_sft.sweep.directory import Point, Study, Sweep
from chatbot_sft.sweep.points import bare, key_of
from chatbot_sft.train.resume import refuse_completed

OTHER = "Give what it had, or name another directory (hydra.sweep.dir=DIR)"


class State(StrEnum):
    """Of a job, before a start runs any."""

    OPEN = "open"  # never run, or not to its end
    STOPPED = "stopped"  # of these, one that goes on from a checkpoint
    DONE = "done"
    FAILED = "failed"
    PRUNED = "pruned"


def of_job(overrides: Sequence[str]) -> list[str]:
    """Those that say what the jobs are, not how the sweep is run; without secrets, as sweep.json has them."""
    return [masked(word) for word in overrides if not word.startswith(OF_SWEEP)]


def joined(
    place: Sweep,
    now: Study,
    wanted: Sequence[Sequence[str]],
    folder: Callable[[int, Sequence[str]], str],
    joins: bool = False,
) -> Study:
    """`now` with the points of an earlier start, which keep their numbers, and behind them those that are new.

    `folder` gives a new point its own. A worker `joins` a start that others have begun.

    Raises:
        UserError: the earlier start was of another sweep.
    """
    before = place.study()
    points = list(before.points) if before else []
    asked = [of_job(point) for point in wanted]
    if before:
        refuse_other(before, now, asked, place)
        now.errors, now.started = before.errors, before.started
        now.begun = before.begun if joins else now.begun
    known = {frozenset(point.overrides) for point in points}
    if now.sampler is None and (gone := known - {frozenset(point) for point in asked}):
        lost = [point for point in points if frozenset(point.overrides) in gone]
        raise UserError(
            f"{place.folder}: the sweep there has jobs that are none of this one:"
            f" {listed([_named(point) for point in lost], 3)}. {OTHER}; points may be added"
        )
    number = max((point.number for point in points), default=-1)
    for overrides, shown in zip(wanted, asked, strict=True):
        if frozenset(shown) not in known:
            number += 1
            points.append(Point(number, shown, folder(number, overrides)))
    now.points = points
    return now


def refuse_other(before: Study, now: Study, asked: Sequence[Sequence[str]], place: Sweep) -> None:
    """Raises UserError where the sweep of `before` cannot be gone on with by the command of `now`, whose jobs are
    `asked` for.
    """
    was, is_now = ({bare(key_of(word)): word for word in study.overrides} for study in (before, now))
    fixed, differences = dict.fromkeys([*was, *is_now]), list[str]()
    for key in fixed:
        if key not in was and (
            values := _swept(key, before.space, [point.overrides for point in before.points])
        ):
            differences.append(f"{key} was swept over {values}; now {_value(is_now[key])}")
        elif key not in is_now and (values := _swept(key, now.space, asked)):
            differences.append(f"{key} was {_value(was[key])}; now swept over {values}")
        else:
            differences += _difference(was.get(key), is_now.get(key))
    if (
        before.sampler or now.sampler or place.journal_file.exists()
    ):  # what is in the journal is of one metric
        differences += [
            f"{name} {had or 'null'} → {has or 'null'}"
            for name, had, has in (
                ("sweep.sampler", before.sampler, now.sampler),
                ("sweep.metric", ",".join(before.metrics), ",".join(now.metrics)),
                ("sweep.direction", ",".join(before.directions), ",".join(now.directions)),
            )
            if had != has
        ]
    if before.sampler or now.sampler:
        tried, tries = ({bare(key_of(word)): word for word in study.space} for study in (before, now))
        for key in (key for key in dict.fromkeys([*tried, *tries]) if key not in fixed):
            differences += _difference(tried.get(key), tries.get(key))
    if differences:
        raise UserError(
            f"{place.folder}: the sweep there was begun with other settings: {'; '.join(differences)}. {OTHER}"
        )


def _difference(was: str | None, is_now: str | None) -> list[str]:
    """`lora.r=8 → lora.r=16`, where a word is not the same."""
    if was == is_now:
        return []
    if was is None:
        return [f"{is_now} was not there"]
    return [f"{was} is missing now" if is_now is None else f"{was} → {is_now}"]


def _swept(key: str, space: Sequence[str], points: Sequence[Sequence[str]]) -> str:
    """What the jobs at `points` try for the key, as it was typed in `space` where it stands there; empty: nothing."""
    typed = [
        word for axis in space for word in re.split(r" (?=\S+=)", axis)
    ]  # of sweep.zip an axis has several
    tried = [word for point in points for word in point]
    for words in (typed, tried):
        if values := dict.fromkeys(_value(word) for word in words if bare(key_of(word)) == key):
            return ",".join(values)
    return ""


def _value(override: str) -> str:
    return override.partition("=")[2]


def _named(point: Point) -> str:
    return f"job {point.number} ({' '.join(point.overrides) or 'one job alone'})"


def state(run: Run, settings: Config, named: Collection[str]) -> State:
    """What stands of an earlier start in the directory of a job whose `settings` have these keys `named`.

    Raises:
        UserError: another configuration was trained to its end there.
    """
    report = run.peek()  # of one that is none of a run the job itself says so
    if report is None or report.task != "train" or settings.task != "train":
        return State.OPEN
    if finished(settings, named):
        return State.DONE
    if report.status == Status.COMPLETED:
        here = located(settings)
        start.refuse_taken(here)
        refuse_completed(here, of_sweep=True)  # it may be asked for more steps
    return {Status.FAILED: State.FAILED, Status.PRUNED: State.PRUNED}.get(report.status, State.OPEN)


def checkpoint_of(settings: Config) -> Checkpoint | None:
    """The checkpoint of its own that a job with these `settings` goes on from; None where it begins anew."""
    if settings.task != "train" or settings.training.resume == "never":
        return None
    return last_in(Path(settings.training.output_dir))


def refuse_revived(number: int, states: Mapping[int, State]) -> None:
    """Raises UserError where sweep.revive names none of the jobs, or one that has nothing left to train."""
    if (
        states.get(number, State.DONE) != State.DONE
    ):  # one that was stopped meanwhile goes on by the same command
        return
    pruned = [str(job) for job, there in states.items() if there == State.PRUNED]
    why = f"job {number} is completed" if number in states else "no such job"
    what = f"pruned are {listed(pruned, ALL)}" if pruned else "none was pruned, leave it out"
    raise UserError(f"sweep.revive={number}: {why}; {what}")


def record(sweep: Sweep, number: int, error: str | None) -> None:
    """Put into sweep.json what a job failed with before it had a report; None: it has not."""
    with sweep.alone():
        study = sweep.study()
        if study and study.errors.get(number) != error:
            study.errors.pop(number, None)
            if error:
                study.errors[number] = error
            sweep.write_study(study)


# Metrics


def value(report: Report, metric: str) -> float | None:
    """The number that `metric` names in report.json; None where there is none."""
    return number_at(report.to_json(), metric)


def refuse_no_number(metrics: Sequence[str]) -> None:
    """Raises UserError for a metric that no report can have, before the first job: it is judged by when all are done.

    What a method or a hook of the user's own reports has a name without a dot, and is found in training.
    """
    known = [numbers_of_a_part(part) for part in PARTS]
    numbers = [name for there, _ in known for name in there]
    mappings = [name for _, there in known for name in there]
    by_last = {name.rpartition(".")[2]: name for name in numbers}
    for metric in metrics:
        if dotted(metric) in numbers or any(dotted(metric).startswith(f"{name}.") for name in mappings):
            continue
        meant = near(metric, numbers) or [by_last[name] for name in near(metric, list(by_last))]
        if "." in metric or meant:
            raise UserError(
                f"sweep.metric={metric}: no such number in report.json"
                f"{question(meant) or f'; there are {listed(numbers, ALL)}'}"
            )


def no_value(there: Collection[str], metric: str) -> str | None:
    """What to say where the `metric` is none of the numbers that are `there`, in the report of any job; None where it
    is.
    """
    if dotted(metric) in there:
        return None
    hint = did_you_mean(metric, sorted(there)) or f"; there are {listed(sorted(there))}"
    if metric == "training.eval_loss":
        hint = "; nothing is held out (dataset.eval_fraction, dataset.eval_data_path)"
    return f"sweep.metric={metric}: no job reports it{hint}"
