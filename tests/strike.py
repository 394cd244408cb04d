"""Signals that a process sends itself at a moment of its own work: a test that looks on and sends them would
come too late on a busy machine.

The moments are Python's audit events (docs.python.org/3/library/audit_events.html). What `at` and `stopping_in`
return belongs into the environment of the process; warm.py's forks install it, `cold` has any other Python do so.
"""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

VARIABLE = "CHATBOT_SFT_TEST_STRIKE"
RENAMED_TO = ("os.rename", 1)  # an event, and which of its arguments is the path
RENAMED_FROM = ("os.rename", 0)
OPENED = ("open", 0)


def at(path: Path, moment=RENAMED_TO, number=signal.SIGKILL, once: Path | None = None, to_parent=False):
    """Just before `moment` of `path`. With `once`, a file, only the first process that comes there, whose pid is
    in it then. A parent passes the signal on: the process waits until it is asked to stop.
    """
    event, argument = moment
    given = {"event": event, "argument": argument, "path": str(path), "number": number}
    return {VARIABLE: json.dumps({**given, "once": once and str(once), "to_parent": to_parent})}


def stopping_in(folder: Path):
    """The process stops before everything that it does to what is in `folder`; see `stops`."""
    return {VARIABLE: json.dumps({"folder": str(folder)})}


def stops(pid: int) -> Iterator[None]:
    """One for each time that the process has stopped; it goes on after it."""
    while True:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return
        if state == "T":
            yield
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        else:
            time.sleep(0.001)


def cold(environment):
    """`environment` for a Python that no warm process forks."""
    folder = str(Path(__file__).with_name("struck"))  # its sitecustomize.py
    path = os.pathsep.join(
        filter(None, [folder, environment.get("PYTHONPATH", os.environ.get("PYTHONPATH"))])
    )
    return {**environment, "PYTHONPATH": path}


def install() -> None:
    """In the process itself: what its environment asks for."""
    if VARIABLE not in os.environ:
        return
    asked = json.loads(os.environ[VARIABLE])
    sys.addaudithook(_stop_in(asked["folder"]) if "folder" in asked else _strike(**asked))


def _strike(event, argument, path, number, once, to_parent):
    def hook(name, arguments):
        if name != event or str(arguments[argument]) != path:
            return
        if once:
            try:
                with open(once, "x") as file:  # noqa: PTH123
                    file.write(str(os.getpid()))
            except FileExistsError:
                return
        os.kill(os.getppid() if to_parent else os.getpid(), number)
        if to_parent:
            from chatbot_sft import preemption

            while not preemption.requested():
                time.sleep(0.01)

    return hook


def _stop_in(folder):
    changes = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree"}

    def hook(name, arguments):
        if name in changes and str(arguments[0]).startswith(folder):
            os.kill(os.getpid(), signal.SIGSTOP)

    return hook
