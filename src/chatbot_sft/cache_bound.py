"""How large a cache may become: what was used longest ago goes when something new is kept, never what a running
process uses.

Each process writes what it uses into a file of its own in `.users`, and holds the operating system's lock on that
file until it ends, however it ends. Entries are renamed before they are deleted, so that nobody finds half of one.
On Linux, files that a process has open or mapped stay readable to it even after that.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from chatbot_sft.errors import UserError

log = logging.getLogger(__name__)

VARIABLE = "CHATBOT_SFT_CACHE_GB"
DEFAULT_GB = 50.0  # 10^9 bytes
USERS = ".users"
LOCK = ".lock"  # held while entries are named as used, and while they are renamed away
GONE = ".gone-"  # in the name of what is being deleted
WHOLE = ("compiled", "unsloth_compiled")  # one entry each: files in them belong together
LASTING = (
    "layouts",
    "verdicts",
)  # a few kilobytes each, and minutes or money to make again: left as they are
TAIL = 9  # characters that mkdtemp puts behind a draft's name, the dot among them


@dataclass(frozen=True)
class Entry:
    """`name` is `part/name`, or a part that is one entry; `size` in bytes, `used` in seconds since the epoch."""

    name: str
    path: Path
    size: int
    used: float


def most() -> int:
    """Bytes that the cache may have.

    Raises:
        UserError: the variable holds no such number.
    """
    given = os.environ.get(VARIABLE, "").strip()
    try:
        size = float(given) if given else DEFAULT_GB
    except ValueError:
        size = -1.0
    if not 0 <= size < 1e9:
        raise UserError(f"{VARIABLE}={given}: expected a number of GB, 50 for instance")
    return int(size * 1e9)


def use(root: Path, name: str) -> None:
    """Say that this process uses the entry `name` until it ends. Where that cannot be written, nothing is said:
    such a cache is not cleaned either.
    """
    with contextlib.suppress(OSError), _locked(root, fcntl.LOCK_SH):
        _write(root, name)
        os.utime(root / name, follow_symlinks=False)


def entries(root: Path, parts: Sequence[str]) -> list[Entry]:
    """What is kept, the least recently used first."""
    found = []
    for part in parts:
        folder = root / part
        if part in WHOLE:
            places = {part: folder} if folder.is_dir() and not folder.is_symlink() else {}
        else:
            places = {f"{part}/{path.name}": path for path in _listed(folder) if path.name[0] != "."}
        for name, path in places.items():
            with contextlib.suppress(OSError):  # another process deletes it now
                found.append(Entry(name, path, size_of(path), path.lstat().st_mtime))
    return sorted(found, key=lambda entry: entry.used)


def size_of(path: Path) -> int:
    """Bytes of the files in a folder, or of a file; links are not followed."""
    total = 0
    pending = [path]
    while pending:
        place = pending.pop()
        with contextlib.suppress(OSError):
            if place.is_symlink() or not place.is_dir():
                total += place.lstat().st_size
            else:
                pending += place.iterdir()
    return total


def trim(root: Path, parts: Sequence[str]) -> None:
    """Delete the least recently used entries until the cache is as small as it may be, and what killed builds left.

    Raises:
        UserError: no number says how small that is.
        OSError: the cache cannot be written.
    """
    _sweep(root, parts)
    allowed, found = most(), entries(root, parts)
    total = sum(entry.size for entry in found)
    if total <= allowed:
        return
    removed: list[Entry] = []
    gone: list[Path] = []
    with _locked(root, fcntl.LOCK_EX):
        used = in_use(root)
        found = [entry for entry in found if entry.path.exists()]  # another process may have been here
        total = sum(entry.size for entry in found)
        for entry in found:
            if total <= allowed:
                break
            if entry.name in used or entry.name.partition("/")[0] in LASTING:
                continue
            gone.append(_aside(entry.path))
            removed.append(entry)
            total -= entry.size
    _delete(gone)
    freed = sum(entry.size for entry in removed)
    still = f"; {total / 1e9:.2f} GB are left, all of it in use" if total > allowed else ""
    log.info(
        "cache: %d entries not used for longest are deleted, %.2f GB, to stay below %s=%g%s",
        len(removed),
        freed / 1e9,
        VARIABLE,
        allowed / 1e9,
        still,
    )


def clear(root: Path, part: str) -> tuple[int, int]:
    """Delete what is in `part`, but for what a running process uses; bytes deleted, and entries left.

    Raises:
        OSError: the cache cannot be written.
    """
    _sweep(root, [part])
    with _locked(root, fcntl.LOCK_EX):
        used = {name for name in in_use(root) if name.partition("/")[0] == part}  # or made at this moment
        if not used:
            gone = [_aside(root / part)]
        else:
            gone = [_aside(entry.path) for entry in entries(root, [part]) if entry.name not in used]
    return _delete(gone), sum((root / name).exists() for name in used)


def in_use(root: Path) -> set[str]:
    """The names that running processes have written; files of processes that have ended are removed."""
    names: set[str] = set()
    for file in _listed(root / USERS):
        with contextlib.suppress(OSError), file.open("r", encoding="utf-8", errors="replace") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                names.update(stream.read().splitlines())
            else:
                file.unlink()
    return names


class _Own:
    """What this process has written; a process that was forked from it has its own."""

    pid = 0
    files: dict[Path, tuple[int, set[str]]] = {}  # noqa: RUF012  (one for the process)


def _write(root: Path, name: str) -> None:
    if _Own.pid != os.getpid():
        _Own.pid, _Own.files = os.getpid(), {}
    descriptor, names = _Own.files.get(root, (-1, set()))
    if descriptor < 0 or not os.fstat(descriptor).st_nlink:  # none yet, or it went with the cache
        folder = root / USERS
        folder.mkdir(mode=0o700, exist_ok=True)
        file = folder / f"{os.getpid()}-{secrets.token_hex(4)}"
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        names = set()
        _Own.files[root] = descriptor, names
    if name not in names:
        os.write(descriptor, f"{name}\n".encode())
        names.add(name)


@contextlib.contextmanager
def _locked(root: Path, kind: int) -> Iterator[None]:
    descriptor = os.open(root / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, kind)
        yield
    finally:
        os.close(descriptor)


def _sweep(root: Path, parts: Sequence[str]) -> None:
    """Delete what a killed process left: half-deleted entries, and drafts that nobody builds any more."""
    from filelock import FileLock, Timeout

    gone = [
        path
        for folder in (root, *(root / part for part in parts))
        for path in _listed(folder)
        if GONE in path.name
    ]
    for part in parts:
        for path in _listed(root / part):
            draft = path.name[0] == "." == path.name[-TAIL:][0] and GONE not in path.name
            if not draft or path.is_symlink() or not path.is_dir():
                continue
            lock = FileLock(path.with_name(f"{path.name[:-TAIL]}.lock"))  # of its builder
            with contextlib.suppress(Timeout, OSError), lock.acquire(timeout=0):
                gone.append(_aside(path))
    _delete(gone)


def _aside(path: Path) -> Path:
    """`path` under a name that nobody looks for."""
    return path.rename(path.with_name(f".{path.name.lstrip('.')}{GONE}{secrets.token_hex(4)}"))


def _delete(places: Sequence[Path]) -> int:
    """Bytes that went."""
    size = 0
    for place in places:
        size += size_of(place)
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place, ignore_errors=True)
        else:
            place.unlink(missing_ok=True)
    return size


def _listed(folder: Path) -> list[Path]:
    """What is in a folder; nothing where it is none, or somebody else's alone."""
    try:
        return sorted(folder.iterdir()) if not folder.is_symlink() else []
    except OSError:
        return []
