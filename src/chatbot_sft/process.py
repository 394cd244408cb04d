"""What a run sets in its process: put in at each of its turns, taken out at their ends, so that no other run
sees it.

A part is a function that looks at one thing as it is now and returns what makes it so again.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Generator
from typing import Any, TypeVar

from chatbot_sft import logs, network, preemption
from chatbot_sft.data import template
from chatbot_sft.model import memory
from chatbot_sft.run.turn import Turn

T = TypeVar("T")
Part = Callable[[], Callable[[], None]]

# Of transformers' enable_full_determinism; those of a base's own are `warm.Held`'s.
VARIABLES = (
    *("CUDA_LAUNCH_BLOCKING", "CUBLAS_WORKSPACE_CONFIG", "ASCEND_LAUNCH_BLOCKING"),
    *("HCCL_DETERMINISTIC", "FLASH_ATTENTION_DETERMINISTIC"),
)


def in_turns(run: Generator[Turn, None, T], *own: Part) -> Generator[Turn, None, T]:
    """`run`, which finds the process at each turn as it has left it, with its `own` parts; around its turns the
    process is as if it had none. What is thrown into it is thrown into `run`.
    """
    inside: Callable[[], None] | None = None
    thrown: BaseException | None = None
    while True:
        outside, ended = kept(own), True
        if inside is not None:
            inside()
        try:
            turn = next(run) if thrown is None else run.throw(thrown)
            ended = False
        except StopIteration as end:
            return end.value
        finally:
            asked_to_stop = preemption.requested()
            inside = None if ended else kept(own)
            outside()
        thrown = None
        if asked_to_stop:  # the signal was this run's: it goes on, and stops
            continue
        try:
            yield turn
        except BaseException as error:
            thrown = error


def kept(own: tuple[Part, ...]) -> Callable[[], None]:
    """All parts, as one."""
    again = [part() for part in (*PARTS, *own)]

    def all_again() -> None:
        for one in again:
            one()

    return all_again


def streams() -> Callable[[], None]:
    """What `logs.quiet` redirects."""
    out, err = sys.stdout, sys.stderr

    def again() -> None:
        sys.stdout, sys.stderr = out, err

    return again


def variables() -> Callable[[], None]:
    values = {name: os.environ.get(name) for name in VARIABLES}

    def again() -> None:
        for name, value in values.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    return again


def random_numbers() -> Callable[[], None]:
    """Of every generator; of Python's alone before torch is imported."""
    if "torch" not in sys.modules:
        state = random.getstate()
        return lambda: random.setstate(state)
    from chatbot_sft.train.randomness import random_state, use_random_state

    states = random_state()
    return lambda: use_random_state(states)


def arithmetic() -> Callable[[], None]:
    """How torch computes: what training.full_determinism and training.tf32 change, and a replay's threads."""
    if "torch" not in sys.modules:
        return lambda: None
    import torch

    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    backends: Any = torch.backends
    cudnn = backends.cudnn
    flags = cudnn.deterministic, cudnn.benchmark
    precision = getattr(backends, "fp32_precision", None)  # from PyTorch 2.9 on, where training.tf32 sets it
    dtype, gradients = torch.get_default_dtype(), torch.is_grad_enabled()
    threads = torch.get_num_threads()

    def again() -> None:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        cudnn.deterministic, cudnn.benchmark = flags
        if precision is not None and backends.fp32_precision != precision:
            backends.fp32_precision = precision
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(gradients)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)

    return again


PARTS: tuple[Part, ...] = (
    streams,
    logs.kept,
    preemption.kept,
    template.kept,
    network.kept,
    variables,
    memory.kept,
    arithmetic,
    random_numbers,
)
