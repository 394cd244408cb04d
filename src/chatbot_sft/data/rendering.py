"""Bounds on the time and memory of one rendering: a chat template is a program, maybe of a stranger's."""

from __future__ import annotations

import contextlib
import resource
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SECONDS = 20.0  # a long conversation takes milliseconds
BYTES = 2 << 30  # that a rendering may take beyond what the process has
LARGEST_POWER = 1000  # an exponent; Python would compute 9**9**9 without ever looking at a signal

STATM = Path("/proc/self/statm")
DATA = 5  # the column of statm that RLIMIT_DATA is about, in pages


class OutOfBounds(Exception):
    """The rendering took too long."""


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Within it, work that takes too long ends with OutOfBounds, too much memory with MemoryError.

    The time is bounded in the main thread alone: only there may a program receive a signal.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    timed = in_main_thread and signal.getitimer(signal.ITIMER_REAL)[0] == 0
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    allowed = (
        int(STATM.read_bytes().split()[DATA]) * resource.getpagesize() + BYTES
        if STATM.exists()
        else resource.RLIM_INFINITY
    )
    if timed:
        former = signal.signal(signal.SIGALRM, _stop)
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        if resource.RLIM_INFINITY in (soft, hard) or allowed < soft:
            resource.setrlimit(resource.RLIMIT_DATA, (allowed, hard))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
        if timed:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, former)


def _stop(number: int, frame: Any) -> None:
    raise OutOfBounds
