"""The command line of the doctor. Exit code 1 where something is wrong."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, NoReturn

from chatbot_sft import json_output
from chatbot_sft.doctor import bytecode, gpu, packages, surroundings
from chatbot_sft.doctor.finding import REINSTALL, Finding, State, examined, fault
from chatbot_sft.doctor.run import Asked, asked
from chatbot_sft.report.words import amount

if TYPE_CHECKING:
    from chatbot_sft.config import Config

WIDTH = 12


def main() -> None:
    """Print what was found, or clear the cache."""
    for stream in (sys.stdout, sys.stderr):  # a locale without letters is one of the findings
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    with json_output.answering(json_output.FLAG in sys.argv[1:]) as values:
        given, words = _parsed(sys.argv[1:])
        try:
            if given.clear_cache is not None:
                from chatbot_sft.doctor.caches import clear

                values["cleared"] = clear(given.clear_cache)
                print(values["cleared"])
                return
            found = list(findings(words, given.online))
        except Exception as error:
            _fail(error)
        values |= {"findings": [asdict(one) for one in found], "faults": faults(found)}
        if not given.json:
            _print(lines(found))
        sys.exit(1 if faults(found) else 0)


def findings(words: Sequence[str], online: bool = False) -> Iterator[Finding]:
    """What there is to say of the environment and the run that `words` compose, in the order of the subjects.

    Raises:
        UserError, HydraException, OmegaConfBaseException: the configuration's, as the launcher has it.
    """
    run: Asked | None = None
    broken: list[Finding] = []
    try:
        run = asked(words)
    except ImportError as error:  # what composes is broken itself
        what = f"cannot be composed: {type(error).__name__}: {error}"
        broken = [
            fault("run", what, f"pip install --force-reinstall {error.name}" if error.name else REINSTALL)
        ]
    yield from examined("folder", surroundings.check, run.own_folders if run else [])
    yield from examined("packages", packages.check, _extras(run))
    yield from examined("bytecode", bytecode.check)
    yield from examined("gpu", gpu.check)
    yield from broken
    if run:
        yield from examined("run", of_run, run)
    yield from examined("hub", _hub, run, online)
    yield from examined("cache", _caches, run)


def of_run(run: Asked) -> Iterator[Finding]:
    """What is judged against the composed run."""
    from chatbot_sft.doctor import extras, hub, room, takes

    settings = run.settings
    yield from examined("engine", takes.check, settings)
    yield from examined("extras", extras.check, settings)
    yield from examined("model", hub.model, settings)
    yield from examined("data", hub.data, settings)
    yield from examined("memory", _room, settings)
    yield from examined("shm", room.shared_memory, settings)
    yield from examined("output", room.writable, "output", run.folder, "hydra.run.dir=/another/folder")


def _room(settings: Config) -> Iterator[Finding]:
    from chatbot_sft.doctor import room, takes

    size = takes.size(settings)
    yield from examined("memory", room.memory, settings, size)
    yield from examined("disk", room.disks, takes.writes(settings, size))


def _hub(run: Asked | None, online: bool) -> Iterator[Finding]:
    from chatbot_sft.doctor import hub

    return hub.hub(run.settings if run else None, online)


def _caches(run: Asked | None) -> Iterator[Finding]:
    from chatbot_sft.doctor import caches, hub

    return caches.check(run is not None and hub.uses_hub(run.settings))


def _extras(run: Asked | None) -> list[str]:
    if run is None:
        return []
    from chatbot_sft.doctor import extras

    return extras.names(run.settings)


def _print(said: Iterable[str]) -> None:
    try:
        for line in said:
            print(line)
        sys.stdout.flush()
    except BrokenPipeError:
        from chatbot_sft.arguments import read_enough

        read_enough()


def faults(found: Sequence[Finding]) -> int:
    return sum(one.state is State.FAULT for one in found)


def lines(found: Sequence[Finding]) -> Iterator[str]:
    """A line each, the faults last, and below what is wrong the command that repairs it."""
    try:
        from chatbot_sft.report.plain import shown_line
    except ImportError:  # a package that it needs is broken, which is among the lines

        def shown_line(text: str) -> str:
            return ascii(text)[1:-1]

    for state in State:
        for one in found:
            if one.state is state:
                yield shown_line(f"{state:<6}{one.name:<{WIDTH}}{one.what}")
                if one.repair:
                    yield shown_line(f"{'':<6}{'':<{WIDTH}}→ {one.repair}")
    count = faults(found)
    yield amount(count, "fault") if count else "no fault"


def _parsed(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="python -m chatbot_sft.doctor",
        usage="%(prog)s [OVERRIDE …] [--json] [--online] [--clear-cache [PART]]",
        description="What in this environment would keep the run that the overrides compose from working, and the"
        " command that repairs it. Overrides, --config-dir and --config-name are those of python -m chatbot_sft.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--json", action="store_true", help="one JSON object in place of the lines")
    add(
        "--online",
        action="store_true",
        help="ask the hub, too: does it answer, does it know the token, may it have the model",
    )
    add(
        "--clear-cache",
        nargs="?",
        const="all",
        metavar="PART",
        help="delete the cache, or one part of it: data, models, …",
    )
    return parser.parse_known_args(words)


def _fail(error: Exception) -> NoReturn:
    if isinstance(error, LookupError):
        sys.exit(f"error: {error}")
    from chatbot_sft.arguments import fail

    fail(error)
