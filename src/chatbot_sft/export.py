"""`task=export`: the model of an earlier run, loaded again from what it kept and saved as `config.save` says now."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from chatbot_sft.config import Config
from chatbot_sft.errors import UserError
from chatbot_sft.model import ModelLoader
from chatbot_sft.report.masking import resolved
from chatbot_sft.save import ModelSaver
from chatbot_sft.save.evidence import Evidence
from chatbot_sft.targets import locate
from chatbot_sft.train import checkpoints

log = logging.getLogger(__name__)

CONFIG = "config.yaml"  # in the directory of a run that has trained: what was composed, with nothing left to resolve
KEPT = ("settings", "model", "dataset", "training", "memory", "evaluations", "samples")  # of the earlier report, what is still true of the export
OF_EXPORT = ("task", "run", "save", "paths", "hydra")  # what a task=export command may set


@dataclass(frozen=True)
class Earlier:
    """A run that trained: its `config`, what it was `report`ed to be, the `evidence` for its exports, and the folder with its trained `weights`."""

    config: dict[str, Any]
    report: dict[str, Any]
    evidence: Evidence
    weights: Path

    @classmethod
    def find(cls, folder: Path) -> Earlier:
        """The run in `folder`.

        Raises:
            UserError: it is no run directory, did not get as far as its evaluation, or kept no weights.
        """
        where = f"run={folder}"
        if not (folder / "report.json").is_file():
            raise UserError(f"{where}: not a run directory: no report.json in it")
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        if not (folder / CONFIG).is_file() or "weights_of_step" not in report["training"]:
            raise UserError(
                f"{where}: its training (task={report['task']}, {report['status']}) did not end; the same command again goes on from there"
            )
        config = resolved(OmegaConf.to_container(OmegaConf.load(folder / CONFIG)))
        return cls(config, report, Evidence.read(folder), _weights(folder, config, report))


def _weights(folder: Path, config: Mapping[str, Any], report: Mapping[str, Any]) -> Path:
    """The checkpoint whose weights the run ended with; else an adapter that it saved."""
    step = report["training"]["weights_of_step"]
    for place in (folder / "checkpoints", Path(config["training"]["output_dir"])):
        found = checkpoints.read(place / f"checkpoint-{step}")
        if found:
            return found.folder
    saved = [Path(export["path"]) for export in report["save"].get("exports", []) if export["method"] == "lora"]
    for place in [*saved, folder / "model", folder / "model" / "lora", folder / "model-adapter"]:
        if (place / "adapter_config.json").is_file():
            return place
    raise UserError(f"run={folder}: the checkpoint of step {step} is gone, and no adapter was saved; there is nothing left to export")


def check_overrides(overrides: list[str]) -> None:
    """Model, data and training of an export are the earlier run's.

    Raises:
        UserError: a command line that would have them otherwise.
    """
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        if key.partition(".")[0].partition("/")[0] not in OF_EXPORT:
            raise UserError(f"{key}: task=export takes everything but save.* from the run; leave it out")


def earlier_saver(config: Mapping[str, Any], report: dict[str, Any]) -> ModelSaver:
    """The saver of the model that the run `config.run` trained, to save it as `config.save` says; `report` gets what is known of it.

    Raises:
        UserError: the run cannot be exported, or not in this way.
    """
    if Path(config["run"]).expanduser().resolve() == Path(config["paths"]["output_dir"]).resolve():
        raise UserError(f"run={config['run']}: the export would overwrite that run's own report; leave hydra.run.dir out, or name another folder")
    earlier = Earlier.find(Path(config["run"]).expanduser())
    kept = {name: part for name, part in earlier.config.items() if name not in OF_EXPORT}
    now = {**kept, **{name: config[name] for name in OF_EXPORT if name in config}}
    settings = Config.from_mapping(now)
    saver = locate("save", settings.save._target_, ModelSaver)
    saver(now).check()
    report |= {name: earlier.report[name] for name in KEPT if name in earlier.report}
    # Trained in full, the checkpoint is the model; an adapter goes onto its base.
    base = {**now, "model": {**now["model"], "name": str(earlier.weights)}} if settings.full_finetuning else now
    model, tokenizer = locate("model", settings.model._target_, ModelLoader)(base).load_and_configure()
    if not settings.full_finetuning:
        from peft import load_peft_weights, set_peft_model_state_dict

        loaded = set_peft_model_state_dict(model, load_peft_weights(str(earlier.weights), device="cpu"))
        if loaded.unexpected_keys:
            raise UserError(f"run={config['run']}: {earlier.weights} is not an adapter of this model: it has {loaded.unexpected_keys[0]}")
    log.info("weights: %s", earlier.weights)
    return saver(now, model, tokenizer, earlier.evidence, report)
