"""The random numbers that training draws: dropout, noise, a data loader's order. Imports torch."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy
import torch


def random_state() -> dict[str, Any]:
    """Of every generator, in types that torch loads with weights_only=True."""
    name, keys, *rest = numpy.random.get_state()
    states = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys), *rest),
        "cpu": torch.get_rng_state(),
    }
    return states | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def use_random_state(states: dict[str, Any]) -> None:
    """Go on from `states`."""
    name, keys, *rest = states["numpy"]
    random.setstate(states["python"])
    numpy.random.set_state((name, keys.numpy(), *rest))
    torch.set_rng_state(states["cpu"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Leave every generator as it was: a data loader draws from torch's, and dropout would go on elsewhere."""
    states = random_state()
    try:
        yield
    finally:
        use_random_state(states)
