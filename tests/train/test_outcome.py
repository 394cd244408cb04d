"""What the stages record: parts of the report, by its names."""

import dataclasses
from dataclasses import replace
from types import SimpleNamespace

import pytest
from conftest import TRAINING

from chatbot_sft.report.markdown import markdown
from chatbot_sft.run.report import Report, Training
from chatbot_sft.train.outcome import Outcome, as_measured_before
from chatbot_sft.train.progress import Progress

LAYOUTS = [{"layout": "2 x 4", "milliseconds": 20.0, "peak_gb": None, "why_not": None}]


def test_an_outcome_has_the_reports_names():
    parts = {field.name for field in dataclasses.fields(Outcome)}
    assert parts <= {field.name for field in dataclasses.fields(Report)}


def test_a_part_that_no_report_has_is_refused():
    report = Report("", "train", 1)
    report.record(history=[{"step": 1, "loss": 2.0}])
    assert report.history == [{"step": 1, "loss": 2.0}]
    with pytest.raises(TypeError, match="a report has no losses"):
        report.record(losses=[])


@pytest.mark.parametrize(
    ("earlier", "expected"),
    [
        (None, (None, None, None, [])),
        ([{"step": 4, "loss": 2.0}], (100.0, 20.0, 9.0, LAYOUTS)),
        ([{"step": 4, "loss": 2.5}], (None, None, None, [])),  # another training's report
    ],
)
def test_a_start_with_nothing_left_to_train_has_the_speed_of_the_one_before(earlier, expected):
    progress = Progress(0.0)
    progress.begin(SimpleNamespace(num_input_tokens_seen=100, log_history=[], is_world_process_zero=False))
    nothing = Training(
        **{**TRAINING, "tokens_per_second": progress.tokens_per_second()},
        milliseconds_per_step=progress.seconds_per_step(),
    )
    measured = replace(
        Training(**TRAINING),
        milliseconds_per_step=20.0,
        seconds_to_first_step=9.0,
        seconds_to_first_step_by_part={"start": 2.0, "first_step": 7.0},
        batch_layouts=LAYOUTS,
    )
    report = earlier and Report("", "train", 1, training=measured, history=earlier)
    found = as_measured_before(nothing, [{"step": 4, "loss": 2.0}], report)
    assert (
        found.tokens_per_second,
        found.milliseconds_per_step,
        found.seconds_to_first_step,
        found.batch_layouts,
    ) == expected
    assert sum(found.seconds_to_first_step_by_part.values()) == (found.seconds_to_first_step or 0)
    said = "".join(markdown(Report("", "train", 1, training=found), picture=False))
    assert ("tokens/s" in said) == (expected[0] is not None)
