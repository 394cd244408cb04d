"""Checkpoints on disk: which are whole, and how they appear and go in one step. Imports no torch.

A checkpoint is a `checkpoint-N` folder (see `train.snapshot`) with `run.json` in it, written last: what
decides the run's result (its identity), when the run began, what the rest leaves out, and the size and
checksum of every file, itself included. Sizes are compared whenever a checkpoint is looked for, checksums
before it is used: one flipped byte, and the one before it is taken.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

RECORD = "run.json"
FORMAT = 2  # of what is in a checkpoint; 1, without a number, was written by transformers' Trainer
SAVING, REMOVING = ".saving", ".removing"  # names that transformers' search for checkpoint-N passes by
NAME = re.compile(r"checkpoint-(\d+)")
CHUNK = 1 << 20  # bytes read at a time
AT_ONCE = 8  # files that are waited for together
RECORD_KEYS: dict[str, type | tuple[type, ...]] = {
    "step": int, "started": str, "seconds": (int, float), "finished": bool, "losses": dict, "layout": dict,
    "resumes": list, "identity": dict,
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


# Finding


def all_in(folder: Path) -> list[Checkpoint]:
    """The whole checkpoints in `folder`, by step. One that misses a file, or a part of it, is none."""
    checkpoints = (read(path) for path in named(folder))
    return sorted((whole for whole in checkpoints if whole), key=lambda checkpoint: checkpoint.step)


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
    # Earlier versions wrote none.
    checksums = record.get("checksums", {})
    if "checksums" in record and record.get("checksum") != _own_checksum(record):
        raise Damaged(f"{RECORD} was changed after it was written")
    if not isinstance(checksums, dict) or not checksums.keys() <= record["files"].keys():
        raise Damaged(f"{RECORD} has checksums of other files than were written with it")
    try:
        datetime.fromisoformat(record["started"])
        sizes = _sizes(folder)
    except (ValueError, OSError):
        raise Damaged(f"{RECORD}: started is no time, or a file cannot be read") from None
    for name in sorted(sizes.keys() | record["files"].keys()):
        if name not in sizes:
            raise Damaged(f"{name} is missing")
        if name not in record["files"]:
            raise Damaged(f"{name} was not written with it")
        if sizes[name] != record["files"][name]:
            raise Damaged(f"{name} has {sizes[name]:,} bytes in place of {record['files'][name]:,}")
    return Checkpoint(folder, record)


def verified(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`, every byte of it read.

    Raises:
        Damaged: it is not as it was written.
    """
    checkpoint = _read(folder)
    checksums = checkpoint.record.get("checksums", {})
    try:
        state = tuple(
            (name, checksums[name], (folder / name).stat().st_mtime_ns) for name in sorted(checksums)
        )
    except OSError as error:
        raise Damaged(f"{error.filename}: {error.strerror}") from None
    _read_whole(folder.resolve(), state)
    return checkpoint


@functools.lru_cache(8)
def _read_whole(folder: Path, state: tuple[tuple[str, str, int], ...]) -> None:
    """Read every byte of the files in `folder`, once for each `state` of them: (name, checksum, when it was written).

    Raises:
        Damaged: one of them is not as it was written.
    """
    for name, checksum, _ in state:
        try:
            if _checksum(folder / name) != checksum:
                raise Damaged(f"{name} is damaged (its checksum is another)")
        except OSError as error:
            raise Damaged(f"{name}: {error.strerror}") from None


def last_verified(folder: Path) -> Checkpoint | None:
    """The newest checkpoint in `folder` that is as it was written; newer ones are named with their fault."""
    for path in sorted(named(folder), key=_step, reverse=True):
        try:
            return verified(path)
        except Damaged as error:
            log.warning("checkpoints: %s is passed over: %s", path, error)
    return None


def named(folder: Path) -> list[Path]:
    """Everything called checkpoint-N, whole or not."""
    return [path for path in folder.iterdir() if NAME.fullmatch(path.name)] if folder.is_dir() else []


def _step(path: Path) -> int:
    return int(path.name.removeprefix("checkpoint-"))


def _checksum(file: Path) -> str:
    """XXH3 of every byte. It finds accidents, not forgers, and is as fast as the file can be read."""
    import xxhash

    digest = xxhash.xxh3_128()
    buffer = memoryview(bytearray(CHUNK))
    with file.open("rb", buffering=0) as stream:
        while size := stream.readinto(buffer):
            digest.update(buffer[:size])
    return digest.hexdigest()


def _own_checksum(record: Mapping[str, Any]) -> str:
    """Of run.json's content but this."""
    import xxhash

    content = json.dumps({key: value for key, value in record.items() if key != "checksum"}, sort_keys=True)
    return xxhash.xxh3_128(content.encode()).hexdigest()


def _sizes(folder: Path) -> dict[str, int]:
    """{relative path: bytes} of every file but run.json itself."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != RECORD)
    return {str(path.relative_to(folder)): path.stat().st_size for path in sorted(files)}


# Writing


def publish(staged: Path, target: Path, record: Mapping[str, Any]) -> None:
    """Make the finished folder `staged` appear as `target` in one step, with its run.json, once on disk."""
    seal(staged, record)
    staged.rename(target)
    _sync(target.parent)


def seal(folder: Path, record: Mapping[str, Any]) -> None:
    """Put run.json into the finished `folder`, which makes a checkpoint of it, and wait for the disk: for all files
    together, as each alone is some milliseconds of waiting.
    """
    files = _sizes(folder)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        checksums = dict(zip(files, pool.map(_settled, [folder / name for name in files]), strict=True))
    whole = json.loads(json.dumps({**record, "files": files, "checksums": checksums}))
    (folder / RECORD).write_text(
        json.dumps({**whole, "checksum": _own_checksum(whole)}, indent=1, ensure_ascii=False),
        encoding="utf-8",
    )
    folders = [path for path in folder.rglob("*") if path.is_dir()]
    for path in [folder / RECORD, *folders, folder]:
        _sync(path)


def _settled(file: Path) -> str:
    """Its checksum, once it is on the disk."""
    checksum = _checksum(file)
    _sync(file)
    return checksum


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def prune(folder: Path, limit: int | None, best: str | None) -> None:
    """Remove the oldest checkpoints over `limit` (None: keep all), each in one step.

    The newest and `best` always stay.
    """
    if limit is None:
        return
    present = all_in(folder)
    protected = [
        checkpoint
        for checkpoint in present
        if checkpoint is present[-1] or (best and checkpoint.folder.resolve() == Path(best).resolve())
    ]
    others = [checkpoint for checkpoint in present if checkpoint not in protected]
    for checkpoint in others[: max(0, len(present) - max(limit, len(protected)))]:
        trash = folder / REMOVING
        trash.mkdir(exist_ok=True)
        checkpoint.folder.rename(trash / checkpoint.folder.name)
        shutil.rmtree(trash, ignore_errors=True)
