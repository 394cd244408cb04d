"""Whether each start compiles the libraries anew."""

import importlib
import sys
from pathlib import Path

import pytest

from chatbot_sft.doctor import bytecode
from chatbot_sft.doctor.finding import State


@pytest.mark.parametrize(
    ("compiled", "forbidden", "writable", "state", "repair"),
    [
        (True, True, True, State.OK, ""),
        (False, False, True, State.OK, ""),
        (False, True, True, State.NOTE, "unset PYTHONDONTWRITEBYTECODE"),
        (False, False, False, State.NOTE, "export PYTHONPYCACHEPREFIX=~/.cache/python"),
    ],
)
def test_libraries_that_are_not_compiled(monkeypatch, tmp_path, compiled, forbidden, writable, state, repair):
    module = tmp_path / "some_library.py"
    module.write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(bytecode, "LIBRARIES", ("some_library", "none_of_that_name"))
    monkeypatch.setattr(sys, "dont_write_bytecode", forbidden)
    if compiled:
        file = Path(importlib.util.cache_from_source(module))
        file.parent.mkdir(parents=True)
        file.touch()
    if not writable:
        monkeypatch.setattr(bytecode.os, "access", lambda *_: False)
    (found,) = bytecode.check()
    assert (found.name, found.state, found.repair) == ("bytecode", state, repair)
    assert compiled or found.what.startswith("not compiled")
