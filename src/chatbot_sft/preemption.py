"""SIGTERM, SIGUSR1 and SIGUSR2, with which schedulers take a machine back, and Ctrl-C: the run stops in good order,
with a checkpoint of the step under way, and 143 (Ctrl-C: 130). Once more, and it stops at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)  # the last is submitit's
CTRL_C = signal.SIGINT
HEARD = b"\nstopping after this step, with a checkpoint; Ctrl-C once more stops at once\n"
EXIT_CODE = 128 + signal.SIGTERM  # for all: what a scheduler expects of a process that it asked to go
SAME = 1.0  # seconds; `timeout` and others signal a process and then its whole group: one request


class Preempted(SystemExit):
    """A signal asked the run to stop. A SystemExit, so that it ends a sweep too; `signal` is its name."""

    def __init__(self, name: str) -> None:
        super().__init__(EXIT_CODE)
        self.signal = name


@dataclass
class _State:
    received: str | None = None
    at: float = 0.0
    deferred: bool = False

    def clear(self) -> None:
        self.received, self.at, self.deferred = None, 0.0, False


_state = _State()


def requested() -> bool:
    """Whether a signal waits for the current optimizer step to end."""
    return _state.received is not None


def _stop(name: str) -> BaseException:
    return KeyboardInterrupt() if name == CTRL_C.name else Preempted(name)


def ask(name: str) -> None:
    """Ask the run under way to stop after its optimizer step, as the signal `name` would; any thread may."""
    if _state.received is None:
        _state.received, _state.at = name, time.monotonic()


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Within it, a signal raises Preempted (Ctrl-C: KeyboardInterrupt) at once, or at the end of a `deferred` block.

    Outside of the main thread signals stay as they are.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = os.getpid()

    def receive(number: int, frame: Any) -> None:
        if os.getpid() != owner:  # a forked worker: its parent ends it with this very signal
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        now = time.monotonic()
        if _state.received is not None and now - _state.at < SAME:
            return
        first = _state.received is None
        _state.received, _state.at = signal.Signals(number).name, now
        if not (first and _state.deferred):
            raise _stop(_state.received)
        if number == CTRL_C:  # nothing but that may be called in a signal's handler
            with contextlib.suppress(OSError):
                os.write(2, HEARD)

    _state.clear()
    before = {number: signal.signal(number, receive) for number in _signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _state.clear()  # what was asked of this run is asked of no later one


def kept() -> Callable[[], None]:
    """Who receives signals now, and what was asked of them; returns what makes it so again."""
    state = replace(_state)
    main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in _signals()} if main else {}

    def again() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        vars(_state).update(vars(state))

    return again


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Within it the first signal only sets `requested`; a second one, or the block's end, raises what it means."""
    _state.deferred = True
    try:
        yield
    finally:
        _state.deferred = False
    if _state.received is not None:
        raise _stop(_state.received)


def _signals() -> tuple[signal.Signals, ...]:
    """Ctrl-C among them, unless this process was started to ignore it, as a shell's background jobs are."""
    return SIGNALS if signal.getsignal(CTRL_C) == signal.SIG_IGN else (*SIGNALS, CTRL_C)
