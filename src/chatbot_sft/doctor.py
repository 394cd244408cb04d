"""`python -m chatbot_sft.doctor`: what a run would find here. Imports no torch: a broken GPU stack must not keep it from answering."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from pathlib import Path

from chatbot_sft.cache import cache_dir
from chatbot_sft.errors import UserError
from chatbot_sft.model import embedded, hardware
from chatbot_sft.model.engine import expected
from chatbot_sft.model.hub import USER_SAYS_OFFLINE
from chatbot_sft.report.run_report import versions


def main() -> None:
    """Print versions, hardware, the engine that `auto` would take, and the cache."""
    if len(sys.argv) > 1:
        print(__doc__.splitlines()[0])
        sys.exit(0 if sys.argv[1] in ("-h", "--help") else f"error: {sys.argv[1]}: the doctor takes no arguments")
    for name, value in findings():
        print(f"{name:<14}{value}")


def findings() -> list[tuple[str, str]]:
    """(what, answer) in the order they are printed."""
    found = versions()
    cpu = f"{_cpu_name()}, {os.cpu_count()} cores, bfloat16 {'in hardware' if hardware.cpu_bfloat16() else 'emulated'}"
    rows = [
        ("python", f"{found.pop('python')} at {sys.executable}"),
        ("platform", found.pop("platform")),
        ("cpu", cpu),
        ("memory", f"{hardware.memory_gb():.1f} GB"),
    ]
    cards = hardware.gpus()
    rows += [("gpu", f"{card.name}, {card.memory_gb:.0f} GB, driver {card.driver}") for card in cards] or [("gpu", "none (nvidia-smi lists none)")]
    rows += list(found.items())
    choice = expected("auto")
    rows.append(("engine", f"{choice.name} ({choice.reason})"))
    rows.append(("4-bit", _four_bit()))
    rows.append(("smollm2", _embedded()))
    rows.append(("hub", "offline (HF_HUB_OFFLINE)" if USER_SAYS_OFFLINE else "used where model.name is a hub id"))
    rows.append(("HF_TOKEN", "set" if os.environ.get("HF_TOKEN") else "not set"))
    rows.append(("cache", f"{cache_dir()} ({_size(cache_dir()) / 1e6:,.0f} MB)"))
    rows.append(("free disk", f"{shutil.disk_usage(Path.cwd()).free / 1e9:,.0f} GB here"))
    return rows


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor() or "unknown")


def _four_bit() -> str:
    try:
        return f"bitsandbytes {importlib.metadata.version('bitsandbytes')}"
    except importlib.metadata.PackageNotFoundError:
        return "not available: bitsandbytes is not installed"


def _embedded() -> str:
    try:
        path = embedded.gguf_path()
    except UserError as error:
        return str(error)
    return f"installed ({path.stat().st_size / 1e6:.0f} MB)"


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else 0


if __name__ == "__main__":
    main()
