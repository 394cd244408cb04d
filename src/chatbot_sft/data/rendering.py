"""Bounds on the time and memory of one rendering: a chat template is a program, maybe of a stranger's."""

from __future__ import annotations

import contextlib
import resource
import signal
import threading
from collections.abc import Iterator, Sized
from pathlib import Path
from typing import Any

SECONDS = 20.0  # a long conversation takes milliseconds
BYTES = 2 << 30  # that a rendering may take beyond what the process has
AGAIN = 1.0  # seconds, to say it again where something in between has caught it
LONGEST = 1 << 26  # characters of one conversation, and items of what a template multiplies
LARGEST_POWER = 1000  # an exponent; Python would compute 9**9**9 without ever looking at a signal
LARGEST_NUMBER = 1 << 14  # bits, for the same reason

STATM = Path("/proc/self/statm")
DATA = 5  # the column of statm that RLIMIT_DATA is about, in pages


class OutOfBounds(BaseException):
    """The rendering took too long. No Exception: jinja2 catches those while it evaluates what is constant."""


def refuse_product(operator: str, left: Any, right: Any) -> None:
    """Raises OverflowError where `left ** right` or `left * right` would take long or be large: Python computes
    either without looking at a signal.
    """
    if operator == "**":
        bits = (
            (left.bit_length() if isinstance(left, int) else 1) * abs(right) if isinstance(right, int) else 0
        )
        if isinstance(right, int) and (right > LARGEST_POWER or bits > LARGEST_NUMBER):
            raise OverflowError(f"an exponent of {right}")
    elif isinstance(left, int) and isinstance(right, int):
        if left.bit_length() + right.bit_length() > LARGEST_NUMBER:
            raise OverflowError("a product of numbers that are too large")
    else:
        sized, times = (right, left) if isinstance(left, int) else (left, right)
        if isinstance(times, int) and isinstance(sized, Sized) and len(sized) * times > LONGEST:
            raise OverflowError(f"{times} times something of length {len(sized)}")


def refuse_precision(digits: Any) -> None:
    """Raises OverflowError for more digits than a number has: the filter `round` computes ten to that power."""
    if isinstance(digits, int) and digits > LARGEST_POWER:
        raise OverflowError(f"{digits} digits")


@contextlib.contextmanager
def bounded(seconds: float | None = None) -> Iterator[None]:
    """Within it, work that takes too long ends with OutOfBounds, too much memory with MemoryError. `seconds`: in
    place of `SECONDS`.

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
        signal.setitimer(signal.ITIMER_REAL, SECONDS if seconds is None else seconds, AGAIN)
    try:
        if resource.RLIM_INFINITY in (soft, hard) or allowed < soft:
            resource.setrlimit(resource.RLIMIT_DATA, (allowed, hard))
        yield
    finally:
        if timed:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, former)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _stop(number: int, frame: Any) -> None:
    raise OutOfBounds
