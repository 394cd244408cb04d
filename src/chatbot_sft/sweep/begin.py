"""From a composed sweep to its jobs: every one of them is composed and checked before a folder is made."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from chatbot_sft import distributed, hydra_job, run_directory, start
from chatbot_sft.config import Config, SweepConfig, hydra_glue
from chatbot_sft.config.schema import OUR_PACKAGE, of_answers
from chatbot_sft.errors import UserError, listed
from chatbot_sft.hydra_job import Job
from chatbot_sft.objective import objective_of
from chatbot_sft.report.masking import MASK, mask_yaml
from chatbot_sft.report.plain import shown_line
from chatbot_sft.report.words import amount
from chatbot_sft.run.report import Report, Status, now
from chatbot_sft.sweep import earlier_data, outputs, points, study
from chatbot_sft.sweep.directory import Point, Study, Sweep
from chatbot_sft.sweep.display import Display
from chatbot_sft.sweep.points import Space, bare, key_of
from chatbot_sft.sweep.queue import Queue
from chatbot_sft.sweep.sampling import Trials
from chatbot_sft.sweep.study import State
from chatbot_sft.sweep.turns import InTurns
from chatbot_sft.sweep.worker import Worker


@dataclass
class Jobs:
    """The jobs of a sweep: composed, and each in its place once its number is known."""

    config: DictConfig  # the sweep's
    space: Space
    context: HydraContext
    folder: Path
    composed: dict[frozenset[str], tuple[DictConfig, Config]] = field(default_factory=dict)  # by its point
    written: dict[frozenset[str], Sequence[str]] = field(default_factory=dict)  # by what sweep.json has of it
    numbered: dict[frozenset[str], Job] = field(default_factory=dict)  # by its point, as it was numbered last
    by_settings: dict[str, Sequence[str]] = field(default_factory=dict)

    def compose(self, point: Sequence[str]) -> DictConfig:
        """Raises UserError where the schema refuses it, or its objective."""
        key = frozenset(point)
        if key not in self.composed:
            job, settings = hydra_glue.composed_job(self.config, self.space.job(point))
            # A class of the user's own is found once the sweep has begun.
            if settings.objective._target_.startswith(OUR_PACKAGE):
                objective_of(settings)
            self.composed[key] = job, settings
        return self.composed[key][0]

    def compose_another(self, point: Sequence[str]) -> DictConfig:
        """`compose`, of one of the points that the sweep begins with.

        Raises:
            UserError: another is the same job, or looks the same in sweep.json, which has no secrets.
        """
        shown = study.of_job(point)
        if self.config.sweep.sampler and (keys := _keys(word for word in shown if MASK in word)):
            raise UserError(
                _of_secrets(keys, "what is masked as a secret would stand in a sampler's journal")
            )
        first = self.written.setdefault(frozenset(shown), point)
        if keys := _keys(word for word in point if word not in first):
            raise UserError(_of_secrets(keys, "two jobs differ only in what is masked as a secret"))
        job = self.compose(point)
        same = self.by_settings.setdefault(repr(self.composed[frozenset(point)][1]), point)
        if same is not point:
            raise UserError(f"comes to the same as {' '.join(map(bare, same))}; leave one of them out")
        if frozenset(shown) not in self.stay:
            self.files.refuse(self.composed[frozenset(point)][1])
        return job

    @functools.cached_property
    def files(self) -> start.Files:
        return start.Files(goes_on=Sweep(self.folder).begun, dry=self.config.sweep.dry_run)

    @functools.cached_property
    def stay(self) -> set[frozenset[str]]:
        """The points that an earlier start has ended and this one leaves as they are: their files may be gone."""
        place = Sweep(self.folder)
        if (found := place.study()) is None:
            return set()
        ends, failed = {Status.COMPLETED, Status.PRUNED}, set[int]()
        if not self.config.sweep.retry_failed:
            ends, failed = {*ends, Status.FAILED}, set(found.errors)
        return {
            frozenset(point.overrides)
            for point in found.points
            if point.number in failed or ((report := place.run(point).peek()) and report.status in ends)
        }

    def as_number(self, number: int, point: Sequence[str]) -> Job:
        """In the folder that hydra.sweep.subdir says."""
        key = frozenset(point)
        job = self.numbered.get(key)
        if job is None or (job.number, job.sweep) != (number, self.folder):
            job = self.numbered[key] = Job.at(self.compose(point), self.folder, None, number, self.context)
        return job

    def place(self, number: int, point: Sequence[str]) -> str:
        """The folder of a new point, relative to the sweep's."""
        return str(self.as_number(number, point).hydra.sweep.subdir)

    def at(self, point: Point) -> Job:
        """Raises UserError where sweep.json has it without its secrets, and this command does not name them."""
        words = self.written.get(frozenset(point.overrides), point.overrides)
        if words is point.overrides and (secret := [word for word in words if MASK in word]):
            raise UserError(
                f"{secret[0]}: a job of another start, and sweep.json has no secrets; give that start's command"
            )
        job = self.as_number(point.number, words)
        if str(job.hydra.sweep.subdir) == point.folder:
            return job
        return Job.at(self.compose(words), self.folder, point.folder, point.number, self.context)


def _keys(words: Iterable[str]) -> list[str]:
    return [bare(key_of(word)) for word in words]


def _of_secrets(keys: Sequence[str], why: str) -> str:
    return (
        f"{listed(keys)}: {why}; have environment variables hold the values, {keys[0]}='${{oc.env:NAME}}', or write"
        " them without what looks like a secret"
    )


def sweep(config: DictConfig, context: HydraContext) -> None:
    """Run the sweep that `config` is, or list it.

    Raises:
        UserError: what is refused before a folder is made; at the end, how many jobs failed.
    """
    from chatbot_sft.sweep import launch

    settings = points.settings(config)
    study.refuse_no_number(settings.metrics)
    space = points.of_config(config, context.config_loader)
    jobs = Jobs(config, space, context, Path(config.hydra.sweep.dir))
    checked = list(space.samples() if settings.sampler else space.points())
    composed = hydra_glue.composed_jobs(checked, jobs.compose_another, numbered=not settings.sampler)
    outputs.refuse_shared([jobs.as_number(number, point) for number, point in enumerate(checked)])
    run_directory.refuse_run(jobs.folder)
    wanted = [] if settings.sampler else checked
    if settings.dry_run:
        for line in listing(jobs, settings, wanted):
            print(shown_line(line))
        return
    trials = Trials.of(settings, space, int(composed[0].seed))
    if trials and distributed.processes() > 1:
        raise UserError(
            "sweep.sampler and sweep.pruner: not in a sweep that torchrun has started; leave torchrun out"
        )
    sys.path[:0] = hydra_job.users_folders(config.hydra)
    places = launch.wanted(settings, config.hydra)
    jobs.folder = run_directory.join_sweep(config) if settings.worker else run_directory.claim_sweep(config)
    place = Sweep(jobs.folder)
    with place.alone() if distributed.is_first() else contextlib.nullcontext():
        found = study.joined(place, begun(jobs, settings), wanted, jobs.place, settings.worker)
        states = states_of(place, jobs, found, settings)
        if settings.retry_failed and not settings.worker:
            found.errors.clear()
        if distributed.is_first() and not (settings.worker and place.study()):
            write(place, found, config)
    if distributed.is_first() and not settings.worker:
        print(shown_line(f"sweep: {place.folder}"), file=sys.stderr)
    if config.hydra.job.chdir:
        hydra_job.tell_chdir(config.hydra)
    if trials:
        trials.open(place, alone=not settings.worker)
        if not settings.worker:
            forget(trials, states)
    if places:
        launch.run(config, context, place, places)
        return
    trains = all(job.task == "train" for job in composed)
    shows = trains and distributed.is_first() and not settings.worker
    queue = Queue(place, found, settings, jobs.place, trials)
    worker = InTurns if settings.pruner else Worker
    worker(queue, jobs.at, shown_in(place) if shows else None).run()


def states_of(place: Sweep, jobs: Jobs, found: Study, settings: SweepConfig) -> dict[int, State]:
    """What an earlier start has left of each job for this one, by its number. Whoever joins a start compares no data:
    they may be large, and the start has done it.

    Raises:
        UserError: another job's is in a directory, the job that sweep.revive names has nothing left to train, or one
            that has ended, or goes on from a checkpoint, was trained on other data.
    """
    states, trained = {}, []
    for point in found.points:
        job = jobs.at(point)
        there = study.state(place.run(point), job.settings, job.named)
        if there == State.OPEN or (there == State.FAILED and settings.retry_failed):
            there = State.STOPPED if study.checkpoint_of(job.settings) else State.OPEN
        states[point.number] = there
        if there in (State.DONE, State.PRUNED, State.STOPPED):
            trained.append((point, job))
    if settings.worker:
        return states
    if settings.revive is not None:
        study.refuse_revived(settings.revive, states)
    if trained and distributed.is_first():
        earlier_data.refuse(place, trained, any(map(of_answers, settings.metrics)))
    return states


def forget(trials: Trials, states: Mapping[int, State]) -> None:
    """Take out of the journal what it has of jobs that begin anew: their directories were moved away, say."""
    if anew := trials.begin_anew([number for number, there in states.items() if there == State.OPEN]):
        one = len(anew) == 1
        who, what = (f"job {anew[0]} runs", "it") if one else (f"jobs {listed(anew)} run", "them")
        print(f"{who} again from the first step; what study.log had of {what} is forgotten", file=sys.stderr)


def shown_in(place: Sweep) -> Display:
    """What shows the jobs that this process trains; those that fail, and one that is stopped, it tells itself."""
    # This stream, and not what takes its place while libraries are kept quiet.
    return Display(
        place.folder, Console(file=sys.stderr, highlight=False), told=[Status.FAILED, Status.INTERRUPTED]
    )


def begun(jobs: Jobs, settings: SweepConfig) -> Study:
    """What this command says of the sweep; its points are not yet in it."""
    return Study(
        command=hydra_job.sweep_command(jobs.config.hydra, jobs.folder),
        started=now(),
        begun=now(),
        metric=settings.metrics[0],
        direction=settings.directions[0],
        overrides=study.of_job(jobs.space.fixed),
        space=study.of_job(jobs.space.typed),
        sampler=settings.sampler,
        metrics=settings.metrics,
        directions=settings.directions,
    )


def write(place: Sweep, found: Study, config: DictConfig) -> None:
    """Within `place.alone()`: sweep.json, and multirun.yaml as Hydra's own sweeper writes it."""
    place.write_study(found)
    OmegaConf.save(config, place.composed_file)
    mask_yaml(place.composed_file)


# sweep.dry_run


def listing(jobs: Jobs, settings: SweepConfig, wanted: Sequence[Sequence[str]]) -> list[str]:
    """A line for each job: what it changes, and what is there of it; how long the rest may take.

    Raises:
        UserError: the directory is another sweep's.
    """
    place = Sweep(jobs.folder)
    found = study.joined(place, begun(jobs, settings), wanted, jobs.place)
    states = states_of(place, jobs, found, settings)
    lines, reports, left = [], [], 0
    for point in found.points:
        there = states[point.number]
        report = place.run(point).report() if there == State.DONE else None
        reports += [report] if report else []
        left += there in (State.OPEN, State.STOPPED) or settings.revive == point.number
        mark: list[str] = [there] if there in (State.DONE, State.PRUNED, State.FAILED) else []
        if there == State.STOPPED and (last := study.checkpoint_of(jobs.at(point).settings)):
            mark = [f"resumes from step {last.step}"]
        lines.append("  ".join([f"job {point.number}", *mark, *point.overrides]))
    total = amount(len(found.points), "job")
    if settings.sampler:
        left = (settings.trials or 0) - len(found.points) + left
        among = "  ".join(jobs.space.typed)
        trials = amount(settings.trials, "job") if settings.trials else "any number of jobs"
        total = f"{trials}, which {settings.sampler} chooses from {among}"
    return [*lines, f"{total}; {estimate(reports, left)}; nothing was trained (sweep.dry_run=true)"]


def estimate(reports: Sequence[Report], left: int) -> str:
    """How long `left` jobs may take, by those of this sweep that have ended."""
    seconds = [
        (datetime.fromisoformat(report.finished) - datetime.fromisoformat(report.started)).total_seconds()
        for report in reports
        if report.finished
    ]
    if not left:
        return "none is left to run"
    if not seconds:
        return "no estimate of time before one of them has run (task=plan measures a step)"
    mean = sum(seconds) / len(seconds)
    return (
        f"{left} to run, about {left * mean / 60:.1f} minutes by the {mean:.0f} s that each of {len(seconds)}"
        " finished ones took from its last start to its end"
    )
