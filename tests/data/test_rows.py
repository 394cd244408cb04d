"""What is inside a row: every column, key and mark is read, refused by its row, or named. Cases from public
reports of other trainers.
"""

import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import conversations, only_error, report_of, write_json
from hypothesis import given, settings
from hypothesis import strategies as st

from chatbot_sft import DatasetLoader, UserError
from chatbot_sft.data.encode import EncodedRow, Encoder, Refused
from chatbot_sft.data.formats import FORMATS, JUDGED, Reading, detect, to_conversation
from chatbot_sft.data.labels import SpanFinder
from chatbot_sft.data.messages import BadRow
from chatbot_sft.data.preferences import judged, judged_format
from chatbot_sft.data.sequences import joined
from chatbot_sft.data.sources import Row
from chatbot_sft.data.template import ChatTemplate, ChatTokenizer
from chatbot_sft.report.data_summary import remarks

SAID = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
SHARED = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]
BRIEF = {"role": "system", "content": "be brief"}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "of a city",
        "parameters": {"type": "object", "properties": {}},
    },
}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Huế"}}}
ASKED = {"role": "assistant", "content": "", "tool_calls": [CALL]}


def answer(**extra):
    return {"role": "assistant", "content": "hello", **extra}


def read(values, columns=None, **options):
    """The conversation of a file with this one row."""
    reading = Reading({"messages": "messages", "text": "text", **(columns or {})}, **options)
    row = Row("data.json", 1, values)
    name, found = detect([row], reading)
    return to_conversation(
        row, name, Reading(found, reading.thinking, reading.thinking_field, reading.system_prompt)
    )


def refused(values, **options):
    with pytest.raises(BadRow) as caught:
        read(values, **options)
    return caught.value


@pytest.fixture(scope="module")
def chat(smollm2):
    return ChatTokenizer.from_folder(smollm2, "smollm2", {})


def loader(path, **dataset):
    return DatasetLoader(
        {"model": {"name": "smollm2"}, "dataset": {"data_path": str(path), "eval_fraction": 0, **dataset}}
    )


# ---- the general cure: what was not read is named


@pytest.mark.parametrize(
    ("values", "unread"),
    [
        ({"messages": SAID}, []),
        ({"messages": SAID, "id": 7, "score": 0.5, "note": None, "tags": []}, ["id", "score"]),
        ({"messages": [SAID[0], answer(score=5, weight=1)]}, ["messages[].score"]),
        ({"messages": [SAID[0], answer(audio="a.wav", tool_calls=[{**CALL, "index": 1}])]}, ["messages[].audio", "messages[].tool_calls[].index"]),
        # of a question
        ({"messages": [{**SAID[0], "reasoning": "hm"}, answer(reasoning="hm")]}, ["messages[].reasoning"]),
        ({"messages": [{**SAID[0], "reasoning_content": "", "tool_calls": None}, answer()]}, []),
        ({"conversations": [SHARED[0], {**SHARED[1], "emotion": "glad"}]}, ["conversations[].emotion"]),
        ({"prompt": SAID[:1], "completion": [answer(score=1)]}, ["completion[].score"]),
        ({"instruction": "hi", "output": "hello", "text": "hi hello"}, ["text"]),
        ({"text": "hi", "system": "be brief"}, ["system"]),
        ({"messages": [{**SAID[0], "content": [{"type": "text", "text": "hi", "cited": ["x"]}]}, SAID[1]]}, ["messages[].content[].cited"]),
        ({"messages": SAID, "images": ["cat.png"]}, ["images"]),
        ({"messages": SAID, "a\ud800\x1b": "x\n"}, ["a\\ud800\x1b"]),
    ],
)  # fmt: skip
def test_what_was_not_read_is_named(values, unread):
    assert sorted(read(values).unread) == unread


ROWS = [
    *(
        {**row, "id": f"r{n}", "history": [["a", "b"]] if n < 12 else []}
        for n, row in enumerate(conversations(40))
    ),
    *({"messages": [SAID[0], answer(reason="because")]} for _ in range(3)),
]


def test_what_was_not_read_is_in_every_report_and_survives_the_cache(tmp_path, chat):
    file = write_json(tmp_path / "data.json", ROWS)
    reports = [loader(file).check(chat) for _ in range(2)]
    assert [report["cached"] for report in reports] == [False, True]
    for report in reports:
        assert report["not_read"] == {"history": 12, "messages[].reason": 3, "id": 40}
        assert remarks(report)[0] == "not read: history (12 rows), messages[].reason (3), id (40)"


NAMED = [
    {"role": "user", "name": "Bob", "content": "hi"},
    {"role": "assistant", "name": "Mai", "content": "hello"},
]


@pytest.mark.parametrize(
    ("source", "unread"),
    [
        ("{{ m.content }}", ["messages[].name", "messages[].name"]),
        ("{{ m.name }}{{ m.content }}", []),
        ("{{ m.name if m.role == 'user' }}{{ m.content }}", ["messages[].name"]),
        ("{{ m.name if tools }}{{ m.content }}", []),  # where a row has tools
        ("{{ raise_exception('no') if m.name else m.content }}", []),  # such rows are refused
    ],
)
def test_a_name_that_the_template_does_not_write_is_not_read(source, unread):
    template = ChatTemplate(f"{{% for m in messages %}}{source}{{% endfor %}}")
    row = Row("data.json", 1, {"messages": NAMED})
    assert to_conversation(row, "messages", Reading({}, names_of=template.names_of)).unread == unread


def test_a_name_that_nobody_writes_is_named_in_the_report(tmp_path, chat):
    file = write_json(tmp_path / "data.json", [{"messages": NAMED}] * 4)
    assert loader(file).check(chat)["not_read"] == {"messages[].name": 4}


@pytest.mark.parametrize(
    ("made_of", "unread"),
    [
        (lambda columns: columns["messages"], {"id": 3, "note": 1}),
        (lambda columns: columns["conversations"], {"id": 3, "note": 1}),
        (lambda columns: [*zip(columns["messages"], columns["id"], strict=True)], {"note": 1}),
        (lambda columns: [dict(columns)], {}),
        (lambda columns: [values for _, values in columns.items()], {}),
    ],
)
def test_columns_that_a_users_function_does_not_ask_for_are_named(tmp_path, tokenizer, made_of, unread):
    class Mine(DatasetLoader):
        def formatting_prompts_func(self, examples):
            made_of(examples)
            return super().formatting_prompts_func({"messages": dict.__getitem__(examples, "messages")})

    rows = [
        {"conversations": row["messages"], "id": n, "note": "x" if n == 1 else ""}
        for n, row in enumerate(conversations(3))
    ]
    file = write_json(tmp_path / "data.json", rows)
    columns = {"columns": {"messages": "conversations"}}
    made = Mine(
        {"model": {"name": "smollm2"}, "dataset": {"data_path": str(file), "eval_fraction": 0, **columns}},
        tokenizer,
    )
    assert made.check()["not_read"] == unread


def test_a_training_run_says_what_was_not_read(launch, tmp_path, tiny):
    """The picture of a run whose columns are partly unread; the same lines stand in report.md and
    report.json.
    """
    write_json(tmp_path / "data.json", ROWS)
    process = launch(
        *tiny,
        "dataset.data_path=data.json",
        "dataset.max_rows=null",
        "hydra.run.dir=run",
        "training.max_steps=1",
        "task=plan",
    )
    assert process.returncode == 0, process.stderr
    assert "data: not read: history (12 rows), messages[].reason (3), id (40)" in process.stderr
    assert "\ntraining: training.warmup_steps=5 is not below the 1 step of the run" in process.stderr
    assert report_of(tmp_path)["dataset"]["not_read"] == {"history": 12, "messages[].reason": 3, "id": 40}
    assert "| not read | history (12 rows), messages[].reason (3), id (40) |" in (
        tmp_path / "run" / "report.md"
    ).read_text(encoding="utf-8")


def test_a_row_keyed_by_id_does_not_fill_the_report(tmp_path, chat):
    rows = [
        {"messages": [{"role": "user", "content": f"q{n}"}, SAID[1]], f"key {n}": 1, "x" * 5000: 1}
        for n in range(1500)
    ]
    report = loader(write_json(tmp_path / "data.json", rows)).check(chat)
    assert len(report["not_read"]) == 1001
    assert report["not_read"]["others"] == 501
    assert len(remarks(report)[0]) < 600


class Watched(dict):
    """Notes which of its keys are asked for by name."""

    def __init__(self, values):
        super().__init__(values)
        self.asked = set()

    def __getitem__(self, key):
        self.asked.add(key)
        return super().__getitem__(key)

    def get(self, key, default=None):
        self.asked.add(key)
        return super().get(key, default)


def test_what_is_called_read_is_what_is_asked_for():
    """The two lists, of what the code reads and of what it says it reads, are one."""
    from chatbot_sft.data.messages import THOUGHTS
    from chatbot_sft.data.unread import ANSWER, ANY

    question, said = Watched({**SAID[0], "x": 1}), Watched({**SAID[1], "x": 1, **dict.fromkeys(ANSWER)})
    said.update(dict.fromkeys(THOUGHTS, "hm"))
    row = Watched({"messages": [question, said], "x": 1})
    found = read(row)
    assert said.asked - {"role", "content", "x", "name"} == ANSWER
    assert question.asked - {"role", "content", "x", "name", "tool_calls", "function_call"} == ANY
    assert sorted(found.unread) == ["messages[].x", "messages[].x", "x"]
    for name in FORMATS:
        row = Watched(
            {
                "messages": SAID,
                "conversations": SHARED,
                "instruction": "hi",
                "output": "hello",
                "prompt": "hi",
                "completion": "hello",
                "text": "hi",
            }
        )
        to_conversation(Row("data.json", 1, row), name, Reading({}))
        assert row.asked - {"label"} == {*FORMATS[name].needs, *FORMATS[name].optional}


def test_a_column_map_that_the_format_does_not_use_is_refused(tmp_path, chat):
    def error(rows, **dataset):
        with pytest.raises(UserError) as caught:
            loader(write_json(tmp_path / "data.json", rows), **dataset).check(chat)
        return str(caught.value).removeprefix(f"{tmp_path}/data.json: ")

    rows = [{**row, "q": "x"} for row in conversations(3)]
    assert (
        error(rows, columns={"instruction": "q"})
        == "dataset.columns.instruction=q has no effect: these rows are read as messages, which has messages,"
        " system, tools, functions, role, content; leave it out"
    )
    assert error(rows, columns={"from": "speaker"}).startswith(
        "dataset.columns.from=speaker has no effect: these rows are read as messages"
    )
    assert error([{"chat": "x", "text": "y"}], message_field="chat", format="text").startswith(
        "dataset.message_field=chat has no effect"
    )
    shared = [{"talk": SHARED, "s": "be brief"}] * 2
    assert (
        loader(
            write_json(tmp_path / "data.json", shared), message_field="talk", columns={"system": "s"}
        ).check(chat)["rows_used"]
        == 2
    )


def test_roles_are_part_of_what_the_rows_are(tmp_path, chat):
    """Of one source or of all; what none of the files has is said once, and other roles are other rows."""
    talk = [{"role": "customer", "content": "hi"}, {"role": "agent", "content": "hello"}]
    logs = write_json(tmp_path / "logs.json", [{"messages": talk}] * 2)
    usual = write_json(tmp_path / "usual.json", [{"messages": SAID}] * 2)
    own = {"customer": "user", "agent": "assistant"}
    report = loader(logs, roles={**own, "Boss": "system"}).check(chat)
    assert (report["bad_rows"], report["sources"][0]["roles"]) == (0, {"customer": 2, "agent": 2, "boss": 0})
    assert remarks(report)[0] == "dataset.roles: no row read has boss"
    other = loader(logs, roles={"customer": "system", "agent": "assistant"}, on_bad_row="warn").check(chat)
    assert not other["cached"] and other["fingerprint"] != report["fingerprint"]
    sources = [{"data_path": str(logs), "roles": own}, {"data_path": str(usual)}]
    mixed = loader(None, sources=sources, roles={"boss": "system"}).check(chat)
    assert (mixed["bad_rows"], remarks(mixed)[0]) == (0, "dataset.roles: no row read has boss")


def test_notes_on_most_rows_are_said_in_the_run(tmp_path, chat):
    rows = [
        {"messages": [{"role": "user", "content": f"q{n}"}, answer(content="a\ufffdb" if n < 6 else "ab")]}
        for n in range(10)
    ]
    assert "replacement character in 6 of 10 rows" in remarks(
        loader(write_json(tmp_path / "data.json", rows)).check(chat)
    )
    assert remarks(loader(write_json(tmp_path / "data.json", rows[4:])).check(chat)) == []


# ---- tools


@pytest.mark.parametrize(
    "tools",
    [
        [WEATHER],
        json.dumps([WEATHER]),
        json.dumps(WEATHER["function"]),
        [json.dumps(WEATHER)],
        [WEATHER["function"]],
        [{"type": "function", **WEATHER["function"]}],  # OpenAI's Responses API
    ],
)
def test_tools_are_read_however_they_are_written(tools):
    turns = [SAID[0], ASKED, {"role": "tool", "content": "20"}, SAID[1]]
    assert read({"messages": turns, "tools": tools}).tools == [WEATHER]
    assert read({"conversations": SHARED, "tools": tools}).tools == [WEATHER]
    assert read({"instruction": "hi", "output": "hello", "tools": tools}).tools == [WEATHER]
    assert read({"prompt": "hi", "completion": "hello", "functions": tools}).tools == [
        WEATHER
    ]  # OpenAI's format of before
    assert read({"messages": turns, "defs": tools}, {"tools": "defs"}).tools == [WEATHER]


@pytest.mark.parametrize("tools", [None, "", " ", [], "[]", {}, "null"])
def test_no_tools(tools):
    assert read({"messages": SAID, "tools": tools}).tools is None


@pytest.mark.parametrize(
    ("tools", "detail"),
    [
        ("a weather service", "tools is not JSON"),
        (5, "tools is a number, expected a list of tools"),
        ([5], "tools: tool 1 needs a function with a name"),
        (
            [WEATHER, {"type": "function", "function": "weather"}],
            "tools: tool 2 needs a function with a name",
        ),
        ("[" * 5000, "tools is not JSON (it is nested too deeply)"),
        ("[" + "9" * 5000 + "]", "tools is not JSON (Exceeds the limit"),
    ],
)
def test_tools_that_are_none_are_refused(tools, detail):
    assert detail in refused({"messages": SAID, "tools": tools}).detail


def test_tools_and_functions_are_not_guessed_between():
    assert (
        refused({"messages": SAID, "tools": [WEATHER], "functions": [WEATHER]}).detail
        == "it has tools and functions; keep one of them"
    )


@pytest.mark.parametrize(
    "call",
    [
        {"function_call": {"name": "weather", "arguments": '{"city": "Huế"}'}},
        {"tool_calls": [CALL], "function_call": None},
        {"tool_calls": json.dumps([CALL])},
        {"tool_calls": [json.dumps(CALL)]},
        {"tool_calls": CALL},
        {"tool_calls": [{"name": "weather", "parameters": {"city": "Huế"}}]},  # Llama's word
    ],
)
def test_calls_are_read_however_they_are_written(call):
    for content in ("I look.", "", None):
        turns = [
            SAID[0],
            {"role": "assistant", "content": content, **call},
            {"role": "function", "name": "weather", "content": "20"},
            SAID[1],
        ]
        assert read({"messages": turns}).messages[1] == {
            "role": "assistant",
            "content": content or "",
            "tool_calls": [CALL],
        }
    turns[1].pop("content")
    assert read({"messages": turns}).messages[1] == ASKED


@pytest.mark.parametrize("said", [CALL["function"], [CALL["function"]]])
def test_calls_of_a_role_of_their_own(said):
    """LLaMA-Factory's function_call and observation, ms-swift's tool_call and tool_response; text or an
    object, one call or a list.
    """
    for value in (said, json.dumps(said)):
        turns = [
            SHARED[0],
            {"from": "function_call", "value": value},
            {"from": "observation", "value": "20"},
            SHARED[1],
        ]
        assert read({"conversations": turns}).messages[1] == ASKED
        turns = [
            SAID[0],
            {"role": "tool_call", "content": value},
            {"role": "tool_response", "content": "20"},
            SAID[1],
        ]
        assert [message["role"] for message in read({"messages": turns}).messages] == [
            "user",
            "assistant",
            "tool",
            "assistant",
        ]
        assert read({"messages": turns}).messages[1] == ASKED


@pytest.mark.parametrize(
    ("turn", "detail"),
    [
        (answer(tool_calls=5), "message 2: tool_calls is a number, expected a list of calls"),
        (answer(tool_calls=True), "message 2: tool_calls is true or false"),
        (answer(tool_calls="weather"), "message 2: the function call is not JSON"),
        (answer(tool_calls=[None]), "message 2: a tool call needs a function with a name"),
        (
            answer(tool_calls=[{"function": {"name": ""}}]),
            "message 2: a tool call needs a function with a name",
        ),
        (
            answer(tool_calls=[{"function": {"name": "f", "arguments": [1]}}]),
            "message 2: the arguments of f are a list, expected an object",
        ),
        (
            answer(tool_calls=[{"function": {"name": "f", "arguments": '"x"'}}]),
            "message 2: the arguments of f are a text, expected an object",
        ),
        (
            answer(tool_calls=[CALL], function_call=CALL["function"]),
            "message 2: it has tool_calls and a function_call",
        ),
        (
            {"role": "user", "content": "", "tool_calls": [CALL]},
            "message 2: tool calls of the role user; only the assistant calls tools",
        ),
    ],
)
def test_calls_that_are_none_are_refused(turn, detail):
    assert detail in refused({"messages": [SAID[0], turn]}).detail


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("", ""), (None, ""), ([], "[]"), ({}, "{}"), ({"t": "30°C"}, '{"t": "30°C"}'), ([1, 2], "[1, 2]"), (20, "20"), (0.5, "0.5"), (True, "true"),
        ([{"type": "text", "text": "3"}, {"type": "text", "text": "0"}], "30"),
    ],
)  # fmt: skip
def test_a_tool_may_return_anything_and_nothing(content, text):
    turns = [SAID[0], ASKED, {"role": "tool", "content": content}, SAID[1]]
    assert read({"messages": turns}).messages[2] == {"role": "tool", "content": text}


def test_numbers_as_ids_are_kept():
    turns = [
        SAID[0],
        answer(tool_calls=[{**CALL, "id": 7}]),
        {"role": "tool", "content": "20", "tool_call_id": 7},
        SAID[1],
    ]
    messages = read({"messages": turns}).messages
    assert (messages[1]["tool_calls"][0]["id"], messages[2]["tool_call_id"]) == ("7", "7")


# ---- the system prompt, history, numbers


@pytest.mark.parametrize(
    "values",
    [
        {"messages": SAID},
        {"messages": json.dumps(SAID)},
        {"conversations": SHARED},
        {"conversations": json.dumps(SHARED)},
        {"messages": SHARED},
        {"instruction": "hi", "output": "hello"},
        {"prompt": "hi", "completion": "hello"},
        {"prompt": SAID[:1], "completion": SAID[1:]},
        {"prompt": SAID[:1], "completion": "hello"},
        {"prompt": "hi", "completion": SAID[1:]},
        {"question": "hi", "answer": "hello"},
    ],
)  # fmt: skip
def test_a_system_prompt_beside_the_turns_is_read_in_every_format(values):
    assert read(values).messages == SAID
    for name, columns in (("system", {}), ("system_prompt", {}), ("persona", {"system": "persona"})):
        found = read({**values, name: "be brief"}, columns, system_prompt="be long")
        assert (found.messages, found.unread) == ([BRIEF, *SAID], [])
    assert read({**values, "system": " "}, system_prompt="be brief").messages == [BRIEF, *SAID]


def test_two_system_prompts_are_one_where_they_are_equal():
    assert read({"messages": [BRIEF, *SAID], "system": "be brief\n"}).messages == [BRIEF, *SAID]
    bad = refused({"messages": [BRIEF, *SAID], "system": "be long"})
    assert (bad.kind, bad.detail) == (
        "two system prompts",
        "system and the system message say different things; keep one of them",
    )
    assert refused({"messages": SAID, "system": ["x"]}).detail == "system is a list, not text"


def test_message_numbers_are_those_of_the_file():
    assert (
        refused({"messages": [SAID[0], answer(content=" ")], "system": "be brief"}).detail
        == "message 2: content is empty"
    )


def test_alpacas_history_comes_before_the_instruction():
    values = {
        "instruction": "hi",
        "output": "hello",
        "system": "be brief",
        "history": [["one?", "1"], ["two?", 2]],
    }
    before = [
        {"role": role, "content": text}
        for role, text in (("user", "one?"), ("assistant", "1"), ("user", "two?"), ("assistant", "2"))
    ]
    for history in (values["history"], json.dumps(values["history"])):
        assert read({**values, "history": history}).messages == [BRIEF, *before, *SAID]
    for nothing in (None, [], "", " ", "[]"):
        assert read({**values, "history": nothing}).messages == [BRIEF, *SAID]
    for wrong in (["one?", "1"], [["one?"]], 5, {"a": "b"}, '"x"'):
        assert (
            refused({**values, "history": wrong}).detail
            == "history: expected a list of pairs, each a question and its answer"
        )


TEXTS = [{"instruction": "{}", "output": "a"}, {"instruction": "q", "input": "{}", "output": "a"}, {"instruction": "q", "output": "{}"},
         {"prompt": "{}", "completion": "a"}, {"prompt": "q", "completion": "{}"}, {"text": "{}"}]  # fmt: skip


@pytest.mark.parametrize("values", TEXTS)
def test_one_rule_for_numbers_and_lists_in_every_field(values):
    field = next(name for name, value in values.items() if value == "{}")

    def text(value):
        found = read({**values, field: value})
        return found.text or "\n".join(message["content"] for message in found.messages)

    assert text(42) == text("42")
    for value, called in (
        (0.5, "a number with a fraction"),
        (True, "true or false"),
        ([1], "a list"),
        ({"a": 1}, "an object"),
    ):
        if called == "a list" and field in ("prompt", "completion"):
            continue  # of messages
        assert refused({**values, field: value}).detail == f"{field} is {called}, not text"


def test_a_prompt_of_messages_is_not_trained_whatever_its_marks():
    given = [SAID[0], {"role": "Assistant", "content": "b", "weight": 1}, SAID[0]]
    assert read({"prompt": given, "completion": "d"}).trained == [True, False, True, True]


def test_the_chosen_answers_can_be_learned_alone():
    assert (
        read({"prompt": "hi", "chosen": "hello", "rejected": "no"}, {"completion": "chosen"}).messages == SAID
    )
    assert read({"chosen": SAID, "rejected": SAID}, {"messages": "chosen"}).unread == ["rejected"]
    assert (
        "label is false" in refused({"prompt": "hi", "completion": "no", "label": False}).detail
    )  # TRL's KTO


# ---- marks


YES, NO = (True, "true", "True", 1, 1.0, "1"), (False, "false", "False", 0, 0.0, "0")


@pytest.mark.parametrize("key", ["train", "training", "loss", "weight", "loss_scale"])
def test_marks_of_every_trainer_are_read(key):
    """Ours, Axolotl's, ms-swift's, OpenAI's; as JSON, or as the text that tables make of them."""
    for values, trained in ((YES, True), (NO, False), ((None,), True)):
        for value in values:
            assert read({"messages": [SAID[0], answer(**{key: value})]}).trained == [True, trained], value
    for value in (2, -1, 0.5, "no", "", [], {}, "yes", 10**5000, float("nan")):
        bad = refused({"messages": [SAID[0], answer(**{key: value})]})
        assert bad.kind == "bad weight", value
        assert bad.detail.startswith(f"message 2: {key} ")
    assert read({"conversations": [SHARED[0], {**SHARED[1], key: False}]}).trained == [True, False]
    turns = [
        {"who": "gpt", "said": "hello", key: True},
        {"who": "human", "said": "x"},
        {"who": "gpt", "said": "hello"},
    ]
    assert read({"conversations": turns}, {"from": "who", "value": "said"}).trained == [True, True, True]


def test_marks_that_contradict_each_other_are_refused():
    assert (
        refused({"messages": [SAID[0], answer(train=True, weight=0)]}).detail
        == "message 2: train and weight contradict each other"
    )


def test_marks_on_parts_of_a_message_are_refused():
    parts = [{"begin_offset": 0, "end_offset": 3, "train": False}]
    assert (
        "train_detail marks parts of a message"
        in refused({"messages": [SAID[0], answer(train_detail=parts)]}).detail
    )


def test_a_question_that_must_not_be_trained_is_not(chat):
    """With train_on=all everything of a text is trained but the answers left out: a question left out cannot
    be had.
    """
    conversation = read({"messages": [{**SAID[0], "train": False}, SAID[1]]})
    (row,) = Encoder(chat, 100, "all", "truncate").rows([conversation])
    assert (row.kind, "message 1 (user) is not to be trained" in row.detail) == ("bad weight", True)
    (row,) = Encoder(chat, 100, "assistant", "truncate").rows([conversation])
    assert isinstance(row, EncodedRow)


# ---- reasoning


@pytest.mark.parametrize("name", ["thinking", "reasoning_content", "reasoning", "thought", "thoughts"])
def test_reasoning_is_read_under_every_name(name):
    turns = [SAID[0], answer(**{name: "greet"})]
    assert read({"messages": turns}).messages[1]["content"] == "<think>\ngreet\n</think>\n\nhello"
    for field in ("thinking", "reasoning_content"):
        assert read({"messages": turns}, thinking_field=field).messages[1] == answer(**{field: "greet"})
    assert read({"messages": turns}, thinking="drop").messages[1] == answer()
    assert (
        read({"messages": [SAID[0], answer(**{name: "greet", "thinking": "greet\n"})]})
        .messages[1]["content"]
        .count("greet")
        == 1
    )
    inline = [SAID[0], answer(content="<think>greet</think>hello", **{name: "greet"})]
    assert read({"messages": inline}).messages[1]["content"] == "<think>\ngreet\n</think>\n\nhello"
    assert (
        refused({"messages": [SAID[0], answer(**{name: {"text": "greet"}})]}).detail
        == f"message 2: {name} is an object, not text"
    )


def test_two_thoughts_are_not_guessed_between():
    assert refused({"messages": [SAID[0], answer(reasoning="a", thinking="b")]}).kind == "two thoughts"
    assert (
        refused({"messages": [SAID[0], answer(content="<think>a</think>c", thinking="b")]}).kind
        == "two thoughts"
    )
    assert read(
        {"messages": [SAID[0], answer(content="<think>\n\n</think>\n\nhello", thinking="b")]},
        thinking_field="thinking",
    ).messages[1] == answer(thinking="b")


def test_a_thought_in_the_text_goes_into_the_field_that_a_template_reads():
    turns = [SAID[0], answer(content="<think>\ngreet\n</think>\n\nhello")]
    assert read({"messages": turns}, thinking_field="thinking").messages[1] == answer(thinking="greet")


def trl_template(name, **options):
    source = Path(importlib.util.find_spec("trl").origin).with_name("chat_templates") / f"{name}.jinja"
    return ChatTemplate(
        source.read_text(encoding="utf-8"), {"bos_token": "<s>", "eos_token": "</s>"}, **options
    )


@pytest.mark.parametrize(
    ("name", "field", "left_out", "opens"),
    [
        ("gptoss", "thinking", False, False),
        ("qwen3", "reasoning_content", False, False),
        ("qwen3_5_think", "reasoning_content", False, True),
        ("glm4moe", "reasoning_content", False, False),
        ("gemma4", "reasoning_content", False, False),  # before calls of tools alone
        ("deepseek_r1_distill", None, True, True),
        ("llama3", None, False, False),
    ],
)
def test_what_a_template_makes_of_thoughts_is_found_by_rendering(name, field, left_out, opens):
    template = trl_template(name)
    assert (template.thinking_field, template.leaves_thoughts_out, template.opens_thought) == (
        field,
        left_out,
        opens,
    )


def test_gpt_oss_gets_its_thought_into_the_analysis_channel():
    template = trl_template("gptoss")
    for turn in (answer(reasoning="greet"), answer(content="<think>greet</think>hello")):
        messages = read({"messages": [SAID[0], turn]}, thinking_field=template.thinking_field).messages
        text = template.render(messages)
        assert (
            "<|channel|>analysis<|message|>greet<|end|><|start|>assistant<|channel|>final<|message|>hello"
            in text
        )
        ((begin, end),) = SpanFinder(template).spans(text, messages)
        assert text[begin:end].startswith("<|channel|>analysis<|message|>greet")


def encoded(chat, template, values, **options):
    chat = ChatTokenizer(chat.whole, template, chat.stop_ids)
    conversation = read(values, thinking_field=template.thinking_field)
    (row,) = Encoder(chat, 4096, "assistant", "truncate").rows([conversation])
    return row


def test_a_template_that_strips_thoughts_or_opens_one_is_said_in_the_run(tmp_path, smollm2):
    chat = ChatTokenizer.from_folder(smollm2, "smollm2", {})
    prompt = "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    strip = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}<|im_end|>\n{%"
        " endfor %}"
    )
    chat.template = ChatTemplate(strip + prompt, control=chat.template.control)
    rows = [
        {"messages": [{"role": "user", "content": f"q{n}"}, answer(**({"thinking": "hm"} if n else {}))]}
        for n in range(10)
    ]
    report = loader(write_json(tmp_path / "data.json", rows)).check(chat)
    assert remarks(report) == [
        (
            "no thought, where the prompt ends with <think> in 10 of 10 rows: a trained model will be asked"
            " to go on inside a thought, and has learned to answer without one"
        ),
        "thinking left out by the template in 9 of 10 rows: answers are trained without their reasoning",
    ]
    keep = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    chat = ChatTokenizer(
        chat.whole, ChatTemplate(keep + prompt, control=chat.template.control), chat.stop_ids
    )
    report = loader(tmp_path / "data.json").check(chat)
    assert remarks(report)[0].startswith("no thought, where the prompt ends with <think> in 1 of 10 rows")


# ---- templates and tools


@pytest.mark.slow
def test_the_template_for_tools_is_the_one_transformers_takes(smollm2, tmp_path):
    """A list in tokenizer_config.json as Command R has it, and files as transformers writes them now."""
    from transformers import AutoTokenizer

    turns = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    plain = turns + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    sources = {"default": plain, "tool_use": "{{ tools | tojson }}\n" + plain, "rag": "rag"}
    config = json.loads((smollm2 / "tokenizer_config.json").read_text(encoding="utf-8"))
    config.pop("chat_template", None)
    for kind in ("list", "files"):
        folder = tmp_path / kind
        (folder / "additional_chat_templates").mkdir(parents=True)
        (folder / "tokenizer.json").write_bytes((smollm2 / "tokenizer.json").read_bytes())
        if kind == "list":
            config["chat_template"] = [{"name": name, "template": source} for name, source in sources.items()]
        else:
            config.pop("chat_template")
            (folder / "chat_template.jinja").write_text(plain)
            for name in ("tool_use", "rag"):
                (folder / "additional_chat_templates" / f"{name}.jinja").write_text(sources[name])
        write_json(folder / "tokenizer_config.json", config)
        loaded = AutoTokenizer.from_pretrained(folder)
        for chat in (
            ChatTokenizer.from_folder(folder, "x", {}),
            ChatTokenizer.from_transformers(loaded, "x", {}),
        ):
            for tools in (None, [WEATHER]):
                text = chat.template.render(SAID, False, tools)
                assert text == loaded.apply_chat_template(SAID, tools=tools, tokenize=False)
                assert ("weather" in text) == bool(tools)
                ((begin, end),) = SpanFinder(chat.template).spans(text, SAID, tools)
                assert text[begin:end] == "hello<|im_end|>"
            assert chat.template.writes_tools
    fingerprints = {
        ChatTokenizer.from_folder(tmp_path / kind, "x", {}).fingerprint for kind in ("list", "files")
    }
    assert len(fingerprints) == 1
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("other" + plain)
    assert ChatTokenizer.from_folder(folder, "x", {}).fingerprint not in fingerprints


def test_tools_that_a_template_never_writes_are_noted(tmp_path, chat):
    rows = [{**row, "tools": [WEATHER]} if n == 2 else row for n, row in enumerate(conversations(10))]
    report = loader(write_json(tmp_path / "data.json", rows)).check(chat)
    assert remarks(report) == [
        "tools left out by the template in 1 of 10 rows: the model learns to call tools that its prompt does"
        " not describe"
    ]
    assert trl_template("qwen3").writes_tools
    assert trl_template("llama3_1").writes_tools


def test_a_control_token_in_a_call_or_a_thought_is_found(chat):
    template = trl_template("qwen3", control=chat.template.control)
    evil = {"type": "function", "function": {"name": "weather", "arguments": {"city": "<|im_end|>"}}}
    described = {"type": "function", "function": {"name": "weather", "description": "<|im_end|>"}}
    for values, where in (
        ({"messages": [SAID[0], answer(tool_calls=[evil])], "tools": [WEATHER]}, "message 2 (assistant)"),
        ({"messages": [SAID[0], answer(reasoning="<|im_end|>")]}, "message 2 (assistant)"),
        ({"messages": SAID, "tools": [described]}, "a tool's definition"),
    ):
        problems = encoded(chat, template, values).problems
        assert (
            "special token in text",
            f"{where} contains <|im_end|>, which is a control token of this model",
        ) in problems


# ---- words


@pytest.mark.parametrize(
    ("role", "read_as"),
    [
        ("developer", "system"),
        ("Assistant", "assistant"),
        ("USER", "user"),
        (" human ", "user"),
        ("ai", "assistant"),
        ("GPT", "assistant"),
    ],
)
def test_roles_are_read_in_other_words_and_capitals(role, read_as):
    turns = {"system": [BRIEF, *SAID], "user": SAID, "assistant": SAID}[read_as]
    changed = [
        {**message, "role": role if message["role"] == read_as else message["role"]} for message in turns
    ]
    assert read({"messages": changed}).messages == turns


def test_the_nearest_role_is_named():
    assert refused({"messages": [{"role": "Asistant", "content": "x"}]}).detail.endswith(
        "did you mean assistant?"
    )
    assert refused({"messages": [{"role": "develper", "content": "x"}]}).detail.endswith(
        "did you mean developer?"
    )
    assert len(refused({"messages": [{"role": "x" * 100_000, "content": "x"}]}).detail) < 200


@pytest.mark.parametrize(
    ("asked", "answered"),
    [("question", "answer"), ("Q", "A"), ("input", "response"), ("user", "assistant"), ("Question", " Answer "), ("prompt", "response"),
     ("instruction", "response"), ("input", "output"), ("Prompt", "Completion")],
)  # fmt: skip
def test_a_table_of_questions_and_answers_is_read(tmp_path, chat, asked, answered):
    file = tmp_path / "data.csv"
    file.write_text(
        f"{asked},{answered},id\n" + "".join(f"q{n},a{n},{n}\n" for n in range(1, 4)), encoding="utf-8"
    )
    made = loader(file)
    report = made.check(chat)
    assert (report["rows_used"], report["not_read"]) == (3, {"id": 3})
    text = made.prepared.entry.table().column("text")[0].as_py()
    assert "<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\na1<|im_end|>" in text
    assert report["sources"][0]["columns"] == {"prompt": asked, "completion": answered.strip()}


@pytest.mark.slow
def test_a_third_column_that_belongs_to_the_question_is_asked_for(tmp_path, launch):
    """databricks-dolly and its like: training without the context would be another task."""
    write_json(tmp_path / "data.json", [{"instruction": "q", "context": "c", "response": "a"}])
    words = (
        "dataset.columns.instruction=instruction dataset.columns.input=context"
        " dataset.columns.output=response"
    )
    error = only_error(launch("task=check", "dataset.data_path=data.json", "dataset.eval_fraction=0"))
    assert (
        error
        == "data.json: row 1 has instruction, context and response: to put context under instruction, say"
        f" {words}"
    )
    process = launch("task=check", "dataset.data_path=data.json", "dataset.eval_fraction=0", *words.split())
    assert process.returncode == 0, process.stderr


def test_conversations_as_json_in_a_table(tmp_path, chat):
    import csv

    for turns in (SAID, SHARED):
        for column in ("messages", "conversations"):
            with (tmp_path / "data.csv").open("w", newline="", encoding="utf-8") as stream:
                csv.writer(stream).writerows([[column], [json.dumps(turns)]])
            assert loader(tmp_path / "data.csv").check(chat)["rows_used"] == 1


def test_pythons_text_of_a_list_is_called_so():
    """What pandas writes into a CSV."""
    assert (
        "it is Python's text of a list: write the column with json.dumps"
        in refused({"messages": str(SAID)}).detail
    )


def test_an_object_keyed_by_id_is_called_so(tmp_path, chat):
    file = write_json(tmp_path / "data.json", {f"conversation-{n}": {"messages": SAID} for n in range(2000)})
    with pytest.raises(UserError) as caught:
        loader(file).check(chat)
    message = str(caught.value)
    assert message.startswith(
        f"{file}: expected a JSON list of conversations, found an object keyed by 'conversation-0', "
    )
    assert message.endswith("'conversation-9' and 1,990 more; save its values as a list")


@pytest.mark.parametrize("values", [{f"column {n}": "x" for n in range(2000)}, {"x" * 100_000: "y"}])
def test_lists_in_messages_end(tmp_path, chat, values):
    for columns in ({}, {"instruction": "qestion"}):
        with pytest.raises(UserError) as caught:
            loader(write_json(tmp_path / "data.json", [values]), columns=columns).check(chat)
        assert len(str(caught.value)) < 800
    with pytest.raises(BadRow) as caught:
        to_conversation(Row("data.json", 1, values), "messages", Reading({}))
    assert len(caught.value.detail) < 800
    with pytest.raises(BadRow) as caught:
        to_conversation(Row("data.json", 1, {"messages": [values]}), "messages", Reading({}))
    assert len(caught.value.detail) < 800


# ---- hostile values

HALF = "\ud800"


@pytest.mark.parametrize(
    "values",
    [
        {"messages": [SAID[0], answer(**{HALF: 1})]},
        {"messages": [{"role": HALF, "content": "x"}]},
        {"messages": [{HALF: 1}]},
        {HALF: 1, "messages": [{"role": "user"}]},
        {"messages": [SAID[0], answer(tool_calls=[{"function": {"name": HALF, "arguments": {}}}])]},
        {"messages": [SAID[0], answer(tool_calls=[{"function": {"name": "f", "arguments": {HALF: 1}}}])]},
        {"messages": [{**SAID[0], "name": HALF}, SAID[1]]},
        {"messages": SAID, "tools": [{"name": HALF}]},
        {"messages": SAID, "tools": [{"name": "f", HALF: 1}]},
        {"instruction": HALF, "output": "x"},
        {"messages": [SAID[0], answer(reasoning=HALF)]},
        {"messages": [SAID[0], answer(tool_calls=5)]},
        {"messages": [SAID[0], answer(tool_calls=[{"function": {"name": "f", "arguments": "[" * 3000}}])]},
        {"messages": "[" * 3000},
        {"messages": [SAID[0], answer(tool_calls=[{"function": {"name": "f", "arguments": '{"a":' + "9" * 5000 + "}"}}])]},
    ],
)  # fmt: skip
def test_hostile_rows_are_named_in_one_line(tmp_path, chat, values):
    """Among good ones, through the whole gate and into its report; what the template does not write may pass."""
    (tmp_path / "data.json").write_text(json.dumps([*conversations(3), values]), encoding="utf-8")
    made = loader(tmp_path / "data.json", on_bad_row="drop")
    report = made.check(chat)
    json.dumps(report, ensure_ascii=False).encode()
    assert report["rows_used"] + report["bad_rows"] == 4
    for found in report["problems"].values():
        assert found["rows"][0]["row"] == 4
        assert "\n" not in found["rows"][0]["detail"]
        assert len(found["rows"][0]["detail"]) < 400


def nested(levels):
    value = "x"
    for _ in range(levels):
        value = {"a": value}
    return value


@pytest.mark.parametrize("levels", [500, 900, 5000])
def test_values_nested_deeply_are_refused_by_row_or_read(chat, levels):
    for values in (
        {
            "messages": [
                SAID[0],
                answer(tool_calls=[{"function": {"name": "f", "arguments": nested(levels)}}]),
            ]
        },
        {"messages": SAID, "tools": [{"name": "f", "parameters": nested(levels)}]},
        {"messages": [SAID[0], ASKED, {"role": "tool", "content": nested(levels)}, SAID[1]]},
        {"messages": SAID, "x": nested(levels)},
        {"messages": [SAID[0], answer(x=nested(levels))]},
    ):
        settle(values, chat)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from([HALF, "[", "[]", "{}", "[1]", '[{"role": 1}]']),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["role", "content", "from", "value", "name", "arguments", "function", "type", "text", "x"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
roles = (
    st.sampled_from(["system", "user", "assistant", "tool", "gpt", "function_call", "Human"]) | json_values
)
keys = [
    "name",
    "tool_call_id",
    "tool_calls",
    "function_call",
    "thinking",
    "reasoning",
    "train",
    "weight",
    "loss",
    "train_detail",
    "x",
]
turns = st.lists(
    st.builds(lambda role, content, more: {"role": role, "content": content, **more}, roles, st.text(min_size=1) | json_values,
              st.dictionaries(st.sampled_from(keys), json_values, max_size=2)),
    min_size=1, max_size=3,
)  # fmt: skip
rows = st.dictionaries(
    st.sampled_from([*(name for found in FORMATS.values() for name in (*found.needs, *found.optional)), "label", "question", "answer", "chosen", "rejected", HALF]),
    turns | json_values | st.lists(st.lists(json_values, max_size=2), max_size=2),
    max_size=5,
) | st.builds(lambda messages, more: {"messages": [*messages, SAID[1]], **more}, turns,
              st.dictionaries(st.sampled_from(["tools", "system", "functions", "x"]), json_values, max_size=2))  # fmt: skip


def settle(values, chat):
    """The row becomes a conversation and tokens, or is refused by name."""
    try:
        conversation = read(values, thinking_field=chat.template.thinking_field)
    except (BadRow, UserError) as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 1000
        return
    (row,) = Encoder(chat, 4096, "assistant", "truncate").rows([conversation])
    assert isinstance(row, (EncodedRow, Refused))
    json.dumps(
        [*conversation.unread, getattr(row, "opening", []), getattr(row, "detail", "")], ensure_ascii=False
    ).encode()


@settings(max_examples=300)
@given(values=rows)
def test_any_values_in_any_field_are_read_or_refused(values, chat):
    settle(values, chat)


@settings(max_examples=60)
@given(values=rows | st.fixed_dictionaries({"chosen": turns | json_values, "rejected": turns | json_values}, optional={"prompt": turns | json_values, "label": json_values}))  # fmt: skip
@pytest.mark.parametrize("name", JUDGED)
def test_any_values_of_judged_answers_are_read_or_refused(name, values, chat):
    row, reading = Row("data.json", 1, values), Reading({})
    try:
        found = judged_format([row], reading, "answers")
        made = judged(row, name, replace(reading, columns=found[1]) if found else reading, "pairs")
    except (BadRow, UserError) as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 1000
        return
    for row in joined(Encoder(chat, 4096, "assistant", "truncate").rows(iter(made))):
        assert isinstance(row, (EncodedRow, Refused))
        assert isinstance(row, Refused) or all(part.trained for part in row.parts) or row.problems


@settings(max_examples=100)
@given(values=rows)
def test_any_values_before_a_template_with_tools_and_thoughts(values, chat):
    settle(
        values,
        ChatTokenizer(chat.whole, trl_template("qwen3", control=chat.template.control), chat.stop_ids),
    )


@pytest.mark.parametrize("value", ["[" * 5000 + "]" * 5000, '{"a":' * 3000 + "1" + "}" * 3000, "9" * 5000])
def test_a_file_with_a_value_that_python_cannot_hold_is_refused_by_row(tmp_path, chat, value):
    good = json.dumps({"messages": SAID})
    bad = f'{{"messages": {json.dumps(SAID)}, "x": {value}}}'
    for name, text, where in (
        ("data.json", f"[{good},\n{bad}]", "row 2"),
        ("first.jsonl", f"{bad}\n{good}\n", "line 1"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError) as caught:
            loader(tmp_path / name).check(chat)
        assert re.match(
            rf"{tmp_path}/{name}: {where} (is nested too deeply to be read|has a number of over 4,300"
            r" digits)",
            str(caught.value),
        )


def test_columns_that_were_not_read_are_no_metrics():
    from chatbot_sft.report.loggers import _figures

    report = {
        "model": {},
        "dataset": {"rows": 3, "not_read": {"messages[].score": 3}},
        "training": {},
        "memory": {},
    }
    assert _figures(report) == {"report/dataset.rows": 3}
