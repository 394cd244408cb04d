"""One training, apart from the model that it trains. Imported after the engine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from transformers import EarlyStoppingCallback, TrainerCallback, TrainerControl, TrainerState

from chatbot_sft.run.steps import StepLog
from chatbot_sft.train.batches import Batches
from chatbot_sft.train.evaluation import Evaluations
from chatbot_sft.train.guard import Guard
from chatbot_sft.train.progress import Progress
from chatbot_sft.train.writing import Writing

if TYPE_CHECKING:
    from datasets import Dataset

    from chatbot_sft.config import Config
    from chatbot_sft.objective.base import Objective
    from chatbot_sft.train.figures import Figures
    from chatbot_sft.train.resume import Origin
    from chatbot_sft.train.rows import StepRows
    from chatbot_sft.train.trained_files import TrainedFiles


@dataclass(frozen=True)
class Taken:
    """An optimizer step that was taken, and not yet written down: `figures` of loss, gradient norm and
    whether a process was asked to stop.
    """

    number: int
    tokens: int  # of all processes, padding not counted
    figures: Figures
    rate: float  # the learning rate


@dataclass
class Job:
    """`args` are TRL's SFTConfig, `origin` says where it begins.

    `state` and `control` are transformers' own classes, so that its loggers, and callbacks that somebody
    adds, can be called as they are.
    """

    settings: Config
    args: Any
    model: Any
    tokenizer: Any
    dataset: Dataset
    eval_dataset: Dataset | None
    named: Dataset  # the rows of `dataset`, with the file and row they come from
    origin: Origin
    evaluations: Evaluations
    progress: Progress
    objective: Objective
    steps: StepLog
    stopping: EarlyStoppingCallback | None = None
    callbacks: list[TrainerCallback] = field(default_factory=list)
    state: TrainerState = field(default_factory=TrainerState)
    control: TrainerControl = field(default_factory=TrainerControl)
    ended: bool = False
    # made by `begin`
    batches: Batches = field(init=False)
    rows: Iterator[StepRows] = field(init=False)
    optimizer: Any = None
    schedule: Any = None
    guard: Guard | None = None
    taken: Taken | None = None  # the last step, until it is written down
    pending: Any = 0.0  # the sum of the losses since the last log, a float32 tensor
    pending_figures: dict[str, float] = field(
        default_factory=dict
    )  # and of what an objective reports beside it
    total: float = 0.0  # and of those before
    logged_until: int = 0
    beginning: list[Any] | None = (
        None  # what is trained as it was at its beginning, where a checkpoint took its place
    )
    held_out_reference: Any = None  # what the reference makes of `eval_dataset`, see `reference`
    trained_files: TrainedFiles | None = None  # of its checkpoints, once there is one
    writing: Writing = field(default_factory=Writing)  # of the last of them
    evaluated: float | None = None  # the last held-out loss of this turn
    passed: float | None = None  # and the last share of golden cases
    started: float = 0.0  # the same moment by two clocks
    began: float = 0.0

    def add_callback(self, callback: TrainerCallback) -> None:
        """Called with this job's args, state and control, as transformers' Trainer calls its own."""
        self.callbacks.append(callback)

    def tell(self, event: str, **more: Any) -> None:
        """Call `event` ("on_log", "on_step_end" …) of every callback, with what transformers' Trainer gives
        along.
        """
        more |= {
            "model": self.model,
            "processing_class": self.tokenizer,
            "optimizer": self.optimizer,
            "lr_scheduler": self.schedule,
        }
        for callback in self.callbacks:
            getattr(callback, event)(self.args, self.state, self.control, **more)

    def make_batches(self, batch_size: int) -> Batches:
        """The rows of every step, `batch_size` packs of them for each process."""
        capacity = self.settings.model.max_seq_length if self.settings.training.packing else None
        args, shuffle = self.args, self.settings.dataset.shuffle
        return Batches(
            self.dataset,
            batch_size * args.world_size,
            args.seed,
            shuffle,
            capacity,
            args.process_index,
            args.world_size,
            self.beside,
        )

    @property
    def beside(self) -> int | None:
        """As `PackedDataset` takes it."""
        return self.settings.model.max_seq_length if self.objective.looks else None

    def seconds(self) -> float:
        """Trained so far, over every start of this run; what a killed start did after its last checkpoint
        does not count.
        """
        return round(self.origin.seconds + time.perf_counter() - self.started, 3)
