"""Stops a run whose loss is not finite or has left the rails, before the optimizer applies the step. Imports
torch.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from chatbot_sft.errors import UserError
from chatbot_sft.run import checkpoints
from chatbot_sft.train.rails import Rails

if TYPE_CHECKING:
    from datasets import Dataset

    from chatbot_sft.train.batches import Batches

log = logging.getLogger(__name__)

NAMED = 64  # rows named in the error


class Diverged(UserError):
    """The loss of an optimizer step is not finite, or has left the rails; the message names step, loss and
    rows.
    """


class Guard:
    """Looks at loss and gradient norm once an optimizer step, in one transfer from the device, before the
    weights change.

    `rows` is the dataset the steps are cut from; the rolling median is left out where it is not shuffled:
    there the loss may rise by itself.
    """

    def __init__(self, args: Any, rows: Dataset, batches: Batches, shuffled: bool, state: Any) -> None:
        """`state` is the transformers.TrainerState that the run begins with."""
        self.args = args
        self.rows = rows
        self.batches = batches
        self.shuffled = shuffled
        self.rails = Rails(state.max_steps)
        for entry in state.log_history:
            if "loss" in entry:
                self.rails.add(entry["loss"])

    def check(self, step: int, loss: torch.Tensor, norm: torch.Tensor) -> None:
        """Step `step` is about to be taken. Raises Diverged."""
        loss, norm = torch.stack([loss.float(), norm.to(loss.device).float()]).tolist()
        if not math.isfinite(loss):
            self._stop(step, f"the loss is {loss}")
        if (
            not math.isfinite(norm) and not self.args.fp16
        ):  # float16 gradients overflow now and then; the loss scaler leaves such steps out
            self._stop(step, f"the gradient norm is {norm} (loss {loss:.4f})")
        if self.rails.add(loss) and self.shuffled:
            losses = self.rails.losses
            what = (
                f"the loss is {loss:.4f}, its median over the last {len(losses)} steps {median(losses):.4f},"
                f" once {self.rails.lowest:.4f}"
            )
            self._stop(step, f"{what} (limit {self.rails.limit:.4f})")

    def check_weights(self, step: int, weights: Sequence[torch.Tensor]) -> None:
        """Keep weights that are broken out of checkpoints. Raises Diverged."""
        if not torch.stack([torch.isfinite(weight).all() for weight in weights]).all():
            self._stop(step, "the weights are no longer finite after it")

    def doubts(self, step: int) -> bool:
        """Whether the weights after step `step` seem to be broken, and are not worth keeping."""
        if self.shuffled and self.rails.doubtful:
            log.warning("step %d: no checkpoint, the last losses are above %.4f", step, self.rails.limit)
            return True
        return False

    def _stop(self, number: int, what: str) -> None:
        indices = self.batches.numbers(number)
        last = checkpoints.last_in(Path(self.args.output_dir))
        kept = (
            f"the last good checkpoint is {last.folder.name}" if last else "there is no checkpoint before it"
        )
        log.info("rows of step %d: %s", number, row_names(self.rows, indices))
        more = f" and {len(indices) - NAMED} more (run.log)" if len(indices) > NAMED else ""
        raise Diverged(
            f"step {number}: {what}; {kept}. It trained {row_names(self.rows, indices[:NAMED])}{more}."
            f" Lower training.learning_rate={self.args.learning_rate:g} or look at these rows;"
            " training.stop_on_divergence=false goes on regardless"
        )


def row_names(dataset: Dataset, indices: Sequence[int]) -> str:
    """ "chats.json rows 4, 17" for rows of `dataset`; by their index, from 0, where it does not say which
    file and row they come from.
    """
    if not {"file", "row"} <= set(dataset.column_names):
        return f"rows {', '.join(map(str, sorted(indices)))} of the dataset (from 0)"
    found = dataset.select_columns(["file", "row"])[list(indices)]
    rows: dict[str, set[int]] = {}
    for file, row in zip(found["file"], found["row"], strict=True):
        rows.setdefault(file, set()).add(row)
    return ", ".join(
        f"{file} rows {', '.join(map(str, sorted(numbers)))}" for file, numbers in sorted(rows.items())
    )
