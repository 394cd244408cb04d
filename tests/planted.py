"""Faults of an environment, to be planted: metadata of packages, a driver, a PyTorch."""

import os
from pathlib import Path

SMI = """#!/bin/sh
case "$*" in
  *memory.total,memory.free*) echo 'NVIDIA L4, 23034, {free}' ;;
  *query-gpu*) echo 'NVIDIA L4, 23034, 550.54.14, 8.9' ;;
  *) echo '| NVIDIA-SMI 550.54.14    Driver Version: 550.54.14    CUDA Version: {cuda}  |' ;;
esac
exit {code}
"""


def metadata(folder: Path, name: str, version: str, *lines: str) -> Path:
    place = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    place.mkdir(parents=True)
    text = "\n".join(["Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}", *lines])
    (place / "METADATA").write_text(text + "\n")
    return folder


def smi(folder: Path, cuda="12.4", free=22000, code=0) -> str:
    """PATH with an nvidia-smi of one L4."""
    folder.mkdir()
    (folder / "nvidia-smi").write_text(SMI.format(cuda=cuda, free=free, code=code))
    (folder / "nvidia-smi").chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def torch_for(folder: Path, cuda: str | None) -> str:
    """PYTHONPATH with a torch that was built for `cuda`, as far as its own files say."""
    (folder / "torch").mkdir(parents=True)
    (folder / "torch" / "__init__.py").write_text("raise ImportError('nobody imports it')\n")
    (folder / "torch" / "version.py").write_text(
        f"__version__ = '2.13.0'\ncuda: Optional[str] = {cuda!r}\nhip: Optional[str] = None\n"
    )
    return os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
