"""The other loop: TRL's SFTTrainer as published, through its public arguments and callbacks alone.

Imported after the engine.

The rows of each step, and how the step is cut into micro-batches, are those of the native loop with
training.batch_layout=as_configured, so both give the same numbers. What it gives up stands in
docs/training.md.
"""

from __future__ import annotations

import logging
import math
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import TrainOutput

from chatbot_sft import preemption
from chatbot_sft.errors import UserError
from chatbot_sft.report.masking import masked_arguments
from chatbot_sft.run import checkpoints
from chatbot_sft.train import resume, snapshot
from chatbot_sft.train.evaluation import evaluate
from chatbot_sft.train.guard import Diverged, Guard
from chatbot_sft.train.job import Job
from chatbot_sft.train.layout import Layout
from chatbot_sft.train.loop import judge
from chatbot_sft.train.randomness import undisturbed
from chatbot_sft.train.rows import Row

if TYPE_CHECKING:
    from chatbot_sft.train.batches import Batches
    from chatbot_sft.train.step import Step

log = logging.getLogger(__name__)


class Rows:
    """The packs of an epoch, in its order, as a datasets.Dataset; which epoch is set as it begins."""

    def __init__(self, batches: Batches) -> None:
        self.batches, self.epoch = batches, 0

    def as_dataset(self) -> Dataset:
        return Dataset.from_dict({"place": list(range(len(self.batches.packs)))}).with_transform(self._rows)

    def _rows(self, batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        packs = [pack for step in self.batches.epoch(self.epoch) for pack in step]
        rows_of_packs = [self.batches.rows[packs[place]] for place in batch["place"]]
        return {
            "input_ids": [[row.input_ids for row in rows] for rows in rows_of_packs],
            "labels": [[row.labels for row in rows] for rows in rows_of_packs],
        }


def collator(layout: Layout, step: Step) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
    """Micro-batches as the native loop makes them."""

    def collate(packs: list[dict[str, Any]]) -> dict[str, Any]:
        rows = [
            Row(-1, *row) for pack in packs for row in zip(pack["input_ids"], pack["labels"], strict=True)
        ]
        return step.engine.inputs(layout.batch(rows, step.pad))

    return collate


class Companion(TrainerCallback):
    """What the native loop does beside its steps, where TRL's calls a callback: evaluation, guard, progress,
    preemption, run.json in checkpoints.
    """

    def __init__(self, job: Job, rows: Rows, layout: Layout, step: Step) -> None:
        self.job, self.rows, self.layout, self.step = job, rows, layout, step
        self.trainer: Any = None
        self.failure: Diverged | None = None  # what ends the run once TRL's loop has come to its end

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        job = self.job
        job.state, job.control, job.schedule = state, control, self.trainer.lr_scheduler
        job.started = time.perf_counter()
        state.compute_steps(job.args, state.max_steps)
        if job.settings.training.stop_on_divergence:
            job.guard = Guard(
                args, job.named, self.rows.batches, job.settings.dataset.shuffle, state, job.writing
            )
        if job.stopping and (stopping := state.stateful_callbacks.get(snapshot.STOPPING)):
            patience = stopping["attributes"]["early_stopping_patience_counter"]
            job.stopping.early_stopping_patience_counter = patience
        job.evaluations.begin(state)
        job.progress.begin(state)
        job.steps.begin(job.origin.behind)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.rows.epoch = int(state.epoch)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        job, number = self.job, state.global_step
        job.control = control
        state.num_input_tokens_seen += self.rows.batches.tokens(number)[0]
        job.progress.step(state)
        last = number >= state.max_steps
        if (
            job.settings.training.eval_steps is not None
            and args.eval_delay <= number
            and (last or number % state.eval_steps == 0)
        ):
            logs = control.should_log
            best = judge(job, self.held_out()["eval_loss"])
            control.should_log = logs  # the held-out figures were logged in between
            control.should_save |= best and (job.args.load_best_model_at_end or args.save_strategy == "best")
        if self._asked(args):
            control.should_save = control.should_training_stop = True
        job.ended = last or control.should_training_stop

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        if not logs or "loss" not in logs:
            return
        self.job.progress.log(state, logs["loss"])
        # Of the steps since the last of these: TRL's loop tells no more.
        figures = {name: logs[name] for name in ("loss", "grad_norm", "learning_rate") if name in logs}
        self.job.steps.add(state.global_step, **figures)
        if self.job.guard and self.failure is None:
            loss, norm = torch.tensor(logs["loss"]), torch.tensor(logs["grad_norm"])
            try:
                self.job.guard.check(state.global_step, loss, norm)
            except Diverged as error:
                self.failure = error
                control.should_training_stop, control.should_save = True, False

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        job = self.job
        job.progress.pause()
        if args.should_save:
            losses = {"pending": 0.0, "total": 0.0, "logged_until": state.global_step}
            finished = job.ended and not (preemption.requested() and state.global_step < state.max_steps)
            record = resume.record(
                job.origin, state.global_step, job.seconds(), finished, losses, self.layout.as_dict()
            )
            folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
            torch.save(masked_arguments(args), folder / TRAINING_ARGS_NAME)
            checkpoints.seal(folder, record)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.job.progress.end()
        self.job.steps.end()

    def held_out(self) -> dict[str, float]:
        """Evaluate as the native loop does; the trainer's own evaluation would mark the model as prepared,
        and several processes train apart.
        """
        job, step, number = self.job, self.step, self.trainer.state.global_step
        metrics = evaluate(step, job.eval_dataset, number)
        self.trainer.log(dict(metrics))
        with undisturbed():
            job.evaluations.take(self.trainer.state, metrics)
        job.progress.pause()
        return metrics

    def _asked(self, args: Any) -> bool:
        """Whether any process of the run was asked to stop: all of them have to stop at the same step."""
        if args.world_size == 1:
            return preemption.requested()
        flag = torch.tensor(float(preemption.requested()), device=args.device)
        torch.distributed.all_reduce(flag)
        return bool(flag)


def build(job: Job, batches: Batches, layout: Layout, step: Step) -> tuple[Any, Companion]:
    """TRL's trainer of `job`, and what accompanies it."""
    rows = Rows(batches)
    companion = Companion(job, rows, layout, step)
    trainer = step.engine.trainer_class()(
        model=job.model,
        args=job.args,
        train_dataset=rows.as_dataset(),
        processing_class=job.tokenizer,
        data_collator=collator(layout, step),
        callbacks=[companion, *job.callbacks],
    )
    trainer.remove_callback(PrinterCallback)
    companion.trainer = trainer
    return trainer, companion


def train(trainer: Any, companion: Companion) -> TrainOutput:
    """Run it, from the job's origin on.

    Raises:
        UserError: the loss diverged.
    """
    job, checkpoint = companion.job, companion.job.origin.checkpoint
    if checkpoint is not None and job.origin.finished:
        trainer.state = job.state = snapshot.state(checkpoint, job.args)
        snapshot.load_trained(job.model, checkpoint.folder)
        job.evaluations.begin(job.state)
        job.progress.begin(job.state)
        output = TrainOutput(job.state.global_step, mean_loss(job), {"train_runtime": 0.0})
    else:
        try:
            output = trainer.train(resume_from_checkpoint=str(checkpoint.folder) if checkpoint else None)
        except pickle.UnpicklingError:
            raise UserError(
                snapshot.with_code(checkpoint.folder if checkpoint else job.args.output_dir)
            ) from None
    if companion.failure is not None:
        raise companion.failure
    state = trainer.state
    if (
        job.settings.training.load_best_model_at_end
        and state.best_model_checkpoint
        and state.best_global_step != state.global_step
    ):
        snapshot.load_best(job.model, state)
    return TrainOutput(output.global_step, mean_loss(job), output.metrics)


def mean_loss(job: Job) -> float:
    """Of all logged steps: TRL's own mean forgets those before a resume."""
    losses = [loss for _, loss in job.progress.losses]
    return sum(losses) / len(losses) if losses else math.nan
