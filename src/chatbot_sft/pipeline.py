"""One run, from a configuration to a report: data → model → train → save, each a value that the next takes."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Collection, Generator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatbot_sft import bounds, distributed, places, preemption, start
from chatbot_sft.config import Config, effects
from chatbot_sft.data.corpus import Corpus
from chatbot_sft.data.prepare import PreparedData, not_prepared
from chatbot_sft.data.template import render_as_of
from chatbot_sft.export import earlier_saver
from chatbot_sft.logs import run_log
from chatbot_sft.model import embedded, hardware, memory
from chatbot_sft.model.base import located, weights_fingerprint
from chatbot_sft.model.earlier import adopt, check_tokenizer, reference_fingerprint
from chatbot_sft.model.earlier import fingerprint as adapter_fingerprint
from chatbot_sft.objective import objective_of
from chatbot_sft.optimization import check_packages
from chatbot_sft.preemption import Preempted
from chatbot_sft.process import in_turns
from chatbot_sft.replay.evidence import provenance
from chatbot_sft.report import ending, loggers
from chatbot_sft.report.data_summary import of_schedule, remarks
from chatbot_sft.report.findings import show_findings
from chatbot_sft.report.found import sentences
from chatbot_sft.report.masking import masked
from chatbot_sft.report.secrets_trained import check_secrets
from chatbot_sft.run.directory import Run
from chatbot_sft.run.lock import Lock, decides
from chatbot_sft.run.report import Report, Status, now
from chatbot_sft.run.standing import Standing
from chatbot_sft.run.turn import Pruned, Turn, to_the_end
from chatbot_sft.run.versions import versions
from chatbot_sft.run.wait import Wait
from chatbot_sft.run_directory import held
from chatbot_sft.save import ModelSaver
from chatbot_sft.save.verify.evidence import gather
from chatbot_sft.seed_api import DatasetLoader, ModelLoader
from chatbot_sft.targets import locate
from chatbot_sft.train import resume, stage
from chatbot_sft.train.choice import chosen
from chatbot_sft.train.outcome import refuse_ruined
from chatbot_sft.train.resume import Origin
from chatbot_sft.train.session import Session
from chatbot_sft.warm import Loan, Warm

if TYPE_CHECKING:
    from chatbot_sft.train.golden import Golden

log = logging.getLogger(__name__)


def run(
    config: Mapping[str, Any],
    command: str = "",
    started: float | None = None,
    named: Collection[str] = (),
    warm: Warm | None = None,
) -> Report:
    """Do the task that `config` says and return the report that stands in `<paths.output_dir>/report.json`.

    Once the directory is the run's own, it ends up with a report that says what happened, whatever that was.
    `started`, in seconds since the epoch, is when the user began to wait: now, where nothing is given.
    `named` are the keys that they wrote on the command line, `warm` what the process's jobs share.

    Raises:
        UserError: something the user can mend. Every other exception passes through; KeyboardInterrupt too.
        Preempted: SIGTERM or SIGUSR1, exit code 143.
    """
    return to_the_end(turns(config, command, started, named, warm, every=0))


def turns(
    config: Mapping[str, Any],
    command: str = "",
    started: float | None = None,
    named: Collection[str] = (),
    warm: Warm | None = None,
    every: int | None = None,
) -> Generator[Turn, None, Report]:
    """`run`, which waits for its next turn after each evaluation, or after each `every` steps (0: never); the
    process is meanwhile as if there were no such run.

    `Pruned`, thrown into a run that waits, ends it: nothing is exported, and its report says so. Whatever else is
    thrown passes through. Either way the same run goes on from there when it is started again.
    """
    loan = Loan(warm) if warm else None
    run = _turns(config, command, started, named, loan, every)
    return (yield from (in_turns(run, loan.kept) if loan else in_turns(run)))


def _turns(
    config: Mapping[str, Any],
    command: str,
    started: float | None,
    named: Collection[str],
    loan: Loan | None,
    every: int | None,
) -> Generator[Turn, None, Report]:
    wait = Wait(time.time() if started is None else started)
    memory.begin()
    settings = located(Config.from_mapping(config))
    here = Run.of(settings)
    first = distributed.is_first()
    places.check_run(settings)
    report = Report(command, settings.task, settings.seed)
    with held(here.folder), contextlib.ExitStack() as until_the_end:
        start.refuse(settings)
        standing = Standing.of(here)
        until_the_end.enter_context(run_log(here.log_file, first))
        until_the_end.enter_context(preemption.handled())
        open_loggers = loggers.Loggers()
        until_the_end.callback(open_loggers.finish, report)
        try:
            if settings.task == "export":
                saver = earlier_saver(settings, report)
                tell(here)
                save(saver, report)
            elif settings.task == "evaluate":
                from chatbot_sft.evaluation.task import evaluate

                evaluate(settings, report)
            elif settings.task == "verify":
                from chatbot_sft.served.task import verify

                verify(settings, report)
                tell(here)
            elif settings.task == "replay":
                from chatbot_sft.replay.again import Again  # nothing that every start has to wait for

                again = Again.of(settings, named)
                report.run = settings.run
                yield from train(again.settings, report, open_loggers, wait, (), loan, every, again.origin)
                again.end(report)
            else:
                yield from train(settings, report, open_loggers, wait, named, loan, every)
                distributed.part()
            report.status = Status.COMPLETED
        except Preempted as error:
            report.status = Status.INTERRUPTED
            report.error = ending.stopped(error, settings, report.save, command)
            ending.tell_saved(report)
            left = ending.stopped_in_sweep(error, settings, report.save) if loan else report.error
            log.warning("%s", left)
            raise
        except Pruned as why:
            report.status, report.error = Status.PRUNED, str(why)
            log.info("pruned: %s", why)
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt | GeneratorExit)
            report.status = Status.INTERRUPTED if interrupted else Status.FAILED
            report.error = ending.why(error)
            ending.tell_saved(report)
            log.error("%s", report.error, exc_info=error)
            raise
        finally:
            report.finished = now()
            if first and not standing.left_by(report):
                ending.write_reports(report, here)
    return report


def tell(here: Run) -> None:
    """Where the run is, once it has done something: the directory of one that is refused before goes again."""
    log.info("run: %s", here.folder)


def train(
    settings: Config,
    report: Report,
    open_loggers: loggers.Loggers,
    wait: Wait,
    named: Collection[str],
    loan: Loan | None,
    every: int | None,
    origin: Origin | None = None,
) -> Generator[Turn, None, None]:
    """data → model → train → save. Each stage's part of `report` is recorded as soon as it is known.

    `task=check` ends after the data, `task=plan` before the first step. `origin` is where a replay begins.
    """
    settings = adopt(settings, named)
    effects.refuse(settings, named)
    check_secrets(settings)
    stages = Stages.of(settings)
    stages.model.loan = loan
    refuse(settings, stages)
    if inert := effects.said(settings, named):
        log.info("settings: no effect here: %s", ", ".join(inert))
    if origin is None:
        origin = resume.find_origin(settings, report.command) if settings.task == "train" else Origin()
    render_as_of(origin.started)

    report.record(dataset=not_prepared(settings))
    wait.end("start")
    prepared = prepare(stages)
    report.record(dataset=prepared.statistics)
    tell(Run.of(settings))
    if distributed.is_first():
        show_findings(prepared, named)
    prepared.refuse_bad()
    if settings.task == "check":  # the table has said all of it
        return
    for remark in (*remarks(prepared.findings), *sentences(prepared.statistics.found)):
        log.warning("data: %s", remark)
    for remark in of_schedule(prepared.findings["training"], named):
        log.warning("training: %s", remark)
    bounds.check_rows(settings, prepared.statistics, distributed.processes())
    origin.rows = masked(prepared.counted)
    lock = locked(settings, prepared, origin, report.command)
    origin.hold(lock)
    resume.refuse_changes(origin, lock.decides, whole=True)

    wait.end("data")
    if from_model := settings.brought["model"]:
        log.info("model: %s brings %s", settings.model.name, ", ".join(from_model))
    if from_data := settings.brought["dataset"]:
        log.info("data: %s brings %s", Path(settings.dataset.data_path).name, ", ".join(from_data))
    if from_objective := settings.brought["objective"]:
        log.info("objective: %s brings %s", settings.objective.name, ", ".join(from_objective))
    stages.model.load_engine()
    wait.end("imports")
    model = stages.model.load()
    report.record(model=model.described(settings))
    # Prepared again, where transformers makes another tokenizer of the files than they say.
    prepared = stages.dataset.prepare_for(model.tokenizer)
    report.record(dataset=replace(prepared.statistics, system_prompt=prepared.system_prompt))

    wait.end("weights")
    answers = loan.answers(settings) if loan else None
    captures = loan.captures if loan else None
    begun = stage.Start(origin, lock, wait, open_loggers, captures, answers)
    session = stage.begin(stages.session, settings, model, prepared, begun, report.record)
    if settings.task == "plan":
        report.record(plan=stage.plan(session))
        return
    asked = golden_answers(session, prepared)
    try:
        outcome = yield from stage.train(session, report.record, every)
        report.record(**vars(outcome))
    finally:
        report.record(evaluation=asked.summary() if asked else None)

    saver = saver_of(stages, session, prepared, report)
    for warning in outcome.training.warnings:
        log.warning("training: %s", warning)
    refuse_ruined(outcome.training, settings, len(model.tokenizer))
    with session.step.inference():
        if distributed.is_first():
            save(saver, report)
        else:
            saver.accompany()


@dataclass(frozen=True)
class Stages:
    """What `_target_` names for each: a user's own, or ours."""

    dataset: DatasetLoader
    model: ModelLoader
    session: type[Session]
    saver: type[ModelSaver]

    @classmethod
    def of(cls, settings: Config) -> Stages:
        """Raises UserError where one of them is not what it has to be."""
        dataset, model, _, session, saver = (
            locate(section, settings[section]["_target_"], settings.allow_targets)
            for section in ("dataset", "model", "lora", "training", "save")
        )
        return cls(dataset(settings), model(settings), session, saver)


def refuse(settings: Config, stages: Stages) -> None:
    """What else can be refused without importing a model library, before one is."""
    if settings.task == "train":  # the others log nothing
        loggers.check(settings.training.loggers)
    check_packages(settings.training.optim, bool(hardware.gpus()))
    objective_of(settings)
    chosen(settings)
    Corpus.of(settings).check_files()
    stages.model.check()
    bounds.check_model(settings, Path(embedded.resolve(settings.model.name)).expanduser())
    stages.saver(settings).check()


def prepare(stages: Stages) -> PreparedData:
    """The data by the base's tokenizer, before its weights are loaded: without an engine, unless a function of
    the user's own writes the texts, which may ask anything of the tokenizer.
    """
    loader = stages.dataset
    if loader.writes_its_own_text:
        loader.tokenizer = stages.model.load_tokenizer()
        return loader.prepare()
    return loader.prepare(stages.model.chat_tokenizer())


def locked(settings: Config, prepared: PreparedData, origin: Origin, command: str) -> Lock:
    """All that decides this run's result and is known before its model is loaded, and what explains it."""
    processes = distributed.processes()
    check_tokenizer(settings, prepared.tokenizer.fingerprint)
    return Lock(
        decides=decides(
            settings,
            weights_fingerprint(settings),
            prepared.fingerprint,
            processes,
            adapter_fingerprint(settings),
            reference_fingerprint(settings),
        ),
        tokenizer=prepared.tokenizer.fingerprint,
        date=origin.started.isoformat(),
        versions=versions(),
        device=hardware.device(),
        processes=processes,
        config=settings.to_dict(),
        provenance=provenance(settings, prepared.tokenizer, command),
    )


def golden_answers(session: Session, prepared: PreparedData) -> Golden | None:
    """What asks them as it trains, where training.golden_steps says so."""
    if session.settings.training.golden_steps is None:
        return None
    from chatbot_sft.train.golden import Golden  # imports transformers

    golden = Golden(session, prepared.system_prompt)
    session.job.add_callback(golden)
    return golden


def saver_of(stages: Stages, session: Session, prepared: PreparedData, report: Report) -> ModelSaver:
    """The saver of what `session` has trained; what later exports of it need is then in the run directory,
    written by the first process.
    """
    settings, model, tokenizer = session.settings, session.model, session.tokenizer
    evidence = gather(prepared.training, prepared.to_show(), tokenizer, prepared.shown)
    run = Run.of(settings)
    if distributed.is_first():
        evidence.write(run.evidence_file)
        run.write_config(settings.to_dict())
    return stages.saver(settings, model, tokenizer, evidence, report)


def save(saver: ModelSaver, report: Report) -> None:
    """Export what was trained; the report says what there is, whatever becomes of the rest."""
    try:
        saver.save()
    finally:
        report.record(save=saver.result)
