"""What refuses a start by what is in its run directory already, before a file of it is written. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chatbot_sft import places
from chatbot_sft.config import Config
from chatbot_sft.errors import UserError
from chatbot_sft.export import check_overrides
from chatbot_sft.model.base import located
from chatbot_sft.run import checkpoints
from chatbot_sft.run.directory import Run
from chatbot_sft.run_directory import refuse_taken
from chatbot_sft.train import resume


def refuse(config: Mapping[str, Any], overrides: Sequence[str] = ()) -> None:
    """Raises UserError where the run directory, or a place beside it, is none for this run; or `overrides` are none of an export."""
    settings = located(Config.from_mapping(config))
    if settings.task == "export":
        check_overrides(list(overrides))
    places.check_run(settings)
    refuse_written_over(settings)
    refuse_taken(settings)
    resume.refuse_completed(settings)


def refuse_written_over(settings: Config) -> None:
    """Raises UserError where a task that does not train would write its report over that of a training or an export, however it ended."""
    if settings.task == "train":
        return
    run = Run(Path(settings.paths.output_dir))
    report, there = run.report(), "training"
    if report and report.task == "export":
        there = "export"
        taken = settings.task != "export" and report.training is not None
    else:
        trained = report is not None and report.task == "train" and (report.training or report.history is not None)
        taken = bool(trained) or checkpoints.last_in(run.checkpoints) is not None
    if taken:
        raise UserError(
            f"{run.folder}: task={settings.task} would write over the report of the {there} there; leave hydra.run.dir out, or name another directory"
        )
