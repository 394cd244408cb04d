"""How a run has ended, for people: what stopped it, what there is of it, and its report in files."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path

from chatbot_sft.config import Config
from chatbot_sft.errors import UserError
from chatbot_sft.logs import quiet
from chatbot_sft.preemption import Preempted
from chatbot_sft.report.figure import write_loss_figure
from chatbot_sft.report.markdown import data_links, markdown
from chatbot_sft.report.masking import masked
from chatbot_sft.report.terminal import saved
from chatbot_sft.run import checkpoints
from chatbot_sft.run.directory import Run
from chatbot_sft.run.report import Report, SaveResult

log = logging.getLogger(__name__)


def write_reports(report: Report, run: Run) -> None:
    """loss.png, report.md and, whatever becomes of those, report.json; without secrets.

    Raises:
        UserError: they cannot be written, and nothing worse has happened: a run's own error is not hidden
            behind that.
    """
    clean = Report.from_json(masked(report.to_json()))
    try:
        try:
            with quiet():
                write_loss_figure(clean.history or [], clean.evaluations, run.figure_file)
            elsewhere = report.run if report.task != "replay" else None  # which looks at the data itself
            links = data_links(Run(Path(elsewhere)) if elsewhere else run, run)
            run.markdown_file.write_text(markdown(clean, run.figure_file.exists(), links), encoding="utf-8")
        finally:
            run.write_report(report)
    except OSError as error:
        text = (
            f"{run.folder}: the report cannot be written ({error.strerror or error}); checkpoints and exports"
            " are as they are"
        )
        if report.error is None:
            raise UserError(text) from error
        log.error("%s", text)


def tell_saved(report: Report) -> None:
    """What there is of a run that does not end well."""
    for line in saved(report.save):
        log.info("%s", line)


def stopped(error: Preempted, settings: Config, save: SaveResult | None, command: str) -> str:
    """What a signal left behind, and the command that goes on from it."""
    there, on = _left(settings, save)
    again = ""
    if command and settings.task != "replay":
        here = (
            ""
            if "hydra.run.dir=" in command
            else f" {shlex.quote(f'hydra.run.dir={settings.paths.output_dir}')}"
        )
        again = f": {command}{here}"
    return f"{error.signal}: {there}; {on}{again}"


def stopped_in_sweep(error: Preempted, settings: Config, save: SaveResult | None) -> str:
    """What a signal left behind of a job: how the sweep goes on it says itself."""
    return f"{error.signal}: {_left(settings, save)[0]}"


def beside_sweep(text: str) -> str:
    """Of what `stopped` says, the same."""
    return text.partition("; the same command ")[0]


def _left(settings: Config, save: SaveResult | None) -> tuple[str, str]:
    """What there is of a run that was stopped, finished exports among it, and what the same command does."""
    if settings.task == "train":
        if last := checkpoints.last_in(Path(settings.training.output_dir)):
            return f"checkpoint at step {last.step}", "the same command goes on from there"
        return "no checkpoint yet", "the same command begins anew"
    if settings.task == "export":
        there = ", ".join(f"{export.method} in {export.path}" for export in save.kept) if save else ""
        left = f"saved: {there}" if there else "no export was finished"
        return left, "the same command makes what is missing"
    if settings.task == "evaluate":
        return "what was answered is kept", "the same command asks for the rest"
    if settings.task == "verify":
        return "nothing was found yet", "the same command asks again"
    if settings.task == "replay":
        return "nothing was compared", "replay the run again, in another directory"
    return "nothing was trained", "the same command begins anew"


def why(error: BaseException) -> str:
    """What ended the run, in one line."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted from the keyboard"
    if isinstance(error, GeneratorExit):
        return "ended while it waited for its turn"
    return " ".join(str(error).split()) or type(error).__name__
