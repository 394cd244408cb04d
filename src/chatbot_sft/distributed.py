"""One run in several processes, as `torchrun` and `accelerate launch` start them. Imports no torch."""

from __future__ import annotations

import functools
import os
from datetime import datetime


def rank() -> int:
    """The number of this process; 0 is the first, which alone writes the run directory."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """The number of this process on its machine, and of the GPU that it uses."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    return rank() == 0


@functools.cache
def started() -> datetime:
    """When the run began: its processes share a launcher, so that they name one run directory."""
    if processes() == 1:
        return datetime.now()
    import psutil

    return datetime.fromtimestamp(psutil.Process(os.getppid()).create_time())
