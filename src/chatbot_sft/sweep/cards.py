"""Which GPUs, or how many threads, each of several workers on one machine has. Imports no torch."""

from __future__ import annotations

import itertools
import os

from chatbot_sft.errors import UserError
from chatbot_sft.model import hardware
from chatbot_sft.report.words import amount

VISIBLE = "CUDA_VISIBLE_DEVICES"
THREADS = "OMP_NUM_THREADS"


def named() -> list[str]:
    """The GPUs that this command may use, as CUDA_VISIBLE_DEVICES names them; one may be there twice."""
    visible = os.environ.get(VISIBLE)
    if visible is None:
        return [str(number) for number in range(len(hardware.gpus()))]
    # As CUDA reads it: the list ends where it names none.
    words = (word.strip() for word in visible.split(","))
    return list(itertools.takewhile(lambda word: word not in ("", "-1"), words))


def places(workers: int | str, each: int = 1) -> list[dict[str, str]]:
    """For every worker what is to be in its environment: `each` GPUs of its own; where there are none, its
    share of the processor's threads.

    `workers` is sweep.workers: "auto" is one for every `each` GPUs, and one where there are none.

    Raises:
        UserError: there are not as many GPUs.
    """
    cards = named()
    if not cards:
        count = 1 if workers == "auto" else int(workers)
        return [_threads(count, each)] * count
    if workers == "auto":
        cards = list(dict.fromkeys(cards))
    room = len(cards) // each
    count = max(1, room) if workers == "auto" else int(workers)
    if count > room:
        needed = f"sweep.workers={workers}" + (f" sweep.processes_per_job={each}" if each > 1 else "")
        twice = ",".join([cards[0]] * 2)
        hint = f"to put two on one, name it twice: {VISIBLE}={twice}" if each == 1 else "ask for fewer"
        raise UserError(
            f"{needed}: {amount(count * each, 'GPU')}, and there"
            f" {'is' if len(cards) == 1 else 'are'} {len(cards)}; {hint}"
        )
    threads = _threads(count, each)
    return [threads | {VISIBLE: ",".join(cards[n * each : (n + 1) * each])} for n in range(count)]


def _threads(workers: int, each: int) -> dict[str, str]:
    """An equal share for each process, unless the user has said how many."""
    processes = workers * each
    if processes == 1 or THREADS in os.environ:
        return {}
    return {THREADS: str(max(1, len(os.sched_getaffinity(0)) // processes))}
