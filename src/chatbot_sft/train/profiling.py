"""`training.profile`: a torch.profiler trace and a table of some steps, of the run's first process."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torch import profiler
from transformers import TrainerCallback

log = logging.getLogger(__name__)

# Steps. The first ones compile and capture; one more is recorded and thrown away: the profiler warms up too.
WAIT, WARM_UP, RECORDED = 2, 1, 3
ROWS = 40  # of the table


class Profile(TrainerCallback):
    """`start` it, call `step` after each optimizer step, then `stop`; as a callback it does so itself."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        steps = profiler.schedule(wait=WAIT, warmup=WARM_UP, active=RECORDED, repeat=1)
        self._profiler = profiler.profile(schedule=steps, on_trace_ready=self._write)

    def start(self) -> None:
        self._profiler.start()

    def step(self) -> None:
        self._profiler.step()

    def stop(self) -> None:
        self._profiler.stop()
        if not (self.folder / "table.txt").exists():
            log.warning(
                "profile: the training ended before step %d, so nothing was recorded", WAIT + WARM_UP + 1
            )

    def _write(self, recorded: profiler.profile) -> None:
        self.folder.mkdir(exist_ok=True)
        recorded.export_chrome_trace(str(self.folder / "trace.json"))
        averages = recorded.key_averages()
        gpu = any(event.self_device_time_total for event in averages)
        longest = "self_device_time_total" if gpu else "self_cpu_time_total"
        table = averages.table(sort_by=longest, row_limit=ROWS)
        (self.folder / "table.txt").write_text(
            f"{RECORDED} steps, from step {WAIT + WARM_UP + 1} on\n{table}", encoding="utf-8"
        )
        log.info("profile: %s and trace.json beside it", self.folder / "table.txt")

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.step()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.stop()
