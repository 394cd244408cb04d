"""Personal data in conversations: found by kind and row, masked in all that a run shows, refused, left out or
trained as placeholders, as dataset.personal_data says.
"""

import json
import re
from collections import Counter

import pytest
from conftest import REPO, conversations, report_of, write_json
from hypothesis import given
from hypothesis import strategies as st
from personal_lines import ASSIGNED, CARDS, EMAILS, IBANS, SECRETS, lines

from chatbot_sft import DatasetLoader, UserError
from chatbot_sft.data.messages import Conversation
from chatbot_sft.data.personal import detector as detector_module
from chatbot_sft.data.personal.detector import KINDS, NEED_THEM, Detector
from chatbot_sft.data.personal.rows import Look
from chatbot_sft.data.preview import page
from chatbot_sft.data.template import ChatTokenizer
from chatbot_sft.extras import install
from chatbot_sft.report.data_summary import facts, remarks
from chatbot_sft.report.masking import masked

DETECTOR = Detector()
CARD, MAIL, PHONE = "4111 1111 1111 1111", "lan@example.com", "0912 345 678"


def found(text, **given):
    return [(one.kind, text[one.begin : one.end]) for one in Detector(**given).find(text)]


def measured():
    """kind → (planted, found, false alarms) of the lines."""
    planted, right, false = Counter(), Counter(), Counter()
    for line in lines():
        here = found(line.text)
        planted.update(kind for kind, _ in line.values)
        right.update(kind for kind, value in line.values if (kind, value) in here)
        false.update(kind for kind, value in here if (kind, value) not in line.values)
    return {kind: (planted[kind], right[kind], false[kind]) for kind in KINDS}


def test_what_is_planted_is_found_and_nothing_else():
    """The table of docs/data.md."""
    assert len(lines()) == 347
    assert sum(not line.values for line in lines()) == 162
    documented = (REPO / "docs" / "data.md").read_text(encoding="utf-8")
    for kind, (planted, right, false) in measured().items():
        precision, recall = right / (right + false), right / planted
        assert precision == 1, kind
        assert recall >= (0.96 if kind == "PHONE" else 1), kind
        row = (
            f"| {KINDS[kind]} | `[{kind}]` | {planted} | {right} | {false} | {precision:.0%} | {recall:.0%} |"
        )
        assert row in documented


def test_the_examples_raise_no_alarm():
    for file in (REPO / "data").glob("*.json*"):
        assert found(file.read_text(encoding="utf-8")) == [], file


@pytest.mark.parametrize(
    ("text", "given", "kinds"),
    [
        ("0912345678", {}, []),  # whose?
        ("0912345678", {"regions": ("VN",)}, ["PHONE"]),
        ("Gọi 0912345678", {"regions": ()}, []),
        ("Gọi +84 912 345 678", {"regions": ()}, ["PHONE"]),
        ("Hotline 1900 6750, gọi 1800 1091 hoặc +1 800 234 5678", {}, []),  # a company's
        ("44051401359", {}, []),
        ("44051401359", {"countries": ("PL",)}, ["ID"]),
        ("my PESEL is 44051401359", {"countries": ("FR",)}, []),
        ("536-90-4399", {"countries": ()}, []),
        ("write to info@brew.com", {"allowed": ("info@brew.com",)}, []),
        ("write to Info@Brew.com, boss@brew.com", {"allowed": ("@brew.com",)}, []),
        ("gọi 0912 345 678", {"allowed": ("0912.345.678",)}, []),
        ("gọi 0912 345 678", {"allowed": ("0912 345 679",)}, ["PHONE"]),
        ("sales@brew.example, root@host.local", {}, []),  # no mail gets there
    ],
)
def test_countries_and_what_is_allowed(text, given, kinds):
    assert [kind for kind, _ in found(text, **given)] == kinds


def test_the_writing_of_a_conversation_tells_the_country_of_a_number_alone():
    assert DETECTOR.clean("0912345678") == "0912345678"
    assert DETECTOR.clean("0912345678", "Số của bạn?\n0912345678") == "[PHONE]"


WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
# No digit, letter or mark that would belong to a number, an address or a token stands beside the value.
APART = st.sampled_from(["", " ", "\n", " – ", "“", "(", "é ", ": ", "\u3000", "😀 "])
VALUES = [("EMAIL", value) for value in EMAILS] + [("CARD", value) for value in CARDS]
VALUES += [("IBAN", value) for value in IBANS] + [("SECRET", value) for value in SECRETS]
VALUES += [
    ("PHONE", value) for value in ("+84 912 345 678", "+49 30 23125 123", "+12125550147", "212-555-0147")
]
VALUES += [("ID", value) for value in ("54362315K", "RCCMNL83S18D969H", "971013-9019902", "756.9217.0769.85")]


@given(WORDS, APART, st.sampled_from(VALUES), APART, WORDS)
def test_what_stands_in_any_text_is_found(before, left, planted, right, after):
    kind, value = planted
    before, after = before.rstrip("0123456789+-.,/#$€£¥₫ _") + left, right + after
    if any(character.isalnum() or character in "_-.,:+/%'@\\" for character in (before[-1:], after[:1])):
        before, after = before + " | ", " | " + after
    text = f"{before}{value}{after}"
    assert value not in DETECTOR.clean(text), (kind, text)


@given(
    WORDS,
    st.lists(
        st.tuples(st.sampled_from([value for _, value in VALUES] + [line.text for line in lines()]), WORDS),
        max_size=4,
    ),
)
def test_redacting_twice_is_redacting_once_and_changes_nothing_else(before, parts):
    text = before + "".join(value + after for value, after in parts)
    clean, kinds = DETECTOR.redact(text)
    assert DETECTOR.redact(clean) == (clean, [])
    assert (clean == text) == (not kinds)
    for kind in set(kinds):
        assert f"[{kind}]" in clean


@pytest.mark.parametrize("value", [*SECRETS, *(value for _, value in ASSIGNED[4:6])])
def test_what_the_gate_takes_for_a_token_a_run_does_not_say(value):
    text = next((text for text, one in ASSIGNED if one == value), "{}").format(value)
    assert value not in masked(f"I use {text}!")


def row(*contents, **extra):
    roles = ("user", "assistant")
    return {
        "messages": [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)],
        **extra,
    }


def test_every_part_of_a_conversation_is_redacted():
    call = {
        "id": "1",
        "type": "function",
        "function": {"name": "pay", "arguments": {"card": 4111111111111111, "to": [MAIL], "sum": 12}},
    }
    messages = [
        {"role": "system", "content": f"You help {MAIL}."},
        {"role": "user", "content": f"Gọi {PHONE}", "name": MAIL},
        {"role": "assistant", "content": "", "thinking": f"card {CARD}", "tool_calls": [call]},
        {"role": "tool", "content": '{"iban": "DE89370400440532013000"}'},
        {"role": "assistant", "content": f"{PHONE}, {PHONE}"},
    ]
    tools = [{"type": "function", "function": {"name": "pay", "description": f"asks {MAIL}"}}]
    item = Conversation("a.json", 7, messages, [True] * 5, tools)
    look = Look(DETECTOR, "redact", columns=False)
    (clean,) = look.at(iter([item]))
    assert [message["content"] for message in clean.messages] == [
        "You help [EMAIL].", "Gọi [PHONE]", "", '{"iban": "[IBAN]"}', "[PHONE], [PHONE]",
    ]  # fmt: skip
    assert clean.messages[1]["name"] == "[EMAIL]"
    assert clean.messages[2]["thinking"] == "card [CARD]"
    assert clean.messages[2]["tool_calls"][0]["function"]["arguments"] == {
        "card": "[CARD]",
        "to": ["[EMAIL]"],
        "sum": 12,
    }
    assert clean.tools[0]["function"]["description"] == "asks [EMAIL]"
    assert item.messages[1]["content"] == f"Gọi {PHONE}"  # what was read stays
    about = look.about()
    assert (about["rows"], about["values"]) == (
        1,
        {"e-mail address": 4, "phone number": 3, "payment card": 2, "IBAN": 1},
    )
    (place,) = about["kinds"]["phone number"]["rows"]
    assert place == {"file": "a.json", "row": 7, "detail": "message 2 (user), message 5 (assistant)"}


@pytest.fixture
def chat(smollm2):
    return ChatTokenizer.from_folder(smollm2, "smollm2", {})


def loader(path, **dataset):
    return DatasetLoader(
        {"model": {"name": "smollm2"}, "dataset": {"data_path": str(path), "eval_fraction": 0, **dataset}}
    )


@pytest.fixture
def planted_data(tmp_path):
    """Rows 3 and 8 of 12 have some; row 5 is bad, and says a card number."""
    rows = conversations(12)
    rows[2] = row(f"Thẻ {CARD} của em bị từ chối", f"Em gửi về {MAIL} nhé")
    rows[4] = {"messages": [{"role": CARD, "content": "a"}, {"role": "assistant", "content": "b"}]}
    rows[7] = row("Số nào?", f"Gọi {PHONE}")
    return write_json(tmp_path / "data.json", rows)


def texts(made):
    return made.prepared.entry.table().column("text").to_pylist()


def test_each_policy(planted_data, chat):
    made = {
        policy: loader(planted_data, on_bad_row="drop", personal_data=policy)
        for policy in ("off", "note", "drop", "redact")
    }
    reports = {policy: one.check(chat) for policy, one in made.items()}
    assert reports["off"]["personal_data"] is None
    for policy in ("note", "drop", "redact"):
        told = reports[policy]["personal_data"]
        assert (told["policy"], told["rows"], reports[policy]["rows"]) == (policy, 2, 12)
        assert told["values"] == {"e-mail address": 1, "phone number": 1, "payment card": 1}
        assert [place["row"] for place in told["kinds"]["phone number"]["rows"]] == [8]
        assert "4111" not in json.dumps(reports[policy])
        assert made[policy].statistics.personal_rows == 2
    assert texts(made["note"]) == texts(made["off"])
    assert [one.statistics.rows_used for one in made.values()] == [11, 11, 9, 11]
    assert not any(value in text for text in texts(made["redact"]) for value in (CARD, MAIL, PHONE))
    assert "Thẻ [CARD] của em bị từ chối" in texts(made["redact"])[2]
    assert len({one.prepared.fingerprint for one in made.values()}) == 3  # off and note train the same
    (remark,) = [text for text in remarks(reports["note"]) if "personal" in text]
    assert remark == (
        "personal data: e-mail address (1), phone number (1), payment card (1) in 2 of 12 rows: they are trained on;"
        " dataset.personal_data=redact trains on placeholders"
    )
    assert (
        dict(facts(loader(write_json(planted_data.with_name("none.json"), conversations(3))).check(chat)))[
            "personal data"
        ]
        == "none found"
    )


def test_the_two_answers_of_a_pair_are_one_row(tmp_path, chat):
    pairs = [
        {"prompt": f"who answers question {n}?", "chosen": "we do", "rejected": "nobody"} for n in range(4)
    ]
    pairs[1] |= {"prompt": f"is {MAIL} right?", "rejected": f"{MAIL} is wrong"}
    pairs[2]["rejected"] = f"ask {MAIL}"
    data = write_json(tmp_path / "pairs.json", pairs)
    made = {}
    for policy in ("drop", "redact"):
        settings = {"data_path": str(data), "eval_fraction": 0.0, "personal_data": policy}
        one = DatasetLoader({"model": {"name": "smollm2"}, "dataset": settings, "objective": {"name": "dpo"}})
        told = one.check(chat)["personal_data"]
        assert (told["rows"], told["values"]) == (2, {"e-mail address": 3})
        assert [row["row"] for row in told["kinds"]["e-mail address"]["rows"]] == [2, 3]
        made[policy] = one
    assert [one.statistics.rows_used for one in made.values()] == [2, 4]
    assert "rejected: message 2 (assistant)" in json.dumps(made["drop"].check(chat)["personal_data"])
    assert not any(MAIL in text for text in texts(made["redact"]))


def test_a_report_says_where_secrets_are_and_not_what_they_are(tmp_path, chat):
    secret = SECRETS[0]
    rows = [*conversations(3), *conversations(1)]
    rows[3]["messages"][0]["content"] = f"use {secret}"
    made = loader(write_json(tmp_path / "data.json", rows))
    told = masked(made.check(chat))["personal_data"]
    assert told["kinds"]["key or password"]["rows"][0]["row"] == 4
    assert secret not in json.dumps(told)


def test_error_names_the_first_row(planted_data, chat):
    made = loader(planted_data, on_bad_row="drop", personal_data="error")
    with pytest.raises(UserError) as caught:
        made.check(chat)
    assert str(caught.value).startswith(
        f"{planted_data}: row 3: message 2 (assistant): e-mail address; 2 of 12 rows hold personal data ("
    )
    assert "dataset.personal_data=redact trains on placeholders" in str(caught.value)
    with pytest.raises(
        UserError, match=r"each of 2 rows holds personal data \(e-mail address \(2\)\): none is left"
    ):
        loader(write_json(planted_data, [row(MAIL, "a"), row("b", MAIL)]), personal_data="drop").check(chat)


def test_held_out_rows_too(planted_data, chat, tmp_path):
    training = write_json(tmp_path / "training.json", conversations(5))
    made = loader(training, eval_data_path=str(planted_data), on_bad_row="drop", personal_data="redact")
    made.check(chat)
    assert made.statistics.personal_rows == 2
    assert not any(CARD in text for text in texts(made))


def test_rows_of_another_policy_country_or_exception_are_not_taken_from_the_cache(planted_data, chat):
    first = loader(planted_data, on_bad_row="drop").check(chat)
    assert loader(planted_data, on_bad_row="drop").check(chat)["cached"]
    assert loader(planted_data, on_bad_row="warn").check(chat)["personal_data"] == first["personal_data"]
    for changed in (
        {"personal_data": "redact"}, {"personal_data": "off"}, {"phone_regions": ["DE"]}, {"national_numbers": ["PL"]},
        {"personal_data_allowed": [MAIL]},
    ):  # fmt: skip
        assert not loader(planted_data, on_bad_row="drop", **changed).check(chat)["cached"], changed


def test_the_preview_and_the_sample_questions_have_placeholders(tmp_path, chat):
    rows = [row(f"My card is {CARD}, mail {MAIL} ({n})", f"{n}: not {CARD}!") for n in range(6)]
    made = loader(write_json(tmp_path / "data.json", rows), eval_fraction=0.5)
    made.check(chat)
    shown = page("title", [], made.preview_rows())
    assert "[CARD]" in shown and "[EMAIL]" in shown
    plain = "".join(token.text for preview in made.preview_rows() for token in preview.tokens)
    assert "not [CARD]!" in plain
    assert not any(value in plain for value in (CARD, "4111", MAIL))
    assert all("My card is [CARD], mail [EMAIL]" in prompt[-1]["content"] for prompt in made.sample_prompts())
    assert any(CARD in text for text in texts(made))


def test_sample_questions_are_those_without_personal_data_where_there_are_some(tmp_path, chat):
    rows = [
        row(f"Pay with {CARD} ({n})" if n % 2 else f"How much is it? ({n})", f"{n} dong") for n in range(16)
    ]
    made = loader(write_json(tmp_path / "data.json", rows), eval_fraction=0.5)
    made.check(chat)
    asked = [prompt[-1]["content"] for prompt in made.sample_prompts()]
    assert len(asked) == 3
    assert all(question.startswith("How much is it?") for question in asked), asked


class Formatted(DatasetLoader):
    def formatting_prompts_func(self, examples):
        return {
            "text": [
                f"<|im_start|>user\n{a}<|im_end|>\n<|im_start|>assistant\n{b}<|im_end|>\n"
                for a, b in zip(examples["q"], examples["note"], strict=True)
            ]
        }


def test_a_function_of_ones_own_gets_columns_with_placeholders(tmp_path, chat):
    file = write_json(
        tmp_path / "data.json",
        [{"q": f"mail {MAIL}", "note": "ok", "n": 4111111111111111}, {"q": "a", "note": "b", "n": 3}],
    )
    config = {
        "model": {"name": "smollm2"},
        "dataset": {"data_path": str(file), "eval_fraction": 0, "personal_data": "redact"},
    }
    made = Formatted(config)
    made.check(chat)
    assert "mail [EMAIL]" in texts(made)[0]
    assert made.statistics.personal_data == {"e-mail address": 1, "payment card": 1}


def test_without_the_libraries_what_needs_none_is_found_and_more_is_not_promised(
    planted_data, chat, monkeypatch
):
    monkeypatch.setattr(detector_module, "missing", lambda: ["phonenumbers", "python-stdnum"])
    told = loader(planted_data, on_bad_row="drop").check(chat)
    assert told["personal_data"]["values"] == {"e-mail address": 1}
    assert not set(told["personal_data"]["looked_for"]) & {KINDS[kind] for kind in NEED_THEM}
    assert any("looked for e-mail address, key or password alone" in text for text in remarks(told))
    with pytest.raises(
        UserError,
        match=rf"dataset.personal_data=redact finds .* with phonenumbers and python-stdnum: {install('data')};",
    ):
        loader(planted_data, personal_data="redact").check(chat)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"personal_data": "mask"}, "dataset.personal_data=mask: not one of off, note, error, drop, redact"),
        (
            {"national_numbers": ["pl"]},
            r"dataset.national_numbers=\[pl\]: no such country; did you mean PL\?",
        ),
        (
            {"phone_regions": ["vn"]},
            r"dataset.phone_regions=\[vn\]: no such country; did you mean VN\?",
        ),
        (
            {"national_numbers": [False]},
            'dataset.national_numbers: a YAML file reads NO as false; write "NO"',
        ),
    ],
)
def test_what_is_misspelt_is_refused(planted_data, chat, given, message):
    with pytest.raises(UserError, match=message):
        loader(planted_data, **given).check(chat)


def test_a_card_number_is_nowhere_in_what_a_run_leaves_but_in_the_data_and_the_model(
    launch, tiny, tokenizer, tmp_path
):
    """Not as text, nor as tokens in evidence.json; the cache alone has what is trained."""
    rows = conversations(20)
    for number in (1, 4, 7, 11, 15):
        rows[number] = row(f"Thẻ {CARD}, số {PHONE}?", f"Thẻ {CARD}!")
    data = tmp_path / "rows.json"
    write_json(data, rows)
    process = launch(
        *tiny, f"dataset.data_path={data}", "dataset.max_rows=null", "dataset.eval_fraction=0.5", "training.report_to=tensorboard",
        "training.sample_prompts=null", "hydra.run.dir=run", env={"CHATBOT_SFT_CACHE": str(tmp_path / "cache")},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert "payment card (10)" in process.stderr
    report = report_of(tmp_path / "run")
    assert report["dataset"]["personal_data"] == {"phone number": 5, "payment card": 10}
    told = {"a stream": (process.stdout + process.stderr).encode()}
    told |= {str(path): path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    preview = (tmp_path / "run" / "data_preview.html").read_text(encoding="utf-8")
    told["preview as it is read"] = re.sub(r"<[^>]*>", "", preview).encode()
    assert not [name for name, text in told.items() if CARD.encode() in text or PHONE.encode() in text]
    evidence = json.loads((tmp_path / "run" / "evidence.json").read_text())
    assert evidence["rows"]
    for kept in evidence["rows"]:
        assert CARD not in tokenizer.decode(kept["ids"])
    cached = b"".join(path.read_bytes() for path in (tmp_path / "cache").rglob("rows.arrow"))
    assert CARD.encode() in cached


@pytest.mark.slow
@pytest.mark.parametrize(("policy", "shown"), [("off", f"It is {CARD}."), ("note", "It is [CARD].")])
def test_what_a_model_has_learned_by_heart_is_masked_in_its_samples(monkeypatch, policy, shown):
    from chatbot_sft.config import Config
    from chatbot_sft.train import samples

    monkeypatch.setattr(samples, "greedy_answer", lambda *_, **__: [])
    monkeypatch.setattr(samples, "as_text", lambda *_: f"It is {CARD}.")
    settings = Config.from_mapping({"dataset": {"personal_data": policy}})
    (sample,) = samples.sample_answers(
        None, None, settings, [[{"role": "user", "content": "Which card?"}]], 3
    )
    assert sample == {"prompt": "Which card?", "answer": shown}
