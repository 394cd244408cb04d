"""The GPUs, their driver, and what the installed PyTorch was built for; told by nvidia-smi and by torch's files."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from chatbot_sft.doctor.finding import Finding, fault, note, ok
from chatbot_sft.installed import folder_of

HIDDEN = ("", "-1")  # CUDA_VISIBLE_DEVICES that hides every card
SECONDS = 20  # that a driver in trouble is waited for
# PyTorch's own builds (https://pytorch.org/get-started), the newest first.
BUILDS = ((13, 0), (12, 8), (12, 6), (12, 4), (12, 1), (11, 8))
INDEX = "https://download.pytorch.org/whl"


@dataclass(frozen=True)
class Card:
    name: str
    total: int  # bytes
    free: int


def check() -> Iterator[Finding]:
    """The cards, and whether torch can use them."""
    if shutil.which("nvidia-smi") is None:
        yield from _without_driver()
        return
    answer = _ask()
    if answer.returncode:
        why = " ".join((answer.stderr.strip() or answer.stdout.strip() or "nothing said").split())
        repair = "sudo reboot" if "mismatch" in why else "sudo nvidia-smi"
        yield fault("gpu", f"nvidia-smi fails ({answer.returncode}): {why}", repair)
        return
    listed = cards()
    if not listed:
        yield ok("gpu", "none (nvidia-smi lists none)")
        return
    supports = _version(re.search(r"CUDA\s+(?:UMD\s+)?Version\s*:\s*(\d+)\.(\d+)", answer.stdout))
    driver = re.search(r"(?:KMD|Driver)\s+Version\s*:\s*([\d.]+)", answer.stdout)
    for card in listed:
        said = f", driver {driver[1]}" if driver else ""
        said += f", CUDA {_dotted(supports)}" if supports else ""
        yield ok("gpu", f"{card.name}, {card.total / 1e9:.0f} GB, {card.free / 1e9:.0f} GB free{said}")
    yield from _visible(len(listed))
    yield from _build(supports)


def cards() -> list[Card]:
    """Every card that nvidia-smi lists, whatever CUDA_VISIBLE_DEVICES says; none where it does not answer."""
    if shutil.which("nvidia-smi") is None:
        return []
    answer = _ask("--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits")
    rows = (
        [line.rsplit(", ", 2) for line in answer.stdout.strip().splitlines()] if not answer.returncode else []
    )
    return [
        Card(row[0], int(row[1]) << 20, int(row[2]) << 20)
        for row in rows
        if len(row) == 3 and _number(row[1:])
    ]


def _number(cells: list[str]) -> bool:
    return all(cell.strip().isdigit() for cell in cells)


def _ask(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["nvidia-smi", *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, errors="replace")
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"no answer in {SECONDS} seconds")
    except OSError as error:
        return subprocess.CompletedProcess(command, 126, "", str(error))


def _without_driver() -> Iterator[Finding]:
    if Path("/proc/driver/nvidia").exists() or any(Path("/dev").glob("nvidia[0-9]*")):
        what = "this machine has an NVIDIA card, but nvidia-smi is not on PATH (in a container: started without it?)"
        yield fault("gpu", what, "docker run --gpus all …")
    else:
        yield ok("gpu", "none (there is no nvidia-smi)")


def _visible(count: int) -> Iterator[Finding]:
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        return
    if given in HIDDEN:
        yield note(
            "gpu",
            f"CUDA_VISIBLE_DEVICES={given} hides every card: the CPU trains",
            "unset CUDA_VISIBLE_DEVICES",
        )
        return
    beyond = [one for one in given.split(",") if one.strip().isdigit() and int(one) >= count]
    if beyond:
        what = f"CUDA_VISIBLE_DEVICES={given}: there is no card {beyond[0]}, they are 0 to {count - 1}"
        yield fault("gpu", what, f"export CUDA_VISIBLE_DEVICES={','.join(map(str, range(count)))}")


def _build(supports: tuple[int, int] | None) -> Iterator[Finding]:
    """Does the driver carry the CUDA that torch was built for? A CUDA of one major version runs on every driver of
    it (CUDA compatibility guide, "minor version compatibility").
    """
    try:
        text = (folder_of("torch") / "version.py").read_text(encoding="utf-8")
    except (ModuleNotFoundError, OSError):
        return  # packages says so
    version = re.search(r"__version__ = '([^']+)'", text)
    name = version[1] if version else "?"
    built = _version(re.search(r"^cuda[^=]*= '(\d+)\.(\d+)", text, re.MULTILINE))
    release = name.partition("+")[0]
    if built is None:
        if not re.search(r"^hip[^=]*= '", text, re.MULTILINE):
            what = f"torch {name} is a build for the CPU alone: the card would stand idle"
            yield fault("torch", what, _install(release, supports))
    elif supports is None or built <= supports:
        yield ok("torch", f"{name} is built for CUDA {_dotted(built)}, which the driver has")
    elif built[0] == supports[0]:
        what = (
            f"{name} is built for CUDA {_dotted(built)}, the driver has {_dotted(supports)}: most of it works"
        )
        yield note("torch", what, _install(release, supports))
    else:
        what = (
            f"torch {name} is built for CUDA {_dotted(built)}, the driver carries {_dotted(supports)} at most"
        )
        yield fault("torch", what, _install(release, supports))


def _install(release: str, supports: tuple[int, int] | None) -> str:
    fitting = next((one for one in BUILDS if supports is None or one <= supports), BUILDS[-1])
    index = f" --index-url {INDEX}/cu{fitting[0]}{fitting[1]}"
    # An older CUDA does not have every release.
    wanted = f"torch=={release}" if fitting >= (12, 6) else "'torch>=2.6'"
    return f"pip install --force-reinstall {wanted}{index}"


def _version(match: re.Match[str] | None) -> tuple[int, int] | None:
    return (int(match[1]), int(match[2])) if match else None


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def of_the_run() -> list[Card]:
    """Those that this process may use."""
    listed, given = cards(), os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        return listed
    if given in HIDDEN:
        return []
    numbers = [int(one) for one in given.split(",") if one.strip().isdigit()]
    return [listed[number] for number in numbers if number < len(listed)] or listed
