"""A run's directory: the one place that knows what lies where in it.

Everything that reads a run, or writes into one, asks a `Run`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from chatbot_sft.config.schema import PATH_KEYS
from chatbot_sft.errors import UserError, beside, did_you_mean
from chatbot_sft.report.masking import masked, referring, resolved
from chatbot_sft.report.words import amount
from chatbot_sft.run.lock import Lock
from chatbot_sft.run.report import DamagedReport, Report, write_json

REPORT, CONFIG = "report.json", "config.yaml"
HOLDER = ".lock.json"  # whose process runs in it, or ran there last: see run_directory.py
PROGRESS = ".progress.json"  # how far its training is, or was there last
EVALUATIONS = "evaluations.jsonl"  # in the checkpoints, a line as soon as an evaluation was made
LOCK, EARLIER_LOCK = "run.lock.json", "lock.json"  # the second as schema 1 was called
FILES = (
    REPORT,
    "report.md",
    "run.log",
    CONFIG,
    "evidence.json",
    "trained_answers.json",
    "data_report.json",
    "data_preview.html",
    "loss.png",
    LOCK,
    EARLIER_LOCK,
    "steps.jsonl",
    "evaluation.json",
    "evaluation.html",
    "answers.jsonl",
    "verify.json",
)


ELSEWHERE = "hydra.run.dir=DIR; of a sweep hydra.sweep.dir=DIR"  # what names another directory

# What a run writes that is refused before it has done anything: that it was, which the terminal says too.
OF_A_REFUSAL = {"run.log", REPORT, "report.md"}


@dataclass(frozen=True)
class Run:
    """The run in `folder`, which may not be there yet."""

    folder: Path

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Run:
        """That of a composed configuration."""
        return cls(Path(config["paths"]["output_dir"]))

    # What lies where

    @property
    def report_file(self) -> Path:
        return self.folder / REPORT

    @property
    def markdown_file(self) -> Path:
        return self.folder / "report.md"

    @property
    def figure_file(self) -> Path:
        return self.folder / "loss.png"

    @property
    def log_file(self) -> Path:
        return self.folder / "run.log"

    @property
    def progress_file(self) -> Path:
        """How far its training is, for whoever watches; written anew about once a second."""
        return self.folder / PROGRESS

    def progress(self) -> dict[str, Any] | None:
        """How far its training was when it told it last, by the names of `train.progress`; None where it has told
        nothing since its last start.
        """
        try:
            if self.progress_file.stat().st_mtime < (self.folder / HOLDER).stat().st_mtime:
                return None
            known = json.loads(self.progress_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return known if isinstance(known, dict) else None

    @property
    def config_file(self) -> Path:
        """What was composed, with nothing left to resolve; written when training has ended."""
        return self.folder / CONFIG

    @property
    def evidence_file(self) -> Path:
        """What exports are held against."""
        return self.folder / "evidence.json"

    @property
    def trained_answers_file(self) -> Path:
        """What servers are held against; there once an export was verified."""
        return self.folder / "trained_answers.json"

    @property
    def verify_file(self) -> Path:
        """What `task=verify` found."""
        return self.folder / "verify.json"

    @property
    def data_report_file(self) -> Path:
        return self.folder / "data_report.json"

    @property
    def preview_file(self) -> Path:
        return self.folder / "data_preview.html"

    @property
    def lock_file(self) -> Path:
        """What decides the result, see `run.lock`; where a run of an earlier version has its own, that."""
        earlier = self.folder / EARLIER_LOCK
        return earlier if earlier.is_file() and not (self.folder / LOCK).is_file() else self.folder / LOCK

    @property
    def steps_file(self) -> Path:
        """What each step came to, see `run.steps`."""
        return self.folder / "steps.jsonl"

    @property
    def evaluation_file(self) -> Path:
        """What `task=evaluate` found, case by case."""
        return self.folder / "evaluation.json"

    @property
    def evaluation_page(self) -> Path:
        """The same for people."""
        return self.folder / "evaluation.html"

    @property
    def answers_file(self) -> Path:
        """Every answer of an evaluation as soon as it was there."""
        return self.folder / "answers.jsonl"

    @property
    def logs(self) -> Path:
        """Where loggers that keep files have theirs, a folder each."""
        return self.folder / "logs"

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are, unless `training.output_dir` says otherwise."""
        return self.folder / "checkpoints"

    @property
    def model(self) -> Path:
        """Where exports are, unless `save.save_path` says otherwise."""
        return self.folder / "model"

    def adapters(self) -> tuple[Path, ...]:
        """Folders in which an adapter that the run saved may be."""
        return self.model, self.model / "lora", self.folder / "model-adapter"

    # Reading

    def report(self) -> Report | None:
        """What it reported; None where there is no report, or one that was cut short.

        Raises:
            UserError: report.json is there and no report of a run: a run would write its own over it.
        """
        try:
            if self.report_file.exists() and not self.report_file.is_file():  # a pipe would be waited for
                raise DamagedReport("not a file")
            return Report.from_json(json.loads(self.report_file.read_text(encoding="utf-8")))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except DamagedReport:
            raise UserError(
                f"{self.report_file}: not the report of a run, and a run would write its own over it;"
                f" name another directory ({ELSEWHERE})"
            ) from None
        except (ValueError, RecursionError):
            return None

    def peek(self) -> Report | None:
        """`report`, and None whatever is wrong with it: for those who look into folders that may be anything."""
        try:
            return self.report()
        except UserError:
            return None

    def finished_report(self) -> Report:
        """The report of a run that is named to be read: run=DIR.

        Raises:
            UserError: it is no run directory, or its report is damaged.
        """
        where = f"run={self.folder}"
        if not self.folder.is_dir():
            raise UserError(f"{where}: {no_such_run(self.folder)}")
        if not self.report_file.is_file():
            raise UserError(f"{where}: not a run directory: no {REPORT} in it{jobs(self.folder, 'run=')}")
        try:
            return Report.from_json(json.loads(self.report_file.read_text(encoding="utf-8")))
        except DamagedReport as error:
            raise UserError(f"{where}: its {REPORT} is damaged: {error}; name another run") from None
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(
                f"{where}: its {REPORT} cannot be read ({_short(error)}); name another run"
            ) from None

    def config(self) -> dict[str, Any]:
        """What it was composed of, with the environment's secrets in place again.

        Raises:
            UserError: it cannot be read, or is damaged.
        """
        where = f"run={self.folder}"
        try:
            config = resolved(OmegaConf.to_container(OmegaConf.load(self.config_file)))
        except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
            raise UserError(
                f"{where}: its {CONFIG} cannot be read ({_short(error)}); name another run"
            ) from None
        if not isinstance(config, dict) or not isinstance(config.get("model"), dict):
            raise UserError(f"{where}: its {CONFIG} is damaged: there is no model in it; name another run")
        return config

    def has_config(self, config: Mapping[str, Any]) -> bool:
        """Whether it was composed to just that; how a sweep around it is run, and where it is, make it no other."""
        try:
            before = OmegaConf.to_container(OmegaConf.load(self.config_file))
        except (OSError, YAMLError):
            return False
        try:
            return isinstance(before, dict) and wherever(before) == wherever(referring(dict(config)))
        except (KeyError, TypeError):  # a part of it is gone
            return False

    def lock(self) -> Lock:
        """What decides its result, as far as it is known yet.

        Raises:
            UserError: there is none, or it cannot be read.
        """
        try:
            return Lock.from_json(resolved(json.loads(self.lock_file.read_text(encoding="utf-8"))))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{self.lock_file}: cannot be read ({_short(error)}); name another run") from None

    # Writing

    def write_config(self, config: Mapping[str, Any]) -> None:
        """With `${oc.env:NAME}` for what an environment variable holds in secret."""
        OmegaConf.save(referring(dict(config)), self.config_file)

    def write_lock(self, lock: Lock) -> None:
        """run.lock.json, in one step, with `${oc.env:NAME}` for what an environment variable holds in secret."""
        write_json(referring(asdict(lock)), self.folder / LOCK)
        (self.folder / EARLIER_LOCK).unlink(missing_ok=True)  # of an earlier version that began this run

    def write_report(self, report: Report) -> None:
        """report.json, in one step and without secrets."""
        write_json(masked(report.to_json()), self.report_file)


def no_such_run(folder: Path) -> str:
    """What to say of a `folder` that is not there and should be a run's directory."""
    hint = did_you_mean(folder.name, beside(folder))
    return f"no such folder{hint or '; name the directory of a run, for instance outputs/<date>/<time>'}"


def wherever(config: Mapping[Any, Any]) -> dict[str, Any]:
    """`config` without the sweep around its run, and places in the run's directory as they are from there."""
    folder = Path(config["paths"]["output_dir"])
    found = dict(config)
    for section, key in PATH_KEYS:
        place = Path(config[section][key])
        inside = place.relative_to(folder) if place.is_relative_to(folder) else place
        found[section] = {**config[section], key: inside}
    return found | dict.fromkeys(("sweep", "replay", "paths"))


def jobs(folder: Path, key: str = "") -> str:
    """The runs of the sweep in `folder`, to choose from, each as it is written behind `key`."""
    found = [report.parent for report in folder.glob(f"*/{REPORT}")] if folder.is_dir() else []
    found.sort(key=lambda job: (len(job.name), job.name))  # job 10 behind job 9
    shown = ", ".join(f"{key}{job}" for job in found[:5])
    more = ", …" if len(found) > 5 else ""
    return f"; it is a folder of {amount(len(found), 'run')}, name one: {shown}{more}" if found else ""


def trains_nothing(report: Report | None) -> str:
    """Why nothing of a model is in the directory of that report; empty where a training left it."""
    if report is None or report.task not in ("check", "plan"):
        return ""
    return f"the directory of a task={report.task}, which trains nothing; name that of a training"


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
