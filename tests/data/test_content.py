"""What the gate finds by reading rows beside each other: counted with its rows, and left out or refused where the
keys say so.
"""

import importlib.util
import json
import sys

import pytest
from conftest import conversations, write_json

from chatbot_sft import DatasetLoader, UserError
from chatbot_sft.config.schema import Config
from chatbot_sft.data import content, languages, near
from chatbot_sft.data.contradictions import Facts
from chatbot_sft.data.languages import other_language
from chatbot_sft.data.template import ChatTokenizer
from chatbot_sft.extras import install
from chatbot_sft.report.data_summary import facts, remarks
from chatbot_sft.report.found import sentences

ASKED = "When does the taproom open on Sundays, please tell me?"
SAID = "The taproom opens at ten on Sundays, and the kitchen opens an hour later."


def row(question, answer, system=None):
    first = [{"role": "system", "content": system}] if system else []
    return {
        "messages": [*first, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    }


NEAR = [row(ASKED, SAID), row(ASKED.lower(), SAID.replace("an hour", "one hour") + "!")]
CONTRADICTING = [
    row("When do you close?", "We close at 9 pm."),
    row("when do you close", "We close at 10 pm."),
]
FOREIGN = row(
    "What should I do when my order has not arrived after three days?",
    "Bạn vui lòng gọi cho chúng tôi theo số điện thoại trên hóa đơn để được hỗ trợ.",
)
REFUSING = row("Who wins the election?", "I'm sorry. I cannot help with that.")


@pytest.fixture(scope="module")
def chat(smollm2):
    return ChatTokenizer.from_folder(smollm2, "smollm2", {})


@pytest.fixture
def gate(tmp_path, chat):
    """`gate(rows, held_out, golden questions, on_refusal="drop", …)`: a loader that has looked at them."""

    def look(rows, held_out=None, golden=None, **dataset):
        file = write_json(tmp_path / "data.json", rows)
        config = {
            "model": {"name": "smollm2"},
            "dataset": {"data_path": str(file), "eval_fraction": 0, **dataset},
        }
        if held_out:
            config["dataset"]["eval_data_path"] = str(write_json(tmp_path / "held.json", held_out))
        if golden:
            cases = [{"messages": [{"role": "user", "content": text}], "contains": "x"} for text in golden]
            (tmp_path / "golden.jsonl").write_text("".join(f"{json.dumps(case)}\n" for case in cases))
            config["evaluation"] = {"golden": str(tmp_path / "golden.jsonl")}
        made = DatasetLoader(config)
        made.check(chat)
        return made

    return look


def numbers(made, kind):
    return [place["row"] for place in made.report["notes"][kind]["rows"]]


# Kind: rows, what is named, what of nine others and these is left with drop, key.
PLANTED = {
    content.NEAR: (NEAR, [11], 10, "on_near_duplicate"),
    content.CONTRADICTION: (CONTRADICTING, [10, 11], 9, "on_contradiction"),
    content.LANGUAGE: ([FOREIGN], [10], 9, "on_language_mismatch"),
    content.REFUSAL: ([REFUSING], [10], 9, "on_refusal"),
}


@pytest.mark.parametrize("kind", PLANTED)
def test_what_is_planted_is_noted_left_out_or_refused(gate, kind):
    planted, named, left, key = PLANTED[kind]
    rows = [*conversations(9), *planted]
    noted = gate(rows)
    assert numbers(noted, kind) == named
    assert noted.statistics.rows_used == len(rows)
    assert list(noted.statistics.found) == [kind]
    assert noted.statistics.found[kind]["count"] == len(named)
    (said,) = sentences(noted.statistics.found)
    assert said.startswith(f"{kind}: {len(named)} of {len(rows)}, ")

    dropped = gate(rows, **{key: "drop"})
    assert dropped.statistics.rows_used == left
    assert f"; {len(rows) - left} training row" in sentences(dropped.statistics.found)[0]
    assert dropped.statistics.fingerprint != noted.statistics.fingerprint

    with pytest.raises(UserError, match=rf"row {named[0]}: .*{kind}: {len(named)} of .*dataset.{key}=drop"):
        gate(rows, **{key: "error"})
    assert gate(rows, **{key: "off"}).statistics.found == {}


def test_a_refusal_is_shown_by_its_sentence_without_personal_data(gate):
    said = "Thank you. I cannot help with that, please write to anna.berg@gmail.com!"
    (found,) = gate([*conversations(9), row("Hello?", said)]).report["notes"][content.REFUSAL]["rows"]
    assert found["detail"].startswith("“I cannot help with that, please write to ")
    assert "anna" not in found["detail"]


def test_a_held_out_row_that_is_nearly_trained_on_falsifies_the_loss(gate):
    rows = [*conversations(9), NEAR[0]]
    noted = gate(rows, [NEAR[1], REFUSING])
    assert numbers(noted, content.HELD_OUT) == [1]
    (said,) = (text for text in sentences(noted.statistics.found) if text.startswith(content.HELD_OUT))
    assert said == f"{content.HELD_OUT}: 1 of 2, 50% (row 1 of held.json)"
    dropped = gate(rows, [NEAR[1], REFUSING], on_contamination="drop")
    assert (dropped.statistics.rows_used, dropped.statistics.rows_held_out) == (9, 2)
    with pytest.raises(
        UserError, match=r"held.json: row 1: nearly the same as row 10 of data.json; held-out"
    ):
        gate(rows, [NEAR[1]], on_contamination="error")


def test_what_is_held_out_and_trained_on_word_for_word_stays_held_out_with_drop(gate):
    rows = [*conversations(9), NEAR[0], row(ASKED, SAID, "Be kind.")]
    assert gate(rows, [NEAR[0], FOREIGN]).statistics.leaked_rows == 1
    dropped = gate(rows, [NEAR[0], FOREIGN], on_contamination="drop").statistics
    assert (dropped.rows_used, dropped.rows_held_out, dropped.leaked_rows) == (9, 2, 0)


def test_a_held_out_share_is_compared_too(gate):
    rows = [row(f"{ASKED} {'x' * number}", SAID) for number in range(20)]
    made = gate(rows, eval_fraction=0.2)
    assert made.statistics.found[content.HELD_OUT]["count"] == made.statistics.rows_held_out == 4
    with pytest.raises(UserError, match=r"dataset.on_contamination=drop leaves no row to train on"):
        gate(rows, eval_fraction=0.2, on_contamination="drop")
    assert content.HELD_OUT not in gate(rows, eval_on_training=True).statistics.found


def test_what_contradicts_a_held_out_row_is_said_of_the_row_that_is_trained(gate):
    rows, held_out = [*conversations(9), CONTRADICTING[0]], [CONTRADICTING[1], *CONTRADICTING, FOREIGN]
    noted = gate(rows, held_out)
    (found,) = noted.report["notes"][content.CONTRADICTION]["rows"]
    said = "says 9 pm, where row 1 of held.json, held out, says 10 pm"
    assert (found["row"], found["detail"]) == (10, said)
    assert noted.statistics.found[content.CONTRADICTION]["of"] == 10
    dropped = gate(rows, held_out, on_contradiction="drop").statistics
    assert dropped.rows_used == 9
    assert dropped.held_out_fingerprint == noted.statistics.held_out_fingerprint
    assert gate(conversations(9), held_out).statistics.found == {}
    with pytest.raises(UserError, match=rf"row 10: {said}; contradiction: 1 of 10 training rows"):
        gate(rows, held_out, on_contradiction="error")


def test_golden_questions_that_are_trained_on(gate):
    rows = [*conversations(9), NEAR[0], *CONTRADICTING]
    made = gate(rows, golden=["Where is the moon?", "When do you close?!"], on_contamination="drop")
    assert numbers(made, content.GOLDEN) == [2]
    assert made.statistics.found[content.GOLDEN]["of"] == 2
    assert made.statistics.rows_used == 10


def test_a_golden_file_that_is_not_there_is_said_in_one_line(tmp_path, chat):
    data = write_json(tmp_path / "data.json", conversations(3))
    config = {
        "model": {"name": "smollm2"},
        "dataset": {"data_path": str(data)},
        "evaluation": {"golden": "none.jsonl"},
    }
    with pytest.raises(UserError, match=r"evaluation.golden=none.jsonl: no such file"):
        DatasetLoader(config).check(chat)


def test_exact_duplicates_are_counted_once_and_left_out_with_the_rest(gate):
    rows = [*conversations(9), NEAR[0], NEAR[0], NEAR[1]]
    made = gate(rows)
    assert numbers(made, content.NEAR) == [12]
    assert numbers(made, "exact duplicate") == [11]
    said = "1 exact duplicate trained all the same; dataset.on_near_duplicate=drop leaves them out"
    assert said in remarks(made.report)
    dropped = gate(rows, on_near_duplicate="drop")
    assert "all the same" not in "".join(remarks(dropped.report))
    assert (dropped.statistics.rows_used, dropped.statistics.duplicates) == (10, 0)
    alone = gate([*conversations(9), NEAR[0], NEAR[0]], on_near_duplicate="drop")
    assert (alone.statistics.rows_used, alone.statistics.duplicates) == (10, 0)


def test_one_system_prompt_does_not_make_rows_alike(gate):
    prompt = "You are Mai, assistant of a brewery. " * 30
    assert (
        gate([row(f"What is {word}?", f"It is {word * 2}.", prompt) for word in "abcdefgh"]).statistics.found
        == {}
    )


def test_odd_rows(gate):
    huge = row("tell me all " * 50_000, "no more of it")
    made = gate([row("Hi", "Hello!")] * 300 + [huge, row("🙂", "🙃"), row("?", "!")], eval_fraction=0.1)
    assert content.NEAR not in made.statistics.found  # they are exact
    assert gate([row("Hi", "Hello!")]).statistics.found == {}


def test_found_again_from_the_cache(gate, monkeypatch):
    rows = [*conversations(9), *NEAR]
    first = gate(rows).statistics.found
    monkeypatch.setattr(content.Search, "look", None)
    assert gate(rows).statistics.found == first
    with pytest.raises(TypeError):
        gate(rows, near_duplicate_threshold=0.9)


@pytest.fixture
def bare(monkeypatch):
    """As without the extra."""
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in ("datasketch", "py3langid") else real(name)
    )
    monkeypatch.setattr(near, "FEW", 5)


@pytest.mark.usefixtures("bare")
def test_without_the_extra_notes_are_left_out_and_said(gate):
    made = gate([*conversations(9), *NEAR, FOREIGN])
    assert made.statistics.found == {}
    (said, other) = [text for name, text in facts(made.report) if text.startswith("not looked for")]
    assert said == f"not looked for: near-duplicates among over 5 rows need datasketch: {install('data')}"
    assert "py3langid" in other


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize("key", ["on_near_duplicate", "on_language_mismatch"])
def test_what_decides_over_rows_is_refused_without_the_extra(gate, key):
    with pytest.raises(UserError, match=rf"^dataset.{key}=drop: .* need .*: {install('data')}$"):
        gate([*conversations(9), *NEAR], **{key: "drop"})


def test_few_rows_import_neither_datasketch_nor_torch(gate):
    before = {"datasketch", "scipy", "torch"} & sys.modules.keys()
    gate([*conversations(9), *NEAR])
    assert {"datasketch", "scipy", "torch"} & sys.modules.keys() == before


def test_a_word_that_yaml_reads_as_no_is_explained():
    with pytest.raises(UserError, match=r"dataset.on_refusal=false: read as yes or no, .* put it in quotes"):
        Config.from_mapping({"dataset": {"on_refusal": False}})


@pytest.mark.parametrize(
    ("one", "other", "differ"),
    [
        ("We close at 9 pm.", "We close at 10 p.m.", ("9 pm", "10 p.m")),
        ("We are open from 10 am to 9 pm.", "We are open from 10:00 to 21:00.", None),
        ("A can costs 14,000 dong.", "A can costs 14.000 dong.", None),
        ("A can costs 14,000 dong.", "A can costs 15,000 dong.", ("14,000", "15,000")),
        ("You have three days.", "You have 3 days.", None),
        ("You have three days.", "You have five days.", ("three", "five")),
        ("The capital is Paris.", "The capital is Lyon.", ("Paris", "Lyon")),
        ("We close on Mondays.", "We close on Tuesday.", ("mondays", "tuesday")),
        ("Quán đóng cửa thứ hai.", "Quán đóng cửa thứ ba.", ("thứ hai", "thứ ba")),
        ("Quán đóng cửa lúc 9 giờ.", "Quán đóng cửa lúc 10 giờ.", ("9", "10")),
        ("Yes, we do.", "No, we don't.", ("yes", "no")),
        ("Có, bên mình có giao.", "Không, bên mình không giao.", ("yes", "no")),
        ("We deliver on Sundays.", "We do not deliver on Sundays.", ("no denial", "one")),
        ("A croissant costs 2.60.", "Croissants are 2.40 euros each.", ("2.60", "2.40")),
        ("Tours last 60 minutes.", "A tour takes 90 minutes.", ("60", "90")),
        ("Boxes cost 14 euros.", "A box is 14 euros, or 2 dollars off.", None),
        ("Tours last 90 minutes.", "A tour takes 2 hours.", None),
        ("The lagers have 4 medals.", "A stout has 6 medals.", None),
        ("Hello! How can I help you?", "Hi there! What can I do for you?", None),
        ("Of course.", "Sure, with pleasure!", None),
        ("Here are 3 tips: sleep, eat, walk.", "Here are 5 ideas: run, read, swim, cook, rest.", None),
        ("", "9", None),
    ],
)
def test_facts_decide_what_contradicts(one, other, differ):
    assert Facts.of(one).against(Facts.of(other)) == differ
    assert (Facts.of(other).against(Facts.of(one)) is None) == (differ is None)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("How much is a croissant?", "how much are croissants", True),
        ("What's the price of boxes?", "What is the price of a box, please?", True),
        ("How strong is the IPA?", "How strong is the Lager?", False),
        ("What is the app?", "What does the app do?", False),
        ("Can I pay by card?", "Can't I pay by card?", False),
        ("The?", "A?", False),
    ],
)
def test_a_question_in_other_words_is_the_same_but_for_articles_and_plurals(gate, one, other, same):
    found = gate([*conversations(9), row(one, "We say 9 pm."), row(other, "We say 10 pm.")]).statistics.found
    assert (content.CONTRADICTION in found) == same


def test_answers_after_other_messages_do_not_contradict(gate):
    rows = [
        row("When do you close?", f"We close at {hour} pm.", f"You are shop {hour}.") for hour in (8, 9, 10)
    ]
    assert gate(rows).statistics.found == {}


@pytest.mark.parametrize(
    ("question", "answer", "found"),
    [
        (FOREIGN["messages"][0]["content"], FOREIGN["messages"][1]["content"], ("en", "vi")),
        ("Hi", FOREIGN["messages"][1]["content"], None),
        ("em hoc lop 11, mua 1 thung lager dc ko a, cho em hoi them gia nua voi", FOREIGN["messages"][1]["content"], None),
        ("Please translate this sentence into another language for my guests.", FOREIGN["messages"][1]["content"], None),
        ("How do I print a greeting in Python, please show me?", "```python\nprint('xin chào các bạn, hôm nay trời đẹp quá đi thôi')\n```", None),
        ("Viết giúp tôi một hàm cộng hai số trong Python nhé bạn ơi.", "```python\ndef add(first, second):\n    return first + second  # the sum of both of them\n```", None),
        (FOREIGN["messages"][0]["content"], "<think>\nKhách hỏi về đơn hàng chưa tới sau ba ngày, cần trả lời.\n</think>\n\nPlease call the number on your receipt, and we will look for it.", None),
    ],
)  # fmt: skip
def test_languages_of_questions_and_answers(question, answer, found):
    pytest.importorskip("py3langid")
    assert languages.available()
    assert other_language(row(question, answer)["messages"]) == found
