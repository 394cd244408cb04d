"""The jobs of one sweep in this process: what became of each, told as it happens and in one line each at the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from yaml import YAMLError

from chatbot_sft.report.masking import referring
from chatbot_sft.run_directory import CONFIG, report_in


@dataclass
class Job:
    """One combination of a sweep; `eval_loss` is the held-out loss after training where there is one."""

    number: int
    overrides: list[str]
    folder: Path
    status: str = "interrupted"  # until it has ended
    eval_loss: float | None = None
    error: str = ""


def table(jobs: Sequence[Job]) -> Iterator[str]:
    """`job 3  completed  held out 1.842  lora.r=16  outputs/multirun/…/3`, with the overrides that not all of `jobs` have."""
    common = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
    for job in jobs:
        loss = "" if job.eval_loss is None else f"  held out {job.eval_loss:.3f}"
        own = "".join(f"  {override}" for override in job.overrides if override not in common)
        yield f"job {job.number}  {job.status}{loss}{own}  {job.folder}"


def finished(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The report of the training in `config`'s run directory that came to its end with just this configuration; None where there is none.

    Raises:
        UserError: there is a report.json that is none of ours.
    """
    folder = Path(config["paths"]["output_dir"])
    if config["task"] != "train":
        return None
    report = report_in(folder)
    if (report.get("task"), report.get("status")) != ("train", "completed"):
        return None
    try:
        same = OmegaConf.to_container(OmegaConf.load(folder / CONFIG)) == referring(dict(config))
    except (OSError, YAMLError):
        return None
    return report if same else None
