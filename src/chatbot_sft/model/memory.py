"""How much memory a run takes: the GPU's where there is one, the process's own where there is not."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatbot_sft.model import hardware


@dataclass(frozen=True)
class MemoryStatistics:
    """All sizes in GB (10^9 bytes). `training_gb` is what was added since `start_gb`."""

    device: str
    total_gb: float
    current_gb: float
    peak_gb: float
    start_gb: float | None = None

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


def measure(start_gb: float | None = None) -> MemoryStatistics:
    """Now and at the highest: memory reserved by PyTorch on this process's GPU, or the resident set of this process."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        device = torch.cuda.get_device_properties(torch.cuda.current_device())
        current, peak = torch.cuda.memory_reserved(), torch.cuda.max_memory_reserved()
        return MemoryStatistics(device.name, _gb(device.total_memory), _gb(current), _gb(peak), start_gb)
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return MemoryStatistics("CPU", round(hardware.memory_gb(), 3), _gb(_resident(peak)), _gb(peak), start_gb)


def _resident(otherwise: int) -> int:
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * resource.getpagesize() if statm.exists() else otherwise


def _gb(size: int) -> float:
    return round(size / 1e9, 3)
