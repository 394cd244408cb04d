"""Hypothesis tries the same examples in every order of the tests."""

import sys
from types import ModuleType

from conftest import REPO
from hypothesis import given
from hypothesis import strategies as st


def drawn():
    found = []

    @given(st.text())
    def draw(text):
        found.append(text)

    draw()
    return found


def test_what_another_test_has_imported_changes_no_example(monkeypatch):
    before = drawn()
    module = ModuleType("of_another_test")
    module.__file__ = str(REPO / "docs" / "site.py")  # a file of ours, in which there are words
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert drawn() == before
