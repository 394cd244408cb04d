"""One run in several processes, as `torchrun` and `accelerate launch` start them. Imports no torch before there
is something to tell the other processes.
"""

from __future__ import annotations

import functools
import os
from datetime import datetime
from typing import Any, TypeVar

T = TypeVar("T")


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


def gathered(value: T) -> list[T]:
    """The `value` of every process, by its rank: what they agree on has to be the same in each. All of them
    have to call it.
    """
    if processes() == 1:
        return [value]
    import torch

    values: list[Any] = [None] * processes()
    torch.distributed.all_gather_object(values, value)
    return values


@functools.cache
def started() -> datetime:
    """When the run began: its processes share a launcher, so that they name one run directory."""
    if processes() == 1:
        return datetime.now()
    import psutil

    return datetime.fromtimestamp(psutil.Process(os.getppid()).create_time())
