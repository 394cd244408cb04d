"""Several workers for one sweep: processes on this machine, or jobs of one of Hydra's launchers.

Either way they are the same command line with sweep.worker=true, they take their jobs from the sweep's
directory, and this process shows how far all of them are.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from hydra.conf import HydraConf
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.types import HydraContext
from omegaconf import DictConfig
from rich.console import Console

from chatbot_sft import distributed
from chatbot_sft.command_line import written_out
from chatbot_sft.config import SweepConfig
from chatbot_sft.config.hydra_errors import said
from chatbot_sft.errors import UserError, listed
from chatbot_sft.preemption import Preempted
from chatbot_sft.report.leaderboard import board, terminal
from chatbot_sft.report.leaderboard.job import HELD_OUT
from chatbot_sft.report.plain import shown_line
from chatbot_sft.report.words import amount
from chatbot_sft.run.directory import HOLDER, Run
from chatbot_sft.run.report import Status
from chatbot_sft.sweep import cards, study, worker_process
from chatbot_sft.sweep.directory import Point, Sweep
from chatbot_sft.sweep.display import OFTEN, Display
from chatbot_sft.sweep.job_of_launcher import work

# Classes of launchers, whatever the option of hydra/launcher is called.
BASIC = "BasicLauncher"  # Hydra's own, in whose place this process works
SLURM = "SlurmLauncher"
ON_THIS_MACHINE = (BASIC, "JoblibLauncher", "LocalLauncher")  # the others have their GPUs from a scheduler
COMPARE = "python -m chatbot_sft.compare"
GPUS = ("gpus_per_node", "gpus_per_task", "gres")  # keys with which SLURM is asked for one
TRIES = 2  # processes that one job may take with it
ENDED = (Status.COMPLETED, Status.PRUNED, Status.FAILED)


def kind(hydra: HydraConf) -> str:
    """The class of the launcher."""
    return str(hydra.launcher["_target_"]).rpartition(".")[2]


def wanted(settings: SweepConfig, hydra: HydraConf) -> list[dict[str, str]]:
    """What each worker is to have in its environment; empty where this process is the only one.

    Raises:
        UserError: such workers cannot be.
    """
    launcher, option = kind(hydra), hydra.runtime.choices["hydra/launcher"]
    if settings.worker:
        return []
    if not settings.wait and launcher != SLURM:
        raise UserError(
            f"sweep.wait=false: only with hydra/launcher=slurm; with {option} the workers end with this command"
        )
    if distributed.processes() > 1 and (launcher != BASIC or settings.workers != 1):
        raise UserError(
            "sweep.workers: not in a sweep that torchrun has started; see sweep.processes_per_job"
        )
    if settings.processes_per_job > 1 and settings.pruner:
        raise UserError(
            f"sweep.pruner={settings.pruner}: not with sweep.processes_per_job={settings.processes_per_job},"
            " whose jobs take no turns; leave one of them out"
        )
    if launcher not in ON_THIS_MACHINE:
        if settings.workers == "auto":
            raise UserError(
                f"sweep.workers=auto: is for one machine; say how many jobs hydra/launcher={option} is"
            )
        return [{}] * int(settings.workers)
    places = cards.places(settings.workers, settings.processes_per_job)
    return places if launcher != BASIC or len(places) > 1 else []


def run(config: DictConfig, context: HydraContext, place: Sweep, places: Sequence[Mapping[str, str]]) -> None:
    """Have the workers of `places` run the sweep in `place`, to whose end it waits unless sweep.wait=false.

    Raises:
        UserError: how many jobs have failed, or were left.
        Preempted: a signal asked the sweep to stop; KeyboardInterrupt: Ctrl-C.
    """
    launcher, settings = kind(config.hydra), config.sweep
    words = worker_process.command(place.folder, len(places))
    with Display(place.folder, Console(stderr=True, highlight=False)) as display:
        if launcher == BASIC:
            workers: Workers | Launched = Workers(place, words, places, display)
        else:
            workers = Launched(config, context, place, words, places, display)
        asked = workers.run()
    if launcher == SLURM and (asked or not settings.wait):
        print(
            f"the workers go on (squeue, scancel); {COMPARE} {shlex.quote(str(place.folder))} shows how far they are"
        )
        _stop(asked)
        return
    conclude(place, settings, asked, workers.why)


def conclude(place: Sweep, settings: DictConfig, asked: Sequence[signal.Signals], why: str) -> None:
    """Show what became of each job, and end as the sweep did. `why` is what is known of jobs that were left."""
    found = board.of_sweep(place.folder)
    terminal.show(found, Console(highlight=False))
    _stop(asked)
    failed = sum(job.status == Status.FAILED for job in found.jobs)
    if found.fault and (failed or found.metric == HELD_OUT):  # see Worker
        print(shown_line(found.fault), file=sys.stderr)
    if failed:
        raise UserError(f"{failed} of {amount(len(found.jobs), 'job')} failed")
    if found.fault and found.metric != HELD_OUT:
        raise UserError(found.fault)
    left = [job.name for job in found.jobs if job.status not in ENDED]
    if left and settings.timeout is None:
        raise UserError(f"{listed(left, 3)}: not run to the end; {why or told(place)}")


def _stop(asked: Sequence[signal.Signals]) -> None:
    """End as one process does that these signals have come to."""
    if asked and asked[0] == signal.SIGINT:
        raise KeyboardInterrupt
    if asked:
        raise Preempted(asked[0].name)


def told(place: Sweep) -> str:
    """The last error that a worker told."""
    logs = sorted(
        worker_process.log_file(place.folder, 0).parent.glob("*.log"), key=lambda log: log.stat().st_mtime
    )
    for log in reversed(logs):
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        if errors := [line for line in lines if line.startswith("error: ")]:
            return f"{log}: {shown_line(errors[-1].removeprefix('error: '))}"
    return f"what the workers said is in {worker_process.log_file(place.folder, 0).parent}"


# On this machine


@dataclass
class Workers:
    """A process for each of `places`. One that was killed is started again: the job it had is free by then, and
    goes on from its checkpoint wherever it is taken up.
    """

    place: Sweep
    words: Sequence[str]
    places: Sequence[Mapping[str, str]]
    display: Display
    why: str = ""
    processes: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    deaths: Counter[int | None] = field(default_factory=Counter)  # by job; None: with none of them

    def run(self) -> list[signal.Signals]:
        """The signals that have come."""
        with worker_process.passed_on(self._stop) as asked:
            for number in range(len(self.places)):
                self._start(number)
            while self.processes:
                time.sleep(OFTEN)
                for number, process in list(self.processes.items()):
                    if (code := process.poll()) is not None:
                        del self.processes[number]
                        if code < 0 and not asked:
                            self._killed(number, process.pid, signal.Signals(-code))
                self.display.update()
        return asked

    def _start(self, number: int) -> None:
        log = worker_process.log_file(self.place.folder, number)
        self.processes[number] = worker_process.start(self.words, self.places[number], log)

    def _stop(self) -> None:
        for process in self.processes.values():
            process.terminate()

    def _killed(self, number: int, pid: int, how: signal.Signals) -> None:
        """A job whose processes are killed again and again counts as failed: it would take all workers with it."""
        point = self._job_of(pid)
        job = point.number if point else None
        self.deaths[job] += 1
        had = "" if point is None else f", with job {job}"
        self.display.say(f"worker {number} was killed ({how.name}){had}")
        if self.deaths[job] >= TRIES:
            if job is None:
                return
            study.record(
                self.place, job, f"its process was killed ({how.name}), {TRIES} times; is memory short?"
            )
        self._start(number)

    def _job_of(self, pid: int) -> Point | None:
        """The one that the dead process `pid` had not ended; None where several took turns in it."""
        found = self.place.study()
        left = [point for point in found.points if _left_by(pid, self.place.run(point))] if found else []
        return left[0] if len(left) == 1 else None


def _left_by(pid: int, run: Run) -> bool:
    """Whether that process of this machine was the last in the directory of `run`, and has not reported since."""
    file = run.folder / HOLDER
    try:
        last = json.loads(file.read_text(encoding="utf-8"))
        mine = (last["pid"], last["host"]) == (pid, os.uname().nodename)
        return mine and not (
            run.report_file.exists() and run.report_file.stat().st_mtime_ns > file.stat().st_mtime_ns
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


# By one of Hydra's launchers


@dataclass
class Launched:
    """A job of the launcher for each of `places`."""

    config: DictConfig
    context: HydraContext
    place: Sweep
    words: Sequence[str]
    places: Sequence[Mapping[str, str]]
    display: Display
    why: str = ""

    def run(self) -> list[signal.Signals]:
        """To their end; without sweep.wait until they are submitted. The signals that have come."""
        launcher = Plugins.instance().instantiate_launcher(self.context, self._task, self.config)
        on_slurm = kind(self.config.hydra) == SLURM
        if on_slurm and not any(self.config.hydra.launcher.get(name) for name in GPUS):
            self.display.say(
                "SLURM is asked for no GPU; hydra.launcher.gpus_per_node=1, or hydra/launcher=slurm, asks"
            )
        before = len(self._submitted())
        future: Future[Sequence[JobReturn]] = Future()
        threading.Thread(target=_settle, args=(future, launcher.launch, self._jobs), daemon=True).start()
        with worker_process.passed_on(_stop_below) as asked:
            while not future.done() and not (asked and on_slurm):
                time.sleep(OFTEN)
                self.display.update()
                if not self.config.sweep.wait and len(self._submitted()) - before == len(self.places):
                    return asked
        if future.done() and (error := future.exception()):
            if on_slurm and len(self._submitted()) == before:
                raise error
            self.why = said(error)
        return asked

    @property
    def _task(self) -> functools.partial[int]:
        sweep = self.place.folder.absolute()
        return functools.partial(
            work, words=self.words, folder=str(Path.cwd()), sweep=sweep, places=self.places
        )

    @property
    def _jobs(self) -> list[list[str]]:
        """The overrides of each: they name it, `work` reads none but its number."""
        place = written_out("hydra.sweep.dir", str(self.place.folder))
        own = "hydra.sweep.subdir='.workers/${hydra.job.num}'"
        return [[worker_process.JOINS, place, own, "hydra.output_subdir=null"]] * len(self.places)

    def _submitted(self) -> list[Path]:
        """What submitit leaves in the sweep's directory of a job that the cluster has taken."""
        return list((self.place.folder / ".submitit").glob("*/*_submitted.pkl"))


def _settle(
    future: Future[Sequence[JobReturn]],
    launch: Callable[[list[list[str]], int], Sequence[JobReturn]],
    jobs: list[list[str]],
) -> None:
    """What `launch` comes to; a launcher returns when its last job has ended, so another thread waits for it."""
    try:
        future.set_result(launch(jobs, 0))
    except Exception as error:
        future.set_exception(error)


def _stop_below() -> None:
    """Ask the workers that a launcher has started on this machine to stop."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if worker_process.JOINS in process.cmdline():
                process.terminate()
