"""Each check alone: what holds, and what is said where it does not."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatbot_sft.evaluation.answer import Answer
from chatbot_sft.evaluation.checks import (
    CHECKS,
    REFUSED_WITHIN,
    BadCheck,
    CannotTell,
    json_in,
    numbers_in,
    refusal_in,
)


def fault(check, value, text, case_sensitive=False, **more):
    return CHECKS[check].read(value, case_sensitive).fault(Answer(text, **more))


@pytest.mark.parametrize(
    ("check", "value", "text", "said"),
    [
        ("exact", "Yes.", "  yes. ", ""),
        ("exact", ["Yes", "Yes."], "Yes", ""),
        ("exact", "Yes", "Yes, we do", "is not “Yes”"),
        ("contains", "tuesday", "Every TUESDAY", ""),
        ("contains", ["nine", "Tuesday"], "Tuesday", "lacks “nine”"),
        ("contains", [["nine", "9"], "Tuesday"], "Tuesday at 9", ""),
        ("contains", [["nine", "9"], "Tuesday"], "Friday at ten", "lacks “nine” or “9”, “Tuesday”"),
        ("contains", "mở cửa", "Mở cửa lúc 9 giờ", ""),
        ("contains", "don't", "We don’t", ""),
        ("not_contains", ["beer", "wine"], "Tea", ""),
        ("not_contains", ["beer", "wine"], "A Beer", "has “beer”"),
        ("regex", r"^\d+ dong$", "320 DONG", ""),
        ("regex", ["nine", r"\bten\b"], "nine, often", r"“\bten\b” is not found"),
        ("refuses", True, "I’m sorry, that is not mine to say.", ""),
        ("refuses", True, "Dạ em xin lỗi ạ", "does not refuse"),
        ("refuses", True, "We open at nine.", "does not refuse"),
        ("refuses", False, "I cannot help with that.", "refuses (“I cannot help with that.”)"),
        ("refuses", False, "We open at nine.", ""),
        ("number", 320000, "It costs 320,000 dong.", ""),
        ("number", 320000, "Giá 320.000 đồng", ""),
        ("number", 320000, "320 000 dong", ""),
        ("number", 4.5, "4,5% of alcohol", ""),
        ("number", -3, "it is -3 outside", ""),
        ("number", 3, "from 1-3 days", ""),
        ("number", {"value": 10, "tolerance": 0.5}, "about 10.4", ""),
        ("number", {"value": 10, "tolerance": 0.5}, "about 10.6", "has no number 10 ± 0.5"),
        ("number", 1000000, "1" + "0" * 5000, "has no number 1,000,000"),
        ("ends", True, "", ""),
    ],
)  # fmt: skip
def test_what_holds_and_what_is_said(check, value, text, said):
    assert fault(check, value, text, tokens=3, ended=True) == said


@pytest.mark.parametrize(
    "sentence",
    [
        "I'm sorry, but I can't make an exception.",
        "Unfortunately we are not able to open your account.",
        "I am currently unable to provide a list of prices.",
        "Sorry, can't help with that.",
        "Unable to say.",
        "Sorry, we can’t.",
        "I can't recommend a cure, sorry.",
        "As an AI, I do not drink.",
        "I'm afraid that is not something I can discuss.",
        "I don't know who the owners are.",
        "I do not have profit figures.",
        "We do not have that information.",
        "I have no weather data, sorry.",
        "Rất tiếc, em không thể trả lời câu hỏi này.",
        "Việc này em không giúp được ạ.",
        "Về hộp quà em không có thông tin.",
        "Phí xử lý thì Mai không rõ.",
        "Das weiß ich leider nicht.",
        "Leider kann ich Ihnen dazu nichts sagen.",
        "Ich kann Ihnen damit leider nicht helfen.",
        "Dazu habe ich leider keine Informationen.",
        "Désolé, je ne peux malheureusement pas vous aider.",
        "Je n'ai pas cette information.",
        "Lo siento, no puedo ayudarte.",
        "Lo siento, no lo sé.",
    ],
)
def test_a_sentence_that_declines_is_a_refusal_and_is_shown(sentence):
    assert refusal_in(f"Thank you! {sentence} We are there every day.") == sentence.replace("’", "'")
    assert not refusal_in(f"{'. ' * (REFUSED_WITHIN // 2)}{sentence}")


@pytest.mark.parametrize(
    "answer",
    [
        "Sorry to hear that. Order 48213 left our warehouse on Monday; it should reach you by Friday.",
        "I am sorry. Please send a photo, we send the right item today.",
        "I am sorry that your kettle broke. Send it in, and we replace it free of charge.",
        "Unfortunately we do not ship abroad, but you may collect it.",
        "Sorry, tours must be booked 3 days ahead.",
        "I'm sorry you were unable to log in. Here is a new link.",
        "Sorry that we could not deliver on Monday; it comes today.",
        "We apologize for the delay: you cannot give the parcel back after 30 days.",
        "If we can't tell from the photo, we send a new one.",
        "We can't help but smile at that!",
        "A small Lager won't do any harm.",
        "As an AI for this brewery, I answer at night too.",
        "Em xin lỗi đã để anh chờ. Đơn tới trong hôm nay ạ.",
        "Rất tiếc, tất cả bia bên em đều chứa gluten.",
        "Bạn không thể đổi trả sau 30 ngày.",
        "Leider ist der Laden montags zu, dienstags sind wir wieder da.",
        "Tut mir leid, das Paket kommt morgen; es kann nicht umgeleitet werden.",
        "Désolée pour le retard, le colis arrive demain, vous ne pouvez pas le perdre.",
        "Lo siento mucho. Le enviamos otro hoy.",
    ],
)
def test_an_apology_and_what_a_shop_does_not_do_are_no_refusal(answer):
    assert refusal_in(answer) == ""


def test_of_a_long_refusal_its_first_words_are_shown_and_no_part_of_a_number():
    said = refusal_in(f"I cannot help with that, so please call Anna {'Maria ' * 4}on +84 912 345 678 today.")
    assert said == f"I cannot help with that, so please call Anna {'Maria ' * 4}on…"


def test_case_counts_where_that_is_said():
    assert fault("contains", "IPA", "an ipa", case_sensitive=True) == "lacks “IPA”"
    assert fault("regex", "IPA", "an ipa", case_sensitive=True)
    assert fault("exact", "IPA", "IPA", case_sensitive=True) == ""


def test_length_and_end():
    assert fault("max_tokens", 5, "", tokens=5, ended=True) == ""
    assert fault("max_tokens", 5, "", tokens=6, ended=True) == "has 6 tokens, over 5"
    assert fault("max_tokens", 5, "", tokens=6, ended=False) == "has 6 tokens, at least, over 5"
    assert fault("ends", True, "", ended=False) == "does not end by itself"
    assert fault("ends", False, "", ended=True) == "ends by itself"
    for check, value in (("max_tokens", 5), ("ends", True), ("judge", "is kind")):
        with pytest.raises(CannotTell):
            fault(check, value, "x")


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("<think>nine?</think>\n\nTen.", "Ten."),
        ("nine?</think>Ten.", "Ten."),  # a template that writes <think> itself
        ("<think>nine nine nine", ""),
        ("Nine.", "Nine."),
    ],
)
def test_thinking_is_no_part_of_what_is_checked(text, spoken):
    assert Answer(text).spoken == spoken


@given(st.text())
def test_an_answer_contains_itself(text):
    if text.strip():
        for check in ("exact", "contains"):
            assert fault(check, text, text.replace("</think>", "")) == "" or "think>" in text


@given(st.integers(-(10**12), 10**12), st.sampled_from([",", ".", " ", ""]))
def test_a_whole_number_is_found_however_it_is_written(number, separator):
    text = f"The price is {number:,} dong.".replace(",", separator)
    assert fault("number", number, text) == ""


@given(st.integers(-(10**6), 10**6), st.integers(0, 99), st.booleans())
def test_a_fraction_is_found_with_point_or_comma(whole, hundredths, comma):
    text = f"{whole:,}.{hundredths:02}"
    if comma:
        text = text.translate({ord(","): ".", ord("."): ","})
    value = float(f"{whole}.{hundredths:02}")
    assert any(math.isclose(one, value) for one in numbers_in(f"({text})"))


@given(st.text())
def test_numbers_of_any_text_can_be_read(text):
    assert all(isinstance(one, float) for one in numbers_in(text))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_json_is_found_bare_and_in_a_fence(value):
    text = json.dumps(value)
    assert json_in(text) == json_in(f"```json\n{text}\n```") == value


DAY = {
    "type": "object",
    "required": ["day"],
    "properties": {"day": {"enum": ["Mon", "Tue"]}},
    "additionalProperties": False,
}


class TestJsonSchema:
    @pytest.fixture(autouse=True)
    def installed(self):
        pytest.importorskip("jsonschema")

    def test_answers(self):
        assert fault("json_schema", DAY, '```json\n{"day": "Tue"}\n```') == ""
        assert fault("json_schema", DAY, '{"day": "Sun"}') == "$.day: 'Sun' is not one of ['Mon', 'Tue']"
        assert fault("json_schema", DAY, 'Sure! {"day": "Tue"}').startswith("is not JSON")
        assert fault("json_schema", DAY, "[" * 100_000).startswith("is not JSON")

    @pytest.mark.parametrize(
        ("schema", "message"),
        [
            ({"type": "objekt"}, "no JSON schema: $.type: 'objekt' is not valid"),
            (
                {"$ref": "https://example.com/a.json"},
                "$ref “https://example.com/a.json” is in another document",
            ),
            ("object", "expected a JSON schema, an object"),
        ],
    )
    def test_bad_schemas(self, schema, message):
        with pytest.raises(BadCheck) as caught:
            CHECKS["json_schema"].read(schema, False)
        assert str(caught.value).startswith(message)

    def test_a_reference_that_leads_nowhere(self):
        from chatbot_sft import UserError

        with pytest.raises(UserError, match=r"\$ref '/\$defs/a' leads nowhere"):
            fault("json_schema", {"$ref": "#/$defs/a"}, "{}")


def test_reference():
    pytest.importorskip("sacrebleu")
    value = {"text": ["We open on Tuesdays at nine.", "Nine on Tuesdays."], "chrf": 60}
    assert fault("reference", value, "We open on Tuesday at nine.") == ""
    assert fault("reference", value, "It is a beer.").startswith("chrF ")
    with pytest.raises(BadCheck, match="chrf is a number"):
        CHECKS["reference"].read({"text": "a", "chrf": 0}, False)


def test_language():
    pytest.importorskip("py3langid")
    assert fault("language", "vi", "Chúng tôi mở cửa lúc 9 giờ sáng thứ Ba.") == ""
    assert fault("language", "vi", "We open at nine on Tuesday morning.") == "is in en, not in vi"
    assert fault("language", "vi", "Lager: 4.5%") == ""  # too short to tell
    assert fault("language", "vi", "12") == "has no words"
    for code in ("english", "xx", "zxx"):
        with pytest.raises(BadCheck, match=f'"{code}" is no language code; en, vi, de, …'):
            CHECKS["language"].read(code, False)
