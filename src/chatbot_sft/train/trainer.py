"""SFTTrainerWrapper: TRL's SFTTrainer over rows that already carry their labels, its steps run in the layout that is fastest here."""

from __future__ import annotations

import gc
import logging
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from chatbot_sft.config import Config
from chatbot_sft.errors import UserError
from chatbot_sft.logs import THIRD_PARTY, quiet
from chatbot_sft.model.engine import Engine, load_engine
from chatbot_sft.report.loggers import Loggers
from chatbot_sft.report.run_report import versions
from chatbot_sft.targets import locate
from chatbot_sft.train.arguments import sft_arguments
from chatbot_sft.train.layout import Layout, as_configured, candidates, step_down
from chatbot_sft.train.measure import Plan, Trial, cache_key, choose
from chatbot_sft.train.sampler import StepSampler, row_lengths

if TYPE_CHECKING:
    from datasets import Dataset

    from chatbot_sft.train.rows import StepRows

log = logging.getLogger(__name__)

WORTH_CAPTURING = 200  # optimizer steps; below, capturing costs more seconds than it saves


class SFTTrainerWrapper:
    """Trains `model` on `dataset` (columns input_ids and labels, as `DatasetLoader.prepare_dataset` makes it).

    `create_trainer` alone trains on every token; `enable_response_only_training` restricts the loss to the assistant's. `setup_and_train` does
    what `training.response_only` says. `trainer` is the TRL trainer once created, `plan` the batch layout once chosen, `loggers` what
    `training.report_to` opened: hand them a report with `loggers.finish(report)`.
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
        self.plan: Plan | None = None
        self.loggers = Loggers()

    def create_trainer(self) -> Any:
        """The TRL trainer, with the loss on every token of a conversation.

        Raises:
            UserError: TRL refuses the settings, or a logger of `training.report_to` cannot be opened.
        """
        from transformers import PrinterCallback

        from chatbot_sft.train.callbacks import Progress

        with quiet():
            self.trainer = trainer_class(self.engine, self.settings)(
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
        if self.trainer.is_world_process_zero():
            self.loggers.start(self.trainer, self.settings, self.config)
        return self.trainer

    def enable_response_only_training(self) -> None:
        """Put the loss on the assistant's tokens and ends of turn alone, in training and evaluation."""
        self.trainer.train_dataset = _columns(self.dataset)
        if self.eval_dataset is not None:
            self.trainer.eval_dataset = _columns(self.eval_dataset)

    def plan_layout(self) -> Plan:
        """Choose the batch layout as `training.batch_layout` says, log it, and use it."""
        training = self.settings.training
        batch_size = self.settings.effective_batch_size
        configured = as_configured(training.per_device_train_batch_size, bool(self.engine.checkpointing(self.settings)), training.packing)
        if training.batch_layout == "as_configured":
            self.plan = Plan(configured, "as configured")
        else:
            with quiet():
                self.plan = self._measured_plan(configured, batch_size)
        self.trainer.use_layout(self.plan.layout)
        times = {found.layout: f", {1000 * found.seconds:,.0f} ms a step" for found in self.plan.measurements if found.seconds is not None}
        chosen = self.plan.layout
        other = f"; as configured: {configured.describe(batch_size)}{times.get(configured, '')}" if configured != chosen else ""
        log.info("layout: %s (%s%s%s)", chosen.describe(batch_size), self.plan.reason, times.get(chosen, ""), other)
        for row in self.measured_layouts():
            THIRD_PARTY.info("layout measured: %s", row)
        return self.plan

    def evaluate(self) -> float | None:
        """Mean loss per trained token of the held-out conversations, in nats; None where nothing is held out."""
        if self.eval_dataset is None:
            return None
        with quiet():
            return float(self.trainer.evaluate()["eval_loss"])

    def train(self) -> Any:
        """Run the training. Returns transformers' `TrainOutput` (global_step, training_loss, metrics)."""
        if self.plan is None:
            self.plan_layout()
        self.trainer.use_layout(self.plan.layout)
        with quiet():
            return self.trainer.train()

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

    def _measured_plan(self, configured: Layout, batch_size: int) -> Plan:
        import torch

        gpu = torch.cuda.is_available()
        trial = self.trainer.trial(self.settings.training.memory_margin)
        capturable = gpu and trial.steps >= WORTH_CAPTURING and self.trainer.capturable()
        layouts = candidates(configured, batch_size, gpu, capturable)
        sampler = self.trainer.step_sampler()
        sizes = sorted(sum(sampler.lengths[row] for row in pack) for pack in sampler.packs)
        key = cache_key(
            self.model.config.to_dict(),
            {name: asdict(part) for name, part in (("model", self.settings.model), ("lora", self.settings.lora))},
            [sizes[-1], sizes[len(sizes) // 2], sizes[9 * len(sizes) // 10]],
            [self.settings.training.memory_margin, configured.as_dict(), [layout.as_dict() for layout in layouts]],
            torch.cuda.get_device_properties(0).name if gpu else torch.get_num_threads(),
            self.trainer.args.world_size,
            {name: version for name, version in versions().items() if name != "chatbot-sft"},
        )
        return choose(layouts, configured, trial, key)

    def measured_layouts(self) -> list[dict[str, Any]]:
        """What `plan_layout` measured, for the report: times in milliseconds for the typical step, peaks in GB."""
        return [
            {
                "layout": found.layout.describe(self.settings.effective_batch_size),
                "milliseconds": found.seconds and round(1000 * found.seconds, 3),
                "peak_gb": found.peak_gb,
                "why_not": found.why_not,
            }
            for found in self.plan.measurements
        ]


def trainer_class(engine: Engine, settings: Config) -> type:
    """The engine's SFTTrainer with our steps: one StepRows each, run in `layout`, and a held-out loss that does not depend on the batches."""
    import torch

    from chatbot_sft.train.gradients import FlatParameters, Gradients, flattens
    from chatbot_sft.train.graphs import CapturedLayers, layers_and_loss
    from chatbot_sft.train.rows import IGNORED, StepLoader, StepRows, padded

    class Trainer(engine.trainer_class()):
        layout: Layout
        captured: CapturedLayers | None = None

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
            self.flat = FlatParameters(trained) if "8bit" in self.args.optim and flattens(trained) else None
            self.gradients = self.flat or Gradients(trained)

        def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
            if self.optimizer is None and self.flat is not None:
                optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
                self.optimizer = optimizer_class([self.flat.vector], weight_decay=self.args.weight_decay, **options)
            return super().create_optimizer(*args, **kwargs)

        def step_sampler(self) -> StepSampler:
            """The conversations of each step of this process; `args.per_device_train_batch_size` is the whole step's."""
            training = settings.training
            return StepSampler(
                row_lengths(self.train_dataset),
                self.args.per_device_train_batch_size * self.args.world_size,
                self.args.seed,
                settings.dataset.shuffle,
                settings.model.max_seq_length if training.packing else None,
                self.args.process_index,
                self.args.world_size,
            )

        def get_train_dataloader(self) -> StepLoader:
            return StepLoader(self.train_dataset, self.step_sampler(), self.args.dataloader_num_workers)

        def use_layout(self, layout: Layout) -> None:
            self.layout = layout
            self.args.gradient_checkpointing = layout.checkpointing  # Unsloth reads it when training begins
            engine.for_training(self.model, layout.checkpointing)

        def capturable(self) -> bool:
            """Whether `layout.captured` may be tried: on one GPU, an adapter alone, nothing random in the layers, no loss scaling."""
            lora, extra = settings.lora, settings.sft_arguments
            plain = not settings.full_finetuning and not lora.modules_to_save and not lora.lora_dropout and not extra.get("neftune_noise_alpha")
            return plain and self.args.world_size == 1 and self.accelerator.scaler is None and engine.capturable(self.model)

        def trial(self, memory_margin: float) -> Trial:
            """The typical and the longest step of this run, and a way to run them without a trace."""
            sampler = self.step_sampler()
            steps = sorted(sampler.steps(), key=lambda step: sum(sampler.lengths[row] for pack in step for row in pack))
            by_size = sorted(sampler.packs, key=lambda pack: -sum(sampler.lengths[row] for row in pack))
            rows = StepLoader(self.train_dataset, sampler).dataset
            typical, longest = (
                StepRows([rows[pack] for pack in step[: self.args.per_device_train_batch_size]]) for step in (steps[len(steps) // 2], by_size)
            )

            def run(layout: Layout, step: StepRows) -> None:
                self.use_layout(layout)
                with self.accelerator.autocast():
                    self._run(self.model, step, torch.tensor(max(1, step.trained_tokens), device=self.args.device))
                self.model.zero_grad()

            steps_planned = self.args.max_steps if self.args.max_steps > 0 else int(self.args.num_train_epochs * len(sampler))
            shapes = {CapturedLayers.length(max(sampler.lengths[row] for pack in step for row in pack)) for step in steps}
            return Trial(run, typical, longest, steps_planned, memory_margin, len(shapes))

        def training_step(self, model: Any, inputs: StepRows, num_items_in_batch: Any = None) -> torch.Tensor:
            """One optimizer step's gradient. Out of memory, it is computed again from its beginning in the next smaller layout."""
            while True:
                try:
                    return self._run(model, inputs, num_items_in_batch)
                except torch.OutOfMemoryError as error:
                    smaller = step_down(self.layout, checkpoints=True)
                    if smaller is None or self.args.world_size > 1:
                        raise UserError(
                            f"out of memory at step {self.state.global_step + 1} ({self.layout.describe(len(inputs.packs))}); "
                            "set a smaller training.per_device_train_batch_size or model.max_seq_length, or model.load_in_4bit=true"
                        ) from error
                # Out of the handler: until then the exception holds on to the activations of the step that failed.
                model.zero_grad()
                gc.collect()
                torch.cuda.empty_cache()
                size = len(inputs.packs)
                log.warning("layout: out of memory; step %d again as %s", self.state.global_step + 1, smaller.describe(size))
                self.use_layout(smaller)

        def _run(self, model: Any, step: StepRows, num_items_in_batch: torch.Tensor) -> torch.Tensor:
            if self.layout.captured and self.captured is None:
                self.captured = CapturedLayers(*layers_and_loss(engine, self.model, self.accelerator.autocast))
            if self.layout.captured or self.flat is not None:
                self.gradients.attach()
            groups = list(self.layout.groups(step))
            losses = []
            for number, rows in enumerate(groups, 1):
                if self.layout.captured and len(rows) == self.layout.packs:
                    batch = padded(rows, self.processing_class.pad_token_id, CapturedLayers.length(max(map(len, rows))), mask=False)
                    ids, labels = (batch[name].to(self.args.device, non_blocking=True) for name in ("input_ids", "labels"))
                    losses.append(self.captured.run(ids, labels, num_items_in_batch))
                    continue
                batch = self.layout.batch(rows, self.processing_class.pad_token_id)
                with nullcontext() if number == len(groups) else self.accelerator.no_sync(model):
                    losses.append(super().training_step(model, engine.inputs(batch), num_items_in_batch))
            return torch.stack(losses).sum()

        def _get_num_items_in_batch(self, batch_samples: list[StepRows], device: torch.device) -> torch.Tensor:
            """Trained tokens of the step over all processes; the tokens seen are counted on the way, without waiting for the device."""
            counts = torch.tensor([sum(step.trained_tokens for step in batch_samples), sum(step.tokens for step in batch_samples)], device=device)
            if self.args.world_size > 1:
                torch.distributed.all_reduce(counts)
                self.state.num_input_tokens_seen += int(counts[1])
            else:
                self.state.num_input_tokens_seen += sum(step.tokens for step in batch_samples)
            return counts[0].clamp(min=1)

        def floating_point_ops(self, inputs: Any) -> int:
            return 0  # counted by walking over all modules each time, and used for nothing here

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
            if self.model_accepts_loss_kwargs or not model.training:
                return super().compute_loss(model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch)
            # Such a model averages over its own micro-batch: weighted by its trained tokens, the parts add up to the mean of the step.
            share = (inputs["labels"][:, 1:] != IGNORED).sum() / num_items_in_batch * self.args.world_size
            return super().compute_loss(model, inputs) * share

        def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
            rows = dataloader.dataset
            self._tokens_per_row = sum(map(_predicted, rows["labels" if "labels" in rows.column_names else "input_ids"])) / len(rows)
            return super().evaluation_loop(dataloader, *args, **kwargs)

        def prediction_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            # transformers averages the batches' mean losses over rows; weighted by tokens, that average is the loss per token.
            tokens = (inputs["labels"][:, 1:] != IGNORED).sum()
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
