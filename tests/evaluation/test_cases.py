"""The golden file: what is read, and what is refused, each time with its row."""

import json

import pytest

from chatbot_sft import UserError
from chatbot_sft.evaluation import cases
from chatbot_sft.evaluation.checks import CHECKS
from chatbot_sft.extras import install

QUESTION = [{"role": "user", "content": "When do you open?"}]


def a_file(folder, *rows):
    file = folder / "golden.jsonl"
    lines = (row if isinstance(row, str) else json.dumps({"messages": QUESTION, **row}) for row in rows)
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def test_a_case_is_read(tmp_path):
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "human", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": [{"type": "text", "text": "When?"}]},
    ]
    file = a_file(
        tmp_path,
        {"messages": turns, "contains": ["Tuesday", ["nine", "9"]], "tags": "hours", "id": "hours-3"},
        {"exact": "Yes.", "ends": True, "tags": ["a", "b", "a"]},
    )
    first, second = cases.read(file)
    assert (first.id, first.row, first.tags, list(first.checks)) == ("hours-3", 1, ["hours"], ["contains"])
    assert [message["role"] for message in first.messages] == ["system", "user", "assistant", "user"]
    assert first.messages[-1]["content"] == "When?"
    assert (second.id, second.tags, second.expected) == ("2", ["a", "b"], {"exact": "Yes.", "ends": True})


def test_a_json_list_is_read_too(tmp_path):
    file = tmp_path / "golden.json"
    file.write_text(json.dumps([{"messages": QUESTION, "contains": "nine"}], indent=1))
    assert [case.row for case in cases.read(file)] == [1]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"containz": "x"}, "containz: no such check; did you mean contains?"),
        ({"bleu": 3}, "bleu: no such check; there are exact, contains, not_contains, regex"),
        ({}, "no check; what is expected of the answer?"),
        ({"regex": "(nine"}, "regex: “(nine” is no regular expression: missing )"),
        ({"contains": []}, "contains: expected a text or a list of texts"),
        ({"contains": ["x", 3]}, "contains: expected a text or a list of texts"),
        ({"contains": " "}, "contains: an empty text, which every answer has"),
        ({"number": "9"}, "number: value is no number"),
        ({"number": {"valeu": 9}}, "number: valeu: no such key; did you mean value?"),
        ({"number": {"tolerance": 9}}, "number: value is missing"),
        ({"number": {"value": 1, "tolerance": -1}}, "number: tolerance is below 0"),
        ({"max_tokens": 0}, "max_tokens: expected a whole number above 0"),
        ({"ends": "yes"}, 'ends: "yes": expected true or false'),
        ({"refuses": 1}, "refuses: 1: expected true or false"),
        ({"judge": {"rubrik": "kind"}}, "judge: rubrik: no such key; did you mean rubric?"),
        ({"contains": "x", "case_sensitive": "no"}, "case_sensitive: expected true or false"),
        ({"contains": "x", "tags": [1]}, "tags: expected a list of words"),
        ({"contains": "x", "id": [1]}, "id: expected a text, found a list"),
        ({"contains": "x", "messages": None}, "messages is missing"),
        ({"contains": "x", "messages": []}, "messages: expected a list of {role, content}"),
        ({"contains": "x", "messages": [{"role": "usr", "content": "a"}]}, "message 1: role 'usr'; did you mean user?"),
        ({"contains": "x", "messages": [{"role": "user", "content": " "}]}, "message 1: empty content"),
        ({"contains": "x", "messages": [*QUESTION, {"role": "assistant", "content": "a"}]}, "messages end with an answer"),
        ({"contains": "x", "messages": [{"role": "system", "content": "a"}]}, "messages end with the system prompt"),
        ({"contains": "x", "messages": [*QUESTION, {"role": "system", "content": "a"}, *QUESTION]}, "message 2: a system prompt"),
        ('{"messages": 1, "messages": 2}', "the key 'messages' stands twice"),
    ],
)  # fmt: skip
def test_a_bad_case_is_named_by_its_row(row, message, tmp_path):
    file = a_file(tmp_path, {"contains": "nine"}, row)
    with pytest.raises(UserError) as caught:
        cases.read(file)
    assert str(caught.value).startswith(f"{file}: row 2: {message}")


def test_three_bad_rows_are_named_and_the_rest_counted(tmp_path):
    file = a_file(tmp_path, *[{"conains": "x"}] * 5)
    with pytest.raises(
        UserError, match=r"row 1: .*row 2: .*row 3: [^;]*; did you mean contains\?; and 2 more"
    ):
        cases.read(file)


def test_an_id_stands_once(tmp_path):
    file = a_file(tmp_path, {"exact": "a", "id": "x"}, {"exact": "b", "id": "x"})
    with pytest.raises(UserError, match="row 2: the id x is that of row 1 too"):
        cases.read(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("", "there is no case in it"),
        ("question,answer\na,b\n", r"not JSON \(.*\); a JSON list or one JSON object a line is read$"),
        ('{"a": [{"exact": "x"}]}', "expected a JSON list of cases, found an object; save the list under"),
        ('{"prompt": "Is it?", "exact": "x"}', r"row 1: messages is missing: .*; it has prompt, exact$"),
        ('{"messages": [', "not JSON"),
        ("<html>", "a web page, not data"),
    ],
)
def test_a_file_that_is_none(content, message, tmp_path):
    file = tmp_path / "golden.jsonl"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=message):
        cases.read(file)


@pytest.mark.parametrize(
    ("module", "check", "value"),
    [
        ("jsonschema", "json_schema", {}),
        ("sacrebleu.metrics", "reference", "a"),
        ("py3langid", "language", "en"),
    ],
)
def test_a_check_whose_package_is_missing_says_what_to_install(module, check, value, tmp_path, monkeypatch):
    from chatbot_sft.evaluation import checks

    checks._chrf.cache_clear()
    checks._languages.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(UserError, match=rf"needs {module.partition('.')[0]}: {install('evaluation')}"):
        cases.read(a_file(tmp_path, {check: value}))


def test_every_check_of_the_documents_is_there():
    assert set(CHECKS) == {
        "exact", "contains", "not_contains", "regex", "refuses", "json_schema", "number", "reference", "max_tokens", "ends",
        "language", "judge",
    }  # fmt: skip
