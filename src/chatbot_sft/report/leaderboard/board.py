"""What there is to compare: a sweep, or several runs, in rows, with what has to be said of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from chatbot_sft.config.schema import direction_of
from chatbot_sft.errors import UserError, listed, near, question
from chatbot_sft.report.ending import beside_sweep
from chatbot_sft.report.leaderboard import settings
from chatbot_sft.report.leaderboard.job import HELD_OUT, WAITING, Job, in_use, numbers, read, reported
from chatbot_sft.report.leaderboard.rows import Row, by_data, differing, rivals, rows
from chatbot_sft.report.masking import masked
from chatbot_sft.report.words import amount
from chatbot_sft.run.directory import REPORT, Run
from chatbot_sft.run.report import Status
from chatbot_sft.sweep.directory import Study, Sweep


@dataclass(frozen=True)
class Board:
    """`keys` are the columns of settings, `notes` sentences for a person, `fault` what has to be mended."""

    title: str
    metric: str
    maximise: bool
    keys: list[str]
    rows: list[Row]
    command: str = ""
    notes: list[str] = field(default_factory=list)
    fault: str = ""

    @property
    def jobs(self) -> list[Job]:
        """By number."""
        return sorted((job for row in self.rows for job in row.jobs), key=lambda job: job.number)

    @property
    def several_sweeps(self) -> bool:
        """Whether jobs of more than one are compared."""
        return any(job.sweep for job in self.jobs)

    @property
    def not_ended(self) -> list[Job]:
        """Those of which there may be more."""
        return [job for job in self.jobs if job.under_way or job.status == Status.INTERRUPTED]

    @property
    def metric_name(self) -> str:
        return "held-out loss" if self.metric == HELD_OUT else self.metric

    @property
    def counts(self) -> str:
        """ "6 jobs: 4 completed, 1 failed, 1 pruned"."""
        jobs = self.jobs
        parts = Counter(str(job.status) for job in jobs)
        said = ", ".join(f"{count} {status}" for status, count in parts.most_common())
        return f"{amount(len(jobs), 'job')}: {said}" if jobs else "no jobs yet"


@dataclass(frozen=True)
class Entry:
    """Where a job is, and what it is called, before it is read."""

    number: int
    name: str
    folder: Path
    settings: Mapping[str, str]
    told: str = ""
    sweep: Path | None = None  # of which it is one, where jobs of several are compared
    in_sweep: int | None = None  # its number there


def of(folders: Sequence[Path], metric: str | None = None, maximise: bool | None = None) -> Board:
    """The sweep in the one folder, or the runs in several.

    Raises:
        UserError: nothing is there that could be compared.
    """
    for folder in folders:
        if not folder.is_dir():
            raise UserError(
                f"{folder}: no such folder; name a sweep's directory (outputs/multirun/<date>/<time>),"
                " or several runs"
            )
    if len(folders) == 1:
        return of_sweep(folders[0], metric, maximise)
    found = [one for folder in folders for one in _runs_of(folder)]
    runs = [run for run, _, _ in found]
    several = len({sweep for _, sweep, _ in found}) > 1
    settled = settings.of_runs(runs, overrides_first=False)
    names = _names(runs)
    entries = [
        Entry(number, name, run, settled[number], "", *(of_sweep if several else ()))
        for number, (name, (run, *of_sweep)) in enumerate(zip(names, found, strict=True))
    ]
    return _board(amount(len(runs), "run"), entries, metric or HELD_OUT, maximise)


def of_sweep(folder: Path, metric: str | None = None, maximise: bool | None = None) -> Board:
    """The sweep in `folder`, with or without a sweep.json that can be read.

    Raises:
        UserError: it is no sweep.
    """
    notes: list[str] = []
    study = _study(folder, notes)
    if study is None:
        runs = _children(folder)
        if not runs:
            raise UserError(_no_sweep(folder))
        settled = settings.of_runs(runs, overrides_first=True)
        entries = [
            Entry(_number(run, at), f"job {run.name}", run, settled[at]) for at, run in enumerate(runs)
        ]
        return _board(_title(folder), entries, metric or HELD_OUT, maximise, notes=notes)
    entries = [
        Entry(
            point.number,
            f"job {point.number}",
            folder / point.folder,
            settings.of_overrides(point.overrides),
            study.errors.get(point.number, ""),
        )
        for point in study.points
    ]
    return _board(
        _title(folder),
        entries,
        metric or study.metric,
        study.direction == "maximise" if metric is None and maximise is None else maximise,
        str(masked(study.command)),
        notes,
        swept=in_use(Run(folder)),
    )


def _study(folder: Path, notes: list[str]) -> Study | None:
    """What sweep.json says; where it cannot be read a note says so, and the jobs' folders take its place."""
    try:
        return Sweep(folder).study()
    except UserError:
        notes.append("sweep.json cannot be read: the jobs are those whose folders are here")
        return None


def _board(
    title: str,
    entries: Sequence[Entry],
    metric: str,
    maximise: bool | None,
    command: str = "",
    notes: Sequence[str] = (),
    swept: bool = False,
) -> Board:
    """`swept`: a process has the sweep's directory, and goes on with it."""
    maximise = direction_of(metric) == "maximise" if maximise is None else maximise
    keys = differing([entry.settings for entry in entries])
    jobs = [_job(entry, keys, metric, bool(command)) for entry in entries]
    table = rows(jobs, maximise)
    fault = _no_metric(metric, jobs)
    beside = [*_edited(jobs), *_other_rows(metric, jobs), *_other_losses(metric, keys)]
    stopped = [] if swept else _stopped(jobs, command)
    said = [*notes, *_spread(table), *beside, *stopped, *([fault] if fault else [])]
    return Board(title, metric, maximise, keys, table, command, said, fault)


def _job(entry: Entry, keys: Sequence[str], metric: str, goes_on: bool) -> Job:
    """`goes_on`: how its sweep does is told, and of a job that was stopped not how it does by itself."""
    asked = {key: entry.settings[key] for key in keys if key in entry.settings}
    job = read(entry.number, entry.name, entry.folder, asked, metric, entry.told)
    error = beside_sweep(job.error) if goes_on and job.status == Status.INTERRUPTED else job.error
    return replace(job, error=error, sweep=entry.sweep, in_sweep=entry.in_sweep)


def _spread(table: Sequence[Row]) -> list[str]:
    """Where the best is none."""
    close = rivals(table)
    if not close:
        return []
    spread = max(row.spread for row in (table[0], *close) if row.spread is not None)
    others = listed((row.name for row in close), most=5)
    return [
        f"{table[0].name} is first, but {others} cannot be told from it: the difference is smaller than the"
        f" spread over seeds (up to {spread:.2g})"
    ]


def _stopped(jobs: Sequence[Job], command: str) -> list[str]:
    """How a sweep goes on of which no job runs. A cluster may yet begin one: nothing is seen of that here."""
    states = {job.status for job in jobs}
    if not command or Status.RUNNING in states or not states & {Status.INTERRUPTED, WAITING}:
        return []
    return [f"no job runs now; this goes on with the sweep: {command}"]


def _edited(jobs: Sequence[Job]) -> list[str]:
    """Where files had other content in some jobs than in others that name the same."""
    named: dict[str, list[Job]] = {}
    for job in jobs:
        if job.data:
            named.setdefault(job.data.named, []).append(job)
    for first, *others in map(by_data, named.values()):
        if others:
            earlier, later = (
                listed((job.name for part in parts for job in part), most=5) for parts in ([first], others)
            )
            return [
                f"{earlier} had other data than {later}: their files were changed in between, a part of what the"
                " results differ by may be that, and no row has both"
            ]
    return []


def _other_rows(metric: str, jobs: Sequence[Job]) -> list[str]:
    """Where the losses are of other conversations in some jobs than in others, and that for no edited data."""
    alike = by_data(jobs) if _edited(jobs) else [jobs]
    held_out = [{job.held_out_rows for job in part} - {""} for part in alike]
    if max(map(len, held_out)) < 2 or not metric.startswith("training.eval_"):
        return []
    return [
        "not all jobs hold out the same conversations: a part of what their held-out losses differ by is that;"
        " dataset.split_seed keeps them the same where the data are, dataset.eval_data_path where they differ"
    ]


def _other_losses(metric: str, keys: Sequence[str]) -> list[str]:
    """Where the losses themselves are not of one kind."""
    own = [key for key in keys if key.partition(".")[0] == "objective"]
    if not own or metric != HELD_OUT:
        return []
    return [
        f"the jobs differ in {listed(own)}: such losses have no common scale; compare by --metric"
        " rewards/accuracies, training.eval_perplexity or evaluation.passed (in a sweep: sweep.metric)"
    ]


def _no_metric(metric: str, jobs: Sequence[Job]) -> str:
    """What to say of a metric that no finished job has; empty where one has it, or none is finished."""
    finished = [job for job in jobs if job.completed]
    if not finished or any(job.value is not None for job in jobs):
        return ""
    known = numbers(reported(finished[0].folder))
    by_last = {name.rpartition(".")[2]: name for name in known}  # `eval_loss` means training.eval_loss
    last = near(metric.rpartition(".")[2], list(by_last))
    meant = question(near(metric, known) or [by_last[name] for name in last])
    if metric == HELD_OUT:
        meant = " (nothing was held out?); name another with --metric"
        meant += ", for instance training.train_loss" if "training.train_loss" in known else ""
    return f"{metric}: no job reports such a number{meant or '; any number of report.json is one'}"


def _runs_of(folder: Path) -> list[tuple[Path, Path | None, int | None]]:
    """The run in `folder`, or all jobs of the sweep there, each with the sweep that it is in, and its number."""
    if not (folder / REPORT).is_file() and (_study(folder, []) or _children(folder)):
        return [(job.folder, folder, job.number) for job in of_sweep(folder).jobs]
    parent = Sweep(folder.absolute().parent)
    found = _study(parent.folder, [])
    mine = [point for point in found.points if parent.run(point).folder == folder.absolute()] if found else []
    return [(folder, parent.folder, mine[0].number) if mine else (folder, None, None)]


def _children(folder: Path) -> list[Path]:
    """The folders of runs in `folder`, job 10 behind job 9."""
    try:
        inside = [path for path in folder.iterdir() if (path / REPORT).exists() or (path / ".hydra").is_dir()]
    except OSError:
        return []
    return sorted(inside, key=lambda path: (len(path.name), path.name))


def _number(run: Path, position: int) -> int:
    return int(run.name) if run.name.isdecimal() else position


def _no_sweep(folder: Path) -> str:
    if (folder / REPORT).is_file():
        return f"{folder}: a run, not a sweep; name another run beside it, or the sweep's directory"
    return (
        f"{folder}: no sweep: neither a sweep.json nor the folder of a job is in it; name a sweep's directory"
    )


def _title(folder: Path) -> str:
    """The folder by its last parts, which are its date and time."""
    return str(masked("/".join(folder.resolve().parts[-3:]).lstrip("/")))


def _names(runs: Sequence[Path]) -> list[str]:
    """As few of a path's last parts as tell the runs apart."""
    absolute = [run.resolve() for run in runs]
    for length in range(1, max(len(path.parts) for path in absolute)):
        names = [str(masked("/".join(path.parts[-length:]))) for path in absolute]
        if len(set(names)) == len(names):
            return names
    return [str(masked(str(path))) for path in absolute]
