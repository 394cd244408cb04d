"""One run, from a configuration to a report: the stages in order."""

from __future__ import annotations

import contextlib
import logging
import shlex
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from chatbot_sft import bounds, distributed, places, preemption, start
from chatbot_sft.config import Config, effects
from chatbot_sft.data import DatasetLoader
from chatbot_sft.data.corpus import Corpus
from chatbot_sft.data.gate import write_report
from chatbot_sft.data.prepare import PreparedData, not_prepared
from chatbot_sft.data.preview import write_preview
from chatbot_sft.data.template import render_as_of
from chatbot_sft.data.usual import usual_ends
from chatbot_sft.errors import UserError, listed
from chatbot_sft.export import earlier_saver
from chatbot_sft.logs import quiet, run_log
from chatbot_sft.model import ModelLoader, embedded, hardware, memory, untrained
from chatbot_sft.model.base import located, weights_fingerprint
from chatbot_sft.model.earlier import adopt
from chatbot_sft.model.earlier import fingerprint as adapter_fingerprint
from chatbot_sft.optimization import check_packages
from chatbot_sft.preemption import Preempted
from chatbot_sft.report import data_summary
from chatbot_sft.report.figure import write_loss_figure
from chatbot_sft.report.loggers import check as check_loggers
from chatbot_sft.report.markdown import data_links, markdown
from chatbot_sft.report.masking import by_name, masked
from chatbot_sft.report.terminal import saved
from chatbot_sft.report.words import moved, number
from chatbot_sft.run import checkpoints
from chatbot_sft.run.directory import Run
from chatbot_sft.run.lock import MACHINE, Lock, decides
from chatbot_sft.run.report import Memory, Plan, Report, Sample, SaveResult, Status, Training, now
from chatbot_sft.run.standing import Standing
from chatbot_sft.run.versions import versions
from chatbot_sft.run_directory import held
from chatbot_sft.save import ModelSaver
from chatbot_sft.targets import locate
from chatbot_sft.train import Planned, SFTTrainerWrapper, resume
from chatbot_sft.train.choice import chosen
from chatbot_sft.train.rails import ruin_limit
from chatbot_sft.train.resume import Origin

log = logging.getLogger(__name__)


def run(config: Mapping[str, Any], command: str = "", started: float | None = None) -> Report:
    """Do the task that `config` says and return the report that stands in `<paths.output_dir>/report.json`.

    Once the directory is the run's own, it ends up with a report that says what happened, whatever that was.
    `started`, in seconds since the epoch, is when the user began to wait: now, where nothing is given.

    Raises:
        UserError: something the user can mend. Every other exception passes through; KeyboardInterrupt too.
        Preempted: SIGTERM or SIGUSR1, exit code 143.
    """
    started = time.time() if started is None else started
    memory.begin()
    settings = located(Config.from_mapping(config))
    here = Run.of(settings)
    first = distributed.is_first()
    places.check_run(settings)
    report = Report(command, settings.task, settings.seed)
    with held(here.folder), contextlib.ExitStack() as loggers:
        start.refuse(settings)
        standing = Standing.of(here)
        loggers.enter_context(run_log(here.log_file, first))
        loggers.enter_context(preemption.handled())
        log.info("run: %s", here.folder)
        try:
            if settings.task == "export":
                save(earlier_saver(settings, report), report)
            else:
                train(settings, report, loggers, started)
            report.status = Status.COMPLETED
        except Preempted as error:
            report.status = Status.INTERRUPTED
            report.error = stopped(error, settings, report.save, command)
            tell_saved(report)
            log.warning("%s", report.error)
            raise
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt)
            report.status = Status.INTERRUPTED if interrupted else Status.FAILED
            report.error = (
                "interrupted from the keyboard"
                if interrupted
                else " ".join(str(error).split()) or type(error).__name__
            )
            tell_saved(report)
            log.error("%s", report.error, exc_info=error)
            raise
        finally:
            report.finished = now()
            if first and not left_standing(standing, report, here.folder):
                write_reports(report, here)
    return report


def left_standing(standing: Standing, report: Report, folder: Path) -> bool:
    """Whether a run that came to nothing leaves what was trained in `folder` on record, in place of `report`;
    says so.
    """
    if report.status == Status.COMPLETED or not standing.outlives(report):
        return False
    standing.restore()
    log.info("report: nothing was trained; the reports in %s stay those of the training there", folder)
    return True


def write_reports(report: Report, run: Run) -> None:
    """loss.png, report.md and, whatever becomes of those, report.json; without secrets.

    Raises:
        UserError: they cannot be written, and nothing worse has happened: a run's own error is not hidden
            behind that.
    """
    clean = Report.from_json(masked(report.to_json()))
    try:
        try:
            with quiet():
                write_loss_figure(clean.history or [], clean.evaluations, run.figure_file)
            links = data_links(Run(Path(report.run)) if report.run else run, run)
            run.markdown_file.write_text(markdown(clean, run.figure_file.exists(), links), encoding="utf-8")
        finally:
            run.write_report(report)
    except OSError as error:
        text = (
            f"{run.folder}: the report cannot be written ({error.strerror or error}); checkpoints and exports"
            " are as they are"
        )
        if report.error is None:
            raise UserError(text) from error
        log.error("%s", text)


def tell_saved(report: Report) -> None:
    """What there is of a run that does not end well."""
    for line in saved(report.save):
        log.info("%s", line)


def stopped(error: Preempted, settings: Config, save: SaveResult | None, command: str) -> str:
    """What a signal left behind, exports that were finished among it, and the command that goes on from it."""
    here = shlex.quote(f"hydra.run.dir={settings.paths.output_dir}")
    again = f": {command}{'' if 'hydra.run.dir=' in command else f' {here}'}" if command else ""
    if settings.task == "train":
        last = checkpoints.last_in(Path(settings.training.output_dir))
        left = (
            f"checkpoint at step {last.step}; the same command goes on from there"
            if last
            else "no checkpoint yet; the same command begins anew"
        )
    elif settings.task == "export":
        there = ", ".join(f"{export.method} in {export.path}" for export in save.kept) if save else ""
        left = f"saved: {there}" if there else "no export was finished"
        left += "; the same command makes what is missing"
    else:
        left = "nothing was trained; the same command begins anew"
    return f"{error.signal}: {left}{again}"


def train(settings: Config, report: Report, loggers: contextlib.ExitStack, started: float) -> None:
    """data gate → model + tokenizer → dataset → trainer → save, each filling in its part of `report`.

    `task=check` ends after the gate, `task=plan` before the first step.

    What `training.report_to` opens is closed, with the report, when `loggers` is.
    """
    # Everything that can be refused without importing a model library is refused first.
    settings = adopt(settings)
    effects.refuse(settings)
    check_secrets(settings)
    dataset_class = locate("dataset", settings.dataset._target_)
    model_class = locate("model", settings.model._target_)
    locate("lora", settings.lora._target_)
    trainer_wrapper = locate("training", settings.training._target_)
    saver = locate("save", settings.save._target_)
    dataset_loader, model_loader = dataset_class(settings), model_class(settings)
    check_loggers(settings.training.loggers)
    check_packages(settings.training.optim, bool(hardware.gpus()))
    chosen(settings)
    Corpus.of(settings).check_files()
    model_loader.check()
    bounds.check_model(settings, Path(embedded.resolve(settings.model.name)).expanduser())
    saver(settings).check()
    if inert := effects.said(settings):
        log.info("settings: no effect here: %s", ", ".join(inert))
    origin = resume.find_origin(settings) if settings.task == "train" else Origin()
    render_as_of(origin.started)
    report.dataset = not_prepared(settings)
    prepared = checked(dataset_loader, model_loader)
    report.dataset = prepared.statistics
    show_findings(prepared)
    prepared.refuse_bad()
    for remark in data_summary.remarks(prepared.findings):
        log.warning("data: %s", remark)
    if settings.task == "check":
        return
    bounds.check_batch(settings, prepared.statistics.rows_used, distributed.processes())
    if settings.training.eval_steps is not None and not prepared.statistics.rows_held_out:
        raise UserError(
            f"training.eval_steps={settings.training.eval_steps:g}: no conversation is held out; give"
            " dataset.eval_data_path or more data"
        )
    run = Run.of(settings)
    lock = locked(settings, prepared, origin)
    resume.refuse_changes(origin, lock.decides, whole=True)
    if settings.brought:
        log.info("model: %s brings %s", settings.model.name, ", ".join(settings.brought))

    loaded = model_loader.load()
    model, tokenizer = loaded.model, loaded.tokenizer
    report.model = loaded.described(settings)

    prepared = dataset_loader.prepare_for(tokenizer)
    dataset = prepared.training

    unlearned = (
        untrained.told(model, tokenizer, settings, usual_ends(dataset, tokenizer))
        if "labels" in dataset.column_names
        else None
    )
    if unlearned:
        log.warning("model: %s", unlearned)

    trainer = trainer_wrapper(settings, model, tokenizer, dataset, prepared.held_out)
    report.dataset = replace(prepared.statistics, system_prompt=prepared.system_prompt)
    trainer.sample_prompts = prepared.questions()
    trainer.origin, trainer.started = origin, started
    trainer.setup()
    report.settings = used_settings(settings, trainer.args)
    loggers.callback(trainer.loggers.finish, report)
    lock = lock.on_machine(loaded.engine.NAME, report.model.dtype, trainer.args.optim, trainer.loop)
    resume.refuse_changes(origin, {key: lock.decides[key] for key in MACHINE}, whole=False)
    if distributed.is_first():
        run.write_lock(lock)
        trainer.on_layout = lambda layout: run.write_lock(lock.in_layout(layout.as_dict()))
    report.evaluations = trainer.evaluations.records  # filled as the run goes, whatever its end
    before = memory.measure()
    rows_loss_before = None
    if settings.task == "train":
        trainer.evaluate()
        rows_loss_before = trainer.trained_rows_loss()
    try:
        trainer.train()
    except Planned:
        report.plan = Plan(
            layout=trainer.plan.layout.describe(settings.effective_batch_size),
            layouts=trainer.measured_layouts(),
            memory_gb=trainer.memory_estimate,
            device=before.device,
            device_gb=before.total_gb,
        )
        return
    finally:
        if trainer.progress.first_step_after is not None:  # what was there before is an earlier start's
            report.history = history(trainer)
    eval_loss = trainer.evaluate_trained()
    report.history = history(trainer)
    report.training = trained(trainer, eval_loss, rows_loss_before)
    report.training.warnings += [unlearned] if unlearned else []
    report.memory = used(before, trainer)
    if trainer.sample_prompts:
        first, last = (
            trainer.evaluations.at(step)["samples"] for step in (0, report.training.weights_of_step)
        )
        report.samples = [
            Sample(base["prompt"], before=base["answer"], after=tuned["answer"])
            for base, tuned in zip(first, last, strict=True)
        ]
    if distributed.is_first():
        saver = trainer.saver(report)
        saver.evidence.write(run.evidence_file)
        run.write_config(settings.to_dict())
    for warning in report.training.warnings:
        log.warning("training: %s", warning)
    refuse_ruined(report.training, settings, len(tokenizer))
    if distributed.is_first():
        save(saver, report)
    if distributed.processes() > 1:
        trainer.close()


def check_secrets(settings: Config) -> None:
    """Say that a secret in the system prompt is trained into the model.

    Raises:
        UserError: one in a new token, whose text would be in the tokenizer of every checkpoint and export.
    """
    if by_name(settings.model.new_tokens) != settings.model.new_tokens:
        raise UserError(
            f"model.new_tokens: {listed(by_name(settings.model.new_tokens))}: a token's text is in every file"
            " of the model; name another"
        )
    if by_name(settings.dataset.system_prompt) != settings.dataset.system_prompt:
        log.warning(
            "dataset.system_prompt: the secret in it is trained into the model, and stands in no file; an"
            " export's chat asks without it"
        )


def locked(settings: Config, prepared: PreparedData, origin: Origin) -> Lock:
    """All that decides this run's result and is known before its model is loaded."""
    adapter = adapter_fingerprint(settings) if settings.model.adapter else None
    rows, processes = prepared.fingerprint, distributed.processes()
    return Lock(
        decides=decides(settings, weights_fingerprint(settings), rows, processes, adapter),
        tokenizer=prepared.tokenizer.fingerprint,
        date=origin.started.isoformat(),
        versions=versions(),
        device=hardware.device(),
        processes=processes,
    )


def save(saver: ModelSaver, report: Report) -> None:
    """Export what was trained; the report says what there is, whatever becomes of the rest."""
    try:
        saver.save()
    finally:
        report.save = saver.result


def checked(dataset_loader: DatasetLoader, model_loader: ModelLoader) -> PreparedData:
    """The data by the model's tokenizer, before its weights are loaded, or an engine where rows are not written
    by a function of the user's own.
    """
    if dataset_loader.writes_its_own_text:
        dataset_loader.tokenizer = model_loader.load_tokenizer()
        return dataset_loader.prepare()
    return dataset_loader.prepare(model_loader.chat_tokenizer())


def show_findings(prepared: PreparedData) -> None:
    """data_report.json and data_preview.html in the run directory, and on the terminal what was asked for or
    stops the run.
    """
    if not distributed.is_first():
        return
    settings, findings = prepared.settings, prepared.findings
    run = Run.of(settings)
    write_report(masked(findings), run.data_report_file)
    names = ", ".join(Path(source["path"]).name for source in findings["sources"])
    title, facts = f"{settings.model.name} on {names}", data_summary.facts(findings)[1:]
    write_preview(run.preview_file, title, facts, prepared.preview_rows())
    if settings.task == "check" or prepared.refusal:
        data_summary.show(findings, [run.data_report_file, run.preview_file])


def history(trainer: SFTTrainerWrapper) -> list[dict[str, Any]]:
    """Step and loss of every logged step, those of former starts too."""
    return [{"step": step, "loss": loss} for step, loss in trainer.progress.losses]


def trained(trainer: SFTTrainerWrapper, eval_loss: float | None, rows_loss_before: float | None) -> Training:
    """What training came to."""
    settings, progress, evaluations, origin = (
        trainer.settings,
        trainer.progress,
        trainer.evaluations,
        trainer.origin,
    )
    losses = [loss for _, loss in progress.losses]
    last = trainer.state.global_step
    step = last if evaluations.reloaded is None else evaluations.reloaded
    best = evaluations.best() if settings.training.eval_steps is not None else None
    before, after = evaluations.at(0) or {}, evaluations.at(step) or {}
    rows_loss = trainer.trained_rows_loss()
    return Training(
        steps=last,
        effective_batch_size=settings.effective_batch_size * distributed.processes(),
        processes=distributed.processes(),
        batch_layout=trainer.layout.describe(settings.effective_batch_size),
        batch_layouts=trainer.measured_layouts(),
        tokens=progress.step_tokens[-1],
        seconds=trainer.seconds(),
        resumed_from=origin.checkpoint.step if origin.checkpoint else None,
        resumes=origin.resumes,
        tokens_per_second=round(progress.tokens_per_second(), 1),
        milliseconds_per_step=round(1000 * progress.seconds_per_step(), 3),
        seconds_to_first_step=progress.first_step_after,
        loss_first=losses[0],
        loss_last=losses[-1],
        train_loss=trainer.output.training_loss,
        eval_loss_before=before.get("loss"),
        eval_loss=eval_loss,
        eval_perplexity_before=before.get("perplexity"),
        eval_perplexity=after.get("perplexity"),
        eval_token_accuracy_before=before.get("token_accuracy"),
        eval_token_accuracy=after.get("token_accuracy"),
        rows_loss_before=rows_loss_before,
        rows_loss=rows_loss,
        weights_of_step=step,
        stopped_early=trainer.stopped_early,
        best_step=best and best["step"],
        best_eval_loss=best and best["loss"],
        warnings=[
            *warnings(before.get("loss"), eval_loss, best),
            *rows_warnings(rows_loss_before, rows_loss),
            *not_learned(settings, after.get("token_accuracy")),
        ],
    )


def warnings(before: float | None, after: float | None, best: Mapping[str, Any] | None) -> list[str]:
    """What a person has to know of the held-out losses before they use the model."""
    found = []
    if before is not None and after is not None and not after <= before:
        change = moved(before, after)
        found.append(
            f"the held-out loss ended worse than it began: {before:.3f} →"
            f" {number(after)}{f' ({change})' if change else ''}"
        )
    if before is not None and best and best["loss"] > before:
        found.append(
            f"the model before training ({before:.3f}) was better than every evaluation of it, the lowest"
            f" {best['loss']:.3f} at step {best['step']}"
        )
    return found


def rows_warnings(before: float | None, after: float | None) -> list[str]:
    """Of conversations that were trained: they should not have become less likely. Under half a percent is
    rounding.
    """
    if before is None or after is None or after <= before or moved(before, after) == "unchanged":
        return []
    change = moved(before, after)
    return [
        f"the loss of trained conversations ended worse than it began: {before:.3f} →"
        f" {number(after)}{f' ({change})' if change else ''}"
    ]


def not_learned(settings: Config, token_accuracy: float | None) -> list[str]:
    """With `dataset.eval_on_training`: whether not every trained token comes back."""
    if not settings.dataset.eval_on_training or token_accuracy is None or token_accuracy == 1:
        return []
    return [
        f"the training conversations do not come back word for word ({100 * token_accuracy:.1f}% of their"
        " tokens do): raise training.max_steps or training.learning_rate; or this model cannot learn them"
    ]


def refuse_ruined(training: Training, settings: Config, vocabulary: int) -> None:
    """Raises UserError where training ended with a model that the guard would have stopped in time; nothing
    is exported then.

    The held-out loss says so; where nothing is held out, that of some conversations that were trained: the
    guard needs eight losses, they need none.
    """
    if not settings.training.stop_on_divergence:
        return
    judged = [("held out", training.eval_loss_before, training.eval_loss)]
    judged.append(("the loss of trained conversations", training.rows_loss_before, training.rows_loss))
    for what, before, after in judged:
        if before is None or after is None or after <= ruin_limit(before, vocabulary):
            continue
        raise UserError(
            f"training ruined the model: {what} {before:.3f} → {number(after)} (limit"
            f" {ruin_limit(before, vocabulary):.3f}), so it was not exported; its weights are"
            f" checkpoint-{training.weights_of_step} in {settings.training.output_dir}. Lower"
            f" training.learning_rate={settings.training.learning_rate:g}; training.stop_on_divergence=false"
            " exports it regardless"
        )


def used_settings(settings: Config, args: Any) -> dict[str, Any]:
    """The report's settings section: what decides the result, as it ran."""
    training, lora = settings.training, settings.lora
    adapter = (
        {}
        if settings.full_finetuning
        else {"lora_r": lora.r, "lora_alpha": lora.lora_alpha, "lora_dropout": lora.lora_dropout}
    )
    return {
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": training.lr_scheduler_type,
        "warmup_steps": training.warmup_steps,
        "weight_decay": training.weight_decay,
        "optimizer": str(getattr(args.optim, "value", args.optim)),
        "per_device_train_batch_size": training.per_device_train_batch_size,
        "gradient_accumulation_steps": training.gradient_accumulation_steps,
        "max_steps": training.max_steps,
        "num_train_epochs": training.num_train_epochs,
        "max_seq_length": settings.model.max_seq_length,
        "full_finetuning": settings.full_finetuning,
        **adapter,
    }


def used(start: memory.MemoryStatistics, trainer: SFTTrainerWrapper) -> Memory:
    """What training added to `start`, and what had been estimated before the first step."""
    end = memory.measure(start.current_gb)
    return Memory(
        device=end.device,
        start_gb=start.current_gb,
        peak_gb=end.peak_gb,
        peak_since=end.peak_since,
        training_gb=round(end.peak_gb - start.current_gb, 3),
        estimate_gb=trainer.memory_estimate,
    )
