"""What the shell brings in."""

import os

from chatbot_sft.doctor import surroundings
from chatbot_sft.doctor.finding import State


def test_python_path(monkeypatch, tmp_path):
    (tmp_path / "lib" / "python2.7").mkdir(parents=True)
    folders = ["~/packages", str(tmp_path / "lib" / "python2.7"), str(tmp_path / "none"), ""]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(folders))
    said = [(one.state, one.what) for one in surroundings.check() if one.name == "PYTHONPATH"]
    assert [state for state, _ in said] == [State.FAULT, State.FAULT, State.NOTE, State.NOTE]
    assert said[0][1] == "~/packages: Python does not expand ~"
    assert "of another Python" in said[1][1]
