"""A worker of a sweep as a process of its own: the same command line, which joins the sweep in its directory."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from chatbot_sft.command_line import written_out

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
JOINS = "sweep.worker=true"
PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux's prctl


def command(folder: Path, workers: int) -> list[str]:
    """The command line of each of the `workers` of this process's sweep, which is in `folder`."""
    own = [JOINS, f"sweep.workers={workers}", written_out("hydra.sweep.dir", str(folder))]
    return [sys.executable, "-m", "chatbot_sft", *sys.argv[1:], *own]


def log_file(sweep: Path, number: int) -> Path:
    """What a worker says goes there."""
    return sweep / ".workers" / f"{number}.log"


def start(
    words: Sequence[str], place: Mapping[str, str], log: Path, folder: str | None = None
) -> subprocess.Popen[bytes]:
    """Start a worker in `folder`, with `place` in its environment."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            words, cwd=folder, env={**os.environ, **place}, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            **apart(),
        )  # fmt: skip


def apart() -> dict[str, Any]:
    """Of subprocess.Popen, for a process that signals reach through this one alone: not a terminal's Ctrl-C, but
    the end of this one, however it came.
    """
    return {"process_group": 0, "preexec_fn": _end_with_parent}


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGTERM)


@contextlib.contextmanager
def passed_on(stop: Callable[[], None]) -> Iterator[list[signal.Signals]]:
    """Within it each signal calls `stop`, which asks workers to stop with a checkpoint; those that have come.

    Outside of the main thread signals stay as they are.
    """
    asked: list[signal.Signals] = []

    def receive(number: int, frame: Any) -> None:
        asked.append(signal.Signals(number))
        stop()

    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.signal(number, receive) for number in SIGNALS}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
