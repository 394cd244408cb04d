"""Rows of every format become the same messages; what a row may say of itself is read or refused, never
ignored.
"""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatbot_sft import UserError
from chatbot_sft.data.formats import Reading, check_columns, detect, to_conversation
from chatbot_sft.data.messages import BadRow
from chatbot_sft.data.sources import Row

SAID = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
WITH_SYSTEM = [{"role": "system", "content": "be brief"}, *SAID]


def read(values, columns=None, **options):
    """(format, messages) as a source with this one row is read."""
    reading = Reading({"messages": "messages", "text": "text", **(columns or {})}, **options)
    row = Row("data.json", 1, values)
    name, found = detect([row], reading)
    conversation = to_conversation(row, name, replace(reading, columns=found))
    return name, conversation.messages, conversation


@pytest.mark.parametrize(
    ("values", "columns", "name", "messages"),
    [
        ({"messages": SAID}, {}, "messages", SAID),
        ({"messages": json.dumps(SAID)}, {}, "messages", SAID),  # a CSV cell
        ({"chat": SAID}, {"messages": "chat"}, "messages", SAID),
        ({"messages": [{"who": "user", "says": "hi"}, {"who": "assistant", "says": "hello"}]}, {"role": "who", "content": "says"}, "messages", SAID),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}, SAID[1]]}, {}, "messages", SAID),
        ({"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]}, {}, "sharegpt", SAID),
        ({"conversations": [{"from": "user", "value": "hi"}, {"from": "bot", "value": "hello"}], "system": "be brief"}, {}, "sharegpt", WITH_SYSTEM),
        ({"messages": [{"from": "human", "value": "hi"}, {"from": "assistant", "value": "hello"}]}, {}, "sharegpt", SAID),
        ({"conversations": SAID}, {}, "messages", SAID),
        ({"instruction": "hi", "input": "", "output": "hello"}, {}, "alpaca", SAID),
        ({"instruction": "hi", "output": "hello", "system": "be brief"}, {}, "alpaca", WITH_SYSTEM),
        ({"instruction": "hi", "input": "1 2", "output": "hello"}, {}, "alpaca", [{"role": "user", "content": "hi\n\n1 2"}, SAID[1]]),
        ({"q": "hi", "a": "hello"}, {"instruction": "q", "output": "a"}, "alpaca", SAID),
        ({"prompt": "hi", "completion": "hello"}, {}, "prompt_completion", SAID),
        ({"prompt": SAID[:1], "completion": SAID[1:]}, {}, "prompt_completion", SAID),
        ({"text": "hi there"}, {}, "text", None),
    ],
)  # fmt: skip
def test_every_format_is_recognised_by_its_content(values, columns, name, messages):
    assert read(values, columns)[:2] == (name, messages)


def test_the_given_part_of_a_prompt_is_not_trained():
    given = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    conversation = read({"prompt": given, "completion": [{"role": "assistant", "content": "d"}]})[2]
    assert conversation.trained == [True, False, True, True]


ROLES = {"customer": "user", "agent": "assistant"}
ASKED, ANSWERED = ({"role": word, "content": turn["content"]} for word, turn in zip(ROLES, SAID, strict=True))


@pytest.mark.parametrize(
    ("values", "trained"),
    [
        ({"messages": [ASKED, {**ANSWERED, "role": " Agent"}]}, [True, True]),
        ({"conversations": [{"from": "customer", "value": "hi"}, {"from": "agent", "value": "hello"}]}, [True, True]),
        ({"prompt": [ASKED, ANSWERED, ASKED], "completion": [ANSWERED]}, [True, False, True, True]),
    ],
)  # fmt: skip
def test_roles_that_the_file_calls_otherwise_are_read(values, trained):
    _, messages, conversation = read(values, roles=ROLES)
    assert messages == SAID * (len(trained) // 2)
    assert (conversation.trained, conversation.named) == (trained, set(ROLES))


def test_a_role_is_what_the_file_means_by_it_even_under_the_other_name():
    turned = {"assistant": "user", "user": "assistant"}
    messages = [{**turn, "role": role} for turn, role in zip(SAID, turned, strict=True)]
    assert read({"messages": messages}, roles=turned)[1] == SAID


def test_train_false_and_weight_0_are_read():
    turns = [
        SAID[0],
        {**SAID[1], "train": False},
        SAID[0],
        {**SAID[1], "weight": 0},
        SAID[0],
        {**SAID[1], "weight": 1, "train": True},
    ]
    conversation = read({"messages": turns})[2]
    assert conversation.trained == [True, False, True, False, True, True]
    assert all(set(message) == {"role", "content"} for message in conversation.messages)


def test_a_system_prompt_is_added_where_a_row_has_none():
    assert read({"messages": SAID}, system_prompt="be brief")[1] == WITH_SYSTEM
    assert read({"messages": WITH_SYSTEM}, system_prompt="be long")[1] == WITH_SYSTEM


def test_tool_calls_are_passed_as_templates_expect_them():
    call = {"id": "c1", "type": "function", "function": {"name": "price", "arguments": '{"beer": "Gold"}'}}
    turns = [
        SAID[0],
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "32000", "tool_call_id": "c1"},
        SAID[1],
    ]
    tools = [{"type": "function", "function": {"name": "price", "parameters": {}}}]
    _, messages, conversation = read({"messages": turns, "tools": tools})
    assert messages[1] == {
        "role": "assistant",
        "content": "",
        "tool_calls": [{**call, "function": {"name": "price", "arguments": {"beer": "Gold"}}}],
    }
    assert messages[2] == {"role": "tool", "content": "32000", "tool_call_id": "c1"}
    assert conversation.tools == tools
    shared = [
        {"from": "human", "value": "hi"}, {"from": "function_call", "value": '{"name": "price", "arguments": {"beer": "Gold"}}'},
        {"from": "observation", "value": "32000"}, {"from": "gpt", "value": "hello"},
    ]  # fmt: skip
    assert [message["role"] for message in read({"conversations": shared})[1]] == [
        "user",
        "assistant",
        "tool",
        "assistant",
    ]
    assert read({"conversations": shared})[1][1]["tool_calls"][0]["function"]["arguments"] == {"beer": "Gold"}


ANSWERS = [
    {"role": "user", "content": "one?"},
    {"role": "assistant", "content": "1", "thinking": "first"},
    {"role": "user", "content": "what does </think> mean?"},
    {"role": "assistant", "content": "<think>\nsecond\n</think>\n\n</think> closes a thought"},
]


@pytest.mark.parametrize(
    ("thinking", "first", "second"),
    [
        ("keep", "<think>\nfirst\n</think>\n\n1", "<think>\nsecond\n</think>\n\n</think> closes a thought"),
        ("drop", "1", "</think> closes a thought"),
        ("last", "1", "<think>\nsecond\n</think>\n\n</think> closes a thought"),
    ],
)
def test_thinking_is_kept_dropped_or_kept_last(thinking, first, second):
    messages = read({"messages": ANSWERS}, thinking=thinking)[1]
    assert [message["content"] for message in messages] == ["one?", first, "what does </think> mean?", second]


def test_thinking_goes_into_the_field_that_a_template_reads():
    turns = [SAID[0], {**SAID[1], "reasoning_content": "greet"}]
    assert read({"messages": turns}, thinking_field="reasoning_content")[1][1] == {
        **SAID[1],
        "reasoning_content": "greet",
    }
    assert read({"messages": turns}, thinking="drop", thinking_field="reasoning_content")[1] == SAID


@given(
    before=st.text(max_size=10),
    thought=st.text(max_size=20),
    after=st.text(min_size=1, max_size=20).filter(str.strip),
)
def test_dropping_a_thought_leaves_the_answer_whole(before, thought, after):
    """Only a thought that the answer begins with goes, up to its first end; nothing behind it is touched."""
    content = f"<think>{thought.replace('</think>', '')}</think>{after}"
    turns = [SAID[0], {"role": "assistant", "content": content}]
    assert read({"messages": turns}, thinking="drop")[1][1]["content"] == after.lstrip()
    inside = [SAID[0], {"role": "assistant", "content": f"x{before}{content}"}]
    assert read({"messages": inside}, thinking="drop")[1][1]["content"] == f"x{before}{content}"


@pytest.mark.parametrize(
    ("turns", "kind", "detail"),
    [
        ("hello", "not messages", "not a list of messages"),
        ("[{", "not messages", "its JSON is broken"),
        ([], "not messages", "not a list of messages"),
        ([{"role": "user"}], "not messages", "message 1: expected an object with role and content, found role"),
        (["hi"], "not messages", "message 1: expected an object with role and content, found a text"),
        ([{"role": "asistant", "content": "a"}], "unknown role", "message 1: role 'asistant' is none of system, user, assistant, tool"),
        ([{"role": "customer", "content": "a"}, {"role": "Agent", "content": "b"}, {"role": "boss", "content": "c"}, SAID[0]], "unknown role",
         "assistant, tool; say what it is: dataset.roles.customer=user dataset.roles.Agent=assistant dataset.roles.boss=…"),
        ([{"role": "khách hàng", "content": "a"}], "unknown role", 'in a file in --config-dir: dataset.roles: {"khách hàng": …}'),
        ([{"role": None, "content": "a"}], "unknown role", "message 1: role None is none of"),
        ([{"role": "user", "content": 3.5}], "not text", "message 1: content is a number with a fraction, not text"),
        ([{"role": "user", "content": [{"type": "image", "url": "x"}]}], "not text", "content has a part of type 'image'; only text can be trained"),
        ([{"role": "user", "content": [{}]}], "not text", "content has a part of type None"),
        ([{"role": "user", "content": " "}], "empty content", "message 1: content is empty"),
        ([{"role": "user", "content": None}], "empty content", "message 1: content is empty"),
        ([{"role": "user", "content": "hi"}], "no assistant turn", "no assistant message, so there is nothing to learn from it"),
        ([SAID[0], {"role": "assistant", "content": "a", "weight": 0.5}], "bad weight", "message 2: weight 0.5 is neither 0 nor 1"),
        ([{**SAID[0], "train": True}, SAID[1]], "bad weight", "message 1: only assistant messages can be trained"),
        ([SAID[0], {"role": "assistant", "tool_calls": [{"type": "function"}]}], "bad tool call", "a tool call needs a function with a name"),
        ([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}], "bad tool call", "arguments of f are not JSON"),
    ],
)  # fmt: skip
def test_a_bad_row_is_refused_with_its_kind(turns, kind, detail):
    with pytest.raises(BadRow) as caught:
        to_conversation(Row("data.json", 1, {"messages": turns}), "messages", Reading({}))
    assert caught.value.kind == kind
    assert detail in caught.value.detail


def test_an_answer_that_was_only_a_thought_is_empty_without_it():
    turns = [SAID[0], {"role": "assistant", "content": "<think>hm</think>"}]
    with pytest.raises(BadRow, match="message 2: nothing is left of the answer without its <think> part"):
        to_conversation(Row("data.json", 1, {"messages": turns}), "messages", Reading({}, thinking="drop"))


def test_another_format_in_the_same_file_is_named():
    with pytest.raises(BadRow, match="this row is alpaca, the file is read as messages; one format per file"):
        to_conversation(Row("data.json", 7, {"instruction": "a", "output": "b"}), "messages", Reading({}))


def test_rows_that_cannot_be_read_say_so_and_not_which_columns_they_lack():
    faulty = [Row("a.csv", number, {}, ("fields", f"line {number + 1} has 3 fields")) for number in (1, 2)]
    said = r"^a.csv: row 1: line 2 has 3 fields; none of 2 rows looked at can be read; mend them$"
    with pytest.raises(UserError, match=said):
        detect(faulty, Reading({}))
    with pytest.raises(UserError, match=said):
        check_columns("a.csv", faulty, {"instruction": "question"})
    with pytest.raises(UserError, match=r"a.csv: row 3 has no 'messages'; it has Frage"):
        detect([*faulty, Row("a.csv", 3, {"Frage": "a"})], Reading({}))


def test_an_unknown_format_says_which_columns_there_are():
    with pytest.raises(UserError) as caught:
        read({"mesages": SAID, "id": 1})
    assert str(caught.value).startswith(
        "data.json: row 1 has no 'messages'; it has mesages, id: no format recognised"
    )
    assert str(caught.value).endswith("did you mean mesages?")


@pytest.mark.parametrize(
    ("values", "named"),
    [
        (
            {"Frage": "a", "Kontext": "b", "Antwort": "c"},
            "dataset.columns.instruction=Frage dataset.columns.output=Antwort",
        ),
        (
            {"id": "7", "the question": "a", "A": "b", "n": 3},
            "'dataset.columns.instruction=the question' dataset.columns.output=A",
        ),
    ],
)
def test_columns_of_no_format_are_answered_with_options_to_paste(values, named):
    with pytest.raises(UserError, match="no format recognised") as caught:
        read(values)
    assert str(caught.value).endswith(f"for instance {named}")


def test_a_column_map_is_checked_against_the_columns_there_are():
    rows = [Row("data.csv", 1, {"question": "a", "answer": "b"})]
    check_columns("data.csv", rows, {"instruction": "question", "output": "answer"})
    with pytest.raises(UserError) as caught:
        check_columns("data.csv", rows, {"instruction": "quesiton"})
    assert (
        str(caught.value)
        == "data.csv: no column 'quesiton' for instruction; did you mean question? (it has question, answer)"
    )
    for typo in ("Frge", "frage", "Fragen"):
        with pytest.raises(UserError) as caught:
            check_columns(
                "data.csv",
                [Row("data.csv", 1, {"Frage": "a", "Kontext": "b", "Antwort": "c"})],
                {"instruction": typo},
            )
        assert str(caught.value).endswith("; did you mean Frage? (it has Frage, Kontext, Antwort)")
    with pytest.raises(
        UserError,
        match=r"columns.question=instruction: the other way round: .*; write dataset.columns.instruction=question$",
    ):
        check_columns("data.csv", rows, {"question": "instruction"})
    with pytest.raises(
        UserError, match=r"dataset.columns.instructoin: no such field; did you mean instruction\?"
    ):
        check_columns("data.csv", rows, {"instructoin": "question"})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "from", "value", "x"]), inner, max_size=3)
    ),
)


@given(
    values=st.dictionaries(
        st.sampled_from(
            ["messages", "conversations", "instruction", "output", "prompt", "completion", "text", "y"]
        ),
        json_values,
    )
)
def test_any_row_is_read_or_refused_by_name(values):
    try:
        read(values)
    except UserError as error:
        assert "\n" not in str(error)
    except BadRow as bad:
        assert bad.kind and bad.detail
