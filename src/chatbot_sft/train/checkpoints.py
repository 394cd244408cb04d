"""Checkpoints on disk: which are whole, what they were trained from, and how they appear and go in one step. Imports no torch.

A checkpoint is transformers' `checkpoint-N` folder with `run.json` in it, written last: what decides the run's result (its identity), when the run
began, what the trainer's own state leaves out, and the size and checksum of every file, itself included. Sizes are compared whenever a checkpoint is
looked for, checksums before it is used: one flipped byte, and the one before it is taken.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from chatbot_sft.config import Config, deciding
from chatbot_sft.config.schema import ADAPTER, BATCH, ROWS, WEIGHTS
from chatbot_sft.errors import UserError
from chatbot_sft.model.base import weights_fingerprint
from chatbot_sft.model.earlier import fingerprint as adapter_fingerprint

log = logging.getLogger(__name__)

RECORD = "run.json"
SAVING, REMOVING = ".saving", ".removing"  # names that transformers' search for checkpoint-N passes by
NAME = re.compile(r"checkpoint-(\d+)")
CHUNK = 1 << 20  # bytes read at a time
RECORD_KEYS: dict[str, type | tuple[type, ...]] = {
    "step": int, "started": str, "seconds": (int, float), "finished": bool, "losses": dict, "layout": dict, "resumes": list, "identity": dict,
    "files": dict,
}  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint; `record` is its run.json."""

    folder: Path
    record: Mapping[str, Any]

    @property
    def step(self) -> int:
        return self.record["step"]


@dataclass
class Origin:
    """Where a run begins: afresh, or at `checkpoint`. `started` is the first start's time; `seconds` have been trained up to the checkpoint."""

    started: datetime = field(default_factory=lambda: datetime.now().replace(microsecond=0))
    checkpoint: Checkpoint | None = None
    resumes: list[dict[str, Any]] = field(default_factory=list)  # step, time, checkpoint, and the training.resume that asked for it
    identity: dict[str, Any] = field(default_factory=dict)
    extended: bool = False  # the run at `checkpoint` had come to its end, and more steps are asked for now

    @property
    def seconds(self) -> float:
        return self.checkpoint.record["seconds"] if self.checkpoint else 0.0

    @property
    def finished(self) -> bool:
        """Whether the training had come to its end; evaluation and saving may still be missing."""
        return self.checkpoint is not None and self.checkpoint.record["finished"] and not self.extended


# Finding


def all_in(folder: Path) -> list[Checkpoint]:
    """The whole checkpoints in `folder`, by step. One that misses a file, or a part of it, is none."""
    found = [read(path) for path in _named(folder)]
    return sorted((checkpoint for checkpoint in found if checkpoint), key=lambda checkpoint: checkpoint.step)


def last_in(folder: Path) -> Checkpoint | None:
    """The whole checkpoint with the highest step in `folder`."""
    return next(reversed(all_in(folder)), None)


def read(folder: Path) -> Checkpoint | None:
    """The checkpoint in `folder`; None where it is not whole."""
    try:
        return _read(folder)
    except Damaged:
        return None


class Damaged(Exception):
    """A checkpoint that is not as it was written; the message says what of it."""


def _read(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`, by its record and the sizes of its files.

    Raises:
        Damaged: it is not whole.
    """
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except OSError as error:
        raise Damaged(f"{RECORD}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise Damaged(f"{RECORD} is no JSON") from None
    if not isinstance(record, dict):
        raise Damaged(f"{RECORD} is no object")
    for key, kind in RECORD_KEYS.items():
        if not isinstance(record.get(key), kind):
            raise Damaged(f"{RECORD}: {key} is {'missing' if key not in record else 'damaged'}")
    if "checksums" in record and record.get("checksum") != _own_checksum(record):  # earlier versions wrote none
        raise Damaged(f"{RECORD} was changed after it was written")
    try:
        datetime.fromisoformat(record["started"])
        found = _sizes(folder)
    except (ValueError, OSError):
        raise Damaged(f"{RECORD}: started is no time, or a file cannot be read") from None
    for name in sorted(found.keys() | record["files"].keys()):
        if name not in found:
            raise Damaged(f"{name} is missing")
        if name not in record["files"]:
            raise Damaged(f"{name} was not written with it")
        if found[name] != record["files"][name]:
            raise Damaged(f"{name} has {found[name]:,} bytes in place of {record['files'][name]:,}")
    return Checkpoint(folder, record)


def verified(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`, every byte of it read.

    Raises:
        Damaged: it is not as it was written.
    """
    found = _read(folder)
    for name, checksum in found.record.get("checksums", {}).items():
        try:
            if _checksum(folder / name) != checksum:
                raise Damaged(f"{name} is damaged (its checksum is another)")
        except OSError as error:
            raise Damaged(f"{name}: {error.strerror}") from None
    return found


def last_verified(folder: Path) -> Checkpoint | None:
    """The newest checkpoint in `folder` that is as it was written; each newer one is named with what is wrong with it."""
    for path in sorted(_named(folder), key=_step, reverse=True):
        try:
            return verified(path)
        except Damaged as error:
            log.warning("checkpoints: %s is passed over: %s", path, error)
    return None


def _named(folder: Path) -> list[Path]:
    """Everything called checkpoint-N, whole or not."""
    return [path for path in folder.iterdir() if NAME.fullmatch(path.name)] if folder.is_dir() else []


def _step(path: Path) -> int:
    return int(NAME.fullmatch(path.name)[1])


def _checksum(file: Path) -> str:
    """XXH3 of every byte. It finds accidents, not forgers, and is as fast as the file can be read."""
    import xxhash

    found = xxhash.xxh3_128()
    buffer = memoryview(bytearray(CHUNK))
    with file.open("rb", buffering=0) as stream:
        while size := stream.readinto(buffer):
            found.update(buffer[:size])
    return found.hexdigest()


def _own_checksum(record: Mapping[str, Any]) -> str:
    """Of run.json's content but this."""
    import xxhash

    content = json.dumps({key: value for key, value in record.items() if key != "checksum"}, sort_keys=True)
    return xxhash.xxh3_128(content.encode()).hexdigest()


def _sizes(folder: Path) -> dict[str, int]:
    """{relative path: bytes} of every file but run.json itself."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != RECORD)
    return {str(path.relative_to(folder)): path.stat().st_size for path in sorted(files)}


def refuse_completed(settings: Config) -> None:
    """Raises UserError where the run directory holds the report of a training that came to its end.

    Unless `training.resume` is never, or more steps are asked for than it had.
    """
    file = Path(settings.paths.output_dir, "report.json")
    if settings.task != "train" or settings.training.resume == "never" or not file.is_file():
        return
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return
    if isinstance(report, dict) and report.get("task") == "train" and report.get("status") == "completed":
        last = last_in(Path(settings.training.output_dir))
        if last and longer(last, settings):
            return
        raise UserError(
            f"{file.parent}: this run is already completed; name another run directory (hydra.run.dir=DIR), or raise training.max_steps to go on"
        )


def find_origin(settings: Config) -> Origin:
    """Where `training.resume` says to begin; touches nothing.

    `training.resume=PATH` names where a run begins: once it has written checkpoints of its own, the same command goes on from those.

    Raises:
        UserError: PATH holds no whole checkpoint.
    """
    resume = settings.training.resume
    if resume == "never":
        return Origin()
    own = last_verified(Path(settings.training.output_dir))
    if resume == "auto":
        found = own
        if found is None and _named(Path(settings.training.output_dir)):
            log.warning("resume: no whole checkpoint is left in %s; the training begins anew", settings.training.output_dir)
    else:
        asked = str(Path(resume).expanduser().resolve())
        begun = own is not None and any(isinstance(entry, dict) and entry.get("asked") == asked for entry in own.record["resumes"])
        found = own if begun else _at(Path(resume).expanduser(), f"training.resume={resume}")
    if found is None:
        return Origin()
    asked = resume if resume == "auto" else str(Path(resume).expanduser().resolve())
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    entry = {"step": found.step, "time": now, "checkpoint": str(found.folder), "asked": asked}
    origin = Origin(datetime.fromisoformat(found.record["started"]), found, [*found.record["resumes"], entry], extended=longer(found, settings))
    if origin.extended:
        training = settings.training
        length = f"{training.max_steps} steps" if training.max_steps is not None else f"{training.num_train_epochs:g} epochs"
        log.warning(
            "resume: the run had ended at step %d; it goes on to %s. The learning rate's schedule is a new one: %s over %s, from step %d on",
            found.step, length, training.lr_scheduler_type, length, found.step,
        )  # fmt: skip
    return origin


LENGTH = ("training.max_steps", "training.num_train_epochs")  # of the identity


def longer(checkpoint: Checkpoint, settings: Config) -> bool:
    """Whether `checkpoint` is the end of a run, and `settings` ask for more steps than that run was to have."""
    steps, epochs = (checkpoint.record["identity"].get(key) for key in LENGTH)
    training = settings.training
    if not checkpoint.record["finished"]:
        return False
    if training.max_steps is not None:
        return training.max_steps > (steps if steps is not None else checkpoint.step)
    return steps is None and epochs is not None and training.num_train_epochs > epochs


def _at(place: Path, where: str) -> Checkpoint:
    """`place` as a checkpoint, or the last one of a folder of checkpoints or a run directory.

    Raises:
        UserError: none is there that is whole.
    """
    if NAME.fullmatch(place.name) or (place / RECORD).exists():
        try:
            return verified(place)
        except Damaged as error:
            raise UserError(f"{where}: that checkpoint cannot be gone on from: {error}; name the one before it") from None
    found = last_verified(place) or last_verified(place / "checkpoints")
    if found is None:
        raise UserError(f"{where}: no whole checkpoint there; name a checkpoint-N folder, or a run directory that has one")
    return found


def settle(origin: Origin, settings: Config) -> None:
    """Make the checkpoint folder ready for a run that begins at `origin`.

    What killed runs left half-written is removed. Checkpoints that this run does not come from, or that come after its beginning, would stand in its
    way: they are moved into a folder beside, `checkpoints.1` and so on.
    """
    folder = Path(settings.training.output_dir)
    save = Path(settings.save.save_path).absolute()
    exports = [*save.parent.glob(f".{save.name}.*"), *save.glob(".*.*")] if save.is_relative_to(settings.paths.output_dir) else []
    for leftover in (folder / SAVING, folder / REMOVING, *filter(_of_killed_export, exports)):
        shutil.rmtree(leftover, ignore_errors=True)
    begin = origin.checkpoint if origin.checkpoint and origin.checkpoint.folder.parent.resolve() == folder.resolve() else None
    kept = [checkpoint.folder.name for checkpoint in all_in(folder) if begin and checkpoint.step <= begin.step]
    aside = [path for path in _named(folder) if path.name not in kept]
    if aside:
        number = next(n for n in range(1, 1_000_000) if not folder.with_name(f"{folder.name}.{n}").exists())
        place = folder.with_name(f"{folder.name}.{number}")
        place.mkdir()
        for path in aside:
            shutil.move(path, place)
        log.warning("resume: this run does not go on from %s; moved to %s", ", ".join(sorted(path.name for path in aside)), place)
    if origin.checkpoint:
        log.info("resume: from step %d, %s", origin.checkpoint.step, origin.checkpoint.folder)


def _of_killed_export(path: Path) -> bool:
    """Whether `path` is what `cache.build_folder` makes its folders in: named by `tempfile`, for its owner alone; or an empty one."""
    if not path.is_dir() or path.is_symlink():
        return False
    return not any(path.iterdir()) or (re.fullmatch(r"[a-z0-9_]{8}", path.suffix[1:]) is not None and path.stat().st_mode & 0o077 == 0)


# Identity


def identity(settings: Config, fingerprint: str) -> dict[str, Any]:
    """What decides a run's result, as flat "section.key" → JSON value. `fingerprint` is that of the training rows.

    The effective batch size stands for its factors. What only an imported engine knows is added later, see `resolved`.
    """
    values = {
        WEIGHTS: weights_fingerprint(settings),
        ROWS: fingerprint[:16],
        BATCH: settings.effective_batch_size * int(os.environ.get("WORLD_SIZE", "1")),
    }
    if settings.model.adapter:
        values[ADAPTER] = adapter_fingerprint(settings)
    values |= deciding(settings)
    return json.loads(json.dumps(values, default=str))


def resolved(engine: str, dtype: str, optim: str) -> dict[str, Any]:
    """The part of the identity that depends on the machine."""
    return {"model.engine": engine, "model.dtype": dtype, "training.optim": optim}


def refuse_changes(origin: Origin, now: Mapping[str, Any], whole: bool) -> None:
    """Add `now` to the run's identity.

    Raises:
        UserError: it differs from what the checkpoint was trained from. `whole`: `now` has every key of the first stage, so that one which is missing
            counts as changed.
    """
    origin.identity |= now
    if origin.checkpoint is None:
        return
    before = origin.checkpoint.record["identity"]
    keys = [*now, *(key for key in before if whole and key not in now and key not in resolved("", "", ""))]
    keys = [key for key in keys if not (origin.extended and key in LENGTH)]
    changed = [f"{key} {_shown(before, key)} → {_shown(now, key)}" for key in keys if before.get(key) != now.get(key)]
    if changed:
        raise UserError(
            f"training.resume: {origin.checkpoint.folder} was trained with other settings: {'; '.join(changed)}. Set them back, name another run "
            "directory (hydra.run.dir=DIR), or start afresh in this one with training.resume=never"
        )


def _shown(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key], ensure_ascii=False).strip('"') if key in values else "(not set)"


# Writing


def publish(staged: Path, target: Path, record: Mapping[str, Any]) -> None:
    """Make the finished folder `staged` appear as `target` in one step, with its run.json, after all of it has reached the disk."""
    files = _sizes(staged)
    whole = json.loads(json.dumps({**record, "files": files, "checksums": {name: _checksum(staged / name) for name in files}}))
    (staged / RECORD).write_text(json.dumps({**whole, "checksum": _own_checksum(whole)}, indent=1, ensure_ascii=False), encoding="utf-8")
    for path in [*staged.rglob("*"), staged]:
        _sync(path)
    staged.rename(target)
    _sync(target.parent)


def record(origin: Origin, step: int, seconds: float, finished: bool, losses: Mapping[str, float], layout: Mapping[str, Any]) -> dict[str, Any]:
    """The content of run.json, but for the files' sizes and checksums."""
    return {
        "step": step,
        "started": origin.started.isoformat(),
        "seconds": seconds,
        "finished": finished,
        "losses": dict(losses),
        "layout": dict(layout),
        "resumes": origin.resumes,
        "identity": origin.identity,
    }


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def prune(folder: Path, limit: int | None, best: str | None) -> None:
    """Remove the oldest checkpoints over `limit` (None: keep all); never the newest, nor `best`. A removed one is gone in one step."""
    if limit is None:
        return
    present = all_in(folder)
    protected = [checkpoint for checkpoint in present if checkpoint is present[-1] or (best and checkpoint.folder.resolve() == Path(best).resolve())]
    others = [checkpoint for checkpoint in present if checkpoint not in protected]
    for checkpoint in others[: max(0, len(present) - max(limit, len(protected)))]:
        trash = folder / REMOVING
        trash.mkdir(exist_ok=True)
        checkpoint.folder.rename(trash / checkpoint.folder.name)
        shutil.rmtree(trash, ignore_errors=True)
