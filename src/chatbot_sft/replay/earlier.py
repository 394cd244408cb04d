"""A run that is to be trained again: its lock, its settings as they are from here, and what it came to."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatbot_sft.config import Config
from chatbot_sft.errors import UserError
from chatbot_sft.export import base_now
from chatbot_sft.replay.places import Places
from chatbot_sft.report.masking import REFERENCE, is_secret
from chatbot_sft.report.words import amount
from chatbot_sft.run import checkpoints, steps
from chatbot_sft.run.directory import Run, jobs, no_such_run, trains_nothing
from chatbot_sft.run.lock import MACHINE, SCHEMA, Lock, changed, decided
from chatbot_sft.run.report import Report, Status, Training
from chatbot_sft.train.layout import Layout

TRAINS = ("train", "replay")
TURNED_OUT = (
    "model.engine",
    "training.loop",
    "training.optim",
)  # on the machine, where the settings leave it open


@dataclass(frozen=True)
class Earlier:
    """`config` is all it was composed of, its files as they are now; `report` is None where its process was killed,
    `steps` are those that it has written down, `begins` the checkpoint that its first step went on from.
    """

    run: Run
    lock: Lock
    config: dict[str, Any]
    report: Report | None
    steps: list[dict[str, Any]]
    begins: Path | None = None

    @classmethod
    def find(cls, folder: Path) -> Earlier:
        """The run in `folder`.

        Raises:
            UserError: it is no run that trained, kept no lock, or cannot be trained again from what it kept.
        """
        run, where = Run(folder), f"run={folder}"
        if not folder.is_dir():
            raise UserError(f"{where}: {no_such_run(folder)}")
        report = run.finished_report() if run.report_file.is_file() else None
        if report is not None and report.task not in TRAINS:
            nothing = trains_nothing(report) or f"the directory of a task={report.task}, which trains nothing"
            raise UserError(f"{where}: {nothing.partition(';')[0]}; name that of a training")
        if not run.lock_file.is_file():
            ended = f", and ended before that ({report.error})" if report and report.error else ""
            raise UserError(
                f"{where}: no {run.lock_file.name} in it: a run writes one as soon as its model is loaded{ended};"
                f" there is nothing to replay{jobs(folder, 'run=')}"
            )
        lock = run.lock()
        if lock.batch_layout:  # not only when the model is there
            Layout.from_dict(lock.batch_layout, f"{where}: batch_layout")
        if lock.schema == SCHEMA and not lock.config:
            raise UserError(
                f"{where}: its {run.lock_file.name} is damaged: no config in it; take it from a copy"
            )
        known = lock.config or run.config()
        _check_sections(where, known)
        places = _places(lock, known, run)
        config = _with_secrets(where, places.config(known) if places else known)
        config["model"]["name"] = base_now(run, config["model"].get("name"))
        written = steps.read(run.steps_file)
        if report is not None and report.training is not None and lock.provenance is not None:
            _check_steps(run.steps_file, written, _steps(lock, report, report.training), report.training)
        earlier = cls(run, lock, config, report, written, _begins(where, run, report, places))
        if not earlier.last_step:
            raise UserError(f"{where}: it ended before its first step; there is nothing to compare with")
        return earlier

    @property
    def ended(self) -> bool:
        """Whether its training came to its end."""
        return self.report is not None and self.report.training is not None

    @property
    def last_step(self) -> int:
        """That it wrote down; 0 where there is none."""
        if self.steps:
            return int(self.steps[-1]["step"])
        if self.report is not None and self.report.history:
            return int(self.report.history[-1]["step"])
        last = checkpoints.last_in(self.run.checkpoints)
        return last.step if last else 0

    def described(self) -> str:
        """In a few words: how far it came."""
        if self.report is None:
            return f"{amount(self.last_step, 'step')}, killed"
        resumed = len(self.report.training.resumes) if self.report.training else 0
        more = f", resumed {resumed} times" if resumed > 1 else ", resumed once" if resumed else ""
        why = (
            f" ({self.report.error})" if self.report.status != Status.COMPLETED and self.report.error else ""
        )
        return f"{amount(self.last_step, 'step')}, {self.report.status}{why}{more}"

    def settings(self, here: Config) -> Config:
        """Those of the run that is trained now: as they were and turned out, in the directory of `here`; nothing is
        exported, uploaded, asked of the model besides, or sent to a logger.

        Raises:
            UserError: they are none that a run may have.
        """
        config = {
            name: dict(part) if isinstance(part, Mapping) else part for name, part in self.config.items()
        }
        for key in TURNED_OUT:
            if (value := self.lock.decides.get(key)) is not None:
                section, _, name = key.partition(".")
                config[section][name] = value
        place = Run.of(here)
        training = {
            name: value for name, value in config["training"].items() if not name.startswith("trackio_")
        }
        training |= {"output_dir": str(place.checkpoints), "resume": str(self.begins or "never")}
        training |= {"report_to": "none", "profile": False, "golden_steps": None}
        if not self.ended and training.get("save_total_limit") == 1:
            training["save_total_limit"] = 2  # the last that it has, and the one at which this one stops
        drops = (
            config["dataset"].get("on_contamination") == "drop"
        )  # rows that golden questions are nearly in
        golden = (config.get("evaluation") or {}).get("golden") if drops else None
        aside = {
            "task": "train",
            "run": None,
            "paths": here["paths"],
            "training": training,
            "save": {"method": "none", "save_path": str(place.model)},
            "sweep": {},
            "evaluation": {"golden": golden},
            "replay": {"git": here.replay.git},  # what is allowed is asked here, and of no training
            "allow_targets": here.allow_targets,  # said by who replays, not by who trained
        }
        try:
            settings = Config.from_mapping(config | aside)
            written = decided(Config.from_mapping(self.lock.config)) if self.lock.config else {}
        except UserError as error:
            raise UserError(
                f"run={self.run.folder}: its settings are damaged, or of another version: {error}; take them from a"
                " copy"
            ) from None
        both = written.keys() & self.lock.decides.keys() - set(MACHINE)
        if edited := changed(self.lock.decides, written, sorted(both)):
            raise UserError(
                f"run={self.run.folder}: its {self.run.lock_file.name} was edited, or is damaged: its decides and its"
                f" config say two things: {edited[0]}; take it from a copy"
            )
        return settings


def _check_sections(where: str, config: Mapping[str, Any]) -> None:
    """Raises UserError where a part of the settings is missing."""
    for name in ("paths", "model", "dataset", "training"):
        if not isinstance(config.get(name), Mapping):
            raise UserError(f"{where}: its settings are damaged: there is no {name} in them")


def _steps(lock: Lock, report: Report, training: Training) -> Collection[int]:
    """Those that a training which ended has written down: all, and TRL's loop those that it logged."""
    if lock.decides.get("training.loop") == "native":
        return range(1, training.steps + 1)
    return [record["step"] for record in report.history or ()]


def _check_steps(
    file: Path, written: Sequence[Mapping[str, Any]], asked: Collection[int], training: Training
) -> None:
    """Raises UserError where one of those that are `asked` for is not there."""
    known = {record["step"] for record in written}
    # What began elsewhere has not the steps of there.
    first = min(known, default=0) if training.resumes else 0
    lacking = next((step for step in asked if step >= first and step not in known), None)
    if lacking is not None:
        why = (
            f"step {lacking} of {training.steps} is not in it, or cannot be read"
            if known
            else "none can be read"
        )
        raise UserError(f"{file}: {why if file.is_file() else 'it is gone'}; take it from a copy of the run")


def _places(lock: Lock, config: Mapping[str, Any], run: Run) -> Places | None:
    """None where a lock of the version before does not say in which folder the command was given."""
    if lock.provenance is None:
        return None
    folder = Path(lock.provenance.folder)
    then = folder / str(config["paths"].get("output_dir"))
    marks = [mark for marks in lock.provenance.files.values() for mark in marks]
    return Places(folder, then, run.folder.resolve(), marks)


def _with_secrets(where: str, config: dict[str, Any]) -> dict[str, Any]:
    """Raises UserError where a secret of the environment that it was composed with is not there."""
    missing = sorted(filter(is_secret, set(REFERENCE.findall(str(config)))))
    if missing:
        raise UserError(
            f"{where}: it was composed with what the environment variable {missing[0]} holds, and that is not set;"
            " set it, to what it was"
        )
    return config


def _begins(where: str, run: Run, report: Report | None, places: Places | None) -> Path | None:
    """The checkpoint that it went on from, and that is not a stop on its own way.

    Raises:
        UserError: it is gone.
    """
    last = checkpoints.last_in(run.checkpoints)
    resumes = (
        report.training.resumes if report and report.training else last.record["resumes"] if last else []
    )
    begun = [
        entry
        for entry in resumes
        if entry.get("extended") or not entry.get("own", entry.get("asked") == "auto")
    ]
    if not begun:
        return None
    written, extended = begun[-1]["checkpoint"], begun[-1].get("extended")
    place = places.place(written) if places else Path(written)
    if checkpoints.read(place) is None:
        why = "had come to its end there, and got a new schedule" if extended else "began there"
        raise UserError(
            f"{where}: it {why}: {written}, which is not there any more as it was; it cannot be trained again from"
            " its lock alone"
        )
    return place
