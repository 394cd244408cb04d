"""Stops a run whose loss is not finite or has left the rails, before the optimizer applies the step. Imports transformers."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from chatbot_sft.errors import UserError
from chatbot_sft.run import checkpoints
from chatbot_sft.train.rails import Rails

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

NAMED = 64  # rows named in the error


class Diverged(UserError):
    """The loss of an optimizer step is not finite, or has left the rails; the message names step, loss and rows."""


class Guard(TrainerCallback):
    """Looks at loss and gradient norm once an optimizer step, in one transfer from the device, before the weights change.

    `rows` is the dataset the steps are cut from; the rolling median is left out where it is not shuffled: there the loss may rise by itself.
    """

    def __init__(self, trainer: Any, rows: Dataset, shuffled: bool) -> None:
        self.trainer = trainer
        self.rows = rows
        self.shuffled = shuffled
        self.rails = Rails(1)
        self._before = 0.0  # the trainer's sum of losses not yet logged, up to the last step

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.rails = Rails(state.max_steps)
        self._before = self.trainer._tr_loss.item()
        for entry in state.log_history:
            if "loss" in entry:
                self.rails.add(entry["loss"])

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self._before = 0.0

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Raises Diverged."""
        total = self.trainer._tr_loss
        values = torch.stack([total.float(), torch.as_tensor(self.trainer.grad_norm, device=total.device).float()])
        sum_now, norm = self.trainer.accelerator.reduce(values, "mean").tolist()  # on one device: the values themselves
        loss, self._before = sum_now - self._before, sum_now
        if not math.isfinite(loss):
            self._stop(args, state, f"the loss is {loss}")
        if not math.isfinite(norm) and not args.fp16:  # float16 gradients overflow now and then; the loss scaler leaves such steps out
            self._stop(args, state, f"the gradient norm is {norm} (loss {loss:.4f})")
        if self.rails.add(loss) and self.shuffled:
            losses = self.rails.losses
            what = f"the loss is {loss:.4f}, its median over the last {len(losses)} steps {median(losses):.4f}, once {self.rails.lowest:.4f}"
            self._stop(args, state, f"{what} (limit {self.rails.limit:.4f})")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep weights that are broken, or seem to be, out of checkpoints. Raises Diverged."""
        if not control.should_save:
            return
        trained = [parameter for parameter in self.trainer.model.parameters() if parameter.requires_grad]
        if not torch.stack([torch.isfinite(parameter).all() for parameter in trained]).all():
            self._stop(args, state, "the weights are no longer finite after it", state.global_step)
        if self.shuffled and self.rails.doubtful:
            log.warning("step %d: no checkpoint, the last losses are above %.4f", state.global_step, self.rails.limit)
            control.should_save = False

    def _stop(self, args: Any, state: Any, what: str, step: int | None = None) -> None:
        number = step or state.global_step + 1
        last = checkpoints.last_in(Path(args.output_dir))
        kept = f"the last good checkpoint is {last.folder.name}" if last else "there is no checkpoint before it"
        indices = [row.number for row in self.trainer.step.rows]
        log.info("rows of step %d: %s", number, row_names(self.rows, indices))
        raise Diverged(
            f"step {number}: {what}; {kept}. It trained {row_names(self.rows, indices[:NAMED])}"
            f"{f' and {len(indices) - NAMED} more (run.log)' if len(indices) > NAMED else ''}. "
            f"Lower training.learning_rate={args.learning_rate:g} or look at these rows; training.stop_on_divergence=false goes on regardless"
        )


def row_names(dataset: Dataset, indices: Sequence[int]) -> str:
    """ "chats.json rows 4, 17" for rows of `dataset`; by their index, from 0, where it does not say which file and row they come from."""
    if not {"file", "row"} <= set(dataset.column_names):
        return f"rows {', '.join(map(str, sorted(indices)))} of the dataset (from 0)"
    found = dataset.select_columns(["file", "row"])[list(indices)]
    rows: dict[str, set[int]] = {}
    for file, row in zip(found["file"], found["row"], strict=True):
        rows.setdefault(file, set()).add(row)
    return ", ".join(f"{file} rows {', '.join(map(str, sorted(numbers)))}" for file, numbers in sorted(rows.items()))
