"""What a person reads on the terminal when a run has ended."""

from __future__ import annotations

from pathlib import Path

from chatbot_sft.report.plain import plain_line
from chatbot_sft.report.words import moved, number
from chatbot_sft.run.report import Report, SaveResult


def plan_summary(report: Report) -> str:
    """Three lines of `task=plan`: parameters, memory by part, batch layout."""
    model, parts = report.model, dict(report.plan.memory_gb)
    total = parts.pop("total")
    trained = (
        f"{model.trainable_parameters / 1e6:,.2f}M trained"
        f" ({100 * model.trainable_parameters / model.parameters:.2f}%)"
    )
    return "\n".join(
        [
            f"model   {model.parameters / 1e6:,.1f}M parameters, {trained}, {model.dtype}",
            f"memory  {total:.2f} GB of {report.plan.device_gb:.1f} GB ({report.plan.device}): "
            + ", ".join(f"{name} {size:.2f}" for name, size in parts.items()),
            f"layout  {report.plan.layout}",
        ]
    )


def summary(report: Report, folder: str) -> str:
    """A line each: where the run is, how the loss moved, one answer before and after, what was saved."""
    training = report.training
    lines = [f"run     {_short_path(folder)}"]
    losses = f"loss    training {number(training.loss_first, '.2f')} → {number(training.loss_last, '.2f')}"
    if training.eval_loss is not None:
        change = moved(training.eval_loss_before, training.eval_loss)
        losses += (
            f", held out {number(training.eval_loss_before, '.2f')} →"
            f" {number(training.eval_loss, '.2f')}{f' ({change})' if change else ''}"
        )
    lines += [losses, *(f"warning {text}" for text in training.warnings)]
    if report.samples:
        sample = report.samples[0]
        lines.append(
            f"answer  {_short(sample.prompt, 60)}  before: {_short(sample.before, 100)}  after:"
            f" {_short(sample.after, 160)}"
        )
    return "\n".join([*lines, *saved(report.save)])


def saved(save: SaveResult | None) -> list[str]:
    """A line for each export that is there."""
    lines = []
    for export in save.kept if save else []:
        size = f"{sum(export.files.values()) / 1e6:,.0f} MB"
        lines.append(
            f"saved   {export.method}, {size}{', verified' if export.verified else ''}:"
            f" {_short_path(export.path)}"
        )
    return lines


def _short_path(path: str) -> str:
    """From the current folder, where it is below it."""
    return plain_line(
        str(Path(path).relative_to(Path.cwd()) if Path(path).is_relative_to(Path.cwd()) else path)
    )


def _short(text: str, limit: int) -> str:
    line = " ".join(text.split())
    return f"“{line if len(line) <= limit else line[: limit - 1] + '…'}”"
