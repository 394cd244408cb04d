"""What transformers' Trainer lacks so that a killed run ends with exactly the losses of an uninterrupted one. Imports transformers."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME

from chatbot_sft import preemption
from chatbot_sft.errors import UserError
from chatbot_sft.report.masking import masked_arguments
from chatbot_sft.run import checkpoints
from chatbot_sft.save.saver import is_write_error
from chatbot_sft.train import resume
from chatbot_sft.train.resume import Origin


class Resumable:
    """A mixin for a Trainer: checkpoints appear whole or not at all, a finished training is not trained on. Needs `origin` set before `train`."""

    origin: Origin
    grad_norm: Any = None  # of the optimizer step that is about to be taken
    _staging: Path | None = None
    _begun = 0.0

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging) if self._staging else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """As transformers' own, into a folder that no search takes for a checkpoint, then renamed; only then older ones are removed.

        Raises:
            UserError: it cannot be written; what was there before still is.
        """
        folder = Path(self.args.output_dir)
        target = folder / f"checkpoint-{self.state.global_step}"
        if target.is_dir():  # the last step of an epoch may be saved as a step and as an epoch
            return
        staged = folder / checkpoints.SAVING / target.name
        self._staging = staged.parent
        try:
            super()._save_checkpoint(model, trial)
            if self.state.best_model_checkpoint == str(staged):
                self.state.best_model_checkpoint = str(target)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                self.state.save_to_json(str(staged / TRAINER_STATE_NAME))
                torch.save(masked_arguments(self.args), staged / TRAINING_ARGS_NAME)
                checkpoints.publish(staged, target, self._record())
        except Exception as error:
            shutil.rmtree(self._staging, ignore_errors=True)
            if not is_write_error(error):
                raise
            last = checkpoints.last_in(folder)
            kept = f"the one of step {last.step} is kept" if last else "there is none before it"
            raise UserError(
                f"training.output_dir={folder}: the checkpoint of step {self.state.global_step} cannot be written "
                f"({' '.join(str(error).split())}); {kept}"
            ) from error
        finally:
            self._staging = None
        if self.args.should_save:
            shutil.rmtree(staged.parent, ignore_errors=True)
            checkpoints.prune(folder, self.args.save_total_limit, self.state.best_model_checkpoint)
        self.accelerator.wait_for_everyone()

    def _record(self) -> dict[str, Any]:
        finished = self.state.global_step >= self.state.max_steps or (self.control.should_training_stop and not preemption.requested())
        # The part of the mean loss that has not been logged yet, and the sum of what has: transformers keeps them in memory only.
        losses = {"pending": self._tr_loss.item(), "total": self._total_loss_scalar, "logged_until": self._globalstep_last_logged}
        return resume.record(self.origin, self.state.global_step, self.seconds(), finished, losses, self.layout.as_dict())

    def seconds(self) -> float:
        """Trained so far, over every start of this run; what a killed start did after its last checkpoint does not count."""
        return round(self.origin.seconds + time.perf_counter() - self._begun, 3)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # transformers would train one step beyond the end.
        if self.origin.finished:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.origin.extended and isinstance(self.lr_scheduler, torch.optim.lr_scheduler.LambdaLR):
            # What was loaded is the end of the old schedule, where the learning rate is often 0; the new schedule would set its own a step late.
            scheduler = self.lr_scheduler
            rates = [base * factor(scheduler.last_epoch) for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
            scheduler._last_lr = rates

    def _load_best_model(self) -> None:
        """As transformers' own.

        Raises:
            UserError: the best checkpoint is not as it was written.
        """
        best = Path(self.state.best_model_checkpoint)
        try:
            checkpoints.verified(best)
        except checkpoints.Damaged as error:
            raise UserError(f"{best}, the best of this run: {error}; training.load_best_model_at_end=false ends with the last weights") from None
        super()._load_best_model()

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        self.grad_norm = super()._get_grad_norm(*args, **kwargs)
        return self.grad_norm


class Resume(TrainerCallback):
    """Restores what the trainer's own state leaves out; ends the training with a checkpoint where a signal asks for it."""

    def __init__(self, trainer: Resumable) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer, checkpoint = self.trainer, self.trainer.origin.checkpoint
        trainer._begun = time.perf_counter()
        if checkpoint:
            losses = checkpoint.record["losses"]
            trainer._tr_loss += losses["pending"]
            trainer._total_loss_scalar = losses["total"]
            trainer._globalstep_last_logged = losses["logged_until"]
            state.compute_steps(args, state.max_steps)  # the cadence of this command, not the first one's

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._asked(args):
            control.should_save = control.should_training_stop = True

    def _asked(self, args: Any) -> bool:
        """Whether any process of the run was asked to stop: all of them have to stop at the same step."""
        if args.world_size == 1:
            return preemption.requested()
        flag = torch.tensor(float(preemption.requested()), device=args.device)
        return bool(self.trainer.accelerator.reduce(flag, "sum").item())
