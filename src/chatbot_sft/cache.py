"""Where things that are made once are kept, and how a folder appears there whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def cache_dir() -> Path:
    """``$CHATBOT_SFT_CACHE``, or ``~/.cache/chatbot_sft``."""
    return Path(os.environ.get("CHATBOT_SFT_CACHE") or Path.home() / ".cache" / "chatbot_sft")


def build_folder(target: Path, build: Callable[[Path], None], replace: bool = False) -> Path:
    """Fill a temporary folder beside `target` with `build(folder)`, then rename it to `target` in one step.

    Where another process was first, its folder is kept and ours is thrown away: both are the same. With `replace` ours takes the place of what was
    there, once it is whole; whoever reads the old one goes on reading it. A failed build leaves everything as it was.
    """
    if target.is_dir() and not replace:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    made = work / target.name
    try:
        made.mkdir()
        build(made)
        _share(made)
        replaced = work / "replaced"
        if replace and target.is_dir():
            target.rename(replaced)
        try:
            made.rename(target)
        except OSError:
            if replaced.is_dir() and not target.exists():
                replaced.rename(target)
            if replace or not target.is_dir():
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _share(folder: Path) -> None:
    """Give everything the user's usual permissions: temporary folders and safetensors files are made for their owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    folder.chmod(0o777 & ~mask)
    for path in folder.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
