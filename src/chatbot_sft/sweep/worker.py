"""Takes free jobs of a study and runs them in this process, one after the other; in turns: see turns.py.

A job is free where no process holds its directory (the operating system's lock on it is the claim) and its
report does not say that it has ended. What became of it is that report; the errors of those that never had
one are in sweep.json.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path

from chatbot_sft import compare, distributed, preemption
from chatbot_sft.config.hydra_errors import said
from chatbot_sft.config.schema import of_answers
from chatbot_sft.errors import SHOW_TRACEBACK, UserError
from chatbot_sft.hydra_job import Job
from chatbot_sft.jobs import Job as Entry
from chatbot_sft.jobs import table, waited_since
from chatbot_sft.model import memory
from chatbot_sft.preemption import Preempted
from chatbot_sft.report.leaderboard.job import HELD_OUT, numbers
from chatbot_sft.report.plain import shown, shown_line
from chatbot_sft.report.words import amount
from chatbot_sft.run.directory import Run
from chatbot_sft.run.report import Report, Status
from chatbot_sft.run.turn import Turn
from chatbot_sft.run_directory import Held, held
from chatbot_sft.sweep import study, torchrun
from chatbot_sft.sweep.directory import Point
from chatbot_sft.sweep.display import Display
from chatbot_sft.sweep.earlier_data import Edits
from chatbot_sft.sweep.queue import Queue
from chatbot_sft.sweep.study import State
from chatbot_sft.warm import Warm

log = logging.getLogger(__name__)

HELD = "held by another process"  # a job that is left to it


@dataclass
class Taken:
    """A job that this process has: its directory is held until `claim` is closed."""

    entry: Entry
    job: Job
    claim: contextlib.ExitStack
    turns: Generator[Turn, None, Report] | None = None  # where it takes turns with others
    steps: int | None = None  # that it has, once it has taken one


@dataclass
class Worker:
    """Runs the jobs of a queue, one after the other, and says at the end what became of each."""

    queue: Queue
    at: Callable[[Point], Job]
    display: Display | None = None  # of all jobs, where no other process has one
    done: int = 0  # jobs that have trained to their end
    numbers: set[str] = field(default_factory=set)  # the names of those in their reports
    trained: int = 0  # jobs that this process has begun
    page_stands: bool = True  # unless it could not be written

    def __post_init__(self) -> None:
        queue = self.queue
        self.warm = Warm(queue.runs_of_a_form)  # what they share
        self.place, self.settings, self.trials = queue.place, queue.settings, queue.trials
        self.entries = queue.entries
        self.edits = Edits(any(map(of_answers, self.settings.metrics)))

    def run(self) -> None:
        """Run every job that is free.

        Raises:
            UserError: how many jobs have failed; that no job has the metric that was asked for.
            Preempted: a signal asked the sweep to stop.
        """
        ended = False
        try:
            watched = self.display.by_itself() if self.display else contextlib.nullcontext()
            with preemption.handled(), watched, self._timeout():
                self._work()
            ended = True
        except Preempted as stop:
            if stop.signal != self._timeout_name:
                raise
        finally:
            self._tell(ended)
        whole, counts = amount(len(self.entries), "job"), Counter(entry.status for entry in self.entries)
        if not_run := [
            f"{counts[status]} of {whole} {status}" for status in ("failed", HELD) if counts[status]
        ]:
            raise UserError("; ".join(not_run))
        if ended and self._asked_for and (text := self._unjudged()):
            raise UserError(text)

    # Running

    def _work(self) -> None:
        from chatbot_sft import pipeline

        for point in self.queue.points():
            if taken := self._take(point):
                job = taken.job
                with taken.claim, self._recorded(taken), job.environment():
                    began = self._began()
                    if (processes := self.settings.processes_per_job) > 1:
                        report = torchrun.run(job, processes)
                    else:
                        report = pipeline.run(job.settings, job.command, began, job.named, self.warm)
                    self._ended(taken, report)

    def _take(self, point: Point) -> Taken | None:
        """The job at `point`; None where there is nothing to run, or it cannot begin, which is recorded."""
        folder = self.place.run(point).folder.absolute()
        entry = Entry(point.number, point.overrides, folder)
        self.entries.append(entry)
        with contextlib.ExitStack() as claim:
            try:
                job = self.at(point)
                if self._stays(entry, job):
                    return None
                claim.enter_context(self._claimed(folder))
                if self.settings.worker and self._stays(entry, job):  # another has just ended it
                    return None
                entry.began = True
                if distributed.is_first():
                    if last := study.checkpoint_of(job.settings):
                        print(f"job {point.number}: resumes from step {last.step}, {folder}", file=sys.stderr)
                    if text := self.edits.news(point.number, job.settings):
                        print(shown_line(f"warning: {text}"), file=sys.stderr)
                    job.write_files()
                job.begin()
                return Taken(entry, job, claim.pop_all())
            except Held as error:
                if self.settings.worker:
                    self.entries.remove(entry)
                else:
                    entry.status = HELD
                    self._tell_error(entry, shown_line(str(error)))
            except Exception as error:
                self._failed(entry, error)
        return None

    @contextlib.contextmanager
    def _claimed(self, folder: Path) -> Generator[None, None, None]:
        """Within it the job in `folder` is this worker's. Where processes of its own run it, they hold its
        directory, and this worker one in it.

        Raises:
            Held: it is another's.
        """
        if self.settings.processes_per_job == 1:
            with held(folder):
                yield
            return
        with held(folder / ".job"):
            with held(folder):
                pass
            yield

    @contextlib.contextmanager
    def _recorded(self, taken: Taken) -> Generator[None, None, None]:
        """What a job fails with within it is recorded and told, and ends there."""
        try:
            yield
        except Exception as error:
            self._failed(taken.entry, error)
            taken.job.end(error)

    def _stays(self, entry: Entry, job: Job) -> bool:
        """Whether an earlier start has left what this job is; `entry` then says it."""
        run = self.place.run(self.queue.point(entry.number))
        there, report = study.state(run, job.settings, job.named), run.peek()
        if there == State.DONE and report:
            entry.status = "done before"
            entry.eval_loss = report.training.eval_loss if report.training else None
            self._note(entry, report)
            print(f"job {entry.number}: done before, {entry.folder}", file=sys.stderr)
            return True
        if there == State.PRUNED and self.settings.revive != entry.number:
            entry.status = "pruned"
            if self.trials and report:
                self.trials.tell(entry.number, report, pruned=True)
            return True
        error = self.queue.study.errors.get(entry.number)
        in_this_start = self.settings.worker and (
            error or (report and report.started >= self.queue.study.begun)
        )
        again = self.settings.retry_failed and not in_this_start
        if not again and (there == State.FAILED or error):
            entry.status = "failed"
            entry.error = error or (report.error if report and report.error else "")
            return True
        return False

    def _began(self) -> float:
        """When the user began to wait for the next job."""
        self.trained += 1
        return waited_since(first=self.trained == 1)

    # What became of a job

    def _ended(self, taken: Taken, report: Report) -> None:
        """A run has come to its end, or was pruned."""
        from chatbot_sft.report.terminal import ending

        entry = taken.entry
        entry.status = "pruned" if report.status == Status.PRUNED else "completed"
        training = report.training
        entry.eval_loss = training.eval_loss if training else None
        taken.job.end(entry.eval_loss)
        if not distributed.is_first():
            return
        if entry.status == "completed" and not self.display and (text := ending(report, str(entry.folder))):
            print(shown(text))
        study.record(self.place, entry.number, None)
        self._note(entry, report)
        self._page()

    def _note(self, entry: Entry, report: Report) -> None:
        """Tell the sampler, and remember whether there is anything to judge by."""
        pruned = report.status == Status.PRUNED
        if self.trials:
            self.trials.tell(entry.number, report, pruned)
        if not pruned and report.task == "train":
            self.done += 1
            self.numbers.update(numbers(report.to_json()))
            if self.settings.sampler and self.done == 1 and (text := self._unjudged()):
                print(
                    shown_line(f"the sampler learns nothing of job {entry.number}: {text}"), file=sys.stderr
                )

    def _failed(self, entry: Entry, error: Exception) -> None:
        """Record one line, and let go of the memory that the job had."""
        entry.status, entry.error = "failed", shown_line(said(error, Run(entry.folder).log_file))
        self._tell_error(entry, entry.error)
        if os.environ.get(SHOW_TRACEBACK):
            print(shown("".join(traceback.format_exception(error))), file=sys.stderr)
        if distributed.is_first():
            report = self.place.run(self.queue.point(entry.number)).peek()
            reported = report and report.status == Status.FAILED and report.started >= self.queue.study.begun
            study.record(self.place, entry.number, None if reported else entry.error)
            self._page()
        let_go(error)

    def _tell_error(self, entry: Entry, text: str) -> None:
        print(f"{distributed.error_prefix()}job {entry.number}: {text} ({entry.folder})", file=sys.stderr)

    def _page(self) -> None:
        """Write the leaderboard as it stands now, where no display does."""
        if distributed.is_first() and not self.display:
            self.page_stands = compare.write(self.place.folder)

    # The end

    @property
    def _timeout_name(self) -> str:
        return f"sweep.timeout={self.settings.timeout:g}" if self.settings.timeout else ""

    @contextlib.contextmanager
    def _timeout(self) -> Generator[None, None, None]:
        """Within it the job under way is asked to stop when `sweep.timeout` is over."""
        if self.settings.timeout is None:
            yield
            return
        self.queue.deadline = time.monotonic() + self.settings.timeout
        timer = threading.Timer(self.settings.timeout, preemption.ask, [self._timeout_name])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _tell(self, ended: bool) -> None:
        """The table of those that trained, where the sweep has ended and there are several to compare, pruned ones
        too; else a line a job. The errors have been told when they happened.
        """
        if not distributed.is_first():
            return
        if (text := self._unjudged()) and not (ended and self._asked_for):
            print(shown_line(text), file=sys.stderr)
        stopped = sum(entry.status == "interrupted" for entry in self.entries)
        left = {"interrupted": stopped, "not begun": self.queue.left}
        if not self.settings.worker and any(left.values()):
            whole, again = len(self.queue.study.points), shown_line(self.queue.study.command)
            said = ", ".join(f"{count} {what}" for what, count in left.items() if count)
            print(f"of {amount(whole, 'job')} {said}; the same command goes on: {again}")
        pruned = sum(entry.status == "pruned" for entry in self.entries)
        if ended and self.done and self.done + pruned > 1:
            page = [f"page  {self.place.leaderboard_file}"] if (self.display or self).page_stands else []
            lines = [*compare.table(self.place.folder), *page]
        else:
            lines = list(table(sorted(self.entries, key=lambda entry: entry.number)))
        for line in lines:
            print(shown_line(line))

    @property
    def _failures(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.status == "failed"]

    @property
    def _asked_for(self) -> bool:
        """Whether this process ends with an error where no job has the metric: of the default nobody may know that
        nothing is held out, of several workers the process says it that began them, and failed jobs are an error
        already.
        """
        return self.settings.metrics != [HELD_OUT] and not self.settings.worker and not self._failures

    def _unjudged(self) -> str | None:
        """What to say of a metric that no job has which trained; None where there is nothing to say."""
        for metric in self.settings.metrics if self.done else ():
            if text := study.no_value(self.numbers, metric):
                return text
        return None


def let_go(error: BaseException) -> None:
    """Free what a failed job held: its frames keep the model alive."""
    traceback.clear_frames(error.__traceback__)
    memory.release()
