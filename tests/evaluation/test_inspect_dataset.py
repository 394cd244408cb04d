"""The cases for Inspect: JSON of input, target and metadata."""

import json
import sys

import pytest

from chatbot_sft import evaluate
from chatbot_sft.evaluation.inspect_dataset import target

QUESTION = [{"role": "user", "content": "When?"}]


@pytest.mark.parametrize(
    ("expected", "wanted"),
    [
        ({"exact": "Yes"}, "Yes"),
        ({"exact": ["Yes", "Yes."]}, ["Yes", "Yes."]),
        ({"contains": "nine"}, "nine"),
        ({"contains": [["nine", "9"]]}, ["nine", "9"]),
        ({"contains": ["nine", "Tuesday"]}, ""),  # both: no target says that
        ({"contains": ["nine", "Tuesday"], "reference": {"text": "Tuesday at nine"}}, "Tuesday at nine"),
        ({"number": {"value": 320000}}, "320000"),
        ({"number": 4.5}, "4.5"),
        ({"ends": True}, ""),
    ],
)
def test_targets(expected, wanted):
    assert target(expected) == wanted


def test_the_export(tmp_path, monkeypatch, capsys):
    file = tmp_path / "golden.jsonl"
    file.write_text(json.dumps({"messages": QUESTION, "contains": "nine", "tags": ["hours"], "id": "h"}))
    monkeypatch.setattr(sys, "argv", ["evaluate", "--export", "inspect", str(file)])
    evaluate.main()
    sample = {
        "id": "h",
        "input": QUESTION,
        "target": "nine",
        "metadata": {"tags": ["hours"], "expected": {"contains": "nine"}},
    }
    assert json.loads(capsys.readouterr().out) == [sample]
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--output", str(file)])
    with pytest.raises(SystemExit, match="is there already; name another file"):
        evaluate.main()
