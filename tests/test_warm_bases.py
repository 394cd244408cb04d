"""What a process of many jobs does with its bases."""

import gc
import weakref

import pytest

from chatbot_sft.warm import Warm


class Base:
    def __init__(self):
        self.itself = self  # only a collection frees it


@pytest.fixture
def loaded(monkeypatch):
    """`loaded(warm, key)`: a weak reference to the base of that key."""
    monkeypatch.setattr("chatbot_sft.warm.Held", lambda model, runs: model)

    def load(warm, key):
        return weakref.ref(warm.held(key, Base))

    yield load
    gc.unfreeze()


def test_a_base_is_passed_by_in_collections_and_goes_when_another_takes_its_place(loaded):
    warm, before = Warm(), gc.get_freeze_count()
    first = loaded(warm, "first")
    assert gc.get_freeze_count() > before
    assert loaded(warm, "first")() is first()
    second = loaded(warm, "second")
    assert first() is None
    warm.let_go()
    assert second() is None
    assert gc.get_freeze_count() == 0


def test_a_base_that_a_waiting_run_has_stays_until_the_run_ends(loaded):
    warm = Warm()
    run = loaded(warm, "first")()
    kept = weakref.ref(run)
    second = loaded(warm, "second")
    assert kept() is run
    del run
    loaded(warm, "third")
    assert kept() is None
    assert second() is None
