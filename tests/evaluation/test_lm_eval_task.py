"""The cases for the lm-evaluation-harness: a task in YAML, and our checks in its hands."""

import importlib.util
import json
import sys

import pytest
import yaml

from chatbot_sft import evaluate

ROWS = [
    {"messages": [{"role": "user", "content": "When?"}], "contains": ["Nine", ["Tuesday", "Tue."]], "id": "h", "case_sensitive": True},
    {"messages": [{"role": "user", "content": "How many?"}], "number": {"value": 4.5, "tolerance": 0.1}, "not_contains": "about", "tags": ["n"]},
    {"messages": [{"role": "user", "content": "Short?"}], "max_tokens": 3, "contains": "a"},
    {"messages": [{"role": "system", "content": "Be"}, {"role": "user", "content": "Who?"}], "exact": "Mai"},
]  # fmt: skip


class Loader(yaml.SafeLoader):
    """`!function utils.process_results` is a name."""


Loader.add_constructor("!function", lambda loader, node: node.value)


@pytest.fixture
def golden(tmp_path):
    file = tmp_path / "golden.jsonl"
    file.write_text("\n".join(map(json.dumps, ROWS)))
    return file


def export(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["evaluate", "--export", "lm-eval", *map(str, words)])
    evaluate.main()


def test_the_task(golden, tmp_path, monkeypatch, capsys):
    export(monkeypatch, golden, "--output", tmp_path / "my-cases")
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.splitlines() == [
        "left out: case 3 (row 3): max_tokens needs more than the text of an answer",
        "left out: case 4 (row 4): it has several turns, or a system prompt of its own; a document there is one"
        " question",
    ]
    folder = tmp_path / "my-cases"
    task = yaml.load((folder / "my_cases.yaml").read_text(), Loader)
    assert (task["task"], task["output_type"]) == ("my_cases", "generate_until")
    assert task["doc_to_text"] == "{{question}}"
    assert task["process_results"] == "utils.process_results"
    assert task["metric_list"] == [{"metric": "passed", "aggregation": "mean", "higher_is_better": True}]
    data = task["dataset_kwargs"]["data_files"]["test"]
    docs = [json.loads(line) for line in open(data, encoding="utf-8")]  # noqa: SIM115, PTH123
    assert [doc["id"] for doc in docs] == ["h", "2"]
    spec = importlib.util.spec_from_file_location("utils_of_the_task", folder / "utils.py")
    utils = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(utils)
    for number, answer, passed in (
        (0, " Nine, on Tue. ", 1.0),
        (0, "nine, on Tue.", 0.0),
        (0, "<think>Nine Tuesday</think>no", 0.0),
        (1, "4.45", 1.0),
        (1, "about 4.5", 0.0),
    ):
        assert utils.process_results(docs[number], [answer]) == {"passed": passed}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "--export lm-eval writes several files: name a new folder with --output"),
        (("--output", "."), "is there already; name another folder"),
    ],
)
def test_no_place_for_it(words, message, golden, monkeypatch):
    with pytest.raises(SystemExit) as ended:
        export(monkeypatch, golden, *words)
    assert message in str(ended.value.code)


def test_nothing_is_left(tmp_path, monkeypatch):
    file = tmp_path / "golden.jsonl"
    file.write_text(json.dumps(ROWS[2]))
    with pytest.raises(SystemExit) as ended:
        export(monkeypatch, file, "--output", tmp_path / "out")
    assert "none of the cases can be expressed there" in str(ended.value.code)
    assert not (tmp_path / "out").exists()
