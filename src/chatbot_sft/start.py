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
from chatbot_sft.run_directory import refuse_taken, report_in
from chatbot_sft.train import checkpoints


def refuse(config: Mapping[str, Any], overrides: Sequence[str] = ()) -> None:
    """Raises UserError where the run directory, or a place beside it, is none for this run; or `overrides` are none of an export."""
    settings = Config.from_mapping(located(config))
    if settings.task == "export":
        check_overrides(list(overrides))
    places.check_run(settings)
    refuse_written_over(settings)
    refuse_taken(located(config), settings)
    checkpoints.refuse_completed(settings)


def refuse_written_over(settings: Config) -> None:
    """Raises UserError where a task that does not train would write its report over that of a training or an export, however it ended."""
    if settings.task == "train":
        return
    folder = Path(settings.paths.output_dir)
    report = report_in(folder)
    there = "training"
    if report.get("task") == "export":
        there = "export"
        taken = settings.task != "export" and bool(report["training"])
    else:
        taken = bool(report.get("task") == "train" and report["training"]) or checkpoints.last_in(folder / "checkpoints") is not None
    if taken:
        raise UserError(
            f"{folder}: task={settings.task} would write over the report of the {there} there; leave hydra.run.dir out, or name another directory"
        )
