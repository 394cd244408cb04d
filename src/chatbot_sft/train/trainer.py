"""SFTTrainerWrapper: TRL's SFTTrainer over rows that already carry their labels."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatbot_sft.config import Config
from chatbot_sft.errors import UserError
from chatbot_sft.logs import quiet
from chatbot_sft.model.engine import Engine, load_engine
from chatbot_sft.model.generate import as_text, greedy_answer
from chatbot_sft.targets import locate
from chatbot_sft.train.arguments import sft_arguments
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
        self.trainer: Any = None
        self.progress: Any = None
        self.evaluations: Any = None
        self.sample_prompts: list[list[dict[str, Any]]] = []  # messages, answered at each evaluation

    def create_trainer(self) -> Any:
        """The TRL trainer, with the loss on every token of a conversation.

        Raises:
            UserError: TRL refuses the settings.
        """
        from transformers import EarlyStoppingCallback, PrinterCallback

        from chatbot_sft.train.callbacks import Progress
        from chatbot_sft.train.evaluation import Evaluations

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
        training = self.settings.training
        stopping = None
        if training.early_stopping_patience is not None:
            stopping = EarlyStoppingCallback(training.early_stopping_patience, training.early_stopping_threshold)
            self.trainer.add_callback(stopping)
        self.evaluations = Evaluations(Path(training.output_dir), self.samples, stopping)
        self.trainer.add_callback(self.evaluations)
        self.progress = Progress()  # last: it takes the time of an evaluation out of the training speed
        self.trainer.add_callback(self.progress)
        return self.trainer

    def enable_response_only_training(self) -> None:
        """Put the loss on the assistant's tokens and ends of turn alone, in training and evaluation."""
        self.trainer.train_dataset = _columns(self.dataset)
        if self.eval_dataset is not None:
            self.trainer.eval_dataset = _columns(self.eval_dataset)

    def evaluate(self) -> float | None:
        """Mean loss per trained token of the held-out conversations, in nats; None where nothing is held out.

        The last of `evaluations.records` then holds it, with perplexity, token accuracy and the answers to `sample_prompts`.
        """
        with quiet():
            if self.eval_dataset is None:
                if self.sample_prompts:
                    self.evaluations.add(self.trainer.state)
                return None
            return float(self.trainer.evaluate()["eval_loss"])

    def evaluate_trained(self) -> float | None:
        """`evaluate` after training, unless the last step was evaluated and its weights are still the model's."""
        last = self.evaluations.at(self.trainer.state.global_step)
        if last is None or self.evaluations.reloaded is not None:
            return self.evaluate()
        return last["loss"]

    def samples(self) -> list[dict[str, str]]:
        """The model's greedy answers to `sample_prompts`; training goes on from there as if they had not been asked for."""
        if not self.sample_prompts:
            return []
        self.engine.for_inference(self.model)
        limit, kwargs = self.settings.training.sample_max_new_tokens, self.settings.dataset.chat_template_kwargs
        answers = [as_text(self.tokenizer, greedy_answer(self.model, self.tokenizer, prompt, limit, **kwargs)) for prompt in self.sample_prompts]
        self.engine.for_training(self.model)
        return [{"prompt": prompt[-1]["content"], "answer": answer} for prompt, answer in zip(self.sample_prompts, answers, strict=True)]

    def train(self) -> Any:
        """Run the training. Returns transformers' `TrainOutput` (global_step, training_loss, metrics)."""
        self.engine.for_training(self.model)
        with quiet():
            output = self.trainer.train()
        self._note_end()
        return output

    def _note_end(self) -> None:
        """Say where training stopped early and whose weights the model has now."""
        state = self.trainer.state
        if self.evaluations.stopped_early:
            patience = self.settings.training.early_stopping_patience
            log.info("step %d: stopped, %d evaluations in a row without a better held-out loss", state.global_step, patience)
        if self.trainer.args.load_best_model_at_end and state.best_model_checkpoint is not None and state.best_global_step != state.global_step:
            self.evaluations.reloaded = state.best_global_step
            log.info("step %d: its weights are loaded back, held out %.3f was the lowest", state.best_global_step, state.best_metric)

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
    """The engine's SFTTrainer with our row order and our evaluation."""
    from chatbot_sft.train.evaluation import HeldOut

    class Trainer(HeldOut, engine.trainer_class()):
        def _get_train_sampler(self, train_dataset: Dataset | None = None) -> StepSampler:
            rows = self.train_dataset if train_dataset is None else train_dataset
            effective_batch_size = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
            return StepSampler(row_lengths(rows), effective_batch_size, self.args.seed, shuffle)

    return Trainer


def _columns(dataset: Dataset) -> Dataset:
    return dataset.select_columns(["input_ids", "labels"])


def _all_tokens(dataset: Dataset) -> Dataset:
    """Without labels: TRL's collator then trains every token."""
    return dataset.select_columns(["input_ids"])


def _collator(tokenizer: Any) -> Any:
    """Right padding; padded positions get label -100 by position, so a pad token that equals the end token is still learned."""
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    return DataCollatorForLanguageModeling(pad_token_id=tokenizer.pad_token_id)
