"""What a person reads on the terminal when a run has ended."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from chatbot_sft.report.plain import plain_line
from chatbot_sft.report.words import amount, duration, moved, number
from chatbot_sft.run.report import Model, Plan, Replay, Report, Sample, SaveResult, Training


def ending(report: Report, folder: str) -> str | None:
    """What is shown of a run in `folder` that has ended; None where it neither trained nor planned."""
    if report.model and report.plan:
        return plan_summary(report.model, report.plan)
    if report.replay:
        return f"run     {_short_path(folder)}"  # the comparison has said the rest
    if report.training:
        return summary(report.training, report.samples, report.save, folder)
    return None


def replay_lines(replay: Replay) -> list[str]:
    """A line for each kind of figure, and the verdict."""
    width = max([len(one["what"]) for one in replay.compared], default=0)
    rows = [f"  {one['what']:<{width}}  {one['count']:>6,}  {one['said']}" for one in replay.compared]
    return [f"replay  of {_short_path(replay.run)}", *map(plain_line, rows), f"verdict {replay.verdict}"]


def plan_summary(model: Model, plan: Plan) -> str:
    """The lines of `task=plan`: parameters, memory by part, batch layout, time."""
    parts = dict(plan.memory_gb)
    total = parts.pop("total")
    share = 100 * model.trainable_parameters / model.parameters
    trained = f"{model.trainable_parameters / 1e6:,.2f}M trained ({share:.2f}%)"
    sizes = ", ".join(f"{name} {size:.2f}" for name, size in parts.items())
    return "\n".join(
        [
            f"model   {model.parameters / 1e6:,.1f}M parameters, {trained}, {model.dtype}",
            f"memory  {total:.2f} GB of {plan.device_gb:.1f} GB ({plan.device}): {sizes}",
            f"layout  {plan.layout}",
            *([f"time    {said}"] if (said := planned_time(plan)) else []),
        ]
    )


def planned_time(plan: Plan) -> str:
    """Empty where nothing is known of it."""
    if plan.steps is None or plan.milliseconds_per_step is None or plan.training_seconds is None:
        return ""
    steps = f"{amount(plan.steps, 'step')} of {plan.milliseconds_per_step:,.0f} ms"
    return f"about {duration(plan.training_seconds)}: {steps}, without evaluations and saving"


def summary(training: Training, samples: Sequence[Sample], save: SaveResult | None, folder: str) -> str:
    """A line each: where the run is, how the loss moved, one answer before and after, what was saved."""
    lines = [f"run     {_short_path(folder)}"]
    losses = f"loss    training {number(training.loss_first, '.2f')} → {number(training.loss_last, '.2f')}"
    if training.eval_loss is not None:
        change = moved(training.eval_loss_before, training.eval_loss)
        before, after = number(training.eval_loss_before, ".2f"), number(training.eval_loss, ".2f")
        losses += f", held out {before} → {after}" + (f" ({change})" if change else "")
    lines.append(losses)
    if said := rewards(training):
        lines.append(f"rewards {said}")
    lines += [*(f"warning {text}" for text in training.warnings)]
    for sample in samples[:1]:
        before, after = _short(sample.before, 100), _short(sample.after, 160)
        lines.append(f"answer  {_short(sample.prompt, 60)}  before: {before}  after: {after}")
    return "\n".join([*lines, *saved(save)])


def rewards(training: Training) -> str:
    """How far the better answers lie above the others, and how often; empty where no objective says so."""
    before, after = training.figures_before, training.figures
    if "rewards/margins" not in after:
        return ""
    margin = f"margin {after['rewards/margins']:.3f}"
    if "rewards/margins" in before:
        margin = f"margin {before['rewards/margins']:.3f} → {after['rewards/margins']:.3f}"
    right = after.get("rewards/accuracies")
    return margin if right is None else f"{margin}, {right:.0%} of pairs the right way round"


def saved(save: SaveResult | None) -> list[str]:
    """A line for each export that is there."""
    lines = []
    for export in save.kept if save else []:
        size = f"{sum(export.weights.values()) / 1e6:,.0f} MB"
        verified = ", verified" if export.verified else ""
        lines.append(f"saved   {export.method}, {size}{verified}: {_short_path(export.path)}")
    return lines


def _short_path(path: str) -> str:
    """From the current folder, where it is below it."""
    below = Path(path).is_relative_to(Path.cwd())
    return plain_line(str(Path(path).relative_to(Path.cwd())) if below else path)


def _short(text: str, limit: int) -> str:
    line = " ".join(text.split())
    return f"“{line if len(line) <= limit else line[: limit - 1] + '…'}”"
