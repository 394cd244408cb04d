"""Stops a run whose loss is not finite or has left the rails, before a step is applied. Imports torch."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from chatbot_sft.errors import UserError
from chatbot_sft.run import checkpoints
from chatbot_sft.train.rails import Rails
from chatbot_sft.train.writing import Writing

if TYPE_CHECKING:
    from datasets import Dataset

    from chatbot_sft.train.batches import Batches

log = logging.getLogger(__name__)

NAMED = 64  # rows named in the error


class Diverged(UserError):
    """The loss of a step is not finite, or has left the rails; the message names step, loss and rows."""


class Guard:
    """Looks at loss and gradient norm of each step, before the weights change or while that can be undone.

    `rows` is the dataset the steps are cut from; the rolling median is left out where it is not shuffled:
    there the loss may rise by itself.
    """

    def __init__(
        self, args: Any, rows: Dataset, batches: Batches, shuffled: bool, state: Any, writing: Writing
    ) -> None:
        """`state` is the transformers.TrainerState that the run begins with, `writing` that of its checkpoints."""
        self.args = args
        self.rows = rows
        self.batches = batches
        self.shuffled = shuffled
        self.writing = writing
        self.rails = Rails(state.max_steps)
        for entry in state.log_history:
            if "loss" in entry:
                self.rails.add(entry["loss"])

    def check(self, step: int, step_loss: torch.Tensor, step_norm: torch.Tensor) -> None:
        """Step `step` is about to be taken; its loss and gradient norm are scalars. Raises Diverged."""
        loss, norm = torch.stack([step_loss.float(), step_norm.to(step_loss.device).float()]).tolist()
        if not math.isfinite(loss):
            self._stop(step, f"the loss is {loss}")
        # float16 gradients overflow now and then; the loss scaler leaves such steps out.
        if not math.isfinite(norm) and not self.args.fp16:
            self._stop(step, f"the gradient norm is {norm} (loss {loss:.4f})")
        if self.rails.add(loss) and self.shuffled:
            losses = self.rails.losses
            problem = (
                f"the loss is {loss:.4f}, its median over the last {len(losses)} steps {median(losses):.4f},"
                f" once {self.rails.lowest:.4f}"
            )
            self._stop(step, f"{problem} (limit {self.rails.limit:.4f})")

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

    def _stop(self, number: int, problem: str) -> NoReturn:
        indices = self.batches.numbers(number)
        self.writing.end_quietly()
        last = checkpoints.last_in(Path(self.args.output_dir))
        good = (
            f"the last good checkpoint is {last.folder.name}" if last else "there is no checkpoint before it"
        )
        log.info("rows of step %d: %s", number, row_names(self.rows, indices))
        more = f" and {len(indices) - NAMED} more (run.log)" if len(indices) > NAMED else ""
        raise Diverged(
            f"step {number}: {problem}; {good}. It trained {row_names(self.rows, indices[:NAMED])}{more}."
            f" Lower training.learning_rate={self.args.learning_rate:g} or look at these rows;"
            " training.stop_on_divergence=false goes on regardless"
        )


def row_names(dataset: Dataset, indices: Sequence[int]) -> str:
    """`chats.json rows 4, 17` for rows of `dataset`; their indices where it does not say which those are."""
    if not {"file", "row"} <= set(dataset.column_names):
        return f"{_rows(indices)} of the dataset (from 0)"
    origins = dataset.select_columns(["file", "row"])[list(indices)]
    rows: dict[str, set[int]] = {}
    for file, row in zip(origins["file"], origins["row"], strict=True):
        rows.setdefault(file, set()).add(row)
    return ", ".join(f"{file} {_rows(numbers)}" for file, numbers in sorted(rows.items()))


def _rows(numbers: Collection[int]) -> str:
    return f"row{'' if len(numbers) == 1 else 's'} {', '.join(map(str, sorted(numbers)))}"
