"""One thing that was looked at, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import ParamSpec

P = ParamSpec("P")


class State(StrEnum):
    OK = "ok"
    NOTE = "note"  # the run goes without it, or it is known to be so by its name alone
    FAULT = "fault"  # the run would fail, or train something else than it says


@dataclass(frozen=True)
class Finding:
    """`repair` is a command line, or the override that takes the cause away; empty where nothing is wrong."""

    name: str
    state: State
    what: str
    repair: str = ""


def ok(name: str, what: str) -> Finding:
    return Finding(name, State.OK, what)


def note(name: str, what: str, repair: str = "") -> Finding:
    return Finding(name, State.NOTE, what, repair)


def fault(name: str, what: str, repair: str) -> Finding:
    return Finding(name, State.FAULT, what, repair)


def examined(
    name: str, check: Callable[P, Iterable[Finding]], *args: P.args, **kwargs: P.kwargs
) -> Iterator[Finding]:
    """What `check` finds; that it cannot look, because something it needs is broken, is a finding too."""
    try:
        yield from check(*args, **kwargs)
    except Exception as error:
        missing = error.name if isinstance(error, ImportError) else None
        why = " ".join(str(error).split()) or "nothing said"
        repair = f"pip install --force-reinstall {missing}" if missing else REINSTALL
        yield fault(name, f"cannot be looked at: {type(error).__name__}: {why}", repair)


REINSTALL = "pip install --force-reinstall chatbot-sft"
