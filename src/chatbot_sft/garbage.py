"""Python's garbage collection, out of the way of work that leaves none."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """For what makes hundreds of thousands of small objects and drops no cycles of them."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def settle() -> None:
    """What is in memory now stays there, until this is called again: a base and the libraries are a million objects,
    which each collection would look through in search of what a job has left.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
