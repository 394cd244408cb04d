"""How much memory a run takes: the GPU's where there is one, the process's own where there is not.

The peak is of the time since `begin`, so that a later job of a sweep does not report an earlier one's. A
CPU's can begin anew on Linux alone (and not where /proc is read-only); elsewhere it is the highest since the
process was started, and `peak_since` says so.
"""

from __future__ import annotations

import gc
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatbot_sft.model import hardware

STATUS = Path("/proc/self/status")
# Linux: "5" written there, the resident set's peak becomes what the set is now (man 5 proc_pid_clear_refs).
RESET, RESIDENT_PEAK = Path("/proc/self/clear_refs"), "5"


@dataclass(frozen=True)
class MemoryStatistics:
    """All sizes in GB (10^9 bytes).

    `peak_gb` is the highest since the start of what `peak_since` says, "run" or "process"; `start_gb` what
    there was before training.
    """

    device: str
    total_gb: float
    current_gb: float
    peak_gb: float
    start_gb: float | None = None
    peak_since: str = "process"

    def as_dict(self) -> dict[str, Any]:
        """The seed's keys (`current_memory_gb`, …) for `show_memory_stats`."""
        stats: dict[str, Any] = {
            "device": self.device,
            "total_memory_gb": self.total_gb,
            "current_memory_gb": self.current_gb,
            "peak_memory_gb": self.peak_gb,
        }
        if self.start_gb is not None:
            stats["training_memory_gb"] = round(self.peak_gb - self.start_gb, 3)
            stats["peak_percent"] = round(100 * self.peak_gb / self.total_gb, 1)
        return stats


@dataclass
class _Process:
    """What this process has begun to measure."""

    runs: int = 0
    anew: bool = False  # whether the kernel let the peak of the resident set begin with the present run
    peak: int = 0  # bytes: the highest of the run's earlier turns


_process = _Process()


def begin() -> None:
    """A run begins: its peak is what is the highest from here on."""
    _process.runs += 1
    _process.peak = 0
    _process.anew = _peak_anew()


def kept() -> Callable[[], None]:
    """What was measured until now; returns what goes on from there, without the peaks in between."""
    _, peak = _sizes()

    def again() -> None:
        _process.peak, _process.anew = peak, _peak_anew()

    return again


def _peak_anew() -> bool:
    """Let the peaks begin now; whether the kernel lets that of the resident set."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    try:
        RESET.write_text(RESIDENT_PEAK)
    except OSError:
        return False
    return True


def resident_peak(run: Callable[[], object]) -> float:
    """GB of the resident set at the highest while `run` runs; of the run so far, where the kernel does not let it
    begin anew. The run's own peak goes on.
    """
    _, before = _sizes()
    _process.peak = 0
    if not _peak_anew():
        _process.peak = before
    run()
    _, highest = _sizes()
    _process.peak = max(before, highest)
    return _gb(highest)


def settle() -> None:
    """What is in memory now stays there: a base and the libraries are a million objects, which each collection would
    look through in search of what a job has left.
    """
    gc.collect()
    gc.freeze()


def unsettle() -> None:
    """It may go again."""
    gc.unfreeze()


def release() -> None:
    """Give back what nobody needs any more."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def measure(start_gb: float | None = None) -> MemoryStatistics:
    """Now and at the highest: what PyTorch reserved on this process's GPU, or the process's resident set."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        device = torch.cuda.get_device_properties(torch.cuda.current_device())
        current, peak = _sizes()
        since = "run" if _process.runs else "process"
        return MemoryStatistics(
            device.name, _gb(device.total_memory), _gb(current), _gb(peak), start_gb, since
        )
    since = "run" if _process.anew or _process.runs == 1 else "process"
    current, peak = _sizes()
    return MemoryStatistics("CPU", round(hardware.memory_gb(), 3), _gb(current), _gb(peak), start_gb, since)


def _sizes() -> tuple[int, int]:
    """(bytes now, bytes at the highest in the run's turns) of the GPU's memory, or of the resident set."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        current, peak = torch.cuda.memory_reserved(), torch.cuda.max_memory_reserved()
    else:
        current, peak = _resident()
    return current, max(_process.peak, peak)


def _resident() -> tuple[int, int]:
    """(bytes now, bytes at the highest) of the resident set; without /proc the highest stands for both."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if not STATUS.exists():
        return most, most
    lines = dict(line.split(":", 1) for line in STATUS.read_text(encoding="utf-8").splitlines())
    current = 1024 * int(lines["VmRSS"].split()[0])
    # Not every /proc has the peak: a sandbox's may lack it.
    return current, max(current, 1024 * int(lines["VmHWM"].split()[0]) if "VmHWM" in lines else most)


def _gb(size: int) -> float:
    return round(size / 1e9, 3)
