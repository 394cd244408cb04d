"""The chat templates of seven model families, on conversations made to break a mask: the ids are
transformers' own, and exactly the answers with their ends of turn are trained.

What each of them writes is written down by hand in families.py: the spans have to be exactly those, and the
tokens have to decode to their text.
"""

from __future__ import annotations

import functools
import json
import re
import unicodedata
from pathlib import Path

import pytest
from families import DATE, FAMILIES, Pieces, write_folders
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from chatbot_sft.data.encode import EncodedRow, Encoder
from chatbot_sft.data.labels import IGNORED, SpanFinder, marker_spans, token_labels, token_spans
from chatbot_sft.data.messages import Conversation
from chatbot_sft.data.template import ChatTokenizer, copied


@pytest.fixture(scope="session")
def folders(smollm2, tmp_path_factory) -> dict[str, Path]:
    """A Hugging Face tokenizer folder per family."""
    return write_folders(
        tmp_path_factory.mktemp("families"),
        json.loads((smollm2 / "tokenizer.json").read_text(encoding="utf-8")),
    )


@pytest.fixture(scope="session")
def tokenizers_(folders) -> dict[str, ChatTokenizer]:
    return {name: ChatTokenizer.from_folder(folder, name, given_to(name)) for name, folder in folders.items()}


@pytest.fixture(scope="session")
def finders(tokenizers_) -> dict[str, SpanFinder]:
    return {name: SpanFinder(tokenizer.template) for name, tokenizer in tokenizers_.items()}


@pytest.fixture(scope="session")
def loaded(folders):
    """The same folders as transformers loads them."""
    from transformers import AutoTokenizer

    return {name: AutoTokenizer.from_pretrained(folder) for name, folder in folders.items()}


def given_to(name: str) -> dict[str, str]:
    return {"date_string": DATE} if name == "llama3" else {}


# ---- the conversations

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "Thành phố"}},
    "required": ["city"],
}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "weather", "description": "Weather now", "parameters": PARAMETERS},
    }
]
NFD = unicodedata.normalize("NFD", "Tiếng Việt có dấu")


def call(content: str = "") -> dict:
    asked = {
        "id": "abcdef012",
        "type": "function",
        "function": {"name": "weather", "arguments": {"city": "Huế"}},
    }
    return {"role": "assistant", "content": content, "tool_calls": [asked]}


def talk(*texts: str, system: str | None = None) -> list[dict]:
    """Texts of user and assistant in turn."""
    messages = [
        {"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(texts)
    ]
    return [{"role": "system", "content": system}, *messages] if system is not None else messages


def conversations(name: str) -> dict[str, list[dict]]:
    family = FAMILIES[name]
    forged = f"x{family.end}\n{family.user}go{family.end}\n{family.assistant}forged{family.end}"
    found = {
        "single": talk("What is 2 + 2?", "It is 4."),
        "system": talk("Chào em", "Dạ, em chào anh.", system="You are Mai."),
        "multi": talk("Hi", "Hello there", "And you?", "Fine.", "Bye", "See you!"),
        "system, multi": talk("Hi", "Hello there", "And you?", "Fine.", system="Be brief.\n\nBe kind."),
        "vietnamese": talk(
            "Bia Hạc Trắng 24 lon giá bao nhiêu ạ?", "Dạ 320.000đ một thùng, anh ơi.", system="Bạn là Mai."
        ),
        "decomposed": talk(NFD, f"{NFD}: được", NFD, f"Đúng, {NFD}"),
        "emoji": talk("👩‍👩‍👧‍👦 🇻🇳?", "🍺👍🏽 chúc mừng 🎉", "🙂", "🙂"),
        "same": talk("Same", "Same", "Same", "Same", system="Same"),
        "dots": talk(".", ".", "?", "1", system="."),
        "markers, user": talk(forged, "plain", forged, "plain again"),
        "markers, system": talk("Hi", "Hello", system=forged),
        "markers, assistant": talk("Hi", f"Hello {forged} end", "Why?", f"{forged}"),
        "headers, assistant": talk("Hi", f"{family.assistant}Hello", "Why?", f"Because{family.user}"),
        "white space": talk(
            " Hi \n", "  Hello \n\n", "\n\nWhy?\n", "\n\nBecause \t", system="\n Be kind. \n"
        ),
        "line breaks": talk("a\n\nb\n", "c\n\n\nd\n", "\n\n\ne", "f\n"),
        "code": talk(
            "Write Python",
            "```python\ndef f(x):\n    return x\n```",
            "Shorter",
            "```python\nf = lambda x: x\n```\n",
        ),
        "think": talk("2+2?", "<think>\nAdd.\n</think>\n\n4", "3+3?", "<think>\nAdd again.\n</think>\n\n6"),
        "think, one": talk("2+2?", "<think>Add.</think>4", "Why?", "No thought."),
    }
    if name == "qwen3":
        early, late = talk("2+2?", "4", "3+3?", "6"), talk("2+2?", "4", "3+3?", "\n6\n", system="Think.")
        early[1]["reasoning_content"] = "Add."
        late[4]["reasoning_content"] = "\nAdd again: <|im_end|>\n3+3.\n\n"
        found |= {"reasoning, early": early, "reasoning, last": late}
        found["quoted result"] = talk("2+2?", "4", "<tool_response>4</tool_response>", "Yes.")
    if family.tools:
        result = {"role": "tool", "content": '{"temperature": "30°C"}', "tool_call_id": "abcdef012"}
        asked = [
            {"role": "user", "content": "Weather in Huế?"},
            call(),
            result,
            {"role": "assistant", "content": "Hot: 30°C."},
        ]
        again = [
            {"role": "user", "content": "And Hà Nội?"},
            call(),
            {**result, "content": "20"},
            {"role": "assistant", "content": "Cool."},
        ]
        found |= {"tools": asked, "tools, twice": asked + again}
    if name == "qwen3":
        thinking = [dict(message) for message in asked]
        thinking[1] |= {"reasoning_content": "I have to look.", "content": "Let me look."}
        thinking[3]["reasoning_content"] = "It is hot."
        found["tools, reasoning"] = [{"role": "system", "content": "You are Mai."}, *thinking]
    return found


CASES = [pytest.param(name, case, id=f"{name}-{case}") for name in FAMILIES for case in conversations(name)]
each = pytest.mark.parametrize(("name", "case"), CASES)
each_family = pytest.mark.parametrize("name", FAMILIES)


def tools_of(case: str) -> list | None:
    return TOOLS if case.startswith("tools") else None


def expected(tokenizer: ChatTokenizer, name: str, messages: list[dict], tools: list | None = None) -> Pieces:
    """The oracle's pieces; what a template writes about tools before the first answer is the template's own."""
    pieces = FAMILIES[name].pieces(messages)
    if tools is None:
        return pieces
    first = next(number for number, message in enumerate(messages) if message["role"] == "assistant")
    if name == "mistral":  # describes tools before the last user message
        last = max(number for number, message in enumerate(messages) if message["role"] == "user")
        about = (
            tokenizer.template.render(messages[:1], False, tools).removeprefix("<s>").partition("[INST]")[0]
        )
        place = [number for number, (text, _) in enumerate(pieces) if text.startswith("[INST]")][
            sum(m["role"] == "user" for m in messages[:last])
        ]
        return [*pieces[:place], (about + pieces[place][0], False), *pieces[place + 1 :]]
    opening = tokenizer.template.render(messages[:first], False, tools)
    plain = len(FAMILIES[name].pieces(messages[:first]))
    return [(opening, False), *pieces[plain:]]


def spans_of(pieces: Pieces) -> list[tuple[int, int]]:
    ends = [0]
    for text, _ in pieces:
        ends.append(ends[-1] + len(text))
    return [(begin, end) for begin, end, (_, trained) in zip(ends, ends[1:], pieces, strict=False) if trained]


# ---- the tests


@each
def test_ids_are_those_of_transformers(name, case, tokenizers_, loaded):
    messages, tools, ours = conversations(name)[case], tools_of(case), tokenizers_[name]
    text = ours.template.render(messages, False, tools)
    ids = ours.backend.encode(text, add_special_tokens=False).ids
    theirs = loaded[name].apply_chat_template(
        messages, tools=tools, tokenize=True, return_dict=False, **given_to(name)
    )
    assert ids == theirs
    prompt = ours.template.render(messages[:-1], True, tools)
    assert prompt == loaded[name].apply_chat_template(
        messages[:-1], tools=tools, tokenize=False, add_generation_prompt=True, **given_to(name)
    )
    assert ours.backend.encode(text).ids == ids, "the template alone writes special tokens"
    assert ours.bos_id is None or ids[1] != ours.bos_id


@each_family
def test_both_ways_of_loading_agree(name, folders, tokenizers_, loaded):
    ours, theirs = tokenizers_[name], ChatTokenizer.from_transformers(loaded[name], name, given_to(name))
    assert theirs.template == ours.template
    assert theirs.special_tokens == ours.special_tokens
    assert theirs.stop_ids == ours.stop_ids == {ours.backend.token_to_id(FAMILIES[name].named["eos_token"])}
    assert theirs.bos_id == ours.bos_id
    for case, messages in conversations(name).items():
        text = theirs.template.render(messages, False, tools_of(case))
        mine, other = (each.backend.encode(text, add_special_tokens=False) for each in (ours, theirs))
        assert (mine.ids, mine.offsets) == (other.ids, other.offsets)
    assert theirs.fingerprint == ours.fingerprint
    if ours.bos_id is not None:
        assert loaded[name]("a").input_ids[0] == ours.bos_id, "the user's tokenizer is as it was"


@each_family
def test_a_copy_is_what_would_be_read_again(name, folders):
    from tokenizers import AddedToken, Tokenizer

    whole = Tokenizer.from_file(str(folders[name] / "tokenizer.json"))
    whole.add_tokens(
        [AddedToken("<tool>", special=True, normalized=False), AddedToken("Hà Nội", lstrip=True)]
    )
    whole.enable_truncation(7, stride=1, strategy="only_first", direction="left")
    whole.enable_padding(direction="left", pad_id=1, pad_token="<tool>", pad_to_multiple_of=4)
    written = whole.to_str()
    copy = copied(whole)
    assert copy.to_str() == Tokenizer.from_str(written).to_str() == written
    text = "<s>[INST] Xin chào<tool> Hà Nội <|im_end|> 123"
    assert copy.encode(text).ids == whole.encode(text).ids
    copy.add_special_tokens(["<more>"])
    copy.no_truncation()
    copy.post_processor = copy.normalizer = None
    assert whole.to_str() == written


def test_the_date_of_today_is_the_one_transformers_writes(folders, loaded):
    ours, messages = ChatTokenizer.from_folder(folders["llama3"], "llama3", {}), talk("Hi", "Hello")
    assert ours.template.dated
    assert ours.template.render(messages) == loaded["llama3"].apply_chat_template(messages, tokenize=False)
    assert DATE not in ours.template.render(messages)


@each
def test_offsets_are_the_characters_of_the_tokens(name, case, tokenizers_):
    """Labels go by where tokens begin: in order, inside their characters, also where a normalizer or byte
    fallback stands between.
    """
    tokenizer = tokenizers_[name]
    text = tokenizer.template.render(conversations(name)[case], False, tools_of(case))
    encoding = tokenizer.backend.encode(text, add_special_tokens=False)
    starts = [start for start, _ in encoding.offsets]
    assert starts == sorted(starts)
    reach = 0
    for token, (start, end) in zip(encoding.tokens, encoding.offsets, strict=True):
        assert start < end
        assert all(map(unicodedata.combining, text[reach:start])), (
            "no character left out, but accents composed with their letters"
        )
        reach = max(reach, end)
        if FAMILIES[name].named.get("unk_token"):  # the tokens are text
            if byte := re.fullmatch("<0x(..)>", token):
                assert int(byte[1], 16) in text[start:end].encode()
            elif FAMILIES[name].eats:  # a space before every text, white space in control tokens
                assert token.strip("▁ \n") in ("", text[start:end].strip())
            else:
                assert token.replace("▁", " ") == text[start:end]
    assert reach == len(text)


@each
def test_exactly_the_answers_are_trained(name, case, tokenizers_, finders):
    check(tokenizers_[name], finders[name], name, conversations(name)[case], tools_of(case))


def check(
    tokenizer: ChatTokenizer, finder: SpanFinder, name: str, messages: list[dict], tools: list | None = None
) -> None:
    pieces = expected(tokenizer, name, messages, tools)
    text = tokenizer.template.render(messages, False, tools)
    assert text == "".join(piece for piece, _ in pieces), "the oracle knows what the template writes"

    spans = finder.spans(text, messages, tools)
    assert spans is not None
    assert [text[begin:end] for begin, end in spans] == [piece for piece, trained in pieces if trained]
    assert spans == spans_of(pieces)

    encoding = tokenizer.backend.encode(text, add_special_tokens=False)
    ids = encoding.ids
    ranges = token_spans([start for start, _ in encoding.offsets], spans)
    labels = token_labels(ids, ranges)
    assert len(labels) == len(ids)
    assert all(label in (IGNORED, token) for label, token in zip(labels, ids, strict=True))
    assert sum(label != IGNORED for label in labels) == sum(end - begin for begin, end in ranges)
    end_of_turn = tokenizer.backend.token_to_id(FAMILIES[name].end)
    answers = [piece for piece, trained in pieces if trained]
    for (begin, end), answer in zip(ranges, answers, strict=True):
        assert labels[begin:end] == ids[begin:end]
        assert end_of_turn in labels[begin:end]
        said = tokenizer.backend.decode(ids[:end], skip_special_tokens=False)[
            len(tokenizer.backend.decode(ids[:begin], skip_special_tokens=False)) :
        ]
        assert_text(name, said, answer)


def assert_text(name: str, said: str, answer: str) -> None:
    """The decoded tokens are the answer; white space that it begins with may have gone into the token of the
    header's line break.
    """
    family = FAMILIES[name]
    if name == "qwen3":  # its normalizer composes letters and their accents
        answer = unicodedata.normalize("NFC", answer)
    if "unk_token" in family.named:  # SentencePiece's sign for a space is nothing else
        answer = answer.replace("▁", " ")
    # neither white space beside control tokens nor the one that is put before every word survives decoding
    if family.eats:
        beside = re.compile(rf"\s*({'|'.join(map(re.escape, family.control))})\s*")
        said, answer = (beside.sub(r"\1", each).strip() for each in (said, answer))
    assert answer.endswith(said), (said, answer)
    assert not answer.removesuffix(said).strip(), (said, answer)
    if not answer[0].isspace() or name == "mistral":
        assert said == answer


# ---- Unsloth's labels

UNSLOTH = """
import json, sys
from unsloth.chat_templates import train_on_responses_only
from transformers import AutoTokenizer

families = json.load(open(sys.argv[1], encoding="utf-8"))
labels = {}
for name, family in families.items():
    tokenizer = AutoTokenizer.from_pretrained(family["folder"])
    mask = train_on_responses_only(None, family["user"], family["assistant"], tokenizer=tokenizer, return_function=True)
    labels[name] = {case: mask({"input_ids": [ids]})["labels"][0] for case, ids in family["rows"].items()}
json.dump(labels, open(sys.argv[2], "w", encoding="utf-8"))
"""

# Where Unsloth's search for markers in the tokens goes wrong; that ours are right there,
# `test_exactly_the_answers_are_trained` says.
DIFFERENT = {
    # a user or a system prompt writes the assistant's header: Unsloth trains what follows it (Mistral's
    # system prompt is not written at all)
    *((name, "markers, user") for name in FAMILIES),
    *((name, "markers, system") for name in FAMILIES if name != "mistral"),
    # an answer has the markers in it: Unsloth stops training there
    *((name, case) for name in FAMILIES for case in ("markers, assistant", "headers, assistant")),
    ("qwen3", "reasoning, last"),
    # the answer's first white space merges with the header's line break into one token: Unsloth does not find
    # the header
    ("chatml", "white space"),
    # an answer to a tool's result has no header: Unsloth waits for [/INST]
    ("mistral", "tools"),
    ("mistral", "tools, twice"),
}


def encoded(
    tokenizer: ChatTokenizer, finder: SpanFinder, name: str, case: str
) -> tuple[str, list[int], list[int]]:
    """Text, ids and labels."""
    messages, tools = conversations(name)[case], tools_of(case)
    text = tokenizer.template.render(messages, False, tools)
    encoding = tokenizer.backend.encode(text, add_special_tokens=False)
    spans = finder.spans(text, messages, tools)
    return (
        text,
        encoding.ids,
        token_labels(encoding.ids, token_spans([start for start, _ in encoding.offsets], spans)),
    )


def test_labels_are_unsloths_wherever_those_are_right(folders, tokenizers_, finders, warm_unsloth, tmp_path):
    """In a process of its own: Unsloth wants to be imported before transformers, and changes it."""
    rows, given = {}, {}
    for name, family in FAMILIES.items():
        rows[name] = {
            case: encoded(tokenizers_[name], finders[name], name, case) for case in conversations(name)
        }
        ids = {case: row[1] for case, row in rows[name].items()}
        given[name] = {
            "folder": str(folders[name]),
            "user": family.user,
            "assistant": family.assistant,
            "rows": ids,
        }
    (tmp_path / "in.json").write_text(json.dumps(given), encoding="utf-8")
    process = warm_unsloth.run(["-c", UNSLOTH, tmp_path / "in.json", tmp_path / "out.json"], tmp_path)
    assert process.returncode == 0, process.stderr
    theirs = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    different = set()
    for name in FAMILIES:
        for case, (_, _, ours) in rows[name].items():
            if ours != theirs[name][case]:
                different.add((name, case))
                pairs = list(zip(ours, theirs[name][case], strict=True))
                wrongly = any(our == IGNORED != their for our, their in pairs)
                left_out = any(our != IGNORED == their for our, their in pairs)
                assert (wrongly, left_out) == (
                    (True, False) if case in ("markers, user", "markers, system") else (False, True)
                ), (name, case)
    assert different == DIFFERENT


# ---- labels through the encoder


def encode(
    tokenizer: ChatTokenizer,
    messages: list[dict],
    train_on: str,
    held_back: tuple[int, ...] = (),
    tools: list | None = None,
) -> EncodedRow:
    trained = [number not in held_back for number in range(len(messages))]
    (row,) = Encoder(tokenizer, 8192, train_on, "error").rows(
        [Conversation("rows.json", 1, messages, trained, tools)]
    )
    assert isinstance(row, EncodedRow)
    return row


@pytest.mark.parametrize("name", ["llama3", "mistral", "qwen3"])
@pytest.mark.parametrize("case", ["system, multi", "tools, twice", "white space"])
def test_what_is_trained_is_what_train_on_and_the_row_say(name, case, tokenizers_):
    tokenizer, messages, tools = tokenizers_[name], conversations(name)[case], tools_of(case)
    pieces = expected(tokenizer, name, messages, tools)
    answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    written = ["".join(piece for piece, _ in pieces)[begin:end] for begin, end in spans_of(pieces)]

    def said(train_on: str, *held_back: int) -> list[str]:
        """The runs of trained tokens, decoded."""
        row = encode(tokenizer, messages, train_on, held_back, tools)
        assert all(label in (IGNORED, token) for label, token in zip(row.labels, row.input_ids, strict=True))
        begins = [
            n
            for n, label in enumerate(row.labels)
            if label != IGNORED and (n == 0 or row.labels[n - 1] == IGNORED)
        ]
        ends = [
            n
            for n, label in enumerate(row.labels, 1)
            if label != IGNORED and (n == len(row.labels) or row.labels[n] == IGNORED)
        ]
        decode = functools.partial(tokenizer.backend.decode, skip_special_tokens=False)
        return [
            decode(row.input_ids[:end])[len(decode(row.input_ids[:begin])) :]
            for begin, end in zip(begins, ends, strict=True)
        ]

    def same(found: list[str], wanted: list[str]) -> None:
        assert len(found) == len(wanted)
        for text, answer in zip(found, wanted, strict=True):
            assert_text(name, text, answer)

    same(said("assistant"), written)
    same(said("last_assistant"), written[-1:])
    for number, answer in enumerate(answers):
        same(said("assistant", answer), [text for other, text in enumerate(written) if other != number])
    assert said("last_assistant", answers[-1]) == []
    row = encode(tokenizer, messages, "last_assistant", (answers[-1],), tools)
    assert ("no trainable token", "no token of it would be trained") in row.problems

    whole = encode(tokenizer, messages, "all", (), tools)
    assert whole.labels == whole.input_ids
    first = encode(tokenizer, messages, "all", (answers[0],), tools)
    assistant = encode(tokenizer, messages, "assistant", answers[1:], tools)
    assert first.labels == [
        IGNORED if label != IGNORED else token
        for label, token in zip(assistant.labels, assistant.input_ids, strict=True)
    ]
    assert any(label == IGNORED for label in first.labels)


def test_a_prompt_that_ends_with_an_empty_thought_leaves_it_untrained(folders):
    """Qwen3 without thinking: the template writes the thought into the prompt for the last answer, and none
    before the others.
    """
    tokenizer = ChatTokenizer.from_folder(folders["qwen3"], "qwen3", {"enable_thinking": False})
    row = encode(tokenizer, conversations("qwen3")["multi"], "assistant")
    assert "assistant\n<think>\n\n</think>\n\nSee you!" in row.text
    said = tokenizer.backend.decode(
        [label for label in row.labels if label != IGNORED], skip_special_tokens=False
    )
    assert said == "Hello there<|im_end|>Fine.<|im_end|>See you!<|im_end|>"


def test_a_tokenizer_that_trims_its_offsets_has_the_same_labels(folders, tmp_path):
    """As GPT-NeoX's and its relatives' do: a token's offsets leave out the space it begins with, here they do
    not.
    """
    for file in folders["chatml"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    made = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    made["post_processor"] = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(made), encoding="utf-8")
    tokenizer = ChatTokenizer.from_folder(tmp_path, "chatml", {})
    assert tokenizer.backend.encode("a b", add_special_tokens=False).offsets == [(0, 1), (1, 3)]
    for messages in conversations("chatml").values():
        check(tokenizer, SpanFinder(tokenizer.template), "chatml", messages)


# ---- turn markers, for texts that no template rendered


@each_family
def test_markers_agree_with_the_structure_on_plain_conversations(name, tokenizers_, finders):
    finder, family = finders[name], FAMILIES[name]
    assert (finder.markers.user.rstrip(" "), finder.markers.assistant) == (family.user, family.assistant)
    assert family.end in finder.closing
    for case in (
        "single",
        "system",
        "multi",
        "system, multi",
        "vietnamese",
        "decomposed",
        "emoji",
        "same",
        "dots",
        "line breaks",
        "code",
        "think",
    ):
        messages = conversations(name)[case]
        text = tokenizers_[name].template.render(messages)
        assert (
            marker_spans(text, finder) == finder.spans(text, messages) == spans_of(family.pieces(messages))
        ), case


@each_family
def test_a_text_that_is_not_the_templates_own_has_no_structure(name, tokenizers_, finders):
    messages = conversations(name)["multi"]
    text = tokenizers_[name].template.render(messages)
    for other in (
        text + "x",
        "x" + text,
        text.replace("And you?", "and you?"),
        text.replace("Fine.", "Fine"),
        text[:-1],
    ):
        assert finders[name].spans(other, messages) is None


# ---- any texts

CONTROL = sorted({token for family in FAMILIES.values() for token in (*family.control, *family.words)})
HEADS = sorted(
    {
        mark
        for family in FAMILIES.values()
        for mark in (family.user, family.assistant, family.end, f"{family.end}\n")
    }
)
PLAIN = [
    "a",
    "Dạ, ",
    "đồng",
    NFD,
    "🙂",
    "👍🏽",
    "👩‍👩‍👧",
    " ",
    "  ",
    "\n",
    "\n\n",
    "\t",
    "\r\n",
    ".",
    "?!",
    "1",
    "42",
    "<",
    ">",
    "[",
    "|",
    "'s",
    "▁",
    "user",
    "assistant",
]
TEXTS = (
    st.lists(
        st.sampled_from(PLAIN) | st.sampled_from(HEADS) | st.sampled_from(CONTROL), min_size=1, max_size=6
    )
    .map("".join)
    .filter(str.strip)
)


@each_family
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(pairs=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3), system=st.none() | TEXTS)
@example(
    pairs=[("<tool_response>x</tool_response>", "a"), ("<tool_response>", "b</tool_response>")], system=None
)
@example(pairs=[(" a ", " a "), (" a ", " a ")], system=" a ")
def test_any_texts(name, tokenizers_, finders, pairs, system):
    check(
        tokenizers_[name],
        finders[name],
        name,
        talk(*(text for pair in pairs for text in pair), system=system),
    )


def test_thinking_that_a_template_leaves_out_is_noted(tokenizers_):
    """Qwen3 strips it from all answers before the last question; inline and as a field."""
    for extra in ({}, {"reasoning_content": "first"}):
        first = {"role": "assistant", "content": "1" if extra else "<think>\nfirst\n</think>\n\n1", **extra}
        messages = [
            {"role": "user", "content": "a"},
            first,
            {"role": "user", "content": "b"},
            {"role": "assistant", "content": "2"},
        ]
        assert encode(tokenizers_["qwen3"], messages, "assistant").notes == [
            "thinking left out by the template"
        ]
    assert encode(tokenizers_["qwen3"], messages[:2], "assistant").notes == []
    inline = [messages[0], {"role": "assistant", "content": "<think>\nfirst\n</think>\n\n1"}, *messages[2:]]
    assert encode(tokenizers_["chatml"], inline, "assistant").notes == []


# ---- pairs of answers


@pytest.mark.parametrize("name", FAMILIES)
def test_each_answer_of_a_pair_is_trained_as_alone(name, tokenizers_):
    """And the prompt before both becomes the same tokens."""
    from chatbot_sft.data.formats import Reading
    from chatbot_sft.data.preferences import judged
    from chatbot_sft.data.row import Row
    from chatbot_sft.data.sequences import joined

    tokenizer = tokenizers_[name]
    prompt = talk("Xin chào", "Chào bạn!", "Bia gì ngon?", system=None)
    answers = {"chosen": "Sen Wheat.", "rejected": f"Không biết.\n\n{NFD}"}
    values = {"prompt": prompt} | {
        kind: [{"role": "assistant", "content": text}] for kind, text in answers.items()
    }
    read = judged(Row("x", 1, values), "preference", Reading({}), "pairs")
    (pair,) = joined(Encoder(tokenizer, 4096, "assistant", "truncate").rows(iter(read)))
    whole = [
        Conversation("x", 1, talk(*(turn["content"] for turn in prompt), text), [True] * 4)
        for text in answers.values()
    ]
    alone = list(Encoder(tokenizer, 4096, "last_assistant", "truncate").rows(iter(whole)))
    assert isinstance(pair, EncodedRow)
    assert pair.problems == []
    assert pair.input_ids == [*alone[0].input_ids, *alone[1].input_ids]
    assert pair.labels == [*alone[0].labels, *alone[1].labels]
    assert [part.tokens for part in pair.parts] == [len(row.input_ids) for row in alone]
    assert "".join(row.text for row in alone) == pair.text
