"""Several requests on their way at a time."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")


def all_of(
    work: Callable[[T], R], items: Sequence[T], at_once: int, told: Callable[[int], Any] = lambda count: None
) -> list[R]:
    """`work` of each of `items`, so many at a time; `told` hears of each that is done.

    The first exception of `work` is raised here, when those that were on their way have ended. Ctrl-C waits for
    none: a server may take its time, and the threads end with the process.
    """
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, R | BaseException]] = queue.SimpleQueue()
    stop = threading.Event()
    for place in range(len(items)):
        waiting.put(place)

    def worker() -> None:
        while not stop.is_set():
            try:
                place = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((place, work(items[place])))
            except BaseException as error:  # raised again by who waits for it
                stop.set()
                done.put((place, error))

    threads = [threading.Thread(target=worker, daemon=True) for _ in range(min(at_once, len(items)))]
    for thread in threads:
        thread.start()
    found: dict[int, R] = {}
    for _ in items:
        place, result = done.get()
        if isinstance(result, BaseException):
            for thread in threads:
                thread.join()
            raise result
        found[place] = result
        told(1)
    return [found[place] for place in range(len(items))]
