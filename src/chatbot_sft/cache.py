"""Where things that are made once are kept: for their owner alone, whole, and with their checksums.

A cache makes a run faster, and nothing else: what is damaged or somebody else's is made anew, and where it
cannot be written a temporary one serves.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from chatbot_sft import cache_bound
from chatbot_sft.errors import UserError

log = logging.getLogger(__name__)

# Tokenised rows, what was found in them, converted models, measured layouts, what PyTorch and Unsloth compiled,
# what a judge found, what a reference makes of rows.
PARTS = (
    "data", "findings", "models", "layouts", "compiled", "unsloth_compiled", "verdicts", "references",
)  # fmt: skip
VARIABLE = "CHATBOT_SFT_CACHE"
SPARE = "CHATBOT_SFT_SPARE_CACHE"  # set by the process that made one, for those it starts
CHECKSUMS = "checksums.json"
LARGE = 64 << 20  # bytes; such a file is read again only where its size or time is not as it was written
PRIVATE = 0o700


def cache_dir() -> Path:
    """``$CHATBOT_SFT_CACHE``, or ``~/.cache/chatbot_sft``."""
    if given := os.environ.get(VARIABLE):
        return Path(given).expanduser().absolute()
    try:
        return Path.home() / ".cache" / "chatbot_sft"
    except RuntimeError:  # a container's user without a name and a HOME
        return _spare(OSError(errno.ENOENT, "there is no home folder", "~/.cache/chatbot_sft"))


def part_folder(part: str) -> Path:
    """The folder `part` of the cache, made for its owner alone; of the spare one where that cannot be. One that is
    a single entry is this process's until it ends.
    """
    try:
        folder = _private(cache_dir() / part)
    except OSError as error:
        return _spare_part(part, error)
    if part in cache_bound.WHOLE:
        cache_bound.use(cache_dir(), part)
    return folder


def cached(part: str, name: str, build: Callable[[Path], None], label: str) -> tuple[Path, bool]:
    """(the folder `name` of `part`, whether it was there and whole); `build(folder)` fills one that was not.

    Many processes may ask at once: one builds, the others wait for it. `label` names it in messages. It stays for
    as long as this process lives; what was used longest ago goes where the cache has become too large.

    Raises:
        UserError: neither the cache nor a temporary folder can be written, or no number says how large the cache
            may be.
    """
    cache_bound.most()
    if there := find(part, name):
        return there, True
    try:
        folder = part_folder(part)
        cache_bound.use(folder.parent, f"{part}/{name}")
        made = _built(folder / name, build, label)
        if not made[1] and folder.parent == cache_dir():
            _trim()
        return made
    except OSError as error:
        try:
            return _built(_spare_part(part, error) / name, build, label)
        except OSError as second:
            raise _nowhere(second) from error


def find(part: str, name: str) -> Path | None:
    """The folder `name` of `part`, where it is there and whole; it stays for as long as this process lives."""
    cache_bound.use(cache_dir(), f"{part}/{name}")
    spare = os.environ.get(SPARE)
    places = (cache_dir(), *([Path(spare)] if spare else []))
    return next((place / part / name for place in places if _whole(place / part / name)), None)


def damaged(part: str) -> list[Path]:
    """The entries of `part` that have not the files, of the sizes, that were written. One that is flipped inside is
    found when it is used.
    """
    entries = [path for path in (cache_dir() / part).iterdir() if path.is_dir() and path.name[0] != "."]
    return [path for path in entries if not _sized(path)]


def _sized(folder: Path) -> bool:
    try:
        sums = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
        return all((folder / name).stat().st_size == facts["size"] for name, facts in sums.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def build_folder(
    target: Path, build: Callable[[Path], None], replace: bool = False, private: bool = False
) -> Path:
    """Fill a temporary folder beside `target` with `build(folder)`, then rename it to `target` in one step.

    Where another process was first, its folder is kept and ours is thrown away: both are the same. With
    `replace` ours takes the place of what was there, once it is whole; whoever reads the old one goes on
    reading it. A failed build leaves everything as it was. It gets the user's usual permissions unless it is
    `private`.
    """
    if target.is_dir() and not replace:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    draft = work / target.name
    try:
        draft.mkdir(PRIVATE)
        build(draft)
        if not private:
            _share(draft)
        replaced = work / "replaced"
        if replace and target.is_dir():
            target.rename(replaced)
        try:
            draft.rename(target)
        except OSError:
            if replaced.is_dir() and not target.exists():
                replaced.rename(target)
            if replace or not target.is_dir():
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _trim() -> None:
    """What cannot be deleted costs room alone."""
    try:
        cache_bound.trim(cache_dir(), PARTS)
    except OSError as error:
        log.warning("cache: %s cannot be cleaned: %s", cache_dir(), error.strerror or error)


def _built(target: Path, build: Callable[[Path], None], label: str) -> tuple[Path, bool]:
    from filelock import FileLock

    def fill(folder: Path) -> None:
        build(folder)
        sums = {str(file.relative_to(folder)): _facts(file) for file in folder.rglob("*") if file.is_file()}
        (folder / CHECKSUMS).write_text(json.dumps(sums), encoding="utf-8")

    with FileLock(target.with_name(f".{target.name}.lock")):
        if _whole(target):
            return target, True
        if target.is_dir() and not target.is_symlink():
            log.warning("%s in %s are damaged; making them again", label, target)
            shutil.rmtree(target)
        elif os.path.lexists(target):
            target.unlink()
        build_folder(target, fill, private=True)
    return target, False


def _whole(folder: Path) -> bool:
    """Whether `folder` is ours, and has the files that were written there and nothing else."""
    try:
        if not _trusted(folder.parent) or not _trusted(folder):
            return False
        sums = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
        files = {
            str(file.relative_to(folder)): file
            for file in folder.rglob("*")
            if file.is_symlink() or not file.is_dir()
        }
        del files[CHECKSUMS]
        if sums.keys() != files.keys():
            return False
        return all(_as_written(file, sums[name]) for name, file in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def _trusted(folder: Path) -> bool:
    """Ours, or the administrator's and not for everybody to write in."""
    status = folder.lstat() if folder.is_symlink() else folder.stat()
    ours = status.st_uid == os.geteuid()
    return stat.S_ISDIR(status.st_mode) and (ours or (status.st_uid == 0 and not status.st_mode & 0o022))


def _facts(file: Path) -> dict[str, Any]:
    status = file.stat()
    with file.open("rb") as stream:
        return {
            "size": status.st_size,
            "time": status.st_mtime_ns,
            "sha256": hashlib.file_digest(stream, "sha256").hexdigest(),
        }


def _as_written(file: Path, facts: dict[str, Any]) -> bool:
    status = file.lstat()
    if not stat.S_ISREG(status.st_mode) or status.st_size != facts["size"]:
        return False
    if status.st_size >= LARGE and status.st_mtime_ns == facts["time"]:
        return True
    return _facts(file)["sha256"] == facts["sha256"]


def _private(folder: Path) -> Path:
    """`folder`, made where it was not, for its owner alone.

    Raises:
        OSError: it belongs to somebody else, or cannot be written.
    """
    folder.parent.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
    folder.mkdir(mode=PRIVATE, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.geteuid():
        raise PermissionError(errno.EPERM, "it belongs to another user", str(folder))
    if stat.S_IMODE(status.st_mode) != PRIVATE:
        folder.chmod(PRIVATE)
    with tempfile.TemporaryFile(dir=folder):
        return folder


def _spare_part(part: str, error: OSError) -> Path:
    try:
        return _private(_spare(error) / part)
    except OSError as second:
        raise _nowhere(second) from error


def _spare(error: OSError) -> Path:
    """A temporary cache of this process and those it starts, as the cache cannot be written (`error`)."""
    if spare := os.environ.get(SPARE):
        return Path(spare)
    spare = tempfile.mkdtemp(prefix="chatbot_sft_cache_")
    atexit.register(_remove, spare, os.getpid())
    where, why = error.filename or os.environ.get(VARIABLE, "the cache"), error.strerror or error
    log.warning(
        "cache: %s: %s; a temporary folder serves for this run, the next one makes it all again;"
        " %s names another place",
        where,
        why,
        VARIABLE,
    )
    os.environ[SPARE] = spare
    return Path(spare)


def _nowhere(error: OSError) -> UserError:
    where, why = error.filename or os.environ.get(SPARE), error.strerror or error
    return UserError(
        f"{where}: cannot be written ({why}), and the cache neither; set {VARIABLE} to a folder with room"
    )


def _remove(folder: str, owner: int) -> None:
    """At the end of the process that made it, not of one forked from it."""
    if os.getpid() == owner:
        with contextlib.suppress(OSError):
            shutil.rmtree(folder)


def _share(folder: Path) -> None:
    """Give everything the user's usual permissions: temporary folders are made for their owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    folder.chmod(0o777 & ~mask)
    for path in folder.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
