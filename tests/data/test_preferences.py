"""Judged answers: pairs, labels and thumbs become sequences of a prompt and an answer of which the answer alone is
trained, and what is wrong with them is said by row.
"""

import json

import pytest
from conftest import EXAMPLE, write_json
from hypothesis import given, settings
from hypothesis import strategies as st

from chatbot_sft import DatasetLoader, UserError
from chatbot_sft.data.labels import IGNORED
from chatbot_sft.data.store import flat
from chatbot_sft.data.template import ChatTokenizer
from chatbot_sft.report.data_summary import facts, remarks
from chatbot_sft.report.found import sentences


def user(content):
    return {"role": "user", "content": content}


def assistant(content, **extra):
    return {"role": "assistant", "content": content, **extra}


PROMPT, GOOD, BAD = [user("hi")], [assistant("hello")], [assistant("go away")]
PAIR = {"prompt": "hi", "chosen": "hello", "rejected": "go away"}
SHARED = [{"from": "human", "value": "hi"}]
THUMBS = {
    "messages": [user("hi"), assistant("hello", feedback="up"), user("?"), assistant("no", feedback="down")]
}
UP = {"prompt": "hi", "completion": "hello", "label": True}
DOWN = {"prompt": "hi", "completion": "go away", "label": False}


@pytest.fixture(scope="module")
def chat(smollm2):
    return ChatTokenizer.from_folder(smollm2, "smollm2", {})


@pytest.fixture
def read(tmp_path, chat):
    """`read(rows, "dpo")` is the loader of a file with these rows, checked."""

    def read(rows, objective, max_seq_length=256, **dataset):
        file = tmp_path / "data.jsonl"
        file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        loader = DatasetLoader(
            {
                "model": {"name": "smollm2", "max_seq_length": max_seq_length},
                "objective": {"name": objective},
                "dataset": {"data_path": str(file), "eval_fraction": 0, **dataset},
            }
        )
        loader.check(chat)
        return loader

    return read


def rows_of(loader):
    return loader.prepared.entry.table().to_pylist()


def sequences(loader, chat):
    """Of each row, (kind, what is trained, what stands before it) of each sequence."""
    found = []
    for row in rows_of(loader):
        ids, labels, told = row["input_ids"], row["labels"], []
        for kind, length in zip(row["kinds"], row["parts"], strict=True):
            begin = next(n for n, label in enumerate(labels[:length]) if label != IGNORED)
            decode = chat.backend.decode
            trained = [label for label in labels[:length] if label != IGNORED]
            told.append(
                (
                    kind,
                    decode(trained, skip_special_tokens=False),
                    decode(ids[:begin], skip_special_tokens=False),
                )
            )
            ids, labels = ids[length:], labels[length:]
        assert ids == labels == []
        found.append(told)
    return found


def said(loader, chat):
    """Of each row {kind: answer}, and the last question that all its sequences have before it."""
    for told in sequences(loader, chat):
        prompts = {prompt for _, _, prompt in told}
        assert len(prompts) == 1
        assert all(answer.endswith("<|im_end|>") for _, answer, _ in told)
        asked = prompts.pop().rpartition("<|im_start|>user\n")[2].partition("<|im_end|>")[0]
        yield asked, {kind: answer.removesuffix("<|im_end|>") for kind, answer, _ in told}


@pytest.mark.parametrize(
    "row",
    [
        PAIR,
        {"prompt": PROMPT, "chosen": GOOD, "rejected": BAD},
        {"chosen": PROMPT + GOOD, "rejected": PROMPT + BAD},
        {"prompt": "hi", "chosen": PROMPT + GOOD, "rejected": PROMPT + BAD, "messages": PROMPT + GOOD},  # UltraFeedback
        {"prompt": json.dumps(PROMPT), "chosen": json.dumps(GOOD), "rejected": json.dumps(BAD)},  # a CSV file
        {"question": "hi", "chosen": "hello", "rejected": "go away"},
        {"instruction": "hi", "input": "", "chosen_response": "hello", "rejected_response": "go away"},
        {"conversations": SHARED, "chosen": {"from": "gpt", "value": "hello"}, "rejected": {"from": "gpt", "value": "go away"}},  # LLaMA-Factory
        {"messages": PROMPT, "chosen": GOOD[0], "rejected": BAD[0]},  # Axolotl
        {"input": {"messages": PROMPT, "tools": []}, "preferred_output": GOOD, "non_preferred_output": BAD},  # OpenAI
        {"chosen": "\n\nHuman: hi\n\nAssistant: hello", "rejected": "\n\nHuman: hi\n\nAssistant: go away"},
        {"chosen": "hi hello", "rejected": "hi go away"},
    ],
)  # fmt: skip
def test_pairs_are_told_from_their_content(row, read, chat):
    loader = read([row], "dpo")
    assert list(said(loader, chat)) == [("hi", {"chosen": "hello", "rejected": "go away"})]
    assert loader.report["sources"][0]["format"] == "preference"
    assert set(loader.report["not_read"]) <= {"messages"}


@pytest.mark.parametrize(
    ("row", "up", "down"),
    [
        (UP, "true", "false"),
        ({"prompt": PROMPT, "completion": GOOD, "label": 1}, "1", "0"),
        ({"question": "hi", "answer": "hello", "label": "True"}, '"True"', '"False"'),
        ({"messages": PROMPT + GOOD, "label": "up"}, '"up"', '"down"'),  # LLaMA-Factory
        ({"messages": [user("hi"), assistant("hello", feedback="👍")]}, "👍", "👎"),
        ({"messages": [user("hi"), assistant("hello", feedback="👍🏿")]}, "👍🏿", "👎🏻"),
        ({"conversations": [*SHARED, {"from": "gpt", "value": "hello", "feedback": True}]}, "true", "false"),
    ],
)
def test_labels_are_told_from_their_content(row, up, down, read, chat):
    loader = read([row, json.loads(json.dumps(row, ensure_ascii=False).replace(up, down))], "kto")
    assert next(said(loader, chat)) == ("hi", {"desirable": "hello"})
    assert loader.report["not_read"] == {}


@pytest.mark.parametrize(
    ("rows", "objective"),
    [
        ([{"prompt": PROMPT, "chosen": GOOD, "rejected": BAD}], "dpo"),
        ([{"chosen": PROMPT + GOOD, "rejected": PROMPT + BAD}], "dpo"),
        ([{"messages": PROMPT + GOOD, "label": True}, {"messages": PROMPT + BAD, "label": False}], "kto"),
        ([THUMBS], "kto"),
    ],
)
def test_roles_that_the_file_calls_otherwise_are_read(rows, objective, read, chat):
    own = json.loads(json.dumps(rows).replace('"user"', '"customer"').replace('"assistant"', '"agent"'))
    usual = list(sequences(read(rows, objective), chat))
    made = read(own, objective, roles={"customer": "user", "agent": "assistant"})
    assert list(sequences(made, chat)) == usual
    assert made.report["sources"][0]["roles"] == {"customer": len(rows), "agent": len(rows)}


def test_each_thumb_is_a_row_with_all_that_was_said_before(read, chat):
    loader = read([THUMBS, {"messages": PROMPT + GOOD}], "kto")
    ((first,), (second,)) = sequences(loader, chat)
    assert first[:2] == ("desirable", "hello<|im_end|>")
    assert second[:2] == ("undesirable", "no<|im_end|>")
    assert "<|im_start|>assistant\nhello<|im_end|>" in second[2]
    assert loader.report["notes"]["no thumb: left out"]["rows"] == [
        {"file": rows_of(loader)[0]["file"], "row": 2}
    ]
    assert loader.report["rows"] == 2
    assert (
        dict(facts(loader.report))["answers"] == "2 trained, 0 held out, of 2 rows, 1 left out (no thumb: 1)"
    )
    one, other = (row["dialogue"] for row in rows_of(loader))
    assert one == other  # so that a split leaves both on one side


@pytest.mark.parametrize("rows", [[UP, DOWN], [{"messages": [user("hi"), assistant("hello", feedback="up")]}, {"messages": [user("hi"), assistant("go away", feedback="down")]}]])  # fmt: skip
def test_answers_to_one_prompt_become_pairs(rows, read, chat):
    alone = (
        {**rows[0], "prompt": "else"}
        if "prompt" in rows[0]
        else {"messages": [user("else"), *rows[0]["messages"][1:]]}
    )
    loader = read([rows[1], alone, rows[0], rows[0]], "orpo")
    assert list(said(loader, chat)) == [("hi", {"chosen": "hello", "rejected": "go away"})]
    assert [
        row["row"] for row in loader.report["notes"]["without another to pair with: left out"]["rows"]
    ] == [2, 4]
    assert (
        "2 answers without another to pair with: left out; objective=kto learns from single answers"
        in remarks(loader.report)
    )


def test_an_answer_that_is_liked_and_disliked_is_no_pair(read):
    with pytest.raises(UserError, match="none of the 2 answers has one to pair it with, to the same prompt"):
        read([UP, {**UP, "label": False}], "dpo")
    loader = read([UP, {**UP, "label": False}, DOWN], "kto")
    assert [row["row"] for row in loader.report["notes"]["liked and disliked"]["rows"]] == [1, 2]


def test_a_pair_is_two_answers_for_kto(read, chat):
    assert list(said(read([PAIR], "kto"), chat)) == [
        ("hi", {"desirable": "hello"}),
        ("hi", {"undesirable": "go away"}),
    ]


def test_the_answers_after_the_prompt_are_trained_and_those_in_it_are_not(read, chat):
    before = [user("a"), assistant("b"), user("c")]
    call = assistant("", tool_calls=[{"type": "function", "function": {"name": "beer", "arguments": {}}}])
    told = sequences(read([{"chosen": [*before, *GOOD], "rejected": [*before, *BAD]}], "dpo"), chat)
    assert [answer for _, answer, _ in told[0]] == ["hello<|im_end|>", "go away<|im_end|>"]
    turns = {"chosen": [*before, *GOOD, user("d"), assistant("e")], "rejected": [*before, *BAD]}
    assert sequences(read([turns], "dpo"), chat)[0][0][1] == "hello<|im_end|>e<|im_end|>"
    assert call  # SmolLM2's template writes no calls


texts = st.text(min_size=1, max_size=30).filter(lambda text: text.strip() and "\0" not in text)


@settings(max_examples=60)
@given(prompt=texts, chosen=texts, rejected=texts)
def test_whatever_is_said_the_answers_are_trained_exactly(prompt, chosen, rejected, chat, tmp_path_factory):
    """Each of a pair has the tokens of its conversation alone, and labels on what follows the prompt."""
    from chatbot_sft.data.encode import EncodedRow, Encoder
    from chatbot_sft.data.formats import Reading
    from chatbot_sft.data.preferences import judged
    from chatbot_sft.data.row import Row
    from chatbot_sft.data.sequences import joined

    row = Row(
        "x", 1, {"prompt": [user(prompt)], "chosen": [assistant(chosen)], "rejected": [assistant(rejected)]}
    )
    if chosen == rejected:
        return
    encoder = Encoder(chat, 1000, "assistant", "truncate")
    (made,) = joined(encoder.rows(iter(judged(row, "preference", Reading({}), "pairs"))))
    assert isinstance(made, EncodedRow)
    head = chat.template.render([user(prompt)], True)
    at = 0
    for part, answer in zip(made.parts, (chosen, rejected), strict=True):
        ids = made.input_ids[at : at + part.tokens]
        labels = made.labels[at : at + part.tokens]
        at += part.tokens
        whole = f"{head}{answer}<|im_end|>\n"
        assert ids == chat.backend.encode(whole, add_special_tokens=False).ids
        trained = [token for token, label in zip(ids, labels, strict=True) if label != IGNORED]
        begin = len(ids) - len(trained) - 1  # a line break follows the end of turn
        assert labels == [IGNORED] * begin + trained + [IGNORED]
        if not made.problems:
            assert ids[:begin] == chat.backend.encode(head, add_special_tokens=False).ids
    assert at == len(made.input_ids)


BEGUN = [user("a"), assistant("b")]
FAULTS = [
    ("identical pair", {**PAIR, "rejected": "hello"}, "chosen and rejected say the same"),
    ("no pair", {"prompt": "hi", "chosen": "hello", "rejected": None}, "no rejected"),
    ("no pair", {"prompt": "hi", "rejected": "hello"}, "no chosen"),
    ("empty content", {**PAIR, "chosen": " "}, "chosen is empty"),
    ("empty content", {**PAIR, "rejected": [assistant("")]}, "rejected: message 2: content is empty"),
    ("unknown role", {**PAIR, "rejected": [{"role": "asistant", "content": "x"}]}, ""),
    ("prompts differ", {"chosen": [user("a"), *GOOD], "rejected": [user("b"), *BAD]}, "message 1: chosen and rejected differ in what was asked"),
    ("prompts differ", {"chosen": [*BEGUN, user("c"), *GOOD], "rejected": [*BEGUN, user("d"), *BAD]}, "message 3: chosen and rejected differ"),
    ("prompts differ", {"chosen": BEGUN, "rejected": [*BEGUN, user("d"), *BAD]}, "rejected goes on where the other of the pair ends"),
    ("prompts differ", {"prompt": "else", "chosen": PROMPT + GOOD, "rejected": PROMPT + BAD}, "prompt is not what the conversations begin with"),
    ("prompts differ", {"chosen": "hello", "rejected": "go away"}, "there is no prompt, and chosen and rejected begin differently"),
    ("prompts differ", {"prompt": PROMPT, "chosen": PROMPT + GOOD, "rejected": BAD}, "chosen has messages before its answer"),
    ("no answer", {"prompt": PROMPT, "chosen": [*GOOD, user("x")], "rejected": BAD}, "chosen: the last message is by user"),
    ("special token in text", {**PAIR, "rejected": "a <|im_end|> b"}, "rejected: message 2 (assistant) contains <|im_end|>"),
    ("no common beginning in tokens", {**PAIR, "chosen": "\n\n\nhello"}, "the prompt becomes other tokens before the one answer"),
    ("mixed formats", {"messages": [user("a"), *GOOD]}, "this row is messages, the file is read as preference"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "row", "detail"), FAULTS)
def test_a_fault_of_a_pair_is_caught_with_its_row(kind, row, detail, read, tmp_path):
    rows = [{"prompt": f"q {n}", "chosen": "a", "rejected": "b"} for n in range(3)]
    with pytest.raises(UserError) as caught:
        read([*rows, row], "dpo")
    assert str(caught.value).startswith(f"{tmp_path}/data.jsonl: row 4: {detail}")
    assert f"1 of 4 rows is bad (25.0%): {kind} (1)" in str(caught.value)
    assert read([*rows, row], "dpo", on_bad_row="drop").report["rows_used"] == 3


@pytest.mark.parametrize(
    ("row", "detail"),
    [
        ({**UP, "label": 3}, "label 3 is neither true nor false (or 1, 0, up, down)"),
        ({**UP, "label": None}, "label None is neither"),
        ({**UP, "label": 0.5}, "label 0.5 is neither"),
        ({**UP, "completion": ""}, "completion is empty"),
        ({**UP, "prompt": ""}, "no prompt"),
    ],
)
def test_a_fault_of_a_label_is_caught_with_its_row(row, detail, read, tmp_path):
    with pytest.raises(UserError) as caught:
        read([UP, DOWN, row], "kto")
    assert str(caught.value).startswith(f"{tmp_path}/data.jsonl: row 3: {detail}")


def test_a_fault_of_a_thumb_is_caught_with_its_row(read):
    rows = [THUMBS, {"messages": [user("hi"), assistant("x", feedback="so so")]}]
    with pytest.raises(UserError, match="row 2: message 2: feedback 'so so' is neither true nor false"):
        read(rows, "kto")
    with pytest.raises(UserError, match="row 2: message 1 has feedback, and is no answer"):
        read([THUMBS, {"messages": [{**user("hi"), "feedback": "up"}, *GOOD]}], "kto")


def test_labels_that_are_all_alike_are_refused(read):
    with pytest.raises(
        UserError, match="each of the 2 answers to train on is desirable: objective=kto learns from the"
    ):
        read([UP, {**UP, "prompt": "else"}], "kto")


def test_a_bad_row_is_told_beside_labels_that_are_all_alike(read):
    rows = [*({**UP, "prompt": f"question {n}"} for n in range(3)), {**UP, "label": "perhaps"}]
    for policy in ("auto", "drop"):
        with pytest.raises(
            UserError,
            match=r"each of the 3 answers to train on is desirable.*; and 1 of the rows is bad: row 4: label 'perhaps'",
        ):
            read(rows, "kto", on_bad_row=policy)


SWAPPED = {"prompt": "hi", "chosen": "go away", "rejected": "hello"}


def test_swapped_pairs_are_named(read):
    report = read([PAIR, {**PAIR, "prompt": "else"}, SWAPPED, PAIR], "dpo").report
    assert report["notes"]["exact duplicate"]["count"] == 1
    found = report["notes"]["swapped pair"]
    assert [(row["row"], row["detail"].partition(" of ")[0]) for row in found["rows"]] == [
        (1, "the other way round in row 3"), (3, "the other way round in row 1"), (4, "the other way round in row 3"),
    ]  # fmt: skip
    assert sentences(report["found"]) == ["swapped pair: 3 of 4, 75% (rows 1, 3, 4)"]


OPPOSITE = {
    "dpo": ([PAIR, SWAPPED], [{"prompt": "else", "chosen": "yes", "rejected": "no"}]),
    "kto": (
        [UP, {**UP, "label": False}],
        [{**UP, "prompt": "else"}, {**UP, "prompt": "other", "label": False}],
    ),
}


@pytest.mark.parametrize("objective", OPPOSITE)
def test_what_says_the_opposite_is_left_out_or_refused_as_contradictions_are(objective, read):
    opposite, others = OPPOSITE[objective]
    kind = {"dpo": "swapped pair", "kto": "liked and disliked"}[objective]
    rows = [*others, *opposite]
    report = read(rows, objective, on_contradiction="drop").report
    assert report["rows_used"] == len(others)
    assert report["found"][kind]["left_out"] == 2
    unit = {"dpo": "pairs", "kto": "answers"}[objective]
    assert (
        dict(facts(report))[unit] == f"{len(rows)}: {len(others)} trained, 0 held out, 2 left out ({kind}: 2)"
    )
    with pytest.raises(
        UserError, match=rf"row {len(others) + 1}: .*; {kind}: 2 of .*dataset.on_contradiction=drop"
    ):
        read(rows, objective, on_contradiction="error")
    assert read(rows, objective, on_contradiction="off").report["found"] == {}
    assert (
        read([*others, opposite[0], {**opposite[1], "prompt": "at another time"}], objective).report["found"]
        == {}
    )


def test_chosen_answers_that_are_longer_throughout_are_remarked_on(read):
    def pairs(chosen, rejected):
        return [
            {
                "prompt": f"question {n}",
                "chosen": "long " * (chosen + n % 5),
                "rejected": "word " * (rejected + n % 7),
            }
            for n in range(30)
        ]

    (line,) = (line for line in remarks(read(pairs(40, 8), "dpo").report) if "longer" in line)
    assert line.startswith("chosen answers are longer than rejected ones in 100% of the pairs (median 44 to")
    assert "correlation of length and being chosen 0.9" in line
    for other in (pairs(8, 40), pairs(10, 10)):
        assert not [line for line in remarks(read(other, "dpo").report) if "longer" in line]


def test_an_answer_cut_by_the_length_is_named(read, chat):
    rows = [PAIR, {"prompt": "hi", "chosen": "long " * 100, "rejected": "go away"}]
    loader = read(rows, "dpo", max_seq_length=64)
    assert [row["row"] for row in loader.report["notes"]["a judged answer cut in two"]["rows"]] == [2]
    assert any(
        line.startswith("a judged answer cut in two in 1 of 2 rows: a part of it is")
        for line in remarks(loader.report)
    )
    assert flat(loader.prepared.entry.table(), "parts").max() == 64
    assert loader.report["max_length"] == 64
    assert loader.report["tokens"] == flat(loader.prepared.entry.table(), "parts").sum()
    dropped = read(rows, "dpo", max_seq_length=64, overflow="drop").report
    assert (dropped["rows_used"], dropped["dropped_rows"]) == (1, 1)
    with pytest.raises(UserError, match="row 2: chosen: every answer lies beyond"):
        read([PAIR, {**PAIR, "prompt": "long " * 100}], "dpo", max_seq_length=64)


CHAT = {"messages": PROMPT + GOOD}


@pytest.mark.parametrize(
    ("row", "objective", "told"),
    [
        (PAIR, "sft", "chosen/rejected pairs: objective=dpo or orpo; to learn the chosen answers alone, say dataset.columns.prompt=prompt dataset.columns.completion=chosen"),
        ({"chosen": PROMPT + GOOD, "rejected": PROMPT + BAD}, "sft", "objective=dpo or orpo; to learn the chosen answers alone, say dataset.message_field=chosen"),
        (THUMBS, "sft", "conversations with thumbs: objective=kto, or dpo and orpo where a prompt has answers of both kinds; dataset.format=messages trains on all"),
        (CHAT, "dpo", "these are conversations (messages): objective=sft; objective=dpo learns from pairs of a chosen and a rejected answer"),
        ({"prompt": "hi", "completion": "hello"}, "kto", "these are conversations (prompt_completion): objective=sft; objective=kto learns from answers with a label"),
        ({"text": "hi"}, "orpo", "these are conversations (text): objective=sft"),
    ],
)  # fmt: skip
def test_data_of_another_objective_is_told_which(row, objective, told, read):
    with pytest.raises(UserError) as caught:
        read([row], objective)
    assert told in str(caught.value)


def test_what_a_refusal_offers_works(read):
    assert read([THUMBS], "sft", format="messages").report["rows_used"] == 1
    assert read([PAIR], "sft", columns={"prompt": "prompt", "completion": "chosen"}).report["rows_used"] == 1
    many = [CHAT] * 150 + [THUMBS]
    with pytest.raises(UserError, match="format=thumbs where thumbs come later in it"):
        read(many, "kto")
    assert read(many, "kto", format="thumbs").report["rows_used"] == 2
    with pytest.raises(UserError, match="no answer has a thumb; objective=sft learns from conversations"):
        read([CHAT], "kto", format="thumbs")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (
            {"train_on": "all"},
            "dataset.train_on=all: objective=dpo compares answers; their prompts are not trained",
        ),
        ({"overflow": "split"}, "dataset.overflow=split cuts conversations at turns; an answer has none"),
    ],
)
def test_options_of_conversations_are_refused(options, error, read):
    with pytest.raises(UserError, match=error):
        read([PAIR], "dpo", **options)


def test_columns_can_be_named(read, chat):
    row = {"asked": "hi", "good": "hello", "bad": "go away"}
    loader = read([row], "dpo", columns={"prompt": "asked", "chosen": "good", "rejected": "bad"})
    assert list(said(loader, chat)) == [("hi", {"chosen": "hello", "rejected": "go away"})]
    thumbs = {
        "messages": [user("hi"), assistant("hello", vote="up"), user("?"), assistant("no", vote="down")]
    }
    assert read([thumbs], "kto", columns={"feedback": "vote"}).report["rows_used"] == 2


def test_pairs_with_one_prompt_stay_on_one_side(read, tmp_path):
    rows = [
        {"prompt": f"question {n}", "chosen": f"good {m}", "rejected": f"bad {m}"}
        for n in range(20)
        for m in range(2)
    ]
    loader = read(rows, "dpo", eval_fraction=0.2)
    chosen, dialogue = loader.prepared.split, [row["dialogue"] for row in rows_of(loader)]
    sides = [{dialogue[row] for row in side} for side in (chosen.training, chosen.held_out)]
    assert len(chosen.held_out) == 8
    assert not set.intersection(*sides)
    held = write_json(tmp_path / "held.json", [{**rows[0], "chosen": "new"}, {**rows[0], "prompt": "new"}])
    report = read(rows, "dpo", eval_data_path=str(held)).report
    assert (report["rows_held_out"], report["leaked_rows"]) == (1, 1)
    assert report["notes"]["not held out: trained on"]["rows"][0]["detail"].startswith(
        "the same prompt as row 1 of"
    )


def test_the_preview_shows_both_answers(read):
    from chatbot_sft.data.preview import page

    (row,) = read([PAIR], "dpo").prepared.preview_rows()
    assert [kind for kind, _ in row.parts] == ["chosen", "rejected"]
    assert sum(size for _, size in row.parts) == len(row.tokens) == row.length
    shown = page("x", [], [row])
    assert "<h3 class=chosen>chosen</h3>" in shown
    assert "<h3 class=rejected>rejected</h3>" in shown
    assert "".join(token.text for token in row.tokens if token.trained) == "hello<|im_end|>go away<|im_end|>"


def test_the_cache_keeps_rows_of_each_kind_apart(read):
    assert [read([PAIR], name).report["cached"] for name in ("dpo", "orpo", "kto", "kto")] == [
        False,
        True,
        False,
        True,
    ]


@pytest.mark.parametrize(
    ("file", "objective", "rows"),
    [("pairs", "orpo", 60), ("pairs", "kto", 120), ("thumbs", "kto", 120), ("thumbs", "dpo", 24)],
)
def test_the_sample_data_is_read(file, objective, rows, chat):
    path = EXAMPLE.with_name(f"white_crane_{file}.jsonl")
    loader = DatasetLoader(
        {"model": {"name": "smollm2"}, "objective": {"name": objective}, "dataset": {"data_path": str(path)}}
    )
    report = loader.check(chat)
    assert (report["rows_used"] + report["rows_held_out"], report["bad_rows"], report["problems"]) == (
        rows,
        0,
        {},
    )
    assert not [line for line in remarks(report) if "longer" in line]


@pytest.mark.slow
def test_the_training_rows_have_their_parts(read):
    loader = read([PAIR, {**PAIR, "prompt": "else"}], "dpo")
    row = loader.prepared.training[0]
    assert (sum(row["parts"]), row["kinds"]) == (len(row["input_ids"]), ["chosen", "rejected"])
    assert loader.prepared.training.column_names[-2:] == ["parts", "kinds"]
