"""One job of a comparison, as it stands on the disk now: finished, under way, or not even readable."""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from chatbot_sft.config.schema import PASSED, of_answers
from chatbot_sft.errors import UserError
from chatbot_sft.report.masking import masked
from chatbot_sft.run import steps
from chatbot_sft.run.checkpoints import last_in
from chatbot_sft.run.directory import EVALUATIONS, HOLDER, Run
from chatbot_sft.run.fingerprint import SHORT, together
from chatbot_sft.run.provenance import DATA, GOLDEN
from chatbot_sft.run.report import DamagedReport, Report, Sample, Status, dotted

WAITING, UNREADABLE = "waiting", "unreadable"
HELD_OUT = "training.eval_loss"  # the metric where none is named
UNREAD = 4096  # files whose content is kept until they change


@dataclass(frozen=True)
class Data:
    """The files that a job was trained on, and the one of golden answers where these are the metric: as they were
    `named`, and SHA-256 of each.
    """

    named: str
    content: tuple[str, ...]

    @property
    def short(self) -> str:
        """One word for its content: of one file what `sha256sum` begins with."""
        whole = self.content[0] if len(self.content) == 1 else together(enumerate(self.content))
        return whole[:SHORT]


@dataclass(frozen=True)
class Job:
    """`settings` are the swept keys with their values as text, `value` is the metric, `curve` has step and
    held-out loss of every evaluation. `number` is no other's in the comparison: `own_number` that in its `sweep`.

    Of a job that runs, `value` and `curve` are what is known so far.
    """

    number: int
    name: str
    folder: Path
    settings: Mapping[str, str]
    status: str
    error: str = ""
    value: float | None = None
    report: Report | None = None
    curve: tuple[tuple[int, float], ...] = ()
    data: Data | None = None  # where a lock knows it
    sweep: Path | None = None  # whose job it is, where jobs of several are compared
    in_sweep: int | None = None
    checkpoint: int = 0  # the step of the last one, of a job that was stopped

    @property
    def own_number(self) -> int:
        return self.number if self.in_sweep is None else self.in_sweep

    @property
    def completed(self) -> bool:
        return self.status == Status.COMPLETED

    @property
    def under_way(self) -> bool:
        """Whether there may be more of it without anybody's doing."""
        return self.status in (Status.RUNNING, WAITING)

    @property
    def held_out(self) -> float | None:
        """The held-out loss, of a job without a report the last that was measured since it began to train."""
        training = self.report.training if self.report else None
        if training and training.eval_loss is not None:
            return training.eval_loss
        return last[1] if (last := _last(self.curve)) else None

    @property
    def steps(self) -> int | None:
        """That it has taken, of one that was stopped as far as it has left anything of them."""
        training = self.report.training if self.report else None
        evaluated = last[0] if (last := _last(self.curve)) else 0
        return training.steps if training else max(evaluated, self.checkpoint) or None

    @property
    def tokens_per_second(self) -> float | None:
        return self.report.training.tokens_per_second if self.report and self.report.training else None

    @property
    def peak_gb(self) -> float | None:
        return self.report.memory.peak_gb if self.report and self.report.memory else None

    @property
    def seconds(self) -> float | None:
        return self.report.training.seconds if self.report and self.report.training else None

    @property
    def margin(self) -> float | None:
        """By how much the better answers are rewarded above the others; None where none are compared."""
        return self._figure("rewards/margins")

    @property
    def accuracy(self) -> float | None:
        """The share of pairs in which the better answer is rewarded above the other."""
        return self._figure("rewards/accuracies")

    def _figure(self, name: str) -> float | None:
        """One that an objective reports beside its loss."""
        training = self.report.training if self.report else None
        value = training.figures.get(name) if training else None
        return float(value) if _is_number(value) else None

    @property
    def held_out_rows(self) -> str:
        """The fingerprint of what it holds out; empty where nothing says."""
        return self.report.dataset.held_out_fingerprint if self.report and self.report.dataset else ""

    @property
    def samples(self) -> list[Sample]:
        return self.report.samples if self.report else []


def read(
    number: int, name: str, folder: Path, settings: Mapping[str, str], metric: str, told: str = ""
) -> Job:
    """The job in `folder`, whatever is wrong with it. `told` is how it failed, where the sweep knows that."""
    run = Run(folder)
    values, report, fault = _reported(run.report_file)
    status, error = _status(run, report, fault, in_use(run), told)
    running = status == Status.RUNNING
    if running:  # what an earlier start of it reported is not this one's
        report = None
    kept = report.evaluations if report and report.evaluations else steps.read(run.checkpoints / EVALUATIONS)
    curve = _curve(kept)
    value = number_at(values, metric) if report else None
    if value is None and metric == HELD_OUT and (last := _last(curve)) and status != UNREADABLE:
        value = last[1]
    if running and metric == PASSED:
        value = number_at(run.progress() or {}, "passed")
    data = _data(run, of_answers(metric))
    left = last_in(run.checkpoints) if status == Status.INTERRUPTED else None
    step = left.step if left else 0
    return Job(number, name, folder, settings, status, error, value, report, curve, data, checkpoint=step)


def number_at(values: Mapping[str, Any], path: str) -> float | None:
    """The number under a dotted name; None where there is none."""
    found: Any = values
    for part in dotted(path).split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return float(found) if _is_number(found) else None


def numbers(values: Mapping[str, Any], before: str = "") -> list[str]:
    """The dotted names of all numbers in a report."""
    names = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            names += numbers(value, f"{before}{key}.")
        elif _is_number(value):
            names.append(f"{before}{key}")
    return names


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def reported(folder: Path) -> Mapping[str, Any]:
    """report.json of a run, without secrets; {} where it cannot be read."""
    return _reported(Run(folder).report_file)[0]


def _reported(file: Path) -> tuple[Mapping[str, Any], Report | None, str]:
    """(its values, the report, what is wrong with it)."""
    try:
        stat = file.stat()
    except OSError:
        return {}, None, ""
    return _parsed(file, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(UNREAD)
def _parsed(file: Path, changed: int, size: int) -> tuple[Mapping[str, Any], Report | None, str]:
    """Kept until the file changes: a page that is written again reads what is new alone. The losses of all steps,
    most of a long run's report, are none that jobs are compared by.
    """
    try:
        values = masked(json.loads(file.read_text(encoding="utf-8")))
        report = Report.from_json(values)
        report.history = None
        values["training"].pop("history", None)
        return values, report, ""
    except DamagedReport as error:
        return {}, None, f"its {file.name} is damaged: {error}"
    except (ValueError, RecursionError):
        return {}, None, f"its {file.name} is cut short or no JSON"
    except OSError as error:
        return {}, None, f"its {file.name} cannot be read ({error.strerror})"


def _data(run: Run, by_answers: bool) -> Data | None:
    try:
        stat = run.lock_file.stat()
    except OSError:
        return None
    return _locked(run.folder, stat.st_mtime_ns, stat.st_size, by_answers)


@functools.lru_cache(UNREAD)
def _locked(folder: Path, changed: int, size: int, by_answers: bool) -> Data | None:
    """Kept until the lock changes."""
    try:
        lock = Run(folder).lock()
    except UserError:
        return None
    files = lock.provenance.files if lock.provenance else {}
    content = [mark.sha256 for key in (DATA, GOLDEN)[: 1 + by_answers] for mark in files.get(key, [])]
    dataset = lock.config.get("dataset", {})
    named = [dataset.get(key) for key in ("data_path", "sources", "split", "eval_data_path")]
    named.append(lock.config.get("evaluation", {}).get("golden"))
    return Data(json.dumps(named), tuple(content)) if content else None


def _status(run: Run, report: Report | None, fault: str, running: bool, told: str) -> tuple[str, str]:
    """(status, error in one line)."""
    if told and (report is None or report.status != Status.COMPLETED):  # its process may go on with others
        return Status.FAILED, _one_line(told)
    if running:
        return Status.RUNNING, ""
    if fault:
        return UNREADABLE, fault
    if report:
        return report.status, _one_line(report.error or "")
    if run.log_file.exists() or run.checkpoints.exists():
        return Status.INTERRUPTED, "ended without a report: its process was killed, or the report was removed"
    return WAITING, ""


def _one_line(text: str) -> str:
    return " ".join(str(masked(text)).split())


def in_use(run: Run) -> bool:
    """Whether a process has taken the directory since its last report and is alive, as far as can be seen from
    here: of another machine's process only that it has not reported yet.

    Asks nothing of the lock itself: to try it would keep a worker that asks at that moment from the job.
    """
    holder = run.folder / HOLDER
    try:
        held = json.loads(holder.read_text(encoding="utf-8"))
        since = holder.stat().st_mtime_ns
        if run.report_file.exists() and run.report_file.stat().st_mtime_ns >= since:
            return False
        return bool(held["host"] != os.uname().nodename or _alive(int(held["pid"]), since / 1e9))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _alive(pid: int, since: float) -> bool:
    """Whether there is that process, and was at that time: another one may have its number by now."""
    import psutil

    try:
        return bool(psutil.Process(pid).create_time() <= since + 1)
    except psutil.Error:
        return False


def _last(curve: Sequence[tuple[int, float]]) -> tuple[int, float] | None:
    """The end of a curve; None where the base alone was evaluated."""
    return curve[-1] if curve and curve[-1][0] > 0 else None


def _curve(records: list[Any]) -> tuple[tuple[int, float], ...]:
    points: dict[int, float] = {}
    for record in records:
        if isinstance(record, Mapping) and isinstance(step := record.get("step"), int):
            loss = number_at(record, "loss")
            if loss is not None:
                points[step] = loss
    return tuple(sorted(points.items()))
