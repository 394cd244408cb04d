"""SFTTrainerWrapper: TRL's SFTTrainer over rows that already carry their labels."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from chatbot_sft import preemption
from chatbot_sft.config import Config
from chatbot_sft.errors import UserError
from chatbot_sft.logs import quiet
from chatbot_sft.model.engine import Engine, load_engine
from chatbot_sft.targets import locate
from chatbot_sft.train.arguments import sft_arguments
from chatbot_sft.train.checkpoints import Origin, settle
from chatbot_sft.train.sampler import StepSampler, row_lengths

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)


class SFTTrainerWrapper:
    """Trains `model` on `dataset` (columns input_ids and labels, as `DatasetLoader.prepare_dataset` makes it).

    `create_trainer` alone trains on every token; `enable_response_only_training` restricts the loss to the assistant's. `setup_and_train` does
    what `training.response_only` says. `trainer` is the TRL trainer once created.
    """

    def __init__(self, config: Mapping[str, Any] | Config, model: Any, tokenizer: Any, dataset: Dataset, eval_dataset: Dataset | None = None) -> None:
        for name, rows in (("dataset", dataset), ("eval_dataset", eval_dataset)):
            if rows is not None and not {"input_ids", "labels"} <= set(rows.column_names):
                raise UserError(f"{name} has no input_ids and labels; make it with DatasetLoader(config, tokenizer).prepare_dataset()")
        self.config = config
        self.settings = Config.from_mapping(config)
        self.model = model
        self.tokenizer = tokenizer
        self.dataset = dataset
        self.eval_dataset = eval_dataset
        self.engine: Engine = load_engine(self.settings.model.engine)[0]
        self.origin = Origin()  # where the training begins; the pipeline sets it
        self.trainer: Any = None
        self.progress: Any = None

    def create_trainer(self) -> Any:
        """The TRL trainer, with the loss on every token of a conversation.

        Raises:
            UserError: TRL refuses the settings.
        """
        from transformers import PrinterCallback

        from chatbot_sft.train.callbacks import Progress
        from chatbot_sft.train.guard import Guard
        from chatbot_sft.train.resumable import Resume

        with quiet():
            self.trainer = trainer_class(self.engine, self.settings.dataset.shuffle)(
                model=self.model,
                args=sft_arguments(self.settings, self.engine),
                train_dataset=_all_tokens(self.dataset),
                eval_dataset=_all_tokens(self.eval_dataset) if self.eval_dataset is not None else None,
                processing_class=self.tokenizer,
                data_collator=_collator(self.tokenizer),
            )
        self.trainer.remove_callback(PrinterCallback)
        self.progress = Progress()
        self.trainer.add_callback(self.progress)
        self.trainer.origin = self.origin
        self.trainer.add_callback(Resume(self.trainer))
        if self.settings.training.stop_on_divergence:
            self.trainer.add_callback(Guard(self.trainer, self.dataset, self.settings.dataset.shuffle))
        return self.trainer

    def enable_response_only_training(self) -> None:
        """Put the loss on the assistant's tokens and ends of turn alone, in training and evaluation."""
        self.trainer.train_dataset = _columns(self.dataset)
        if self.eval_dataset is not None:
            self.trainer.eval_dataset = _columns(self.eval_dataset)

    def evaluate(self) -> float | None:
        """Mean loss per trained token of the held-out conversations, in nats; None where nothing is held out."""
        if self.eval_dataset is None:
            return None
        with quiet():
            return float(self.trainer.evaluate()["eval_loss"])

    def train(self) -> Any:
        """Run the training, from `origin` on. Returns transformers' `TrainOutput` (global_step, training_loss, metrics).

        Raises:
            UserError: the loss diverged, or a checkpoint cannot be written.
            Preempted: a signal asked to stop; a checkpoint was saved.
        """
        self.engine.for_training(self.model)
        checkpoint = self.origin.checkpoint
        if self.trainer.args.should_save:
            settle(self.origin, self.settings)
        with quiet(), preemption.deferred():
            return self.trainer.train(resume_from_checkpoint=str(checkpoint.folder) if checkpoint else None)

    def setup_and_train(self) -> Any:
        """`create_trainer`, response-only labels where `training.response_only` says so, `train`."""
        self.setup()
        return self.train()

    def setup(self) -> None:
        """The first two steps of `setup_and_train`, for those who evaluate before they train."""
        self.create_trainer()
        if self.settings.training.response_only:
            self.enable_response_only_training()

    def save_model(self, save_config: Mapping[str, Any] | None = None) -> Any:
        """Save what was trained as `config.save` says, or as `save_config` (keys of that section) does. Returns `save.SaveResult`."""
        return locate("save", self.settings.save._target_)(self.config, self.model, self.tokenizer).save(save_config)


def trainer_class(engine: Engine, shuffle: bool) -> type:
    """The engine's SFTTrainer with our row order and a held-out loss that does not depend on how rows fall into batches."""

    from chatbot_sft.train.resumable import Resumable

    class Trainer(Resumable, engine.trainer_class()):
        def _get_train_sampler(self, train_dataset: Dataset | None = None) -> StepSampler:
            rows = self.train_dataset if train_dataset is None else train_dataset
            effective_batch_size = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
            return StepSampler(row_lengths(rows), effective_batch_size, self.args.seed, shuffle)

        def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
            rows = dataloader.dataset
            self._tokens_per_row = sum(map(_predicted, rows["labels" if "labels" in rows.column_names else "input_ids"])) / len(rows)
            return super().evaluation_loop(dataloader, *args, **kwargs)

        def prediction_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            # transformers averages the batches' mean losses over rows; weighted by tokens, that average is the loss per token.
            tokens = (inputs["labels"][:, 1:] != -100).sum()
            rows = inputs["labels"].shape[0]
            loss, logits, labels = super().prediction_step(model, inputs, *args, **kwargs)
            return loss * (tokens / rows / self._tokens_per_row).to(loss.device), logits, labels

    return Trainer


def _predicted(labels: list[int]) -> int:
    return sum(label != -100 for label in labels[1:])


def _columns(dataset: Dataset) -> Dataset:
    return dataset.select_columns(["input_ids", "labels"])


def _all_tokens(dataset: Dataset) -> Dataset:
    """Without labels: TRL's collator then trains every token."""
    return dataset.select_columns(["input_ids"])


def _collator(tokenizer: Any) -> Any:
    """Right padding; padded positions get label -100 by position, so a pad token that equals the end token is still learned."""
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    return DataCollatorForLanguageModeling(pad_token_id=tokenizer.pad_token_id)
