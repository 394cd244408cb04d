"""SFTTrainerWrapper: TRL's SFTTrainer over rows that already carry their labels, with our steps, evaluation and checkpoints."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatbot_sft import preemption
from chatbot_sft.config import Config
from chatbot_sft.errors import UserError
from chatbot_sft.logs import THIRD_PARTY, quiet
from chatbot_sft.model.earlier import adopt
from chatbot_sft.model.engine import Engine, load_engine
from chatbot_sft.model.generate import as_text, greedy_answer
from chatbot_sft.places import check_export, check_run, targets
from chatbot_sft.report.loggers import Loggers
from chatbot_sft.report.run_report import versions
from chatbot_sft.save import ModelSaver
from chatbot_sft.save.evidence import gather
from chatbot_sft.targets import locate
from chatbot_sft.train.arguments import sft_arguments
from chatbot_sft.train.checkpoints import Origin, settle
from chatbot_sft.train.layout import Layout, candidates
from chatbot_sft.train.measure import Plan, Trial, cache_key, choose

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

LIKE = 32  # tokens; data whose longest, median and 90th percentile differ by less is measured once, so that a sweep over seeds is too
JUDGED = 8  # trained conversations by which a run with nothing held out is judged
WORTH_CAPTURING = 200  # optimizer steps; below, capturing costs more seconds than it saves


class Planned(Exception):
    """The layout is chosen, and nothing more was asked for."""


class SFTTrainerWrapper:
    """Trains `model` on `dataset` (columns input_ids and labels, as `DatasetLoader.prepare_dataset` makes it).

    `create_trainer` alone trains on every token; `enable_response_only_training` puts the loss where the labels of `dataset` are, and so does
    `setup_and_train`. `trainer` is the TRL trainer once created, `plan` the batch layout once training has begun, `loggers` what
    `training.report_to` opened: hand them a report with `loggers.finish(report)`.
    """

    def __init__(self, config: Mapping[str, Any] | Config, model: Any, tokenizer: Any, dataset: Dataset, eval_dataset: Dataset | None = None) -> None:
        for name, rows in (("dataset", dataset), ("eval_dataset", eval_dataset)):
            if rows is not None and not {"input_ids", "labels"} <= set(rows.column_names):
                raise UserError(f"{name} has no input_ids and labels; make it with DatasetLoader(config, tokenizer).prepare_dataset()")
        self.config = adopt(config)
        self.settings = Config.from_mapping(self.config)
        self.model = model
        self.tokenizer = tokenizer
        self.dataset = dataset
        self.eval_dataset = eval_dataset
        self.engine: Engine = load_engine(self.settings.model.engine)[0]
        self.origin = Origin()  # where the training begins; the pipeline sets it
        self.started = time.time()  # when the run began, in seconds since the epoch; the pipeline sets it
        self.trainer: Any = None
        self.progress: Any = None
        self.evaluations: Any = None
        self.plan: Plan | None = None
        self.memory_estimate: dict[str, float] = {}  # GB by part, once the layout is chosen
        self.output: Any = None  # what `train` returned
        self.loggers = Loggers()
        self.sample_prompts: list[list[dict[str, Any]]] = []  # messages, answered at each evaluation

    def create_trainer(self) -> Any:
        """The TRL trainer, with the loss on every token of a conversation.

        Raises:
            UserError: the place for checkpoints or for the model is taken, TRL refuses the settings, or a logger cannot be opened.
        """
        check_run(self.settings)
        for target in targets(self.settings).values():
            check_export(self.settings, target)
        from transformers import EarlyStoppingCallback, PrinterCallback

        from chatbot_sft.train.callbacks import Progress
        from chatbot_sft.train.evaluation import Evaluations
        from chatbot_sft.train.guard import Guard
        from chatbot_sft.train.resumable import Resume
        from chatbot_sft.train.steps import PlanLayout

        training = self.settings.training
        with quiet():
            self.trainer = trainer_class(self.engine)(
                model=self.model,
                args=sft_arguments(self.settings, self.engine),
                train_dataset=_all_tokens(self.dataset),
                eval_dataset=_all_tokens(self.eval_dataset) if self.eval_dataset is not None else None,
                processing_class=self.tokenizer,
                data_collator=_collator(self.tokenizer),
            )
        self.trainer.engine, self.trainer.settings, self.trainer.origin = self.engine, self.settings, self.origin
        self.trainer.remove_callback(PrinterCallback)
        self.trainer.add_callback(PlanLayout(self.plan_layout))  # first: what it measures is no training
        stopping = None
        if training.early_stopping_patience is not None:
            stopping = EarlyStoppingCallback(training.early_stopping_patience, training.early_stopping_threshold)
            self.trainer.add_callback(stopping)
        self.evaluations = Evaluations(Path(training.output_dir), self.samples, stopping)
        self.trainer.add_callback(self.evaluations)
        self.progress = Progress(self.started)  # after the evaluation, whose time it takes out of the speed
        self.trainer.add_callback(self.progress)
        self.trainer.add_callback(Resume(self.trainer))
        if training.stop_on_divergence:
            self.trainer.add_callback(Guard(self.trainer, self.dataset, self.settings.dataset.shuffle))
        if self.trainer.is_world_process_zero():
            self.loggers.start(self.trainer, self.settings, self.config)
        return self.trainer

    def enable_response_only_training(self) -> None:
        """Put the loss where the labels are, in training and evaluation: on the assistant's tokens and ends of turn, as `dataset.train_on` says."""
        self.trainer.train_dataset = _columns(self.dataset)
        if self.eval_dataset is not None:
            self.trainer.eval_dataset = _columns(self.eval_dataset)

    def plan_layout(self) -> None:
        """Choose the batch layout as `training.batch_layout` says, use it and say so; a resumed run keeps its own. Called as training begins.

        Raises:
            Planned: the task is to plan alone.
        """
        from chatbot_sft.train.estimate import memory_estimate

        training, batch_size = self.settings.training, self.settings.effective_batch_size
        padding_free = training.packing or self.engine.padding_free(self.model)
        configured = Layout(training.per_device_train_batch_size, padding_free, bool(self.engine.checkpointing(self.settings)))
        trial = self.trainer.trial()
        if training.batch_layout == "as_configured":
            self.plan = Plan(configured, "as configured")
        elif self.origin.checkpoint:
            self.plan = Plan(Layout(**self.origin.checkpoint.record["layout"]), "as the run began")
        else:
            self.plan = self._measured_plan(configured, trial)
        chosen = self.plan.layout
        self.trainer.use_layout(chosen)
        if chosen.captured:
            self.trainer.capture()
        self.memory_estimate = memory_estimate(self.trainer, trial)
        times = {found.layout: f", {1000 * found.seconds:,.0f} ms a step" for found in self.plan.measurements if found.seconds is not None}
        other = f"; as configured: {configured.describe(batch_size)}{times.get(configured, '')}" if configured != chosen else ""
        log.info("layout: %s (%s%s%s)", chosen.describe(batch_size), self.plan.reason, times.get(chosen, ""), other)
        for row in self.measured_layouts():
            THIRD_PARTY.info("layout measured: %s", row)
        if self.settings.task == "plan":
            raise Planned

    def evaluate(self) -> float | None:
        """Mean loss per trained token of the held-out conversations, in nats; None where nothing is held out, samples alone are then made."""
        if self.eval_dataset is None:
            with quiet():
                self.evaluations.add(self.trainer.state)
            return None
        with quiet():
            return float(self.trainer.evaluate()["eval_loss"])

    def trained_rows_loss(self) -> float | None:
        """Mean loss per trained token of the first conversations that are trained, in nats; None where others are held out to judge by."""
        if self.eval_dataset is not None:
            return None
        rows = self.trainer.train_dataset
        with quiet():
            output = self.trainer.predict(rows.select(range(min(len(rows), JUDGED))), metric_key_prefix="rows")
        return float(output.metrics["rows_loss"])

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
        from chatbot_sft.train.evaluation import Part

        self.engine.for_inference(self.model)
        limit, kwargs = self.settings.training.sample_max_new_tokens, self.settings.dataset.chat_template_kwargs
        part = Part(f"step {self.trainer.state.global_step}: sample answers", len(self.sample_prompts))
        answers = []
        for prompt in self.sample_prompts:
            answers.append(as_text(self.tokenizer, greedy_answer(self.model, self.tokenizer, prompt, limit, **kwargs)))
            part.advance()
        if self.plan is not None:
            self.trainer.use_layout(self.trainer.layout)
        return [{"prompt": prompt[-1]["content"], "answer": answer} for prompt, answer in zip(self.sample_prompts, answers, strict=True)]

    def train(self) -> Any:
        """Run the training, from `origin` on. Returns transformers' `TrainOutput` (global_step, training_loss, metrics).

        Raises:
            UserError: the loss diverged, memory ran out, or a checkpoint cannot be written.
            Preempted: a signal asked to stop; a checkpoint was saved.
            Planned: the task is to plan alone.
        """
        checkpoint = self.origin.checkpoint
        if self.trainer.args.should_save:
            settle(self.origin, self.settings)
        with quiet(), preemption.deferred():
            self.output = self.trainer.train(resume_from_checkpoint=str(checkpoint.folder) if checkpoint else None)
        self._note_end()
        return self.output

    def setup_and_train(self) -> Any:
        """`create_trainer`, `enable_response_only_training`, `train`."""
        self.setup()
        return self.train()

    def setup(self) -> None:
        """The first two steps of `setup_and_train`, for those who evaluate before they train."""
        self.create_trainer()
        self.enable_response_only_training()  # with training.response_only=false the gate has put labels on everything

    def save_model(self, save_config: Mapping[str, Any] | None = None) -> Any:
        """Save what was trained as `config.save` says, or `save_config` (keys of that section), and print where. Returns `save.SaveResult`."""
        result = self.saver().save(save_config)
        for export in result.exports:
            print(f"saved {export.method}{', verified' if export.verified else ''}: {Path(export.path).absolute()}")
        return result

    def saver(self, report: Mapping[str, Any] | None = None) -> Any:
        """The `save.ModelSaver` of this model, with conversations of its data to hold exports against; `report` is the run's, for the model card."""
        evidence = gather(self.dataset, self.eval_dataset, self.tokenizer)
        return locate("save", self.settings.save._target_, ModelSaver)(self.config, self.model, self.tokenizer, evidence, report)

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

    def _measured_plan(self, configured: Layout, trial: Trial) -> Plan:
        import torch

        gpu = torch.cuda.is_available()
        capturable = gpu and trial.steps >= WORTH_CAPTURING and self.trainer.capturable()
        layouts = candidates(configured, self.settings.effective_batch_size, self.settings.training.packing, gpu, capturable)
        sampler = self.trainer.step_sampler()
        sizes = sorted(sum(sampler.lengths[row] for row in pack) for pack in sampler.packs)
        key = cache_key(
            self.model.config.to_dict(),
            [asdict(self.settings.model), asdict(self.settings.lora), self.trainer.args.optim],
            [-(-size // LIKE) for size in (sizes[-1], sizes[len(sizes) // 2], sizes[9 * len(sizes) // 10])],
            [trial.memory_margin, configured.as_dict(), [layout.as_dict() for layout in layouts]],
            [torch.cuda.get_device_properties(0).name if gpu else torch.get_num_threads(), self.trainer.args.world_size],
            {name: version for name, version in versions().items() if name != "chatbot-sft"},
        )
        plan = [choose(layouts, configured, trial, key)]
        if self.trainer.args.world_size > 1:
            torch.distributed.broadcast_object_list(plan)  # each process has measured; the first one's choice is everyone's
        return plan[0]

    def _note_end(self) -> None:
        """Say where training stopped early and whose weights the model has now."""
        state = self.trainer.state
        if self.evaluations.stopped_early:
            patience = self.settings.training.early_stopping_patience
            log.info("step %d: stopped, %d evaluations in a row without a better held-out loss", state.global_step, patience)
        if self.trainer.args.load_best_model_at_end and state.best_model_checkpoint is not None and state.best_global_step != state.global_step:
            self.evaluations.reloaded = state.best_global_step
            log.info("step %d: its weights are loaded back, held out %.3f was the lowest", state.best_global_step, state.best_metric)


def trainer_class(engine: Engine) -> type:
    """The engine's SFTTrainer with our steps, our evaluation and checkpoints that a run can go on from."""
    from chatbot_sft.train.evaluation import HeldOut
    from chatbot_sft.train.resumable import Resumable
    from chatbot_sft.train.steps import Steps

    class Trainer(Steps, HeldOut, Resumable, engine.trainer_class()):
        pass

    return Trainer


def _columns(dataset: Dataset) -> Dataset:
    return dataset.select_columns(["input_ids", "labels"])


def _all_tokens(dataset: Dataset) -> Dataset:
    """Without labels: every token is trained."""
    return dataset.select_columns(["input_ids"])


def _collator(tokenizer: Any) -> Any:
    """For evaluation: right padding; padded positions get label -100 by position, so a pad token that equals the end token still counts."""
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    return DataCollatorForLanguageModeling(pad_token_id=tokenizer.pad_token_id)
