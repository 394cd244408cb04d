"""One run, one directory: a directory named by the time is a new one, and no two processes write one at once.

Hydra calls `ClaimDirectory` after it has composed and before it makes a folder (its public callbacks, conf/hydra/default.yaml), so that a refused
start leaves the other run's files as they were.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.experimental.callback import Callback
from omegaconf import OmegaConf, open_dict
from yaml import YAMLError

from chatbot_sft import distributed
from chatbot_sft.errors import UserError
from chatbot_sft.run.directory import Run
from chatbot_sft.run.report import Status

if TYPE_CHECKING:
    from filelock import BaseFileLock
    from omegaconf import DictConfig

    from chatbot_sft.config import Config

LOCK, HOLDER = ".lock", ".lock.json"  # the lock is the operating system's, so it goes with its process; the second file says whose it is
BY_TIME = ("${started:", "${now:")  # what a directory's name says that no user typed

_held: list[BaseFileLock] = []  # for as long as this process lives


class ClaimDirectory(Callback):
    """Gives a run, or a sweep, its directory."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        _claim(config.hydra.run)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        _claim(config.hydra.sweep)


def _claim(place: DictConfig) -> None:
    """Make sure of `place.dir`; a name made of the time gets a suffix where it is taken. Only a run's first process does: the others follow it."""
    if not distributed.is_first():
        return
    template = OmegaConf.to_container(place, resolve=False)["dir"]
    folder = Path(place.dir)
    try:
        # Processes that torchrun starts name their directory by the start of their launcher, each for itself: it cannot get a suffix.
        if distributed.processes() == 1 and any(part in template for part in BY_TIME):
            folder = _new(folder)
            with open_dict(place):
                place.dir = str(folder)
        _held.append(_lock(folder))
    except UserError as error:
        # Hydra turns a callback's exceptions into warnings, but for this one.
        sys.exit(f"error: {error}")


def _new(folder: Path) -> Path:
    """`folder`, or `folder_1` and so on: the first that was not there, made now."""
    names = (f"{folder.name}_{number}" if number else folder.name for number in itertools.count())
    for candidate in map(folder.with_name, names):
        with contextlib.suppress(FileExistsError):
            _make(candidate, exist_ok=False)
            break
    return candidate


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Within it, no other process runs in `folder`; in a process that is not its run's first, nothing.

    Raises:
        UserError: one does; or `folder` cannot be made.
    """
    if not distributed.is_first():
        yield
        return
    lock = _lock(folder)
    try:
        yield
    finally:
        lock.release()


def _lock(folder: Path) -> BaseFileLock:
    from filelock import FileLock, Timeout

    _make(folder, exist_ok=True)
    lock = FileLock(folder / LOCK, is_singleton=True)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"{folder}: {_holder(folder)} is running in it; wait for its end, or name another directory (hydra.run.dir=DIR)") from None
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror or error}; name another directory (hydra.run.dir=DIR)") from None
    (folder / HOLDER).write_text(json.dumps({"pid": os.getpid(), "host": os.uname().nodename}), encoding="utf-8")
    return lock


def _make(folder: Path, exist_ok: bool) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=exist_ok)
    except FileExistsError:
        if folder.is_dir():
            raise
        raise UserError(f"{folder}: is a file; a run needs a directory (hydra.run.dir=DIR)") from None
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}; name another directory (hydra.run.dir=DIR)") from None


def _holder(folder: Path) -> str:
    """Who holds `folder`, as far as it is known."""
    try:
        holder = json.loads((folder / HOLDER).read_text(encoding="utf-8"))
        return f"process {holder['pid']} on {holder['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def refuse_taken(config: Mapping[str, Any], settings: Config) -> None:
    """Raises UserError where the run directory holds what this run would write over, or a finished training that is asked for another export only."""
    run, training = Run(Path(settings.paths.output_dir)), settings.task == "train"
    folder, report = run.folder, run.report()
    if report is None or report.task != "train":
        return
    if not training and (report.training or report.history):
        raise UserError(
            f"{folder}: task={settings.task} would write over the report of the training there; leave hydra.run.dir out, or name another directory"
        )
    if training and report.status == Status.COMPLETED and settings.training.resume != "never":
        asked = other_export(run, config)
        if asked:
            raise UserError(f"{folder}: this run is already completed; for another export of it: task=export {shlex.quote(f'run={folder}')} {asked}")


def other_export(run: Run, config: Mapping[str, Any]) -> str:
    """The save.* overrides in which `config` differs from what `run` was; empty where anything else, or nothing, does."""
    try:
        before = OmegaConf.to_container(OmegaConf.load(run.config_file))
    except (OSError, YAMLError):
        return ""
    if not isinstance(before, dict) or not isinstance(before.get("save"), dict) or not isinstance(config.get("save"), Mapping):
        return ""
    aside = dict.fromkeys(("save", "paths"))
    if before | aside != dict(config) | aside:
        return ""
    changed = {key: value for key, value in config["save"].items() if before["save"].get(key) != value}
    return " ".join(shlex.quote(f"save.{key}={_word(value)}") for key, value in changed.items())


def _word(value: Any) -> str:
    """As an override has it."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":")).replace('"', "")
