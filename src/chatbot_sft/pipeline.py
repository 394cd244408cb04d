"""One run, from a configuration to a report: the stages in order."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from chatbot_sft import bounds, distributed, effects, places, preemption, start
from chatbot_sft.config import Config
from chatbot_sft.data import DatasetLoader
from chatbot_sft.data.gate import PREVIEW, write_report
from chatbot_sft.data.preview import write_preview
from chatbot_sft.data.template import render_as_of
from chatbot_sft.errors import UserError, listed
from chatbot_sft.export import CONFIG, earlier_saver
from chatbot_sft.logs import quiet, run_log
from chatbot_sft.model import ModelLoader, add_adapter, embedded, hardware, memory, untrained
from chatbot_sft.model.base import description, located
from chatbot_sft.model.earlier import adopt
from chatbot_sft.model.loader import count_parameters, weights_dtype
from chatbot_sft.optimization import check_packages
from chatbot_sft.preemption import Preempted
from chatbot_sft.report import data_summary
from chatbot_sft.report.figure import write_loss_figure
from chatbot_sft.report.loggers import check as check_loggers
from chatbot_sft.report.markdown import write_markdown
from chatbot_sft.report.masking import by_name, masked, referring
from chatbot_sft.report.plain import plain_line
from chatbot_sft.report.run_report import new_report, now, write_json
from chatbot_sft.report.standing import Standing
from chatbot_sft.report.words import moved, number
from chatbot_sft.run_directory import held, report_in
from chatbot_sft.save import ModelSaver
from chatbot_sft.save.evidence import usual_ends, usual_system_prompt
from chatbot_sft.targets import locate
from chatbot_sft.train import Planned, SFTTrainerWrapper, checkpoints
from chatbot_sft.train.checkpoints import Origin
from chatbot_sft.train.rails import ruin_limit

log = logging.getLogger(__name__)


def run(config: Mapping[str, Any], command: str = "", started: float | None = None) -> dict[str, Any]:
    """Do the task that `config` says and return the report that stands in `<paths.output_dir>/report.json`.

    Once the directory is the run's own, it ends up with a report that says what happened, whatever that was. `started`, in
    seconds since the epoch, is when the user began to wait: now, where nothing is given.

    Raises:
        UserError: something the user can mend. Every other exception passes through; KeyboardInterrupt too.
        Preempted: SIGTERM or SIGUSR1, exit code 143.
    """
    started = time.time() if started is None else started
    memory.begin()
    config = located(config)
    settings = Config.from_mapping(config)
    folder = Path(settings.paths.output_dir)
    first = distributed.is_first()
    places.check_run(settings)
    report = new_report(command, settings.task, settings.seed)
    with held(folder), contextlib.ExitStack() as loggers:
        start.refuse(config)
        standing = Standing.of(folder, report_in(folder))
        loggers.enter_context(run_log(folder, first))
        loggers.enter_context(preemption.handled())
        log.info("run: %s", folder)
        try:
            if settings.task == "export":
                save(earlier_saver(config, report), report)
            else:
                train(config, settings, report, loggers, started)
            report["status"] = "completed"
        except Preempted as error:
            report["status"] = "interrupted"
            report["error"] = stopped(error, settings, report["save"].get("exports", []), command)
            tell_saved(report)
            log.warning("%s", report["error"])
            raise
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt)
            report["status"] = "interrupted" if interrupted else "failed"
            report["error"] = "interrupted from the keyboard" if interrupted else " ".join(str(error).split()) or type(error).__name__
            tell_saved(report)
            log.error("%s", report["error"], exc_info=error)
            raise
        finally:
            report["finished"] = now()
            if first and not left_standing(standing, report):
                write_reports(report, folder)
    return report


def left_standing(standing: Standing, report: dict[str, Any]) -> bool:
    """Whether a run that came to nothing leaves what was trained in its directory on record, in place of `report`; says so."""
    if report["status"] == "completed" or not standing.outlives(report["task"], report["training"], report["save"].get("exports")):
        return False
    standing.restore()
    log.info("report: nothing was trained; the reports in %s stay those of the training there", standing.folder)
    return True


def write_reports(report: dict[str, Any], folder: Path) -> None:
    """loss.png, report.md and, whatever becomes of those, report.json; without secrets.

    Raises:
        UserError: they cannot be written, and nothing worse has happened: a run's own error is not hidden behind that.
    """
    report = masked(report)
    try:
        try:
            with quiet():
                write_loss_figure(report["training"], report["evaluations"], folder)
            write_markdown(report, folder)
        finally:
            write_json(report, folder)
    except OSError as error:
        text = f"{folder}: the report cannot be written ({error.strerror or error}); checkpoints and exports are as they are"
        if report["error"] is None:
            raise UserError(text) from error
        log.error("%s", text)


def tell_saved(report: Mapping[str, Any]) -> None:
    """What there is of a run that does not end well."""
    for line in saved(report["save"].get("exports", [])):
        log.info("%s", line)


def stopped(error: Preempted, settings: Config, exports: Sequence[Mapping[str, Any]], command: str) -> str:
    """What a signal left behind, `exports` that were finished among it, and the command that goes on from it."""
    here = shlex.quote(f"hydra.run.dir={settings.paths.output_dir}")
    again = f": {command}{'' if 'hydra.run.dir=' in command else f' {here}'}" if command else ""
    if settings.task == "train":
        last = checkpoints.last_in(Path(settings.training.output_dir))
        left = f"checkpoint at step {last.step}; the same command goes on from there" if last else "no checkpoint yet; the same command begins anew"
    elif settings.task == "export":
        there = ", ".join(f"{export['method']} in {export['path']}" for export in kept(exports))
        left = f"saved: {there}" if there else "no export was finished"
        left += "; the same command makes what is missing"
    else:
        left = "nothing was trained; the same command begins anew"
    return f"{error.signal}: {left}{again}"


def train(
    config: Mapping[str, Any],
    settings: Config,
    report: dict[str, Any],
    loggers: contextlib.ExitStack,
    started: float,
) -> None:
    """data gate → model + tokenizer → dataset → trainer → save, each filling in its part of `report`.

    `task=check` ends after the gate, `task=plan` before the first step.

    What `training.report_to` opens is closed, with the report, when `loggers` is.
    """
    # Everything that can be refused without importing a model library is refused first.
    config = adopt(config)
    settings = Config.from_mapping(config)
    effects.refuse(settings)
    check_secrets(settings)
    dataset_class = locate("dataset", settings.dataset._target_, DatasetLoader)
    model_class = locate("model", settings.model._target_, ModelLoader)
    locate("lora", settings.lora._target_, add_adapter)
    trainer_wrapper = locate("training", settings.training._target_, SFTTrainerWrapper)
    saver = locate("save", settings.save._target_, ModelSaver)
    dataset_loader, model_loader = dataset_class(config), model_class(config)
    check_loggers(settings.training.loggers)
    check_packages(settings.training.optim, bool(hardware.gpus()))
    dataset_loader.find_files()
    model_loader.check()
    bounds.check_model(settings, Path(embedded.resolve(settings.model.name)).expanduser())
    saver(config).check()
    if inert := effects.said(settings):
        log.info("settings: no effect here: %s", ", ".join(inert))
    origin = checkpoints.find_origin(settings) if settings.task == "train" else Origin()
    render_as_of(origin.started)
    try:
        check_data(dataset_loader, model_loader, settings)
    finally:
        report["dataset"] = dataclasses.asdict(dataset_loader.statistics)
    if settings.task == "check":
        return
    bounds.check_batch(settings, dataset_loader.statistics.rows_used, distributed.processes())
    if settings.training.eval_steps is not None and not dataset_loader.statistics.rows_held_out:
        raise UserError(
            f"training.eval_steps={settings.training.eval_steps:g}: no conversation is held out; give dataset.eval_data_path or more data"
        )
    checkpoints.refuse_changes(origin, checkpoints.identity(config, settings, dataset_loader.statistics.fingerprint), whole=True)
    if settings.brought:
        log.info("model: %s brings %s", settings.model.name, ", ".join(settings.brought))

    model, tokenizer = model_loader.load_and_configure()
    trainable, total = count_parameters(model)
    report["model"] = {
        "name": settings.model.name,
        "base": description(settings, Path(settings.paths.output_dir)),
        "adapter": settings.model.adapter,
        "engine": model_loader.engine.NAME,
        "parameters": total,
        "trainable_parameters": trainable,
        "dtype": "4-bit" if settings.model.load_in_4bit else str(weights_dtype(settings)).removeprefix("torch."),
    }

    dataset_loader.tokenizer = tokenizer
    dataset = dataset_loader.prepare_dataset()
    report["dataset"] = dataclasses.asdict(dataset_loader.statistics)

    unlearned = untrained.told(model, tokenizer, settings, usual_ends(dataset, tokenizer)) if "labels" in dataset.column_names else None
    if unlearned:
        log.warning("model: %s", unlearned)

    trainer = trainer_wrapper(config, model, tokenizer, dataset, dataset_loader.eval_dataset)
    system = usual_system_prompt(dataset) or settings.dataset.system_prompt
    report["dataset"]["system_prompt"] = system
    trainer.sample_prompts = dataset_loader.sample_prompts() if settings.training.sample_max_new_tokens else []
    if system and settings.training.sample_prompts is not None:  # asked as the model was trained to be
        trainer.sample_prompts = [[{"role": "system", "content": system}, *prompt] for prompt in trainer.sample_prompts]
    trainer.origin, trainer.started = origin, started
    trainer.setup()
    report["settings"] = used_settings(settings, trainer.trainer.args)
    loggers.callback(trainer.loggers.finish, report)
    machine = checkpoints.resolved(model_loader.engine.NAME, report["model"]["dtype"], trainer.trainer.args.optim)
    checkpoints.refuse_changes(origin, machine, whole=False)
    report["evaluations"] = trainer.evaluations.records  # filled as the run goes, whatever its end
    start = memory.measure()
    rows_loss_before = None
    if settings.task == "train":
        trainer.evaluate()
        rows_loss_before = trainer.trained_rows_loss()
    try:
        trainer.train()
    except Planned:
        report["plan"] = {
            "layout": trainer.plan.layout.describe(settings.effective_batch_size),
            "layouts": trainer.measured_layouts(),
            "memory_gb": trainer.memory_estimate,
            "device": start.device,
            "device_gb": start.total_gb,
        }
        return
    finally:
        if trainer.progress.first_step_after is not None:
            report["training"]["history"] = [{"step": step, "loss": loss} for step, loss in trainer.progress.losses]
    eval_loss = trainer.evaluate_trained()
    report["training"] |= trained(trainer, eval_loss, rows_loss_before)
    report["training"]["warnings"] += [unlearned] if unlearned else []
    report["memory"] = used(start, trainer)
    if trainer.sample_prompts:
        before, after = (trainer.evaluations.at(step)["samples"] for step in (0, report["training"]["weights_of_step"]))
        report["samples"] = [
            {"prompt": first["prompt"], "before": first["answer"], "after": second["answer"]} for first, second in zip(before, after, strict=True)
        ]
    if distributed.is_first():
        saver = trainer.saver(report)
        saver.evidence.write(Path(settings.paths.output_dir))
        OmegaConf.save(referring(dict(config)), Path(settings.paths.output_dir, CONFIG))
    for warning in report["training"]["warnings"]:
        log.warning("training: %s", warning)
    refuse_ruined(report["training"], settings, len(tokenizer))
    if distributed.is_first():
        save(saver, report)
    if distributed.processes() > 1:
        trainer.trainer.accelerator.end_training()


def check_secrets(settings: Config) -> None:
    """Say that a secret in the system prompt is trained into the model.

    Raises:
        UserError: one in a new token, whose text would be in the tokenizer of every checkpoint and export.
    """
    if by_name(settings.model.new_tokens) != settings.model.new_tokens:
        raise UserError(f"model.new_tokens: {listed(by_name(settings.model.new_tokens))}: a token's text is in every file of the model; name another")
    if by_name(settings.dataset.system_prompt) != settings.dataset.system_prompt:
        log.warning("dataset.system_prompt: the secret in it is trained into the model, and stands in no file; an export's chat asks without it")


def save(saver: ModelSaver, report: dict[str, Any]) -> None:
    """Export what was trained; the report says what there is, whatever becomes of the rest."""
    try:
        saver.save()
    finally:
        report["save"] = dataclasses.asdict(saver.result)


def check_data(dataset_loader: DatasetLoader, model_loader: ModelLoader, settings: Config) -> None:
    """The gate, and its data_report.json and data_preview.html in the run directory."""
    folder = Path(settings.paths.output_dir)
    if dataset_loader.writes_its_own_text:
        dataset_loader.tokenizer = model_loader.load_tokenizer()
        tokenizer = None
    else:
        tokenizer = model_loader.chat_tokenizer()
    refused = False
    try:
        dataset_loader.check(tokenizer)
    except UserError:
        refused = True
        raise
    finally:
        if dataset_loader.report and distributed.is_first():
            write_report(masked(dataset_loader.report), folder)
            title = f"{settings.model.name} on {', '.join(Path(source['path']).name for source in dataset_loader.report['sources'])}"
            write_preview(folder / PREVIEW, title, data_summary.facts(dataset_loader.report)[1:], dataset_loader.preview_rows())
            if settings.task == "check" or refused:
                data_summary.show(dataset_loader.report, folder)
    for remark in data_summary.remarks(dataset_loader.report):
        log.warning("data: %s", remark)


def trained(trainer: SFTTrainerWrapper, eval_loss: float | None, rows_loss_before: float | None) -> dict[str, Any]:
    """The report's training section; `weights_of_step` are the weights that are evaluated last and saved."""
    settings, progress, evaluations, origin = trainer.settings, trainer.progress, trainer.evaluations, trainer.origin
    losses = [loss for _, loss in progress.losses]
    last = trainer.trainer.state.global_step
    step = last if evaluations.reloaded is None else evaluations.reloaded
    best = evaluations.best() if settings.training.eval_steps is not None else None
    before, after = evaluations.at(0) or {}, evaluations.at(step) or {}
    rows_loss = trainer.trained_rows_loss()
    return {
        "steps": last,
        "effective_batch_size": settings.effective_batch_size * distributed.processes(),
        "processes": distributed.processes(),
        "batch_layout": trainer.trainer.layout.describe(settings.effective_batch_size),
        "batch_layouts": trainer.measured_layouts(),
        "tokens": progress.step_tokens[-1],
        "seconds": trainer.trainer.seconds(),
        "resumed_from": origin.checkpoint.step if origin.checkpoint else None,
        "resumes": origin.resumes,
        "tokens_per_second": round(progress.tokens_per_second(), 1),
        "milliseconds_per_step": round(1000 * progress.seconds_per_step(), 3),
        "seconds_to_first_step": progress.first_step_after,
        "loss_first": losses[0],
        "loss_last": losses[-1],
        "train_loss": trainer.output.training_loss,
        "eval_loss_before": before.get("loss"),
        "eval_loss": eval_loss,
        "eval_perplexity_before": before.get("perplexity"),
        "eval_perplexity": after.get("perplexity"),
        "eval_token_accuracy_before": before.get("token_accuracy"),
        "eval_token_accuracy": after.get("token_accuracy"),
        "rows_loss_before": rows_loss_before,  # of some trained conversations, where none is held out
        "rows_loss": rows_loss,
        "weights_of_step": step,
        "stopped_early": evaluations.stopped_early,
        "best_step": best and best["step"],
        "best_eval_loss": best and best["loss"],
        "warnings": [*warnings(before.get("loss"), eval_loss, best), *rows_warnings(rows_loss_before, rows_loss)],
    }


def warnings(before: float | None, after: float | None, best: Mapping[str, Any] | None) -> list[str]:
    """What a person has to know of the held-out losses before they use the model."""
    found = []
    if before is not None and after is not None and not after <= before:
        change = moved(before, after)
        found.append(f"the held-out loss ended worse than it began: {before:.3f} → {number(after)}{f' ({change})' if change else ''}")
    if before is not None and best and best["loss"] > before:
        found.append(
            f"the model before training ({before:.3f}) was better than every evaluation of it, the lowest {best['loss']:.3f} at step {best['step']}"
        )
    return found


def rows_warnings(before: float | None, after: float | None) -> list[str]:
    """Of conversations that were trained: they should not have become less likely. Under half a percent is rounding."""
    if before is None or after is None or after <= before or moved(before, after) == "unchanged":
        return []
    change = moved(before, after)
    return [f"the loss of trained conversations ended worse than it began: {before:.3f} → {number(after)}{f' ({change})' if change else ''}"]


def refuse_ruined(training: Mapping[str, Any], settings: Config, vocabulary: int) -> None:
    """Raises UserError where training ended with a model that the guard would have stopped in time; nothing is exported then.

    The held-out loss says so; where nothing is held out, that of some conversations that were trained: the guard needs eight losses, they need none.
    """
    if not settings.training.stop_on_divergence:
        return
    judged = [("held out", training["eval_loss_before"], training["eval_loss"])]
    judged.append(("the loss of trained conversations", training["rows_loss_before"], training["rows_loss"]))
    for what, before, after in judged:
        if before is None or after is None or after <= ruin_limit(before, vocabulary):
            continue
        raise UserError(
            f"training ruined the model: {what} {before:.3f} → {number(after)} (limit {ruin_limit(before, vocabulary):.3f}), so it was not exported; "
            f"its weights are checkpoint-{training['weights_of_step']} in {settings.training.output_dir}. "
            f"Lower training.learning_rate={settings.training.learning_rate:g}; training.stop_on_divergence=false exports it regardless"
        )


def used_settings(settings: Config, args: Any) -> dict[str, Any]:
    """The report's settings section: what decides the result, as it ran."""
    training, lora = settings.training, settings.lora
    adapter = {} if settings.full_finetuning else {"lora_r": lora.r, "lora_alpha": lora.lora_alpha, "lora_dropout": lora.lora_dropout}
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


def used(start: memory.MemoryStatistics, trainer: SFTTrainerWrapper) -> dict[str, Any]:
    """The report's memory section: what training added to `start`, and what had been estimated before the first step."""
    end = memory.measure(start.current_gb)
    return {
        "device": end.device,
        "start_gb": start.current_gb,
        "peak_gb": end.peak_gb,
        "peak_since": end.peak_since,
        "training_gb": round(end.peak_gb - start.current_gb, 3),
        "estimate_gb": trainer.memory_estimate,
    }


def plan_summary(report: dict[str, Any]) -> str:
    """Three lines of `task=plan`: parameters, memory by part, batch layout."""
    model, parts = report["model"], dict(report["plan"]["memory_gb"])
    total = parts.pop("total")
    trained = f"{model['trainable_parameters'] / 1e6:,.2f}M trained ({100 * model['trainable_parameters'] / model['parameters']:.2f}%)"
    return "\n".join(
        [
            f"model   {model['parameters'] / 1e6:,.1f}M parameters, {trained}, {model['dtype']}",
            f"memory  {total:.2f} GB of {report['plan']['device_gb']:.1f} GB ({report['plan']['device']}): "
            + ", ".join(f"{name} {size:.2f}" for name, size in parts.items()),
            f"layout  {report['plan']['layout']}",
        ]
    )


def summary(report: dict[str, Any], folder: str) -> str:
    """A line each: where the run is, how the loss moved, one answer before and after, what was saved."""
    training = report["training"]
    lines = [f"run     {_short_path(folder)}"]
    losses = f"loss    training {number(training['loss_first'], '.2f')} → {number(training['loss_last'], '.2f')}"
    if training["eval_loss"] is not None:
        change = moved(training["eval_loss_before"], training["eval_loss"])
        losses += (
            f", held out {number(training['eval_loss_before'], '.2f')} → {number(training['eval_loss'], '.2f')}{f' ({change})' if change else ''}"
        )
    lines += [losses, *(f"warning {text}" for text in training.get("warnings", []))]
    if report["samples"]:
        sample = report["samples"][0]
        lines.append(f"answer  {_short(sample['prompt'], 60)}  before: {_short(sample['before'], 100)}  after: {_short(sample['after'], 160)}")
    return "\n".join([*lines, *saved(report["save"]["exports"])])


def saved(exports: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each of the report's exports that is there."""
    lines = []
    for export in kept(exports):
        size = f"{sum(export['files'].values()) / 1e6:,.0f} MB"
        lines.append(f"saved   {export['method']}, {size}{', verified' if export['verified'] else ''}: {_short_path(export['path'])}")
    return lines


def kept(exports: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The report's exports without one that was refused."""
    return [export for export in exports if export["verified"] is not False]


def _short_path(path: str) -> str:
    """From the current folder, where it is below it."""
    return plain_line(str(Path(path).relative_to(Path.cwd()) if Path(path).is_relative_to(Path.cwd()) else path))


def _short(text: str, limit: int) -> str:
    line = " ".join(text.split())
    return f"“{line if len(line) <= limit else line[: limit - 1] + '…'}”"
