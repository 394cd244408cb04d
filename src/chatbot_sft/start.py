"""What refuses a start by what is in its run directory already, before a file of it is written. Imports no
torch.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from yaml import YAMLError

from chatbot_sft import places
from chatbot_sft.config import Config, effects
from chatbot_sft.data.corpus import Corpus
from chatbot_sft.errors import UserError
from chatbot_sft.export import check_overrides
from chatbot_sft.model import embedded
from chatbot_sft.model.base import located
from chatbot_sft.model.earlier import adopt
from chatbot_sft.model.hub import is_local, readable_errors, tokenizer_folder
from chatbot_sft.model.load import check_files
from chatbot_sft.network import USER_SAYS_OFFLINE
from chatbot_sft.report.masking import referring
from chatbot_sft.run import checkpoints
from chatbot_sft.run.directory import Run, wherever
from chatbot_sft.run.report import Status
from chatbot_sft.train import resume

PREPARING = ("train", "check", "plan")  # tasks that begin with data and a base of the settings


def refuse(config: Mapping[str, Any], overrides: Sequence[str] = ()) -> None:
    """Raises UserError where the run directory, or a place beside it, is none for this run; or `overrides`
    are none of its task.
    """
    settings = located(Config.from_mapping(config))
    refuse_task(settings, overrides)
    places.check_run(settings)
    refuse_written_over(settings)
    refuse_taken(settings)
    resume.refuse_completed(settings)


def refuse_task(settings: Config, overrides: Sequence[str]) -> None:
    """Raises UserError where `overrides` are none of an export, an evaluation, a replay or a verification, or what
    these read is none to begin with.
    """
    if settings.task == "export":
        check_overrides(list(overrides))
    if settings.task == "evaluate" or settings.training.golden_steps is not None:
        from chatbot_sft.evaluation import task as evaluation  # nothing that every start has to wait for

        evaluation.refuse(settings, overrides)
    if settings.task == "replay":
        from chatbot_sft.replay.again import check_overrides as check_of_replay

        check_of_replay(overrides)
    if settings.task == "verify":
        from chatbot_sft.served import task as verification

        verification.refuse(settings, overrides)


def refuse_files(settings: Config) -> None:
    """Raises UserError where a file or a folder that a training, or a look at the data, begins with is not there;
    reads no data. Those of the other tasks: `refuse_task`.
    """
    if settings.task not in PREPARING:
        return
    begins_with = adopt(located(settings))
    Corpus.of(begins_with).check_files()
    check_files(begins_with)


def refuse_no_checkpoint(settings: Config) -> None:
    """Raises UserError where `training.resume` names no checkpoint that is whole by the sizes of its files."""
    resumes = settings.training.resume
    if settings.task != "train" or resumes in ("auto", "never"):
        return
    place = Path(resumes).expanduser()
    if not (
        checkpoints.read(place) or checkpoints.last_in(place) or checkpoints.last_in(Run(place).checkpoints)
    ):
        resume.find_origin(settings)  # says what of it


def refuse_not_cached(settings: Config) -> None:
    """Raises UserError where a hub model is to be trained, the user said not to ask the hub, and its local cache has
    no weights of it; or no tokenizer, where a look at the data needs that alone.
    """
    if not USER_SAYS_OFFLINE or settings.task not in PREPARING:
        return
    model = adopt(located(settings)).model
    source = embedded.resolve(model.name)
    if is_local(source):
        return
    folder = tokenizer_folder(source, model.revision)
    weights = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
    if not weights and settings.task != "check":
        with readable_errors(model.name):
            raise FileNotFoundError("its tokenizer alone was fetched")


@dataclass
class Files:
    """What jobs of a sweep begin with: looked for once for all that name the same.

    `goes_on`: jobs may have checkpoints of their own, and need the one no more that `training.resume` names.
    `dry`: none of them is run, and the machine that will may have what the hub's cache lacks here.
    """

    goes_on: bool
    dry: bool = False
    there: set[str] = field(default_factory=set)

    def refuse(self, settings: Config) -> None:
        """Raises UserError where something is not there."""
        parts = (
            settings.dataset,
            settings.model,
            settings.lora,
            settings.objective,
            settings.training.resume,
        )
        named = repr((settings.task, *parts))
        if named in self.there:
            return
        refuse_files(settings)
        if not self.goes_on:
            refuse_no_checkpoint(settings)
        if not self.dry:
            refuse_not_cached(settings)
        self.there.add(named)


def refuse_written_over(settings: Config) -> None:
    """Raises UserError where a task that does not train would write its report over that of a training or an
    export, however it ended.
    """
    if settings.task == "train":
        return
    run = Run.of(settings)
    report, there = run.report(), "training"
    if report and report.task == "export":
        there = "export"
        taken = settings.task != "export" and report.training is not None
    else:
        trained = (
            report is not None and report.task == "train" and (report.training or report.history is not None)
        )
        taken = bool(trained) or checkpoints.last_in(run.checkpoints) is not None
    if taken:
        raise UserError(
            f"{run.folder}: task={settings.task} would write over the report of the {there} there; leave"
            " hydra.run.dir out, or name another directory"
        )


def refuse_taken(settings: Config) -> None:
    """Raises UserError where the run directory holds a finished training that is asked for another export
    only.
    """
    run = Run.of(settings)
    folder, report = run.folder, run.report()
    finished = report is not None and (settings.task, report.task, report.status) == (
        "train",
        "train",
        Status.COMPLETED,
    )
    if finished and settings.training.resume != "never" and (asked := other_export(run, settings.to_dict())):
        raise UserError(
            f"{folder}: this run is already completed; for another export of it: task=export"
            f" {shlex.quote(f'run={folder}')} {asked}"
        )


def other_export(run: Run, config: Mapping[str, Any]) -> str:
    """The save.* overrides in which `config` differs from what `run` was, wherever it is now; empty where anything
    else, or nothing, does.
    """
    asked = referring(dict(config))
    try:
        before = OmegaConf.to_container(OmegaConf.load(run.config_file))
        if not isinstance(before, dict):
            return ""
        before, now = wherever(before), wherever(asked)
    except (OSError, YAMLError, KeyError, TypeError):  # it is gone, or a part of it
        return ""
    aside = dict.fromkeys(("save", "evaluation"))
    if before | aside != now | aside:
        return ""
    changed = {
        key: asked["save"][key] for key, value in now["save"].items() if before["save"].get(key) != value
    }
    settings = Config.from_mapping(config)
    for key, _, _ in effects.without_effect(settings, effects.REFUSED, [f"save.{key}" for key in changed]):
        changed.pop(key.removeprefix("save."), None)
    return " ".join(shlex.quote(f"save.{key}={_word(value)}") for key, value in changed.items())


def _word(value: Any) -> str:
    """As an override has it."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":")).replace('"', "")
