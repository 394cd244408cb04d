"""Are the libraries compiled, or does each start compile them anew? uv does not as it installs; Python keeps what it
compiles beside the modules, where it may. Nothing is imported of them.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from chatbot_sft.doctor.finding import Finding, note, ok
from chatbot_sft.doctor.surroundings import LIBRARIES
from chatbot_sft.errors import listed

COST = "each start compiles them anew, a third of the time that its imports take"


def check() -> Iterator[Finding]:
    """Of each library its first file says it for all."""
    from chatbot_sft.doctor import room

    missing = {name: file for name in LIBRARIES if (file := _compiled(name)) and not file.is_file()}
    closed = [file.parent for file in missing.values() if not os.access(room.existing(file.parent), os.W_OK)]
    if not missing:
        yield ok("bytecode", "every library that a run imports is compiled")
    elif sys.dont_write_bytecode:
        what = f"not compiled: {listed(missing)}; PYTHONDONTWRITEBYTECODE is set: {COST}"
        yield note("bytecode", what, "unset PYTHONDONTWRITEBYTECODE")
    elif closed:
        what = f"not compiled: {listed(missing)}; {closed[0]} cannot be written: {COST}"
        yield note("bytecode", what, "export PYTHONPYCACHEPREFIX=~/.cache/python")
    else:
        yield ok("bytecode", f"not compiled yet: {listed(missing)}; the first start does it")


def _compiled(name: str) -> Path | None:
    """Where Python looks for it; None where there is no such library, or no source of it."""
    spec = importlib.util.find_spec(name)
    return Path(spec.cached) if spec and spec.cached else None
