"""`python -m chatbot_sft.doctor`: what a run would find here.

Imports no torch: a broken GPU stack must not keep it from answering.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import shutil
import sys
from pathlib import Path

from chatbot_sft.cache import PARTS, cache_dir
from chatbot_sft.errors import UserError
from chatbot_sft.model import embedded, hardware
from chatbot_sft.model.engine import expected
from chatbot_sft.network import USER_SAYS_OFFLINE
from chatbot_sft.run.versions import versions
from chatbot_sft.save.gguf import llama_cpp


def main() -> None:
    """Print versions, hardware, the engine that `auto` would take, and the cache; or clear of that a part."""
    parser = argparse.ArgumentParser(prog="python -m chatbot_sft.doctor", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--clear-cache",
        nargs="?",
        const="all",
        metavar="PART",
        help="delete the cache, or one part of it: data, models, …",
    )
    given, unknown = parser.parse_known_args()
    if unknown:
        sys.exit(f"error: {unknown[0]}: no such argument; there is --clear-cache [PART]")
    part = given.clear_cache
    if part is not None:
        print(clear(part))
        return
    for name, value in findings():
        print(f"{name:<14}{value}")


def clear(part: str) -> str:
    """Delete the cache's folder `part` ("all": every one) and say what went.

    Exits with a line where there is no such part.
    """
    parts = cache_parts()
    if part != "all" and part not in parts:
        present = ", ".join(parts) or "nothing"
        sys.exit(f"error: {part}: no such part of the cache in {cache_dir()}; there is {present}")
    chosen = list(parts) if part == "all" else [part]
    for name in chosen:
        shutil.rmtree(cache_dir() / name)
    return f"cleared {', '.join(chosen) or 'nothing'}: {sum(parts[name] for name in chosen) / 1e6:,.0f} MB"


def cache_parts() -> dict[str, int]:
    """Folder of the cache → its size in bytes: `data` holds tokenised rows, `models` converted ones. Other
    folders there are not ours.
    """
    return {name: _size(cache_dir() / name) for name in sorted(PARTS) if (cache_dir() / name).is_dir()}


def findings() -> list[tuple[str, str]]:
    """(name, finding) in the order they are printed."""
    installed = versions()
    bfloat16 = "in hardware" if hardware.cpu_bfloat16() else "emulated"
    cpu = f"{_cpu_name()}, {os.cpu_count()} cores, bfloat16 {bfloat16}"
    rows = [
        ("python", f"{installed.pop('python')} at {sys.executable}"),
        ("platform", installed.pop("platform")),
        ("cpu", cpu),
        ("memory", f"{hardware.memory_gb():.1f} GB"),
    ]
    cards = [f"{card.name}, {card.memory_gb:.0f} GB, driver {card.driver}" for card in hardware.gpus()]
    rows += [("gpu", card) for card in cards or ["none (nvidia-smi lists none)"]]
    rows += list(installed.items())
    choice = expected("auto")
    rows.append(("engine", f"{choice.name} ({choice.reason})"))
    rows.append(("4-bit", _four_bit()))
    rows.append(("llama.cpp", _llama_cpp()))
    rows.append(("smollm2", _embedded()))
    hub = "offline (HF_HUB_OFFLINE)" if USER_SAYS_OFFLINE else "used where model.name is a hub id"
    rows.append(("hub", hub))
    rows.append(("HF_TOKEN", "set" if os.environ.get("HF_TOKEN") else "not set"))
    parts = ", ".join(f"{name} {size / 1e6:,.0f} MB" for name, size in cache_parts().items())
    rows.append(("cache", f"{cache_dir()} ({parts or 'empty'}); --clear-cache [PART] deletes it"))
    rows.append(("free disk", f"{shutil.disk_usage(Path.cwd()).free / 1e9:,.0f} GB here"))
    return rows


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.processor() or "unknown",
    )


def _four_bit() -> str:
    try:
        return f"bitsandbytes {importlib.metadata.version('bitsandbytes')}"
    except importlib.metadata.PackageNotFoundError:
        return "not available: bitsandbytes is not installed"


def _llama_cpp() -> str:
    """What checks GGUF files, and what quantises them."""
    try:
        quantizer = llama_cpp.quantizer(None)[0]
    except UserError:
        return f"not available: {llama_cpp.INSTALL}"
    wheel = (
        f"cyllama {importlib.metadata.version('cyllama')}"
        if llama_cpp.has_wheel()
        else f"no wheel to check GGUF files: {llama_cpp.INSTALL}"
    )
    return wheel if quantizer == sys.executable else f"{wheel}, {quantizer}"


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
