"""The jobs of one sweep in this process: what became of each, told as it happens, and in a table at the end."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatbot_sft.errors import UserError
from chatbot_sft.run.directory import Run
from chatbot_sft.run.report import Report, Status


@dataclass
class Job:
    """One combination of a sweep; `eval_loss` is the held-out loss after training where there is one."""

    number: int
    overrides: list[str]
    folder: Path
    status: str = "interrupted"  # until it has ended
    eval_loss: float | None = None
    error: str = ""
    began: bool = False  # in this start


def refuse_shared(job: Job, others: Iterable[Job], subdir: str) -> None:
    """Raises UserError where one of `others` has the directory of `job`, by hydra.sweep.subdir=`subdir`."""
    earlier = [other.number for other in others if other.folder == job.folder and other is not job]
    if earlier:
        raise UserError(
            f"hydra.sweep.subdir={subdir}: the directory of job {earlier[0]};"
            " give each job its own, as hydra.sweep.subdir='${hydra.job.num}' does"
        )


def waited_since(first: bool) -> float:
    """When the user began to wait, in seconds since the epoch: for a later job of a process now.

    For the `first` that is the process's start: importing is part of what is waited for.
    """
    import psutil

    return psutil.Process().create_time() if first else time.time()


def table(jobs: Sequence[Job]) -> Iterator[str]:
    """`job 3  completed  held out 1.842  lora.r=16  outputs/multirun/…/3`: overrides that not all have."""
    common: set[str] = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
    for job in jobs:
        loss = "" if job.eval_loss is None else f"  held out {job.eval_loss:.3f}"
        own = "".join(f"  {override}" for override in job.overrides if override not in common)
        yield f"job {job.number}  {job.status}{loss}{own}  {job.folder}"


def finished(config: Mapping[str, Any]) -> Report | None:
    """The report of a training that ended in `config`'s run directory, with just this configuration.

    Raises:
        UserError: there is a report.json that is none of ours.
    """
    if config["task"] != "train":
        return None
    run = Run.of(config)
    report = run.report()
    done = report is not None and (report.task, report.status) == ("train", Status.COMPLETED)
    return report if done and run.has_config(config) else None
