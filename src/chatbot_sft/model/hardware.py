"""What machine this is, told without importing torch: the doctor and the engine choice ask this first."""

from __future__ import annotations

import functools
import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Gpu:
    name: str
    memory_gb: float  # total, in units of 10^9 bytes
    driver: str
    capability: float = 0.0  # compute capability; 0 where the driver does not say


@functools.cache
def gpus() -> tuple[Gpu, ...]:
    """The NVIDIA GPUs that CUDA_VISIBLE_DEVICES leaves visible, as nvidia-smi lists them."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1") or shutil.which("nvidia-smi") is None:
        return ()
    fields = "name,memory.total,driver_version,compute_cap"
    query = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    rows = [line.split(", ") for line in answer.strip().splitlines()]
    return tuple(
        Gpu(name, round(int(mib) * 2**20 / 1e9, 1), driver, _number(capability))
        for name, mib, driver, capability in rows
    )


def _number(text: str) -> float:
    """0 for [N/A]."""
    return float(text) if text.replace(".", "").isdigit() else 0.0


def device() -> str:
    """What computes: the first GPU's name, else the processor's."""
    if gpus():
        return gpus()[0].name
    return processor()


def processor() -> str:
    """Its name; the kind of machine where that is not told."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.machine()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )


def memory_gb() -> float:
    """The machine's main memory in GB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


@functools.cache
def cpu_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware (AVX512-BF16 or AMX), as /proc/cpuinfo tells."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
