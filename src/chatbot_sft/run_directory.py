"""One run, one directory: a directory named by the time is a new one, and no two processes write one at once.

Hydra calls `ClaimDirectory` after it has composed and before it makes a folder (its public callbacks,
conf/hydra/default.yaml), so that a refused start leaves the other run's files as they were, and where there
was none, nothing.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import OmegaConf, open_dict, read_write

from chatbot_sft import distributed
from chatbot_sft.config.containers import as_dict
from chatbot_sft.errors import UserError
from chatbot_sft.report.masking import masked
from chatbot_sft.report.plain import shown_line
from chatbot_sft.run.directory import ELSEWHERE, HOLDER, OF_A_REFUSAL, REPORT, Run
from chatbot_sft.sweep.directory import Sweep

if TYPE_CHECKING:
    from filelock import BaseFileLock
    from omegaconf import DictConfig


LOCK = ".lock"  # the operating system's, so it goes with its process
BY_TIME = ("${started:", "${now:")  # what a directory's name says that no user typed
LONGEST = 160  # characters of a command that are kept
OF_A_START = {LOCK, HOLDER, ".hydra", "multirun.yaml"}  # what a run or a sweep has written before it begins


class Held(UserError):
    """Another process runs in the directory."""


_held: list[BaseFileLock] = []  # for as long as this process lives


@dataclass
class Claim:
    """A directory, what was in it, and which of the folders above it were not there, the deepest first."""

    folder: Path
    content: set[str]
    missing: list[Path]

    @classmethod
    def of(cls, folder: Path) -> Claim:
        content = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        return cls(folder, content, [place for place in (folder, *folder.parents) if not place.exists()])

    def withdraw(self, refused: bool = False) -> None:
        """Leave nothing of a start that came to nothing; what has written more than that stays whole. One that was
        `refused` before it had done anything has told so, and has no more to tell.
        """
        present = {path.name for path in self.folder.iterdir()} if self.folder.is_dir() else set()
        added = present - self.content
        report = Run(self.folder).peek() if refused and REPORT in added else None
        if not added <= OF_A_START | (OF_A_REFUSAL if report and report.nothing_done else set()):
            return
        for place in (self.folder / name for name in added):
            shutil.rmtree(place) if place.is_dir() else place.unlink()
        for place in self.missing:
            with contextlib.suppress(OSError):  # another run is in it by now
                place.rmdir()


_claims: list[Claim] = []


def withdraw(refused: bool = False) -> None:
    """Called where a command has failed: see `Claim.withdraw`."""
    while _claims:
        _claims.pop().withdraw(refused)


class ClaimDirectory(Callback):
    """Gives a run, or a sweep, its directory."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        with _exiting():
            refuse_sweep(Path(config.hydra.run.dir))
        _claim(config.hydra.run)
        _refuse(config)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        choices = OmegaConf.select(config, "hydra.runtime.choices", default={})
        if choices.get("hydra/sweeper") != "study":  # that claims its directory itself
            with _exiting():
                refuse_run(Path(config.hydra.sweep.dir))
            claim_sweep(config)


def refuse_sweep(folder: Path) -> None:
    """Raises UserError where a run would have the directory of a sweep, or in it that of a job which it is not."""
    if Sweep(folder).begun:
        raise UserError(
            f"hydra.run.dir={folder}: the directory of a sweep; name another one for this run, or go on with the"
            f" sweep (-m … hydra.sweep.dir={folder})"
        )
    if not folder.name.isdecimal():  # hydra.sweep.subdir's default
        return
    parent = Sweep(folder.parent)
    found = parent.study()
    if found and folder not in [parent.run(point).folder for point in found.points]:
        raise UserError(
            f"hydra.run.dir={folder}: a job's place in the sweep in {folder.parent}, which has none of that number;"
            " name another one for this run"
        )


def refuse_run(folder: Path) -> None:
    """Raises UserError where a sweep would have the directory of a run."""
    run = Run(folder)
    if (run.report_file.exists() or run.lock_file.exists()) and not Sweep(folder).begun:
        raise UserError(
            f"hydra.sweep.dir={folder}: the directory of one run; name another one for the sweep, which gives each"
            " job its own in it"
        )


def claim_sweep(config: DictConfig) -> Path:
    """The directory of a composed sweep, which no other process sweeps in now."""
    _claim(config.hydra.sweep)
    return Path(config.hydra.sweep.dir)


def join_sweep(config: DictConfig) -> Path:
    """The directory of a composed sweep that this process joins, whoever else is in it.

    Raises:
        UserError: it has no name, or cannot be made.
    """
    template = as_dict(config.hydra.sweep, resolve=False)["dir"]
    if any(part in template for part in BY_TIME):
        raise UserError("sweep.worker=true: name the sweep's directory, hydra.sweep.dir=DIR")
    folder = Path(config.hydra.sweep.dir)
    _make(folder, exist_ok=True)
    return folder


def _claim(place: DictConfig) -> None:
    """Make sure of `place.dir`; a name made of the time gets a suffix where it is taken.

    Only a run's first process does: the others follow it. On several machines each has another start of its
    launcher for a name.
    """
    template = as_dict(place, resolve=False)["dir"]
    folder = Path(place.dir)
    with _exiting():
        if distributed.nodes() > 1 and any(part in template for part in BY_TIME):
            raise UserError(
                "hydra.run.dir: several nodes would each name the run directory by their own time; name one that"
                " all of them see: hydra.run.dir=DIR"
            )
        if not distributed.is_first():
            return
        # Processes that torchrun starts name their directory by the start of their launcher, each for itself:
        # it cannot get a suffix.
        if distributed.processes() == 1 and any(part in template for part in BY_TIME):
            folder = _new(folder)
            with open_dict(place):
                place.dir = str(folder)
        else:
            _claims.append(Claim.of(folder))
        _held.append(_lock(folder))


def _refuse(config: DictConfig) -> None:
    """Refuse a run by what is in its directory, as `start.refuse` does, before Hydra writes its .hydra there."""
    from chatbot_sft import start

    with read_write(config.hydra.runtime), open_dict(config.hydra.runtime):
        config.hydra.runtime.output_dir = str(Path(config.hydra.run.dir).absolute())
    # As Hydra's own run_job does next: ${hydra:runtime.output_dir} is read from there.
    HydraConfig.instance().set_config(config)
    settings = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    with _exiting():
        start.refuse(as_dict(settings, resolve=True), config.hydra.overrides.task)


@contextlib.contextmanager
def _exiting() -> Iterator[None]:
    """Within it a UserError ends the command: of a callback's exceptions Hydra makes warnings, but of SystemExit."""
    try:
        yield
    except UserError as error:
        sys.exit(f"{distributed.error_prefix()}{shown_line(str(error))}")


def _new(folder: Path) -> Path:
    """`folder`, or `folder_1` and so on: the first that was not there, made now."""
    names = (f"{folder.name}_{number}" if number else folder.name for number in itertools.count())
    for candidate in map(folder.with_name, names):
        claim = Claim.of(candidate)
        with contextlib.suppress(FileExistsError):
            _make(candidate, exist_ok=False)
            _claims.append(claim)
            break
    return candidate


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Within it, no other process runs in `folder`; in a process that is not its run's first, nothing.

    Raises:
        Held: one does.
        UserError: `folder` cannot be made.
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
        raise Held(
            f"{folder}: {_holder(folder)} is running in it; wait for its end,"
            f" or name another directory ({ELSEWHERE})"
        ) from None
    except OSError as error:
        raise UserError(
            f"{folder}: {error.strerror or error}; name another directory ({ELSEWHERE})"
        ) from None
    (folder / HOLDER).write_text(
        json.dumps({"pid": os.getpid(), "host": os.uname().nodename, "command": _command()}), encoding="utf-8"
    )
    return lock


def holder(folder: Path) -> str | None:
    """What stands in `folder` of the process that holds it; None where nothing is to be seen."""
    file = folder / HOLDER
    return file.read_text(encoding="utf-8") if file.is_file() else None


def _make(folder: Path, exist_ok: bool) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=exist_ok)
    except FileExistsError:
        if folder.is_dir():
            raise
        raise UserError(f"{folder}: is a file; a run needs a directory ({ELSEWHERE})") from None
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}; name another directory ({ELSEWHERE})") from None


def _holder(folder: Path) -> str:
    """Who holds `folder`, as far as it is known."""
    try:
        holder = json.loads((folder / HOLDER).read_text(encoding="utf-8"))
        command = f" ({holder['command']})" if holder.get("command") else ""
        return f"process {holder['pid']} on {holder['host']}{command}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "another process"


def _command() -> str:
    """What this process was started as, without secrets and in a line that is not too long."""
    program, *words = sys.argv
    name = Path(program).name
    start = "python -m chatbot_sft" if name == "__main__.py" else shlex.quote(name)
    whole = " ".join([start, *(shlex.quote(_masked_word(word)) for word in words)])
    return whole if len(whole) <= LONGEST else f"{whole[: LONGEST - 1]}…"


def _masked_word(word: str) -> str:
    """`key=value` as a key and its value: under a name like `hub_token` the whole of it is a secret."""
    key, equals, value = word.partition("=")
    return f"{key}={masked({key: value})[key]}" if equals else masked(word)
