"""Where a run begins: afresh, or at a checkpoint of its own or another run's; and whether it may.

Imports no torch.
"""

from __future__ import annotations

import json
import logging
import re
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from chatbot_sft.config import Config, deciding
from chatbot_sft.config import keys as every_key
from chatbot_sft.config.schema import ROWS, plain_values
from chatbot_sft.errors import UserError
from chatbot_sft.report.masking import referring
from chatbot_sft.report.words import amount
from chatbot_sft.run import lock
from chatbot_sft.run.checkpoints import (
    FORMAT,
    NAME,
    RECORD,
    REMOVING,
    SAVING,
    Checkpoint,
    Damaged,
    all_in,
    last_in,
    last_verified,
    named,
    verified,
)
from chatbot_sft.run.directory import ELSEWHERE, Run
from chatbot_sft.run.report import Status

log = logging.getLogger(__name__)


class Pinned(Protocol):
    """What a run that is trained again takes from the first time, in place of choosing or measuring it here."""

    @property
    def layout(self) -> Mapping[str, Any]:
        """The batch layout; {} where none was chosen."""

    @property
    def threads(self) -> int | None:
        """Of torch on the CPU."""

    @property
    def steps(self) -> int | None:
        """Where it stops, however many were meant; None: at its end."""

    def hold(self, now: lock.Lock) -> None:
        """Raises UserError where what is known of the run now is not what it was."""


@dataclass
class Origin:
    """Where a run begins: afresh, or at `checkpoint`.

    `started` is the first start's time; `seconds` have been trained up to the checkpoint.
    """

    started: datetime = field(default_factory=lambda: datetime.now().replace(microsecond=0))
    checkpoint: Checkpoint | None = None
    own: bool = False  # whether the checkpoint is of this very run
    # Of each: step, time, checkpoint, the training.resume that asked for it, whether the checkpoint was of this run,
    # and whether the run went on from its end.
    resumes: list[dict[str, Any]] = field(default_factory=list)
    identity: dict[str, Any] = field(default_factory=dict)
    rows: str = ""  # that are trained, for people: how many of which files
    extended: bool = False  # the run at `checkpoint` had come to its end, and more steps are asked for now
    command: str = ""  # that this very run was started with, where now words of it are missing
    pinned: Pinned | None = None  # of a replay

    @property
    def behind(self) -> int:
        """How many steps this very run has behind it."""
        return self.checkpoint.step if self.checkpoint and self.own else 0

    def hold(self, known: lock.Lock) -> None:
        """Raises UserError where what is known by now is not what is `pinned`."""
        if self.pinned is not None:
            self.pinned.hold(known)

    @property
    def layout(self) -> Mapping[str, Any]:
        """The batch layout that is kept; {} where one is to be chosen."""
        if self.pinned is not None:
            return self.pinned.layout
        return self.checkpoint.record["layout"] if self.checkpoint else {}

    @property
    def seconds(self) -> float:
        return self.checkpoint.record["seconds"] if self.checkpoint else 0.0

    @property
    def finished(self) -> bool:
        """Whether the training had come to its end; evaluation and saving may still be missing."""
        return self.checkpoint is not None and self.checkpoint.record["finished"] and not self.extended


def refuse_completed(settings: Config, of_sweep: bool = False) -> None:
    """Raises UserError where the run directory holds the report of a training that came to its end; `of_sweep`: that
    of a job, which has its place from there.

    Unless `training.resume` is never, or more steps are asked for than it had.
    """
    if settings.task != "train" or settings.training.resume == "never":
        return
    run = Run.of(settings)
    report = run.peek()
    if report and report.task == "train" and report.status == Status.COMPLETED:
        last = last_in(Path(settings.training.output_dir))
        if last and longer(last, settings):
            return
        others = "; ".join(map(str, _other_settings(run, settings)))
        if of_sweep:
            differing = f", with other settings: {others}" if others else ""
            raise UserError(
                f"{run.folder}: this job is already completed{differing}; name another directory for the sweep"
                " (hydra.sweep.dir=DIR), or move this one away"
            )
        if others:
            raise UserError(
                f"{run.folder}: this run is already completed, with other settings: {others}. Name another run"
                " directory (hydra.run.dir=DIR), or start afresh in this one with training.resume=never"
            )
        raise UserError(
            f"{run.folder}: this run is already completed; name another run directory (hydra.run.dir=DIR), or"
            " raise training.max_steps to go on"
        )


def _other_settings(run: Run, settings: Config) -> list[lock.Difference]:
    """In which of those that decide the result `settings` are not what `run` was composed of; none where that
    cannot be told.
    """
    try:
        before = Config.from_mapping(run.config())
    except UserError:
        return []
    was, now = (referring(_decided(config)) for config in (before, settings))
    adopted = settings.model.adapter is not None  # then the adapter decides these, wherever it lies
    keys = [key for key in now if not (adopted and key.startswith(("lora.", "model.adapter")))]
    return lock.changed(was, now, keys)


def _decided(settings: Config) -> dict[str, Any]:
    """Path → value of every key that decides the result, itself or through what it names, as JSON has them."""
    values = plain_values(settings, (key for key in every_key() if key.about.decides))
    return json.loads(json.dumps(values | deciding(settings), default=str))


def find_origin(settings: Config, command: str = "") -> Origin:
    """Where `training.resume` says to begin, of a run that is started with `command`; touches nothing.

    `training.resume=PATH` names where a run begins: once it has written checkpoints of its own, the same
    command goes on from those.

    Raises:
        UserError: PATH holds no whole checkpoint.
    """
    resume = settings.training.resume
    if resume == "never":
        return Origin()
    own = last_verified(Path(settings.training.output_dir))
    if resume == "auto":
        checkpoint = own
        if checkpoint is None and named(Path(settings.training.output_dir)):
            log.warning(
                "resume: no whole checkpoint is left in %s; the training begins anew",
                settings.training.output_dir,
            )
    else:
        asked = referring(str(Path(resume).expanduser().resolve()))
        resumes = referring(own.record["resumes"]) if own else []
        begun = any(isinstance(entry, dict) and entry.get("asked") == asked for entry in resumes)
        checkpoint = own if begun else _at(Path(resume).expanduser(), f"training.resume={resume}")
    if checkpoint is None:
        return Origin()
    if checkpoint.record.get("format") != FORMAT:
        raise UserError(
            f"training.resume: {checkpoint.folder} was written by another version of chatbot_sft, whose training"
            " loop kept other things in it: it cannot be gone on from. End that run with that version, or"
            " start afresh with training.resume=never (model.adapter takes its adapter alone)"
        )
    asked = resume if resume == "auto" else str(Path(resume).expanduser().resolve())
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    is_own, extended = checkpoint is own, longer(checkpoint, settings)
    entry = {
        "step": checkpoint.step,
        "time": now,
        "checkpoint": str(checkpoint.folder),
        "asked": asked,
        "own": is_own,
        "extended": extended,
    }
    resumes = referring([*checkpoint.record["resumes"], entry])
    started = datetime.fromisoformat(checkpoint.record["started"])
    longer_command = _longer_command(Run.of(settings), command) if is_own else ""
    return Origin(started, checkpoint, is_own, resumes, extended=extended, command=longer_command)


PLACE = "hydra.run.dir="


def _longer_command(run: Run, command: str) -> str:
    """What `run` was started with, where `command` has a part of its words only; else empty. Secrets of the
    environment stand in it by their variables' names.
    """
    try:
        known = run.lock().provenance
    except UserError:
        return ""
    if known is None or not command:
        return ""
    before, now = (
        [word for word in shlex.split(text) if not word.startswith(PLACE)]
        for text in (known.command, command)
    )
    if not set(now) < set(before):
        return ""
    there = "" if known.folder == str(Path.cwd()) else f"cd {shlex.quote(known.folder)} && "
    return there + shlex.join(referring([*before, f"{PLACE}{run.folder}"]))


LENGTH = ("training.max_steps", "training.num_train_epochs")  # of the identity


def longer(checkpoint: Checkpoint, settings: Config) -> bool:
    """Whether `checkpoint` is the end of a run, and `settings` ask for more steps than it was to have."""
    steps, epochs = (checkpoint.record["identity"].get(key) for key in LENGTH)
    training = settings.training
    if not checkpoint.record["finished"]:
        return False
    if training.max_steps is not None:
        return training.max_steps > (steps if steps is not None else checkpoint.step)
    return steps is None and epochs is not None and training.num_train_epochs > epochs


def _at(folder: Path, where: str) -> Checkpoint:
    """`folder` as a checkpoint, or the last one of a folder of checkpoints or a run directory.

    Raises:
        UserError: none is there that is whole.
    """
    if NAME.fullmatch(folder.name) or (folder / RECORD).exists():
        try:
            return verified(folder)
        except Damaged as error:
            raise UserError(
                f"{where}: that checkpoint cannot be gone on from: {error}; name the one before it"
            ) from None
    checkpoint = last_verified(folder) or last_verified(Run(folder).checkpoints)
    if checkpoint is None:
        raise UserError(
            f"{where}: no whole checkpoint there; name a checkpoint-N folder, or a run directory that has one"
        )
    return checkpoint


def settle(origin: Origin, settings: Config) -> None:
    """Make the checkpoint folder ready for a run that begins at `origin`.

    What killed runs left half-written is removed. Checkpoints that this run does not come from, or that come
    after its beginning, would stand in its way: they are moved into `checkpoints.1` and so on beside it.
    """
    folder = Path(settings.training.output_dir)
    save = Path(settings.save.save_path).absolute()
    exports = (
        [*save.parent.glob(f".{save.name}.*"), *save.glob(".*.*")]
        if save.is_relative_to(settings.paths.output_dir)
        else []
    )
    for leftover in (folder / SAVING, folder / REMOVING, *filter(_of_killed_export, exports)):
        shutil.rmtree(leftover, ignore_errors=True)
    begin = origin.checkpoint
    own = begin is not None and begin.folder.parent.resolve() == folder.resolve()
    behind = [one.folder.name for one in all_in(folder) if begin and own and one.step <= begin.step]
    foreign = [path for path in named(folder) if path.name not in behind]
    if foreign:
        number = next(n for n in range(1, 1_000_000) if not folder.with_name(f"{folder.name}.{n}").exists())
        aside = folder.with_name(f"{folder.name}.{number}")
        aside.mkdir()
        for path in foreign:
            shutil.move(path, aside)
        names = ", ".join(sorted(path.name for path in foreign))
        log.warning("resume: this run does not go on from %s; moved to %s", names, aside)
    if begin is None:
        return
    if origin.extended:
        training = settings.training
        steps, epochs = training.max_steps, training.num_train_epochs
        length = amount(epochs or 0, "epoch", "g") if steps is None else amount(steps, "step")
        log.warning(
            "resume: the run had ended at step %d; it goes on to %s."
            " The learning rate's schedule is a new one: %s over %s, from step %d on",
            begin.step, length, training.lr_scheduler_type, length, begin.step,
        )  # fmt: skip
    log.info("resume: from step %d, %s", begin.step, begin.folder)


def _of_killed_export(path: Path) -> bool:
    """Whether `path` is what `cache.build_folder` makes its folders in (of `tempfile`, private), or empty."""
    if not path.is_dir() or path.is_symlink():
        return False
    return not any(path.iterdir()) or (
        re.fullmatch(r"[a-z0-9_]{8}", path.suffix[1:]) is not None and path.stat().st_mode & 0o077 == 0
    )


# Going on


def refuse_changes(origin: Origin, now: Mapping[str, Any], whole: bool) -> None:
    """Add `now` to the run's identity.

    Raises:
        UserError: it differs from what the checkpoint was trained from. `whole`: `now` has every key of the
            first stage, so that one which is missing counts as changed.
    """
    origin.identity |= now
    if origin.checkpoint is None:
        return
    before = referring(origin.checkpoint.record["identity"])  # earlier versions kept secrets in it
    keys = [*now, *(key for key in before if whole and key not in now and key not in lock.MACHINE)]
    compared = [key for key in keys if not (origin.extended and key in LENGTH)]
    differences = lock.changed(before, now, compared)
    if differences:
        said = (_said(difference, origin) for difference in differences)
        raise UserError(
            f"training.resume: {origin.checkpoint.folder} was trained with other settings: {'; '.join(said)}. Set"
            f" them back, name another directory ({ELSEWHERE}), or start afresh in this one with"
            f" training.resume=never; of a sweep by moving the job's directory away{_repeated(origin)}"
        )


def _repeated(origin: Origin) -> str:
    """What was most likely meant: a run goes on by the same command."""
    if not origin.command:
        return ""
    return f". {'It was started' if origin.extended else 'Go on'} with: {origin.command}"


def _said(difference: lock.Difference, origin: Origin) -> str:
    """In words: of rows a hash says nothing to a person."""
    before = origin.checkpoint.record.get("rows") if origin.checkpoint else None
    if difference.key != ROWS or not before:
        return str(difference)
    if before == origin.rows:
        return f"{ROWS}: {before}, as before, but not the same ones, or in other words"
    return f"{ROWS}: {before} → {origin.rows}"


def record(
    origin: Origin,
    step: int,
    seconds: float,
    finished: bool,
    losses: Mapping[str, float],
    layout: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of run.json, but for the files' sizes and checksums."""
    return {
        "format": FORMAT,
        "step": step,
        "started": origin.started.isoformat(),
        "seconds": seconds,
        "finished": finished,
        "losses": dict(losses),
        "layout": dict(layout),
        "resumes": origin.resumes,
        "identity": origin.identity,
        "rows": origin.rows,
    }
