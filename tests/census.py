"""What a process holds, counted after each job of a sweep: for tests/sweep/test_long_use.py and benchmarks/long_use.py.

    +hydra.callbacks.census._target_=census.Census +hydra.callbacks.census.file=FILE

makes Hydra call `Census` as it would a callback of a user's own, with this folder on PYTHONPATH; FILE gets a line of
JSON for each job.
"""

from __future__ import annotations

import atexit
import gc
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
from hydra.experimental.callback import Callback

from chatbot_sft.sweep import display


def handlers() -> list[logging.Handler]:
    """Of every logger there is."""
    loggers = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
    return [one for logger in loggers if isinstance(logger, logging.Logger) for one in logger.handlers]


def objects() -> tuple[Counter[type], int, int]:
    """(how many of each type are alive, of those that Python's garbage collector knows; tensors among them; the bytes
    that these store)
    """
    gc.collect()
    alive = gc.get_objects()
    kinds = Counter(map(type, alive))
    torch = sys.modules.get("torch")
    of_tensors = {kind for kind in kinds if torch is not None and issubclass(kind, torch.Tensor)}
    tensors = [one for one in alive if type(one) in of_tensors]
    stored = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}
    return kinds, len(tensors), sum(stored.values())


def count() -> dict[str, Any]:
    """All of it, sizes in bytes."""
    process = psutil.Process()
    types, number, stored = objects()
    return {
        "seconds": time.monotonic(),
        "cpu_seconds": round(sum(process.cpu_times()[:2]), 2),
        "rss": process.memory_info().rss,
        "tensors": number,
        "tensor_bytes": stored,
        "objects": types.total(),
        "types": {f"{kind.__module__}.{kind.__qualname__}": number for kind, number in types.most_common()},
        "threads": threading.active_count(),
        "system_threads": process.num_threads(),
        "descriptors": process.num_fds(),
        "temporary": len(list(Path(tempfile.gettempdir()).iterdir())),
        "loggers": len(logging.Logger.manager.loggerDict),
        "handlers": len(handlers()),
        "filters": sum(len(one.filters) for one in handlers()),
        "signals": [repr(signal.getsignal(one)) for one in sorted(signal.valid_signals())],
        "atexit": atexit._ncallbacks(),
        "gc_callbacks": len(gc.callbacks),
        "modules": len(sys.modules),
        "path": len(sys.path),
        "environment": len(os.environ),
        "warnings": len(warnings.filters),
        "children": len(process.children()),
    }


class Census(Callback):
    """Appends a count to `file` after each job."""

    def __init__(self, file: str) -> None:
        self.file = Path(file)
        # The sweep's display opens files and keeps what it read: it looks as a job ends, not when its thread has a turn.
        display.OFTEN = 1e6
        enter = display.Display.__enter__

        def noted(shown: display.Display) -> display.Display:
            self.shown = shown
            return enter(shown)

        display.Display.__enter__ = noted
        tempfile.tempdir = None  # a process that was forked has its parent's: TMPDIR counts

    def on_job_end(self, config: Any, job_return: Any, **kwargs: Any) -> None:
        self.shown.update()
        line = {"job": int(config.hydra.job.num), **count()}
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
