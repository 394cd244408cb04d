"""One run in several processes, as `torchrun` and `accelerate launch` start them. Imports no torch before there
is something to tell the other processes.
"""

from __future__ import annotations

import functools
import gc
import os
from collections.abc import Mapping
from datetime import datetime
from typing import Any, TypeVar

from chatbot_sft.errors import UserError

T = TypeVar("T")


def rank() -> int:
    """The number of this process; 0 is the first, which alone writes the run directory."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """The number of this process on its machine, and of the GPU that it uses."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def nodes() -> int:
    """How many launchers the processes have, each on its machine."""
    return int(os.environ.get("GROUP_WORLD_SIZE", "1"))


def is_first() -> bool:
    return rank() == 0


def error_prefix() -> str:
    """Before an error of this process, for a person."""
    return "error: " if is_first() else f"error in process {rank()}: "


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


def agree(values: Mapping[str, Any]) -> None:
    """Hold `values` of every process against the first one's.

    Raises:
        UserError: in all of them, where one differs: it was started by another command, or sees other files.
    """
    first, *others = gathered(dict(values))
    for number, other in enumerate(others, start=1):
        for key in first:
            if other[key] != first[key]:
                raise UserError(
                    f"process {number} has another {key} than process 0: {other[key]}, not {first[key]}; all of"
                    " them need the same command, and see the same files"
                )


def part() -> None:
    """Leave the other processes, if they have met. A sharded model that is still held would hold its connections
    beyond that, to break them as Python ends.
    """
    if processes() == 1:
        return
    import torch

    if torch.distributed.is_initialized():
        gc.collect()
        torch.distributed.destroy_process_group()


@functools.cache
def started() -> datetime:
    """When the run began: its processes share a launcher, so that they name one run directory."""
    if processes() == 1:
        return datetime.now()
    import psutil

    return datetime.fromtimestamp(psutil.Process(os.getppid()).create_time())
