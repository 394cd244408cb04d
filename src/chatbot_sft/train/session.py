"""One training from its set-up to its end, in the loop of `loop.py` or in TRL's, on rows that already carry
their labels.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Hashable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatbot_sft import distributed, preemption
from chatbot_sft.config import Config
from chatbot_sft.errors import UserError
from chatbot_sft.logs import quiet
from chatbot_sft.model.earlier import adopt
from chatbot_sft.model.engine import Engine, engine_of
from chatbot_sft.objective import objective_of
from chatbot_sft.places import check_export, check_run, targets
from chatbot_sft.report import loggers
from chatbot_sft.report.loggers import Loggers
from chatbot_sft.run.directory import Run
from chatbot_sft.run.report import Rounding
from chatbot_sft.run.steps import StepLog
from chatbot_sft.run.turn import Turn, to_the_end
from chatbot_sft.run.wait import Wait
from chatbot_sft.train import planning
from chatbot_sft.train.arguments import sft_arguments
from chatbot_sft.train.batches import KINDS, PARTS
from chatbot_sft.train.choice import chosen
from chatbot_sft.train.layout import Layout
from chatbot_sft.train.resume import Origin, settle
from chatbot_sft.train.samples import sample_answers
from chatbot_sft.train.tuning import Plan, step_seconds

if TYPE_CHECKING:
    from datasets import Dataset

    from chatbot_sft.train.captures import Captures

log = logging.getLogger(__name__)

# Conversations by which a run with nothing held out is judged, and a rounded base.
JUDGED = 8


class Session:
    """Trains `model` on `dataset` (columns input_ids and labels, as `PreparedData.training` has them).

    `create_trainer` alone trains on every token; `enable_response_only_training` puts the loss where the
    labels of `dataset` are, and `setup` does both. `trainer` is TRL's trainer, `plan` the batch layout once
    training has begun, `loggers` what `training.report_to` opened: hand them a report with
    `loggers.finish(report)`.
    """

    def __init__(
        self,
        config: Mapping[str, Any] | Config,
        model: Any,
        tokenizer: Any,
        dataset: Dataset,
        eval_dataset: Dataset | None = None,
    ) -> None:
        self.settings = adopt(config)
        needed = ["input_ids", "labels", *([] if self.settings.objective.name == "sft" else [PARTS, KINDS])]
        for name, rows in (("dataset", dataset), ("eval_dataset", eval_dataset)):
            if rows is not None and not set(needed) <= set(rows.column_names):
                raise UserError(
                    f"{name} has no {' and '.join(needed[-2:])}; make it with DatasetLoader(config,"
                    " tokenizer).prepare_dataset()"
                )
        self.config = self.settings.to_dict()
        self.model = model
        self.tokenizer = tokenizer
        self.dataset = dataset
        self.eval_dataset = eval_dataset
        self.engine: Engine = engine_of(self.settings)[0]
        self.objective = objective_of(self.settings)
        # What a run knows of the training, see `stage.begin`.
        self.origin = Origin()  # where it begins
        self.wait = Wait(time.time())  # what was waited for until now
        self.sample_prompts: list[list[dict[str, Any]]] = []  # messages, answered at each evaluation
        self.warnings: list[str] = []  # what was known to be wrong before it began
        self.loggers = Loggers()
        self.alike: dict[str, Any] = {}  # what has to be the same in every process
        self.on_layout: Callable[[Layout], None] = lambda layout: None  # told the layout when it is chosen
        self.answers: dict[Hashable, dict[str, Any]] = {}  # evaluations of bases before training
        self.question: Hashable = None  # which of them is this one's
        self.captures: Captures | None = None  # what runs on the same base share
        # What is made on the way.
        self.loop = ""  # "native" or "trl", once created
        self.job: Any = None  # what is trained: a `job.Job`
        self.step: Any = None  # how the native loop trains it: a `step.Step`
        self.plan: Plan | None = None
        self.rounding: Rounding | None = None
        self.memory_estimate: dict[str, float] = {}  # GB by part, once the layout is chosen
        self.output: Any = None  # what `train` returned
        self._trl: Any = None  # TRL's trainer and its companion

    @property
    def args(self) -> Any:
        """TRL's SFTConfig of this training."""
        return self.job.args

    @property
    def state(self) -> Any:
        """transformers' TrainerState of this training."""
        return self.job.state

    @property
    def progress(self) -> Any:
        return self.job.progress

    @property
    def evaluations(self) -> Any:
        return self.job.evaluations

    @property
    def trainer(self) -> Any:
        """TRL's SFTTrainer, built when it is first asked for; None before `create_trainer`.

        With training.loop=auto it is what trains from then on, with all that is changed about it; with
        training.loop=native it is for looking at.
        """
        if self.job is None:
            return None
        if not self.objective.means_tokens:
            raise UserError(f"objective={self.settings.objective.name}: there is no TRL trainer for it here")
        if self._trl is None:
            if self.output is None and self.loop == "native" and self.settings.training.loop == "auto":
                self._use("trl", "SFTTrainerWrapper.trainer was asked for")
            self._build_trl()
        return self._trl[0]

    def create_trainer(self) -> Any:
        """What trains, with the loss on every token of a conversation: TRL's trainer, or the native loop's
        `Job`; both take callbacks.

        Raises:
            UserError: the place for checkpoints or for the model is taken, TRL refuses the settings, a logger
                cannot be opened, or another process trains something else.
        """
        check_run(self.settings)
        for target in targets(self.settings).values():
            check_export(self.settings, target)
        loop, why = chosen(self.settings)
        from transformers import EarlyStoppingCallback, enable_full_determinism, set_seed

        from chatbot_sft.train.evaluation import Evaluations
        from chatbot_sft.train.job import Job
        from chatbot_sft.train.profiling import Profile
        from chatbot_sft.train.progress import Progress
        from chatbot_sft.train.step import Step

        training = self.settings.training
        stopping = None
        if training.early_stopping_patience is not None:
            stopping = EarlyStoppingCallback(
                training.early_stopping_patience, training.early_stopping_threshold
            )
        with quiet():
            args = sft_arguments(self.settings, self.engine, loop)
            distributed.agree(self.alike)
            (enable_full_determinism if args.full_determinism else set_seed)(args.seed)
            self.job = Job(
                settings=self.settings,
                args=args,
                model=self.model,
                tokenizer=self.tokenizer,
                dataset=self._rows(self.dataset, labels=False),
                eval_dataset=(
                    self._rows(self.eval_dataset, labels=False) if self.eval_dataset is not None else None
                ),
                named=self.dataset,
                origin=self.origin,
                evaluations=Evaluations(Path(training.output_dir), self.samples),
                progress=Progress(self.wait, Run.of(self.settings).progress_file),
                objective=self.objective,
                steps=StepLog(Run.of(self.settings).steps_file if args.process_index == 0 else None),
                stopping=stopping,
            )
            self.job.state.is_world_process_zero = args.process_index == 0
            self.step = Step(
                self.model,
                self.engine,
                self.settings,
                args,
                self.tokenizer.pad_token_id,
                self.objective,
                self.captures,
            )
        self._use(loop, why)
        if args.process_index == 0:
            self.loggers.start(self.job, self.settings)
            if training.profile:
                self.job.add_callback(Profile(Path(self.settings.paths.output_dir, "profile")))
        return self.job if loop == "native" else self.trainer

    def _use(self, loop: str, why: str) -> None:
        self.loop = loop
        if why != "auto":
            log.info("loop: %s (%s)", loop, why)

    def _build_trl(self) -> None:
        from chatbot_sft.train import trl
        from chatbot_sft.train.randomness import undisturbed

        args = sft_arguments(self.settings, self.engine, "trl")
        job = self.job if self.loop == "trl" else replace(self.job)
        job.args = args
        with quiet(), undisturbed():
            self._trl = trl.build(
                job, job.make_batches(self.settings.effective_batch_size), self._configured(), self.step
            )
        if self.loop == "native":
            self._trl[0].state = self.job.state

    def enable_response_only_training(self) -> None:
        """Put the loss where the labels are, in training and evaluation: on the assistant's tokens and ends
        of turn, as `dataset.train_on` says.
        """
        self.job.dataset = self._rows(self.dataset)
        if self.eval_dataset is not None:
            self.job.eval_dataset = self._rows(self.eval_dataset)
        if self._trl is not None:
            self._trl[1].rows.batches = self.job.make_batches(self.settings.effective_batch_size)

    def plan_layout(self) -> None:
        """Choose the batch layout as `training.batch_layout` says, use it and say so; a resumed run keeps its
        own. Called as training begins.
        """
        from chatbot_sft.train.estimate import memory_estimate
        from chatbot_sft.train.trials import capture, largest, trial

        job, step = self.job, self.step
        self.wait.end("setup")
        trying = trial(step, job.batches, self.state.max_steps)
        as_configured = self.settings.training.batch_layout == "as_configured" or self.loop == "trl"
        self.plan = planning.planned(job, job.batches, step, trying, as_configured)
        layout = self.plan.layout
        self.on_layout(layout)
        step.use_layout(layout)
        if layout.captured and not layout.packed:
            capture(step, job.batches)
        if layout.packed and not step.sharded:  # which knows what the largest step of this run is
            trying = replace(trying, longest=largest(job.batches, trying.steps))
        self.memory_estimate = memory_estimate(step, trying, job.eval_dataset)
        planning.told(self.plan, self._configured(), self.settings.effective_batch_size)
        self.wait.end("layout")

    def _configured(self) -> Layout:
        return planning.configured(self.settings, self.engine, self.model)

    def evaluate(self) -> float | None:
        """Mean loss per trained token of the held-out conversations, in nats; None where nothing is held out,
        samples alone are then made.
        """
        from chatbot_sft.train.loop import held_out
        from chatbot_sft.train.reference import refer_held_out

        with quiet():
            refer_held_out(self.job, self.step)
            if self.eval_dataset is None:
                self.evaluations.add(self.state)
                return None
            metrics = held_out(self.job, self.step) if self.loop == "native" else self._trl[1].held_out()
            return metrics["eval_loss"]

    def evaluate_base(self) -> None:
        """`evaluate` before training, or what an earlier job of the process found the same base to answer."""
        earlier = self.answers.get(self.question) if self.question else None
        if earlier is not None:
            self.evaluations.repeat(self.state, earlier)
            return
        self.evaluate()
        if self.question and (record := self.evaluations.at(0)):
            self.answers[self.question] = record

    def trained_rows_loss(self) -> float | None:
        """Mean loss per trained token of the first conversations that are trained, in nats; None where others
        are held out to judge by, or an objective does not make them likelier.
        """
        from chatbot_sft.train.evaluation import evaluate

        if self.eval_dataset is not None or not self.objective.means_tokens:
            return None
        rows = self.job.dataset.select(range(min(len(self.job.dataset), JUDGED)))
        with quiet(), self.step.inference():
            return evaluate(self.step, rows, self.state.global_step, "trained")["eval_loss"]

    def round_base(self) -> None:
        """Round the frozen base, where model.load_in_fp8 asks for it; `rounding` is what that costs."""
        if not self.settings.model.load_in_fp8:
            return
        from chatbot_sft.train.batches import PackedDataset
        from chatbot_sft.train.rounding import rounded

        rows = self.job.dataset if self.eval_dataset is None else self.job.eval_dataset
        with quiet():
            self.rounding = rounded(self.step, PackedDataset(rows)[list(range(min(len(rows), JUDGED)))])

    def evaluate_trained(self) -> float | None:
        """`evaluate` after training, unless the last step was evaluated and its weights are still the
        model's.
        """
        last = self.evaluations.at(self.state.global_step)
        if last is None or self.evaluations.reloaded is not None:
            return self.evaluate()
        return last["loss"]

    def samples(self) -> list[dict[str, str]]:
        """The model's greedy answers to `sample_prompts`, asked by the first process, or by all where that takes
        all; training goes on from there as if they had not been asked for.
        """
        if not self.sample_prompts or not (self.args.process_index == 0 or self.step.sharded):
            return []
        self.engine.for_inference(self.model)
        step = self.state.global_step
        with self.step.inference():
            answers = sample_answers(self.model, self.tokenizer, self.settings, self.sample_prompts, step)
        if self.plan is not None:
            self.step.use_layout(self.step.layout)
        return answers

    def train(self) -> Any:
        """Run the training, from `origin` on. Returns transformers' `TrainOutput` (global_step,
        training_loss, metrics).

        Raises:
            UserError: the loss diverged, memory ran out, or a checkpoint cannot be written.
            Preempted: a signal asked to stop; a checkpoint was saved.
        """
        return to_the_end(self._train(every=0))

    def turns(self, every: int | None) -> Generator[Turn, None, Any]:
        """`train`, which waits as `loop.train` says; in one turn where a subclass has its own, in TRL's loop, and
        with a logger that has one run a process.
        """
        if type(self).train is not Session.train:
            return self.train()
        if every != 0 and (alone := sorted(set(self.settings.training.loggers) & loggers.ALONE)):
            log.info("turns: none, training.report_to=%s has one run a process", alone[0])
            every = 0
        return (yield from self._train(every))

    def _train(self, every: int | None) -> Generator[Turn, None, Any]:
        from chatbot_sft.train import loop, reference, trl

        self.job.origin = self.origin
        if self.args.process_index == 0:
            settle(self.origin, self.settings)
        with quiet(), preemption.deferred():
            reference.refer_held_out(self.job, self.step)
            if self.loop == "native":
                self.output = yield from loop.train(self.job, self.step, self.plan_layout, every)
            else:
                loop.lay_out(self.job)
                self.plan_layout()
                self.output = trl.train(*self._trl)
        self._note_end()
        return self.output

    def only_plan(self) -> float:
        """`train` as far as the batch layout is chosen, and the seconds of a typical step in it: nothing is
        trained, and no checkpoint is touched.
        """
        from chatbot_sft.train import loop
        from chatbot_sft.train.trials import trial

        with quiet(), preemption.deferred():
            if self.loop == "native":
                loop.begin(self.job, self.step)
            else:
                loop.lay_out(self.job)
            self.plan_layout()
            measured = self.plan.measurements if self.plan else []
            seconds = next((found.seconds for found in measured if found.layout == self.layout), None)
            if seconds is None:
                trying = trial(self.step, self.job.batches, self.state.max_steps)
                seconds = step_seconds(self.layout, trying)
            return seconds

    def setup(self) -> None:
        """`create_trainer`, `enable_response_only_training`."""
        self.create_trainer()
        # with training.response_only=false the gate has put labels on everything
        self.enable_response_only_training()

    def stop_after(self, step: int) -> None:
        """End the training there, however many steps its schedule has."""
        from chatbot_sft.train.until import Until

        (self.job if self.loop == "native" else self.trainer).add_callback(Until(step))

    def measured_layouts(self) -> list[dict[str, Any]]:
        """What `plan_layout` measured, for the report."""
        return planning.table(self.plan, self.settings.effective_batch_size) if self.plan else []

    @property
    def stopped_early(self) -> bool:
        stopping = self.job.stopping
        return (
            stopping is not None
            and stopping.early_stopping_patience_counter >= stopping.early_stopping_patience
        )

    @property
    def layout(self) -> Layout:
        """In which the last step was run."""
        return self.step.layout

    def seconds(self) -> float:
        """Trained so far, over every start of this run."""
        return self.job.seconds()

    def close(self) -> None:
        """Part from the other processes."""
        distributed.part()

    def _rows(self, dataset: Dataset, labels: bool = True) -> Dataset:
        """What of `dataset` is trained with. Without labels every token is trained, but of answers that are weighed
        against each other.
        """
        weighed = [name for name in (PARTS, KINDS) if name in dataset.column_names]
        return dataset.select_columns(["input_ids", *(["labels"] if labels or weighed else []), *weighed])

    def _note_end(self) -> None:
        """Say where training stopped early and whose weights the model has now."""
        state = self.state
        if self.stopped_early:
            patience = self.settings.training.early_stopping_patience
            log.info(
                "step %d: stopped, %d evaluations in a row without a better held-out loss",
                state.global_step,
                patience,
            )
        if (
            self.args.load_best_model_at_end
            and state.best_model_checkpoint is not None
            and state.best_global_step != state.global_step
        ):
            self.evaluations.reloaded = state.best_global_step
            log.info(
                "step %d: its weights are loaded back, held out %.3f was the lowest",
                state.best_global_step,
                state.best_metric,
            )
