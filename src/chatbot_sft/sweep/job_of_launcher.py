"""What a job of one of Hydra's launchers does: it starts a worker of the sweep, and passes signals on to it.

The worker is a process of its own, the same command line as anywhere else. submitit's way to requeue a
preempted job is its handler of a signal; that is called once the worker has stopped with a checkpoint, which
takes as long as an optimizer step.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from chatbot_sft.errors import UserError
from chatbot_sft.sweep import worker_process


def work(
    config: DictConfig, words: Sequence[str], folder: str, sweep: Path, places: Sequence[Mapping[str, str]]
) -> int:
    """Run the worker `words` in `folder` to its end; returns its exit code. `places` has what each worker is to
    have in its environment.

    Raises:
        UserError: a signal has stopped it.
    """
    number = HydraConfig.get().job.num
    running: list[subprocess.Popen[bytes]] = []

    def stop() -> None:
        for process in running:
            process.terminate()

    with worker_process.passed_on(stop) as asked:
        log = worker_process.log_file(sweep, number)
        running.append(worker_process.start(words, places[number], log, folder))
        if asked:  # before it was there
            stop()
        code = running[0].wait()
    if not asked or code == 0:
        return code
    for name in asked:
        handler = signal.getsignal(name)
        if name != signal.SIGINT and callable(handler):
            handler(name, None)  # submitit's for its own signal requeues the job, and ends this process
    raise UserError(f"worker {number} was stopped by {asked[0].name}")
