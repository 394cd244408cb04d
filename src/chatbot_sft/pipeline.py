"""One run, from a configuration to a report: the stages in order."""

from __future__ import annotations

import dataclasses
import logging
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chatbot_sft import preemption
from chatbot_sft.config import Config
from chatbot_sft.data import DatasetLoader
from chatbot_sft.data.gate import PREVIEW, write_report
from chatbot_sft.data.preview import write_preview
from chatbot_sft.data.template import render_as_of
from chatbot_sft.errors import UserError
from chatbot_sft.logs import quiet, run_log
from chatbot_sft.model import ModelLoader, memory
from chatbot_sft.model.generate import as_text, greedy_answer
from chatbot_sft.model.loader import count_parameters, weights_dtype
from chatbot_sft.preemption import Preempted
from chatbot_sft.report import data_summary
from chatbot_sft.report.figure import write_loss_figure
from chatbot_sft.report.markdown import write_markdown
from chatbot_sft.report.run_report import new_report, now, write_json
from chatbot_sft.save import ModelSaver
from chatbot_sft.targets import locate
from chatbot_sft.train import SFTTrainerWrapper, checkpoints
from chatbot_sft.train.checkpoints import Origin

log = logging.getLogger(__name__)


def run(config: Mapping[str, Any], command: str = "") -> dict[str, Any]:
    """Do the task that `config` says and return the report that stands in `<paths.output_dir>/report.json`.

    Whatever happens, the run directory ends up with a report that says so.

    Raises:
        UserError: something the user can mend. Every other exception passes through; KeyboardInterrupt too.
        Preempted: SIGTERM or SIGUSR1, exit code 143.
    """
    settings = Config.from_mapping(config)
    folder = Path(settings.paths.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints.refuse_completed(settings)
    report = new_report(command, settings.task, settings.seed)
    with run_log(folder), preemption.handled():
        log.info("run: %s", folder)
        try:
            train(config, settings, report)
            report["status"] = "completed"
        except Preempted as error:
            report["status"] = "interrupted"
            report["error"] = stopped(error, settings, command)
            log.warning("%s", report["error"])
            raise
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt)
            report["status"] = "interrupted" if interrupted else "failed"
            report["error"] = "interrupted from the keyboard" if interrupted else " ".join(str(error).split()) or type(error).__name__
            log.error("%s", report["error"], exc_info=error)
            raise
        finally:
            report["finished"] = now()
            try:
                with quiet():
                    write_loss_figure(report["training"], folder)
                write_markdown(report, folder)
            finally:
                write_json(report, folder)
    return report


def stopped(error: Preempted, settings: Config, command: str) -> str:
    """What a signal left behind, and the command that goes on from it."""
    last = checkpoints.last_in(Path(settings.training.output_dir))
    again = f": {command} {shlex.quote(f'hydra.run.dir={settings.paths.output_dir}')}" if command else ""
    return f"{error.signal}: {f'checkpoint at step {last.step}' if last else 'no checkpoint yet'}; the same command goes on from there{again}"


def train(config: Mapping[str, Any], settings: Config, report: dict[str, Any]) -> None:
    """data gate → model + tokenizer → dataset → trainer → save, each filling in its part of `report`; `task=check` ends after the gate."""
    # Everything that can be refused without importing a model library is refused first.
    dataset_loader = locate("dataset", settings.dataset._target_, DatasetLoader)(config)
    model_loader = locate("model", settings.model._target_, ModelLoader)(config)
    trainer_wrapper = locate("training", settings.training._target_, SFTTrainerWrapper)
    saver = locate("save", settings.save._target_, ModelSaver)
    dataset_loader.find_files()
    model_loader.check()
    saver(config).check()
    origin = checkpoints.find_origin(settings) if settings.task == "train" else Origin()
    render_as_of(origin.started)
    try:
        check_data(dataset_loader, model_loader, settings)
    finally:
        report["dataset"] = dataclasses.asdict(dataset_loader.statistics)
    if settings.task == "check":
        return
    checkpoints.refuse_changes(origin, checkpoints.identity(config, settings, dataset_loader.statistics.fingerprint), whole=True)

    model, tokenizer = model_loader.load_and_configure()
    trainable, total = count_parameters(model)
    report["model"] = {
        "name": settings.model.name,
        "engine": model_loader.engine.NAME,
        "parameters": total,
        "trainable_parameters": trainable,
        "dtype": "4-bit" if settings.model.load_in_4bit else str(weights_dtype(settings)).removeprefix("torch."),
    }

    dataset_loader.tokenizer = tokenizer
    dataset = dataset_loader.prepare_dataset()
    report["dataset"] = dataclasses.asdict(dataset_loader.statistics)

    trainer = trainer_wrapper(config, model, tokenizer, dataset, dataset_loader.eval_dataset)
    trainer.origin = origin
    trainer.setup()
    machine = checkpoints.resolved(model_loader.engine.NAME, report["model"]["dtype"], trainer.trainer.args.optim)
    checkpoints.refuse_changes(origin, machine, whole=False)
    start = memory.measure()
    prompts = dataset_loader.sample_prompts() if settings.training.sample_max_new_tokens else []
    eval_loss_before = trainer.evaluate()
    before = answers(model_loader, model, tokenizer, prompts)
    try:
        trainer_stats = trainer.train()
    finally:
        report["training"] = {"history": [{"step": step, "loss": loss} for step, loss in trainer.progress.losses]}
    losses = [loss for _, loss in trainer.progress.losses]
    report["training"] = {
        "steps": trainer_stats.global_step,
        "effective_batch_size": settings.effective_batch_size,
        "batch_layout": f"{settings.training.per_device_train_batch_size} × {settings.training.gradient_accumulation_steps}",
        "tokens": trainer.progress.step_tokens[-1],
        "seconds": trainer.trainer.seconds(),
        "resumed_from": origin.checkpoint.step if origin.checkpoint else None,
        "resumes": origin.resumes,
        "tokens_per_second": round(trainer.progress.tokens_per_second(), 1),
        "loss_first": losses[0],
        "loss_last": losses[-1],
        "train_loss": trainer_stats.training_loss,
        "eval_loss_before": eval_loss_before,
        "eval_loss": trainer.evaluate(),
        **report["training"],
    }
    end = memory.measure(start.current_gb)
    report["memory"] = {
        "device": end.device,
        "start_gb": start.current_gb,
        "peak_gb": end.peak_gb,
        "training_gb": round(end.peak_gb - start.current_gb, 3),
    }
    after = answers(model_loader, model, tokenizer, prompts)
    report["samples"] = [
        {"prompt": prompt[-1]["content"], "before": first, "after": second} for prompt, first, second in zip(prompts, before, after, strict=True)
    ]
    report["save"] = dataclasses.asdict(trainer.save_model())


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
        if dataset_loader.report:
            write_report(dataset_loader.report, folder)
            title = f"{settings.model.name} on {', '.join(Path(source['path']).name for source in dataset_loader.report['sources'])}"
            write_preview(folder / PREVIEW, title, data_summary.facts(dataset_loader.report)[1:], dataset_loader.preview_rows())
            if settings.task == "check" or refused:
                data_summary.show(dataset_loader.report, folder)
    for remark in data_summary.remarks(dataset_loader.report):
        log.warning("data: %s", remark)


def answers(model_loader: Any, model: Any, tokenizer: Any, prompts: list[list[dict[str, Any]]]) -> list[str]:
    """The model's greedy answers to `prompts`."""
    model_loader.engine.for_inference(model)
    limit = model_loader.settings.training.sample_max_new_tokens
    kwargs = model_loader.settings.dataset.chat_template_kwargs
    with quiet():
        texts = [as_text(tokenizer, greedy_answer(model, tokenizer, prompt, limit, **kwargs)) for prompt in prompts]
    model_loader.engine.for_training(model)
    return texts


def summary(report: dict[str, Any], folder: str) -> str:
    """Three lines: where the run is, how the loss moved, one answer before and after."""
    training = report["training"]
    path = Path(folder)
    lines = [f"run     {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}"]
    moved = f"loss    training {training['loss_first']:.2f} → {training['loss_last']:.2f}"
    if training["eval_loss"] is not None:
        lower = 100 * (1 - training["eval_loss"] / training["eval_loss_before"])
        moved += f", held out {training['eval_loss_before']:.2f} → {training['eval_loss']:.2f} ({lower:.0f}% lower)"
    lines.append(moved)
    if report["samples"]:
        sample = report["samples"][0]
        lines.append(f"answer  {_short(sample['prompt'], 60)}  before: {_short(sample['before'], 100)}  after: {_short(sample['after'], 160)}")
    return "\n".join(lines)


def _short(text: str, limit: int) -> str:
    line = " ".join(text.split())
    return f"“{line if len(line) <= limit else line[: limit - 1] + '…'}”"
