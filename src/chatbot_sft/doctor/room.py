"""Is there room for the composed run: in memory, on every disk that it writes to, and may it write there?"""

from __future__ import annotations

import itertools
import os
import pwd
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from chatbot_sft import distributed
from chatbot_sft.doctor import gpu, need
from chatbot_sft.doctor.finding import Finding, fault, note, ok
from chatbot_sft.doctor.need import Size, Write, existing
from chatbot_sft.model import hardware

if TYPE_CHECKING:
    from chatbot_sft.config import Config

SHARED = Path("/dev/shm")
SHARED_LEAST = 1e9  # bytes: what NCCL and the workers of a loader want; Docker gives 64 MB
SHOWN = 5e6  # bytes; what is smaller counts, and is not named
CGROUP = Path("/sys/fs/cgroup")


def memory(settings: Config, size: Size | None) -> Iterator[Finding]:
    """The least that the training can do with, against what is free of the card, or of main memory."""
    available, limit = main_memory()
    yield ok("cpu", f"{hardware.processor()}, {os.cpu_count()} cores")
    cards = gpu.of_the_run()
    if settings.task not in ("train", "plan"):
        yield ok("memory", f"{available / 1e9:.1f} GB free of {limit / 1e9:.1f} GB")
        return
    if size is None:
        what = (
            f"{settings.model.name}: nothing says how large it is before it is loaded; task=plan measures it"
        )
        yield note("memory", what, "python -m chatbot_sft task=plan")
        return
    parts = need.memory(settings, size, bool(cards))
    least = sum(parts.values())
    said = (
        f"at least {least / 1e9:.1f} GB ({_largest(parts)}; {size.weights / 1e9:.2f}B weights {size.known})"
    )
    if not cards:
        if least > available:
            what = f"{available / 1e9:.1f} GB are free of {limit / 1e9:.1f} GB, training needs {said}"
            yield fault("memory", what, _smaller(settings))
        else:
            yield ok(
                "memory", f"{available / 1e9:.1f} GB free of {limit / 1e9:.1f} GB; training needs {said}"
            )
        return
    roomiest = max(cards, key=lambda card: card.free)
    if least > roomiest.free:
        there = f"{roomiest.free / 1e9:.1f} GB are free of {roomiest.total / 1e9:.1f} GB of {roomiest.name}"
        taken = least <= roomiest.total
        repair = (
            "nvidia-smi --query-compute-apps=pid,used_memory,name --format=csv"
            if taken
            else _smaller(settings)
        )
        yield fault("gpu memory", f"{there}, training needs {said}", repair)
    else:
        yield ok("gpu memory", f"{roomiest.free / 1e9:.1f} GB free; training needs {said}")
    if available < need.LIBRARIES["gpu"]:
        what = f"{available / 1e9:.1f} GB of main memory are free, Python, PyTorch and CUDA take about 4 GB"
        yield fault("memory", what, "free -h")
    else:
        yield ok("memory", f"{available / 1e9:.1f} GB free of {limit / 1e9:.1f} GB")


def disks(wanted: Sequence[Write]) -> Iterator[Finding]:
    """Each file system against all that goes there."""
    places = [(one, existing(one.place)) for one in wanted if one.size]
    keyed = sorted(places, key=lambda pair: pair[1].stat().st_dev)
    for _, group in itertools.groupby(keyed, key=lambda pair: pair[1].stat().st_dev):
        writes = list(group)
        free, total = shutil.disk_usage(writes[0][1]).free, sum(one.size for one, _ in writes)
        parts = ", ".join(f"{one.what} {one.size / 1e9:.2f} GB" for one, _ in writes if one.size >= SHOWN)
        where = os.path.commonpath([str(place) for _, place in writes])
        what = (
            f"{free / 1e9:.1f} GB free at {where}; the run writes {total / 1e9:.1f} GB: {parts or 'a report'}"
        )
        if total > free:
            yield fault("disk", what, max((one for one, _ in writes), key=lambda one: one.size).key)
        else:
            yield ok("disk", what)


def writable(name: str, place: Path, key: str) -> Iterator[Finding]:
    """May this user write in `place`, or make it? `key` names another place."""
    there = existing(place)
    if not there.is_dir():
        what = (
            f"{place}: {there} is a file"
            if there.exists()
            else f"{place}: {there} is a link that leads nowhere"
        )
        yield fault(name, what, key)
    elif not os.access(there, os.W_OK | os.X_OK):
        yield fault(name, f"{place}: {there} cannot be written (it belongs to {_owner(there)})", key)
    elif why := _refuses(there):
        yield fault(name, f"{place}: nothing can be made in {there} ({why})", key)
    elif there == place and there.stat().st_uid != os.geteuid():
        yield note(
            name, f"{place} belongs to {_owner(there)}", f"sudo chown -R $USER {shlex.quote(str(place))}"
        )
    else:
        yield ok(name, f"{place} can be written" if there == place else f"{place} can be made")


def _refuses(folder: Path) -> str | None:
    """Why no folder can be made in `folder`, whatever its permissions say: tried with one that goes again at once."""
    try:
        with tempfile.TemporaryDirectory(dir=folder):
            return None
    except OSError as error:
        return error.strerror


def shared_memory(settings: Config) -> Iterator[Finding]:
    """What several processes talk through."""
    if not SHARED.is_dir():
        return
    usage = shutil.disk_usage(SHARED)
    several = distributed.processes() > 1 or settings.sweep.processes_per_job > 1 or len(gpu.of_the_run()) > 1
    what = f"{SHARED} has {usage.total / 1e9:.2f} GB, {usage.free / 1e9:.2f} GB free"
    if usage.free >= SHARED_LEAST:
        yield ok("shm", what)
        return
    repair = (
        "docker run --shm-size=8g …" if Path("/.dockerenv").exists() else f"mount -o remount,size=8g {SHARED}"
    )
    if several:
        yield fault("shm", f"{what}; several processes need 1 GB of it", repair)
    else:
        yield note("shm", f"{what}; one process gets by, several do not", repair)


def main_memory() -> tuple[float, float]:
    """(free, all) bytes of main memory: the machine's, or less where a container may have less."""
    total = hardware.memory_gb() * 1e9
    lines = _numbers(Path("/proc/meminfo"))
    free = lines.get("MemAvailable:", total / 1024) * 1024
    for most, used in (
        (CGROUP / "memory.max", CGROUP / "memory.current"),
        (CGROUP / "memory/memory.limit_in_bytes", CGROUP / "memory/memory.usage_in_bytes"),
    ):
        limit, taken = _number(most), _number(used)
        if limit is not None and limit < total:
            total = limit
            free = min(
                free, limit - (taken or 0) + _numbers(most.with_name("memory.stat")).get("inactive_file", 0)
            )
    return free, total


def _numbers(file: Path) -> dict[str, float]:
    try:
        lines = [line.split() for line in file.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return {}
    return {line[0]: float(line[1]) for line in lines if len(line) > 1 and line[1].isdigit()}


def _number(file: Path) -> float | None:
    try:
        text = file.read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return float(text) if text.isdigit() else None


def _largest(parts: dict[str, float]) -> str:
    two = sorted(parts.items(), key=lambda part: -part[1])[:2]
    return ", ".join(f"{name} {size / 1e9:.1f}" for name, size in two)


def _smaller(settings: Config) -> str:
    """The override that takes the most off."""
    if settings.full_finetuning:
        return "python -m chatbot_sft lora=default"
    if not settings.model.load_in_4bit and not settings.model.load_in_fp8:
        return "python -m chatbot_sft model.load_in_4bit=true"
    return "python -m chatbot_sft model=smollm2"


def _owner(place: Path) -> str:
    number = place.stat().st_uid
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"
