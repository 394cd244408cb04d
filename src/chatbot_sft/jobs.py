"""The jobs of one sweep in this process: what became of each, told as it happens, and in a table at the end."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from chatbot_sft.config import Config
from chatbot_sft.model.base import known_base, located, moved
from chatbot_sft.model.earlier import adopt
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


def finished(config: Mapping[str, Any], named: Collection[str] = ()) -> Report | None:
    """The report of a training that ended in `config`'s run directory, with just this configuration, of which the
    user has `named` these keys; wherever the directory is now, and its base that went with it.

    Raises:
        UserError: the adapter that it begins with is gone.
    """
    if config["task"] != "train":
        return None
    run = Run.of(config)
    report = run.peek()
    if report is None or (report.task, report.status) != ("train", Status.COMPLETED):
        return None
    settings = adopt(located(Config.from_mapping(config)), named)  # as a run keeps them
    if moved(run.folder) == settings.model.name:
        then = known_base(run.folder)["name"]
        settings = replace(settings, model=replace(settings.model, name=then))
    return report if run.has_config(settings.to_dict()) else None
