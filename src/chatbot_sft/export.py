"""`task=export`: the model of an earlier run, loaded again from what it kept and saved as `config.save` says
now.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatbot_sft.config import Config
from chatbot_sft.errors import UserError
from chatbot_sft.model.base import moved
from chatbot_sft.model.earlier import load_weights
from chatbot_sft.model.hub import is_local
from chatbot_sft.model_files import check_folder
from chatbot_sft.report.masking import referring
from chatbot_sft.run import checkpoints
from chatbot_sft.run.directory import CONFIG, Run, trains_nothing
from chatbot_sft.run.report import Report, SaveResult, Training
from chatbot_sft.save import ModelSaver
from chatbot_sft.save.verify.evidence import Evidence
from chatbot_sft.targets import locate
from chatbot_sft.trust import SAID_ANEW

log = logging.getLogger(__name__)

KEPT = (
    "settings",
    "model",
    "dataset",
    "history",
    "training",
    "memory",
    "evaluations",
    "samples",
)  # of the earlier report, what is still true of the export
OF_EXPORT = (
    "task",
    "run",
    "save",
    "paths",
    "hydra",
    "sweep",
    "allow_targets",
)  # what a task=export command may set


@dataclass(frozen=True)
class Earlier:
    """A run that trained: its `config`, what it was `report`ed to be, the `evidence` for its exports, and the
    folder with its trained `weights`.
    """

    config: dict[str, Any]
    report: Report
    evidence: Evidence
    weights: Path

    @classmethod
    def find(cls, folder: Path) -> Earlier:
        """The run in `folder`.

        Raises:
            UserError: it is no run directory, did not get as far as its evaluation, or kept no weights.
        """
        run, where = Run(folder), f"run={folder}"
        report = run.finished_report()
        if nothing := trains_nothing(report):
            raise UserError(f"{where}: {nothing}")
        if report.task == "export":
            raise UserError(f"{where}: the export of another run; name that one: run={report.run}")
        if report.training is None or not run.config_file.is_file():
            raise UserError(
                f"{where}: its training (task={report.task}, {report.status}) did not end; the same command"
                " again goes on from there"
            )
        config = _config(run)
        return cls(
            config,
            report,
            _evidence(where, run.evidence_file),
            _weights(run, config, report.training, report.save),
        )


def _config(run: Run) -> dict[str, Any]:
    """What the run was composed of; a base that moved with the run is looked for where it is now."""
    config = run.config()
    name = config["model"].get("name")
    if isinstance(name, str) and name.startswith("/") and not Path(name).is_dir():
        config["model"]["name"] = moved(run.folder) or name
    return config


def _evidence(where: str, file: Path) -> Evidence:
    try:
        return Evidence.read(file)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{where}: its {file.name}, by which exports are checked, cannot be read"
            f" ({' '.join(str(error).split())[:200]})"
        ) from None


def _weights(run: Run, config: Mapping[str, Any], training: Training, save: SaveResult | None) -> Path:
    """The checkpoint whose weights the run ended with; else an adapter that it saved."""
    folder, step, why = run.folder, training.weights_of_step, "gone"
    for place in (run.checkpoints, Path(config["training"]["output_dir"])):
        wanted = place / f"checkpoint-{step}"
        try:
            checkpoint = checkpoints.verified(wanted)
        except checkpoints.Damaged as error:
            why = f"damaged ({error})" if wanted.is_dir() else why
            continue
        _refuse_edited(run, config, checkpoint)
        return checkpoint.folder
    saved = [Path(export.path) for export in save.exports if export.method == "lora"] if save else []
    for place in (*saved, *run.adapters()):
        if (place / "adapter_config.json").is_file():
            if why != "gone":
                log.warning(
                    "run=%s: the checkpoint of step %s is %s; the adapter in %s takes its place",
                    folder,
                    step,
                    why,
                    place,
                )
            return place
    raise UserError(
        f"run={folder}: the checkpoint of step {step} is {why}, and no adapter was saved; there is nothing"
        " left to export"
    )


def _refuse_edited(run: Run, config: Mapping[str, Any], checkpoint: checkpoints.Checkpoint) -> None:
    """Raises UserError where config.yaml no longer says how the adapter was made."""
    lora = referring(Config.from_mapping(config)["lora"])
    trained = {
        key: value
        for key, value in referring(checkpoint.record["identity"]).items()
        if key.startswith("lora.")
    }
    edited = [
        f"{key} {value} → {lora[key[5:]]}"
        for key, value in trained.items()
        if key[5:] in lora and value != lora[key[5:]]
    ]
    if edited:
        raise UserError(
            f"run={run.folder}: its {CONFIG} was edited: {', '.join(edited)}; set it back to what"
            f" {checkpoint.folder.name} was trained with"
        )


def _said_anew(now: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, bool]:
    """Of the keys of `model` that let code of others run what the command says `now`: the run may be a stranger's.

    Raises:
        UserError: the run needed one that the command does not say.
    """
    said = {}
    for path in SAID_ANEW:
        key = path.removeprefix("model.")
        said[key] = now["model"][key]
        if before["model"].get(key) and not said[key]:
            raise UserError(
                f"run={now['run']}: its model was loaded with {path}=true, which may run code that came with it; add"
                f" {path}=true, if you trust where the run and its model come from"
            )
    return said


def check_overrides(overrides: list[str]) -> None:
    """Model, data and training of an export are the earlier run's.

    Raises:
        UserError: a command line that would have them otherwise.
    """
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        if key.partition(".")[0].partition("/")[0] not in OF_EXPORT and key not in SAID_ANEW:
            raise UserError(f"{key}: task=export takes everything but save.* from the run; leave it out")


def earlier_saver(config: Mapping[str, Any], report: Report) -> ModelSaver:
    """The saver of the model that the run `config.run` trained, to save it as `config.save` says; `report`
    gets what is known of it.

    Raises:
        UserError: the run cannot be exported, or not in this way.
    """
    if Path(config["run"]).expanduser().resolve() == Path(config["paths"]["output_dir"]).resolve():
        raise UserError(
            f"run={config['run']}: the export would overwrite that run's own report; leave hydra.run.dir out,"
            " or name another folder"
        )
    earlier = Earlier.find(Path(config["run"]).expanduser())
    kept = {name: part for name, part in earlier.config.items() if name not in OF_EXPORT}
    now = {**kept, **{name: config[name] for name in OF_EXPORT if name in config}}
    now["model"] = {
        **now["model"],
        **_said_anew(config, earlier.config),
        "adapter": None,  # what it went on from is in what it became
    }
    settings = Config.from_mapping(now)
    saver = locate("save", settings.save._target_, settings.allow_targets)
    if is_local(settings.model.name) and not Path(settings.model.name).is_dir():
        raise UserError(
            f"run={config['run']}: the model it was trained on is not at {settings.model.name} any more, nor"
            f" did it move along with the run; put it back, or correct model.name in its {CONFIG}"
        )
    saver(settings).check()
    if is_local(settings.model.name):
        check_folder(settings.model.name, settings.model.trust_remote_code, settings.model.allow_pickle)
    report.record(**{part: getattr(earlier.report, part) for part in KEPT})
    report.run = str(Path(config["run"]).expanduser())
    # Trained in full, the checkpoint is the model; an adapter goes onto its base.
    base = (
        {**now, "model": {**now["model"], "name": str(earlier.weights)}} if settings.full_finetuning else now
    )
    if settings.model.chat_template:  # as it was trained, wherever the file is now
        base = {
            **base,
            "model": {**base["model"], "chat_template": str(earlier.weights / "chat_template.jinja")},
        }
    model = locate("model", settings.model._target_, settings.allow_targets)(base).load()
    if not settings.full_finetuning:
        load_weights(model.model, earlier.weights, f"run={config['run']}")
    log.info("weights: %s", earlier.weights)
    return saver(settings, model.model, model.tokenizer, earlier.evidence, report)
