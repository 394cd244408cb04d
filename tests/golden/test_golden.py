"""Losses, gradient norms and trained weights are what they were: a refactor leaves them, a change of numerics
renews them (CONTRIBUTING.md).
"""

import pytest
from cases import CASES
from compare import ENGINES, differences, golden, machine, measured


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_every_case_trains_as_recorded(engine, request, tmp_path):
    recorded, warm = golden(), {"transformers": "warm", "unsloth": "warm_unsloth"}[engine]
    found = measured(engine, tmp_path, run=request.getfixturevalue(warm).run)
    assert differences(recorded[engine], found, exact=recorded["machine"] == machine()) == []


# What has to hold between the recorded figures, so that nothing wrong is recorded.


@pytest.mark.parametrize("engine", ENGINES)
def test_the_record_has_every_case(engine):
    assert golden()[engine].keys() == CASES.keys()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_resumed_run_is_recorded_as_the_uninterrupted_one(engine):
    whole, resumed = (golden()[engine][name] for name in ("uninterrupted", "resumed"))
    assert resumed["losses"] == whole["losses"]
    assert resumed["gradient_norms"] == whole["gradient_norms"][2:]
    assert resumed["weights"] == whole["weights"]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("name", "other"), [("two_processes", "ragged_epochs"), ("padding_free", "lora")])
def test_the_same_training_run_otherwise_is_recorded_with_the_same_figures(engine, name, other):
    recorded = golden()[engine]
    assert_close(recorded[name], recorded[other])


@pytest.mark.parametrize("name", CASES)
def test_both_engines_are_recorded_with_the_same_figures(name):
    assert_close(*(golden()[engine][name] for engine in ENGINES))


def assert_close(one, other):
    assert differences({"": one}, {"": other}, exact=False) == []
