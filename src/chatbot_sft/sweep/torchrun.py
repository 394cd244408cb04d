"""A job that several processes train together (sweep.processes_per_job): torchrun in a process of its own.

Nothing is warm in it: each such job loads its model itself.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from datetime import datetime

from chatbot_sft.command_line import PROGRAM
from chatbot_sft.errors import UserError
from chatbot_sft.hydra_job import Job
from chatbot_sft.preemption import Preempted
from chatbot_sft.run.directory import Run
from chatbot_sft.run.report import Report, Status, now
from chatbot_sft.sweep.worker_process import apart


def run(job: Job, processes: int) -> Report:
    """Run `job` to its end.

    Raises:
        UserError: it failed.
        Preempted: a signal has stopped it, with a checkpoint.
    """
    began = now()
    words = shlex.split(job.command)[len(PROGRAM.split()) :]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    process = subprocess.Popen(
        [sys.executable, *launcher, "-m", "chatbot_sft", *words],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        **apart(),
    )
    assert process.stderr is not None
    error = ""
    try:
        for line in process.stderr:
            sys.stderr.write(line)
            error = line.removeprefix("error: ").strip() if line.startswith("error: ") else error
        code = process.wait()
    except (Preempted, KeyboardInterrupt):
        process.terminate()
        process.communicate()
        raise
    report = Run.of(job.settings).peek()
    unsaid = (
        f"{Run.of(job.settings).folder}: {processes} processes ended with exit code {code}; see run.log there"
    )
    if report is None or _earlier(report, began):
        raise UserError(error or unsaid)
    if report.status == Status.INTERRUPTED:
        raise Preempted("SIGTERM")
    if report.status == Status.FAILED:
        raise UserError(report.error or error or unsaid)
    return report


def _earlier(report: Report, began: str) -> bool:
    """Whether it is of an earlier start."""
    return datetime.fromisoformat(report.started) < datetime.fromisoformat(began)
