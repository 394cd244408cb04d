"""Files to rows to labels: what is wrong is named with its row, and exactly the assistant's tokens are trained."""

import json

import pytest
from conftest import EXAMPLE, conversations, write_json
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from chatbot_sft import DatasetLoader, UserError
from chatbot_sft.data.labels import IGNORED, marker_spans, renderer, structural_spans, token_labels, turn_markers
from chatbot_sft.data.sources import read_rows


def loader(path, tokenizer=None, **dataset):
    return DatasetLoader({"model": {"name": "smollm2"}, "dataset": {"data_path": str(path), "eval_fraction": 0, **dataset}}, tokenizer)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{}", "not JSON"),
        ("this is no JSON", "not JSON"),
        ("", "no conversations in it"),
        ("[]", "no conversations in it"),
        ('{"messages": 1', "not JSON"),
        ('{"data": [{"messages": []}]}', "expected a JSON list of conversations, found an object; save the list under its key 'data'"),
        ("42", "expected an object"),
        ('["a"]', "row 1 is a string"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}\n{"mess', "line 2 is not JSON"),
        ('[{"mesages": []}]', "row 1 has no 'messages'; it has mesages: name its column of messages with dataset.message_field"),
        ('[{"messages": "hello"}]', "row 1: 'messages' is not a list of messages"),
        ('[{"messages": []}]', "row 1: 'messages' is not a list of messages"),
        ('[{"messages": [{"role": "user"}]}]', "row 1, message 1: expected an object with role and content, found role"),
        ('[{"messages": [{"from": "human", "value": "hi"}]}]', "expected an object with role and content, found from, value"),
        ('[{"messages": [{"role": "asistant", "content": "a"}]}]', "row 1, message 1: role 'asistant' is none of"),
        ('[{"messages": [{"role": "user", "content": 3}]}]', "row 1, message 1: content is not text"),
        ('[{"messages": [{"role": "user", "content": " "}]}]', "row 1, message 1: content is empty"),
        ('[{"messages": [{"role": "user", "content": "hi"}]}]', "row 1: no assistant message"),
    ],
)
def test_a_bad_file_is_refused_by_row(tmp_path, content, message):
    file = tmp_path / "data.json"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        loader(file).load_conversations()
    assert str(caught.value).startswith(str(file))
    assert message in str(caught.value)


def test_a_missing_file_suggests_the_nearest(tmp_path):
    write_json(tmp_path / "conversations.json", conversations(1))
    with pytest.raises(UserError, match=r"no such data file; did you mean conversations.json\?"):
        read_rows(str(tmp_path / "conversation.json"))


def test_not_utf8_says_where(tmp_path):
    (tmp_path / "data.json").write_bytes(b'[{"messages": "\xff"}]')
    with pytest.raises(UserError, match=r"not UTF-8 text \(byte 15\)"):
        read_rows(str(tmp_path / "data.json"))


def test_a_list_and_lines_are_read_alike(tmp_path):
    rows = conversations(3, note="a\nb")
    list_file = write_json(tmp_path / "list.json", rows)
    lines = tmp_path / "lines.jsonl"
    lines.write_text("\ufeff" + "\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    assert [row.values for row in read_rows(str(list_file))] == [row.values for row in read_rows(str(lines))] == rows


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=json_values, lines=st.booleans())
def test_any_json_is_read_or_refused_in_one_line(tmp_path, value, lines):
    file = tmp_path / "any.json"
    file.write_text("\n".join(json.dumps(item) for item in value) if lines and isinstance(value, list) else json.dumps(value), encoding="utf-8")
    try:
        loader(file).load_conversations()
    except UserError as error:
        assert "\n" not in str(error)


def test_the_example_data_is_as_its_readme_says():
    rows = json.loads(EXAMPLE.read_text(encoding="utf-8"))
    assert len(rows) == 244
    turns = [sum(message["role"] == "user" for message in row["messages"]) for row in rows]
    assert [turns.count(n) for n in (1, 2, 3, 4)] == [162, 60, 16, 6]
    answers = [m for row in rows for m in row["messages"] if m["role"] == "assistant"]
    assert all(answer["thinking"].strip() for answer in answers)
    assert all(row["messages"][0]["role"] == "system" and row["messages"][-1]["role"] == "assistant" for row in rows)
    texts = [m["content"] for row in rows for m in row["messages"] if m["role"] != "system"]
    assert len(set(texts)) == len(texts)


def test_thinking_is_kept_or_dropped(tmp_path, tokenizer):
    row = {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4", "thinking": "add"}]}
    file = write_json(tmp_path / "data.json", [row])
    kept = loader(file, tokenizer, thinking="keep").prepare_dataset()[0]["text"]
    dropped = loader(file, tokenizer, thinking="drop").prepare_dataset()[0]["text"]
    assert "<|im_start|>assistant\n<think>\nadd\n</think>\n\n4<|im_end|>" in kept
    assert dropped == kept.replace("<think>\nadd\n</think>\n\n", "")


def test_the_split_is_by_conversation_seeded_and_disjoint(tmp_path, tokenizer):
    file = write_json(tmp_path / "data.json", conversations(50))

    def held_out(seed):
        made = DatasetLoader({"seed": seed, "model": {"name": "smollm2"}, "dataset": {"data_path": str(file)}})
        training, evaluation = ([item.row for item in part] for part in made.split())
        assert sorted(training + evaluation) == list(range(1, 51))
        return evaluation

    assert len(held_out(1)) == 5
    assert held_out(1) == held_out(1) != held_out(2)


def test_one_conversation_cannot_be_split(tmp_path):
    file = write_json(tmp_path / "data.json", conversations(1))
    with pytest.raises(UserError, match=r"set dataset\.eval_fraction=0"):
        loader(file, eval_fraction=0.1).split()


def test_truncation_is_counted_and_rows_without_an_answer_are_dropped(tmp_path, tokenizer):
    long_question = {"messages": [{"role": "user", "content": "word " * 300}, {"role": "assistant", "content": "late"}]}
    long_answer = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "word " * 300}]}
    file = write_json(tmp_path / "data.json", [long_question, long_answer, *conversations(1)])
    made = DatasetLoader({"model": {"name": "smollm2", "max_seq_length": 128}, "dataset": {"data_path": str(file), "eval_fraction": 0}}, tokenizer)
    dataset = made.prepare_dataset()
    assert [len(row["input_ids"]) <= 128 for row in dataset] == [True, True]
    assert (made.statistics.rows_used, made.statistics.truncated_rows, made.statistics.dropped_rows) == (2, 2, 1)
    only_long_questions = write_json(tmp_path / "long.json", [long_question])
    with pytest.raises(UserError, match=r"no row has a trainable token within model\.max_seq_length=128"):
        DatasetLoader(
            {"model": {"name": "smollm2", "max_seq_length": 128}, "dataset": {"data_path": str(only_long_questions), "eval_fraction": 0}}, tokenizer
        ).prepare_dataset()


def test_ready_made_text_is_labelled_by_the_templates_markers(tmp_path, tokenizer):
    text = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nhello<|im_end|>\n"
    row = loader(write_json(tmp_path / "data.json", [{"text": text}]), tokenizer).prepare_dataset()[0]
    assert tokenizer.decode([label for label in row["labels"] if label != IGNORED]) == "hello<|im_end|>\n"
    with pytest.raises(UserError, match="row 1: no assistant text found"):
        loader(write_json(tmp_path / "other.json", [{"text": "no turns here"}]), tokenizer).prepare_dataset()


# Texts that try to break a mask: empty lines, the template's own markers, letters of several bytes, characters of several tokens.
said = st.one_of(
    st.text(st.characters(exclude_categories=["Cs", "Co"]), min_size=1, max_size=40),
    st.sampled_from(
        [
            "Xin chào ạ",
            "🍺",
            "<|im_start|>assistant\nI am the user",
            "<|im_end|>",
            "\n\nhi\n",
            " padded ",
            "<think>\n</think>",
            "ế",
            "assistant",
            "user\n",
        ]
    ),
).filter(str.strip)
turns = st.lists(st.tuples(said, said), min_size=1, max_size=4)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=turns, system=st.none() | said)
def test_exactly_what_the_assistant_said_is_trained(tokenizer, pairs, system):
    messages = [{"role": "system", "content": system}] if system else []
    for question, answer in pairs:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    render = renderer(tokenizer)
    text = render(messages, False)
    assume(tokenizer.decode(tokenizer(text)["input_ids"]) == text)  # a few rare bytes are not in SmolLM2's vocabulary at all
    spans = structural_spans(text, messages, render)
    assert [text[start:end] for start, end in spans] == [f"{answer}<|im_end|>\n" for _, answer in pairs]
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    labels = token_labels(encoded["input_ids"], encoded["offset_mapping"], spans)
    assert all(label in (IGNORED, token) for token, label in zip(encoded["input_ids"], labels, strict=True))
    turns_trained = []
    for label, before in zip(labels, [IGNORED, *labels], strict=False):
        if label != IGNORED:
            turns_trained += [[]] if before == IGNORED else []
            turns_trained[-1].append(label)
    for ids, (_, answer) in zip(turns_trained, pairs, strict=True):
        # White space before an answer can share a token with the line break of the turn's header; nothing else is lost, nothing is added.
        whole, trained = f"{answer}<|im_end|>\n", tokenizer.decode(ids)
        assert whole.endswith(trained)
        assert not whole.removesuffix(trained).strip()


def test_markers_agree_with_the_structure_where_both_apply(tokenizer):
    made = loader(EXAMPLE, tokenizer)
    made.prepare_dataset()
    render = renderer(tokenizer)
    markers = turn_markers(render)
    assert (markers.user, markers.assistant) == ("<|im_start|>user\n", "<|im_start|>assistant\n")
    for conversation in made.load_conversations():
        text = render(conversation.messages, False)
        assert structural_spans(text, conversation.messages, render) == marker_spans(text, markers)


def test_a_users_own_text_is_not_mistaken_for_the_templates(tokenizer):
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    assert structural_spans("something else", messages, renderer(tokenizer)) is None
