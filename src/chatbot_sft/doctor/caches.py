"""What is kept between runs: how much, whose, whole, and may it be written."""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path

from chatbot_sft import cache_bound
from chatbot_sft.cache import PARTS, VARIABLE, cache_dir, damaged
from chatbot_sft.cache_bound import size_of
from chatbot_sft.doctor import hub, room
from chatbot_sft.doctor.finding import Finding, fault, note, ok
from chatbot_sft.errors import UserError

CLEAR = "python -m chatbot_sft.doctor --clear-cache"
KEPT_WHOLE = ("data", "findings", "models", "references")  # parts whose entries have checksums


def check(uses_hub: bool) -> Iterator[Finding]:
    """Ours, and the hub's where the run needs it."""
    yield from _ours()
    if uses_hub:
        yield from room.writable("hub cache", hub.cache_folder(), "export HF_HOME=/another/folder")


def parts() -> dict[str, int]:
    """Folder of the cache → its size in bytes. Other folders that stand there are not ours."""
    return {name: size_of(cache_dir() / name) for name in sorted(PARTS) if (cache_dir() / name).is_dir()}


def clear(part: str) -> str:
    """Delete the part of that name ("all": every one) and say what went; what a running process uses stays.

    Raises:
        LookupError: there is no such part.
        OSError: the cache cannot be written.
    """
    there = parts()
    if part != "all" and part not in there:
        raise LookupError(
            f"{part}: no such part of the cache in {cache_dir()}; there is {', '.join(there) or 'nothing'}"
        )
    chosen = list(there) if part == "all" else [part]
    done = [cache_bound.clear(cache_dir(), name) for name in chosen]
    left = sum(count for _, count in done)
    kept = f"; {left} left that a running process uses" if left else ""
    return f"cleared {', '.join(chosen) or 'nothing'}: {sum(size for size, _ in done) / 1e6:,.0f} MB{kept}"


def _ours() -> Iterator[Finding]:
    folder, there = cache_dir(), parts()
    try:
        most = cache_bound.most()
    except UserError as error:
        yield fault("cache", str(error), f"unset {cache_bound.VARIABLE}")
        return
    total = sum(there.values())
    said = ", ".join(f"{name} {size / 1e6:,.0f} MB" for name, size in there.items())
    what = f"{folder} ({said or 'empty'}), {total / 1e9:.1f} of {most / 1e9:g} GB; --clear-cache [PART] deletes it"
    if total > most:
        yield note(
            "cache", f"{what}: above {cache_bound.VARIABLE}, what was not used for longest goes next", CLEAR
        )
    else:
        yield ok("cache", what)
    yield from _private(folder)
    for part in KEPT_WHOLE:
        if part in there and (broken := damaged(part)):
            names = ", ".join(path.name for path in broken[:3])
            what = f"{len(broken)} of {part} are damaged ({names}); they are made again when they are needed"
            yield note("cache", what, f"{CLEAR} {part}")


def _private(folder: Path) -> Iterator[Finding]:
    """It holds what is trained as text, and what is compiled is run: for its owner alone."""
    for place in (folder / part for part in PARTS):
        if not place.is_dir():
            continue
        status = place.stat()
        if status.st_uid not in (os.geteuid(), 0):
            what = f"{place} belongs to another user: nothing in it is used"
            yield fault("cache", what, f"export {VARIABLE}=~/.cache/chatbot_sft_own")
            return
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            what = f"{place} may be written by others, and a run runs what is compiled there"
            yield fault("cache", what, f"chmod -R go-rwx {shlex.quote(str(folder))}")
            return
    if not os.access(room.existing(folder), os.W_OK | os.X_OK):
        what = f"{folder} cannot be written: every run makes everything again"
        yield note("cache", what, f"export {VARIABLE}=/another/folder")
