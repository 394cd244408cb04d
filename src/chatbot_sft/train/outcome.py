"""What a training came to, as the report has it, and what a person has to know before they use the model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from chatbot_sft import distributed
from chatbot_sft.config import Config
from chatbot_sft.errors import UserError
from chatbot_sft.model import memory
from chatbot_sft.model.fingerprint import trained_weights
from chatbot_sft.report.words import moved, number
from chatbot_sft.run.directory import Run
from chatbot_sft.run.report import Memory, Plan, Report, Sample, Training
from chatbot_sft.train.rails import ruin_limit

if TYPE_CHECKING:
    from chatbot_sft.train.progress import Progress
    from chatbot_sft.train.session import Session


@dataclass(frozen=True)
class Outcome:
    """The parts of the report that a training makes, by the report's names."""

    training: Training
    history: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    memory: Memory
    samples: list[Sample]


def outcome(
    session: Session, start: memory.MemoryStatistics, rows_loss_before: float | None, eval_loss: float | None
) -> Outcome:
    """Of a training that has ended and was evaluated; `start` was measured before it."""
    training = _training(session, eval_loss, rows_loss_before)
    if session.progress.first_step_after is None:
        training = as_measured_before(training, history(session), Run.of(session.settings).peek())
    samples = _samples(session, training.weights_of_step)
    return Outcome(training, history(session), session.evaluations.records, _memory(session, start), samples)


def _nats(perplexity: float | None) -> float | None:
    """The loss of that perplexity; None where there is none."""
    return None if perplexity is None or math.isnan(perplexity) else math.log(perplexity)


def as_measured_before(training: Training, history: list[dict[str, Any]], earlier: Report | None) -> Training:
    """`training` of a start that had no step left to make, with the speed that an earlier start reported.

    The losses say whether `earlier` is the report of that very training.
    """
    before = earlier.training if earlier and earlier.history == history else None
    if before is None:
        return training
    return replace(
        training,
        tokens_per_second=before.tokens_per_second,
        milliseconds_per_step=before.milliseconds_per_step,
        seconds_to_first_step=before.seconds_to_first_step,
        seconds_to_first_step_by_part=before.seconds_to_first_step_by_part,
        batch_layouts=training.batch_layouts or before.batch_layouts,
    )


def plan_of(session: Session, start: memory.MemoryStatistics, step_seconds: float) -> Plan:
    """What `task=plan` comes to."""
    steps = session.state.max_steps
    return Plan(
        layout=session.layout.describe(session.settings.effective_batch_size),
        layouts=session.measured_layouts(),
        memory_gb=session.memory_estimate,
        device=start.device,
        device_gb=start.total_gb,
        steps=steps,
        milliseconds_per_step=round(1000 * step_seconds, 3),
        training_seconds=round(steps * step_seconds, 3),
    )


def used_settings(settings: Config, args: Any) -> dict[str, Any]:
    """The report's settings section: what decides the result, as it ran."""
    training, lora = settings.training, settings.lora
    adapter = (
        {}
        if settings.full_finetuning
        else {"lora_r": lora.r, "lora_alpha": lora.lora_alpha, "lora_dropout": lora.lora_dropout}
    )
    return {
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": training.lr_scheduler_type,
        "warmup_steps": training.warmup_steps,
        "weight_decay": training.weight_decay,
        "optimizer": str(getattr(args.optim, "value", args.optim)),
        "per_device_train_batch_size": training.per_device_train_batch_size,
        "gradient_accumulation_steps": training.gradient_accumulation_steps,
        "max_steps": training.max_steps,
        "num_train_epochs": training.num_train_epochs,
        "max_seq_length": settings.model.max_seq_length,
        "full_finetuning": settings.full_finetuning,
        **adapter,
    }


def history(session: Session) -> list[dict[str, Any]]:
    """Step and loss of every logged step, those of former starts too."""
    progress = session.progress
    return [
        {"step": step, "loss": loss, **figures}
        for (step, loss), figures in zip(progress.losses, progress.figures, strict=True)
    ]


def _training(session: Session, eval_loss: float | None, rows_loss_before: float | None) -> Training:
    settings, origin = session.settings, session.origin
    progress, evaluations = session.progress, session.evaluations
    losses = [loss for _, loss in progress.losses]
    last = session.state.global_step
    step = last if evaluations.reloaded is None else evaluations.reloaded
    best = evaluations.best() if settings.training.eval_steps is not None else None
    before, after = evaluations.at(0) or {}, evaluations.at(step) or {}
    rows_loss = session.trained_rows_loss()
    rate, step_seconds = progress.tokens_per_second(), progress.seconds_per_step()
    return Training(
        steps=last,
        effective_batch_size=settings.effective_batch_size * distributed.processes(),
        processes=distributed.processes(),
        batch_layout=session.layout.describe(settings.effective_batch_size),
        batch_layouts=session.measured_layouts(),
        tokens=progress.step_tokens[-1],
        seconds=session.seconds(),
        resumed_from=origin.checkpoint.step if origin.checkpoint else None,
        resumes=origin.resumes,
        tokens_per_second=None if rate is None else round(rate, 1),
        milliseconds_per_step=None if step_seconds is None else round(1000 * step_seconds, 3),
        seconds_to_first_step=progress.first_step_after,
        seconds_to_first_step_by_part=progress.waited,
        loss_first=losses[0],
        loss_last=losses[-1],
        train_loss=session.output.training_loss,
        eval_loss_before=before.get("loss"),
        eval_loss=eval_loss,
        eval_perplexity_before=before.get("perplexity"),
        eval_perplexity=after.get("perplexity"),
        eval_token_accuracy_before=before.get("token_accuracy"),
        eval_token_accuracy=after.get("token_accuracy"),
        figures=figures(after, progress),
        figures_before=figures(before),
        rows_loss_before=rows_loss_before,
        rows_loss=rows_loss,
        rounding=session.rounding,
        weights_sha256=trained_weights(session.model) if distributed.is_first() else None,
        weights_of_step=step,
        stopped_early=session.stopped_early,
        best_step=best and best["step"],
        best_eval_loss=best and best["loss"],
        warnings=[
            *warnings(before.get("loss"), eval_loss, best),
            *rows_warnings(rows_loss_before, rows_loss),
            *not_learned(settings, after.get("token_accuracy")),
            *session.warnings,
        ],
    )


def figures(record: Mapping[str, Any], progress: Progress | None = None) -> dict[str, float]:
    """What an objective reported in an evaluation; where nothing was held out, with the last loss."""
    from chatbot_sft.train.evaluation import more_figures  # imports torch

    return more_figures(record) or (progress.figures[-1] if progress and progress.figures else {})


def _samples(session: Session, weights_of_step: int) -> list[Sample]:
    """The answers before training and those of the weights that it ended with."""
    if not session.sample_prompts:
        return []
    first, last = (session.evaluations.at(step)["samples"] for step in (0, weights_of_step))
    return [
        Sample(base["prompt"], before=base["answer"], after=tuned["answer"])
        for base, tuned in zip(first, last, strict=True)
    ]


def _memory(session: Session, start: memory.MemoryStatistics) -> Memory:
    """What training added to `start`, and what had been estimated before the first step."""
    end = memory.measure(start.current_gb)
    return Memory(
        device=end.device,
        start_gb=start.current_gb,
        peak_gb=end.peak_gb,
        peak_since=end.peak_since,
        training_gb=round(end.peak_gb - start.current_gb, 3),
        estimate_gb=session.memory_estimate,
    )


def warnings(before: float | None, after: float | None, best: Mapping[str, Any] | None) -> list[str]:
    """What a person has to know of the held-out losses before they use the model."""
    said = []
    if before is not None and after is not None and not after <= before:
        change = moved(before, after)
        said.append(
            f"the held-out loss ended worse than it began: {before:.3f} →"
            f" {number(after)}{f' ({change})' if change else ''}"
        )
    if before is not None and best and best["loss"] > before:
        said.append(
            f"the model before training ({before:.3f}) was better than every evaluation of it, the lowest"
            f" {best['loss']:.3f} at step {best['step']}"
        )
    return said


def rows_warnings(before: float | None, after: float | None) -> list[str]:
    """Of conversations that were trained: they should not have become less likely. Under half a percent is
    rounding.
    """
    if before is None or after is None or after <= before or moved(before, after) == "unchanged":
        return []
    change = moved(before, after)
    return [
        f"the loss of trained conversations ended worse than it began: {before:.3f} →"
        f" {number(after)}{f' ({change})' if change else ''}"
    ]


def not_learned(settings: Config, token_accuracy: float | None) -> list[str]:
    """With `dataset.eval_on_training`: whether not every trained token comes back."""
    if not settings.dataset.eval_on_training or token_accuracy is None or token_accuracy == 1:
        return []
    return [
        f"the training conversations do not come back word for word ({100 * token_accuracy:.1f}% of their"
        " tokens do): raise training.max_steps or training.learning_rate; or this model cannot learn them"
    ]


def refuse_ruined(training: Training, settings: Config, vocabulary: int) -> None:
    """Raises UserError where training ended with a model that the guard would have stopped in time; nothing
    is exported then.

    The held-out loss says so; where nothing is held out, that of some conversations that were trained: the
    guard needs eight losses, they need none.
    """
    if not settings.training.stop_on_divergence:
        return
    held_out = training.eval_loss_before, training.eval_loss
    if (
        not settings.objective.is_sft
    ):  # its loss says nothing of the language; that of the better answers does
        held_out = _nats(training.eval_perplexity_before), _nats(training.eval_perplexity)
    judged = [("held out", *held_out)]
    judged.append(("the loss of trained conversations", training.rows_loss_before, training.rows_loss))
    for what, before, after in judged:
        if before is None or after is None or after <= ruin_limit(before, vocabulary):
            continue
        raise UserError(
            f"training ruined the model: {what} {before:.3f} → {number(after)} (limit"
            f" {ruin_limit(before, vocabulary):.3f}), so it was not exported; its weights are"
            f" checkpoint-{training.weights_of_step} in {settings.training.output_dir}. Lower"
            f" training.learning_rate={settings.training.learning_rate:g}; training.stop_on_divergence=false"
            " exports it regardless"
        )
