"""The training stage: a model and prepared data become an `Outcome`."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Generator, Hashable
from dataclasses import dataclass
from typing import Any, Protocol

from chatbot_sft import distributed, run_directory
from chatbot_sft.config import Config
from chatbot_sft.data.prepare import PreparedData
from chatbot_sft.data.usual import usual_ends
from chatbot_sft.model import memory, untrained
from chatbot_sft.model.load import Trainable
from chatbot_sft.model.precision import precision_name
from chatbot_sft.report.loggers import Loggers
from chatbot_sft.run.directory import Run
from chatbot_sft.run.lock import MACHINE, Lock
from chatbot_sft.run.report import Plan
from chatbot_sft.run.turn import Turn
from chatbot_sft.run.wait import Wait
from chatbot_sft.train import resume
from chatbot_sft.train.captures import Captures
from chatbot_sft.train.layout import Layout
from chatbot_sft.train.outcome import Outcome, history, outcome, plan_of, used_settings
from chatbot_sft.train.resume import Origin
from chatbot_sft.train.session import Session

log = logging.getLogger(__name__)


class Record(Protocol):
    """Takes parts of the report, by their names, as soon as they are known: a run that is interrupted has
    those.
    """

    def __call__(self, **parts: object) -> None: ...


@dataclass(frozen=True)
class Start:
    """How a training begins: `origin` says where, `lock` what decides its result, `wait` what was waited for
    until now; `loggers` are opened with it. `captures` and `answers` are what other runs of the same base
    share: graphs, and evaluations of it before training, where this one may take them over.
    """

    origin: Origin
    lock: Lock
    wait: Wait
    loggers: Loggers
    captures: Captures | None = None
    answers: dict[Hashable, dict[str, Any]] | None = None


def begin(
    session_class: type[Session],
    settings: Config,
    trainable: Trainable,
    prepared: PreparedData,
    start: Start,
    record: Record,
) -> Session:
    """A session that is ready to train, or to plan.

    Raises:
        UserError: the settings do not fit each other, a place is taken, a logger cannot be opened, or a
            resumed run would go on with what it did not begin with.
    """
    import torch

    pinned = start.origin.pinned
    if pinned is not None and pinned.threads is not None:
        torch.set_num_threads(pinned.threads)  # sums are rounded in the order of the threads
    warnings = _untrained(settings, trainable, prepared)
    model, tokenizer = trainable.model, trainable.tokenizer
    session = session_class(settings, model, tokenizer, prepared.training, prepared.held_out)
    session.origin, session.wait, session.loggers = start.origin, start.wait, start.loggers
    session.captures = start.captures
    session.sample_prompts, session.warnings = prepared.questions(), warnings
    session.alike = _alike(settings, start)
    session.setup()
    if pinned is not None and pinned.steps is not None:
        session.stop_after(pinned.steps)
    if start.answers is not None and (key := _question(session, prepared, start)):
        session.answers, session.question = start.answers, key
    record(settings=used_settings(settings, session.args))
    dtype, optim = precision_name(settings), session.args.optim
    lock = start.lock.on_machine(trainable.engine.NAME, dtype, optim, session.loop, torch.get_num_threads())
    start.origin.hold(lock)
    resume.refuse_changes(start.origin, {key: lock.decides[key] for key in MACHINE}, whole=False)
    if distributed.is_first():
        run = Run.of(settings)
        run.write_lock(lock)

        def keep(layout: Layout) -> None:
            run.write_lock(lock.in_layout(layout.as_dict()))

        session.on_layout = keep
    session.wait.end("setup")
    return session


def _alike(settings: Config, start: Start) -> dict[str, object]:
    """What several processes have to have in common; those of other machines were started by another command
    line, and may have another disk.
    """
    checkpoint = start.origin.checkpoint
    return {
        "run directory": run_directory.holder(Run.of(settings).folder),
        "checkpoint to go on from": checkpoint.step if checkpoint else None,
        "tokenizer": start.lock.tokenizer,
        **start.lock.decides,
    }


def _question(session: Session, prepared: PreparedData, start: Start) -> Hashable:
    """What decides the evaluation of a base before training, apart from the base; None where a user's own rows
    or methods do.
    """
    cls, args, settings = type(session), session.args, session.settings
    ours = settings.dataset._target_ == Config().dataset._target_
    if not ours or (cls.evaluate, cls.samples) != (Session.evaluate, Session.samples):
        return None
    dated = prepared.tokenizer.template.dated
    objective = {key: value for key, value in start.lock.decides.items() if key.startswith("objective.")}
    return (
        json.dumps(objective, sort_keys=True),
        start.lock.tokenizer,
        str(prepared.entry.file),
        hashlib.sha256(prepared.split.held_out.tobytes()).hexdigest(),
        json.dumps([session.sample_prompts, settings.dataset.chat_template_kwargs]),
        settings.training.sample_max_new_tokens,
        args.per_device_eval_batch_size,
        session.step.precision,
        session.loop,
        start.origin.started if dated else None,
    )


def plan(session: Session) -> Plan:
    """What would be trained, without a step of it."""
    start = memory.measure()
    session.round_base()
    return plan_of(session, start, session.only_plan())


def train(session: Session, record: Record, every: int | None) -> Generator[Turn, None, Outcome]:
    """Evaluate, train in turns, evaluate again.

    Raises:
        UserError: the loss diverged, memory ran out, or a checkpoint cannot be written.
        Preempted: a signal asked to stop; a checkpoint was saved.
    """
    start = memory.measure()
    try:
        questions = [prompt[-1]["content"] for prompt in session.sample_prompts]
        if not (session.origin.checkpoint and session.evaluations.take_over_base(questions)):
            session.evaluate_base()
        session.round_base()
        rows_loss = session.trained_rows_loss()
        session.wait.end("evaluation")
        yield from session.turns(every)
        return outcome(session, start, rows_loss, session.evaluate_trained())
    finally:
        record(evaluations=session.evaluations.records)
        if session.progress.first_step_after is not None:  # what was there before is an earlier start's
            record(history=history(session))


def _untrained(settings: Config, trainable: Trainable, prepared: PreparedData) -> list[str]:
    """What the base never learned and this training cannot teach it; said, and kept for the report."""
    if "labels" not in prepared.training.column_names:
        return []
    ends = usual_ends(prepared.training, trainable.tokenizer)
    unlearned = untrained.told(trainable.model, trainable.tokenizer, settings, ends)
    if unlearned is None:
        return []
    log.warning("model: %s", unlearned)
    return [unlearned]
