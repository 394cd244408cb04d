"""Near-duplicates: pairs are found whatever way they are looked for, and what is left has none."""

import sys

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from chatbot_sft import UserError
from chatbot_sft.data import minhash, near
from chatbot_sft.data.near import Said
from chatbot_sft.data.shingles import in_common, normalised, shingles
from chatbot_sft.extras import install

WORDS = [
    "bia",
    "lager",
    "amber",
    "taproom",
    "order",
    "refund",
    "parking",
    "ticket",
    "đơn",
    "hàng",
    "giao",
    "quán",
    "mở",
    "cửa",
    "mấy",
    "giờ",
    "hoàn",
    "tiền",
    "số",
    "điện",
    "thoại",
    "delivery",
    "van",
    "Wednesday",
    "kitchen",
    "window",
    "glass",
    "cooler",
    "14",
    "30",
    "9",
    "10",
    "book",
    "table",
    "guests",
    "music",
    "quiz",
    "evening",
    "garden",
]


def chats(count, seed=0, words=40):
    draw = np.random.default_rng(seed)
    return [
        Said(f"what about {draw.choice(WORDS)}\n{text}", text)
        for text in (" ".join(draw.choice(WORDS, words)) for _ in range(count))
    ]


def changed(said, place=7):
    """One word of it is another."""
    words = said.answers.split()
    words[place] = "elsewhere"
    answer = " ".join(words)
    return Said(said.whole.replace(said.answers, answer), answer)


def find(rows, held_out=(), threshold=0.8):
    everything = [*rows, *held_out]
    return near.find(range(len(rows)), range(len(rows), len(everything)), everything.__getitem__, threshold)


@pytest.fixture(params=["few", "many"])
def way(request, monkeypatch):
    """Compared through their rarest shingles, or through MinHash."""
    if request.param == "many":
        monkeypatch.setattr(near, "FEW", 0)


@pytest.mark.usefixtures("way")
def test_planted_pairs_are_found_inside_and_across_and_nothing_else():
    rows = chats(200)
    planted = [changed(rows[number]) for number in range(40)]
    leaked = [changed(rows[number], 20) for number in range(100, 120)]
    found = find([*rows, *planted], [*leaked, *chats(50, seed=1)])
    assert found.inside == {200 + number: number for number in range(40)}
    assert {row for row, _ in found.across} == set(range(100, 120))
    assert {other for _, other in found.across} == set(range(240, 260))


@pytest.mark.usefixtures("way")
def test_rows_of_one_text_alike_are_one_cluster_that_keeps_its_first():
    (one,) = chats(1, words=120)
    rows = [one, *(changed(one, place) for place in range(100)), *chats(5, seed=2)]
    found = find(rows)
    assert set(found.inside) == set(range(1, 101))
    kept = [row for number, row in enumerate(rows) if number not in found.inside]
    assert not find(kept).inside


@pytest.mark.usefixtures("way")
def test_all_rows_equal_one_row_and_none():
    same = Said("Hi!\nHello.", "Hello.")
    assert find([same] * 300, [same]).inside == dict.fromkeys(range(1, 300), 0)
    assert {row for row, _ in find([same] * 300, [same]).across} == set(range(300))
    for rows in ([same], []):
        assert find(rows) == near.Alike({}, [])
    assert find([], [same, same]) == near.Alike({}, [])


@pytest.mark.usefixtures("way")
def test_different_questions_about_one_long_text_are_not_alike():
    text = chats(1, words=400)[0].answers
    rows = [
        Said(f"{text}\nWho pays?\nThe guest does, in cash.", "The guest does, in cash."),
        Said(f"{text}\nWhen is it?\nEvery Tuesday evening.", "Every Tuesday evening."),
    ]
    assert not find(rows).inside


def test_facts_that_differ_in_a_short_chat_are_not_alike():
    said = [
        ("What does a Lager cost?", "A Lager costs 14,000 dong."),
        ("What does an Amber cost?", "An Amber costs 16,000 dong."),
        ("Hi", "Hello! How can I help?"),
        ("Quán mở cửa lúc mấy giờ?", "Quán mở cửa lúc 10 giờ."),
        ("Quán đóng cửa lúc mấy giờ?", "Quán đóng cửa lúc 21 giờ."),
    ]
    assert not find([Said(f"{asked}\n{answer}", answer) for asked, answer in said]).inside


def test_huge_and_empty_texts(monkeypatch):
    monkeypatch.setattr(near, "FEW", 0)
    huge = Said("a b " * 2_500_000, "")
    assert find([huge, Said("", ""), Said("🙂", "🙂"), huge, Said("🙃", "🙃")]).inside == {3: 0}


def typed_again(text):
    """The same for people: other case, punctuation and white space."""
    return "  " + text.upper().replace(" ", " \n ") + " !?"


@settings(max_examples=60)
@given(
    st.lists(
        st.text(
            st.characters(codec="utf-8", categories=("L", "N", "Zs", "P", "Lo")), min_size=1, max_size=80
        ),
        min_size=1,
        max_size=8,
    ),
    st.integers(0, 7),
)
@example(["\ud800 half a pair", "x"], 0)
@example(["Quán mở cửa lúc mấy giờ?"], 0)
def test_a_row_typed_again_is_found_and_dropping_is_idempotent(texts, number):
    number %= len(texts)
    rows = [Said(text, text) for text in texts]
    if normalised(typed_again(texts[number])) == normalised(texts[number]):  # not so of ß and İ
        again = typed_again(texts[number])
        assert len(rows) in find([*rows, Said(again, again)]).inside
    found = find(rows).inside
    assert all(first < row and first not in found for row, first in found.items())
    assert not find([row for place, row in enumerate(rows) if place not in found]).inside


def test_signatures_estimate_what_two_sets_have_in_common():
    draw = np.random.default_rng(3)
    pool = draw.integers(0, 2**32, 20_000, np.uint32)
    one, other = pool[:12_000], pool[4_000:16_000]
    estimate = minhash._estimates(np.array([[0, 1]]), minhash.signatures([one, other]))[0]
    assert abs(estimate - in_common(np.unique(one), np.unique(other))) < minhash.MARGIN


@pytest.mark.parametrize("threshold", [0.5, 0.6, 0.8, 0.9, 1.0])
def test_bands_are_wide_and_miss_one_pair_in_a_hundred(threshold):
    count, width = minhash.bands(threshold)
    assert count * width <= minhash.PERMUTATIONS
    assert 1 - (1 - threshold**width) ** count >= minhash.RECALL


def test_many_rows_need_datasketch(monkeypatch):
    monkeypatch.setattr(near, "FEW", 1)
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(UserError, match=f"need datasketch: {install('data')}"):
        find(chats(3))


def test_questions_that_are_asked_in_the_rows():
    questions = {1: "When do you close?", 2: "Where is the moon, and why?", 5: "Quán mở cửa lúc mấy giờ?"}
    rows = [["Hi"], ["Hi", "when do you close"], ["When do you close ?!"], ["QUÁN MỞ CỬA LÚC MẤY GIỜ"]]
    assert near.asked(questions, range(4), rows.__getitem__, 0.8) == {1: [1, 2], 5: [3]}
    assert near.asked({}, range(4), rows.__getitem__, 0.8) == {}


def test_shingles_of_short_texts():
    assert len(shingles("")) == len(shingles("hi")) == 1
    assert len(shingles("abcdefg")) == 3
