"""What the stages record: parts of the report, by its names."""

import dataclasses

import pytest

from chatbot_sft.run.report import Report
from chatbot_sft.train.outcome import Outcome


def test_an_outcome_has_the_reports_names():
    parts = {field.name for field in dataclasses.fields(Outcome)}
    assert parts <= {field.name for field in dataclasses.fields(Report)}


def test_a_part_that_no_report_has_is_refused():
    report = Report("", "train", 1)
    report.record(history=[{"step": 1, "loss": 2.0}])
    assert report.history == [{"step": 1, "loss": 2.0}]
    with pytest.raises(TypeError, match="a report has no losses"):
        report.record(losses=[])
