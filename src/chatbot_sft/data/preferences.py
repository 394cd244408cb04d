"""Answers with a judgement: pairs of a chosen and a rejected answer, answers with a label, logs with thumbs.

Each judged answer becomes a conversation that ends with it and of which it alone is trained; `part` says how it
was judged. Two of a pair come one after the other, the chosen one first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from chatbot_sft.data.encode import Refused, dialogue_hash, text_hash
from chatbot_sft.data.formats import (
    JUDGED,
    MIXED_FORMATS,
    QUESTIONS_AND_ANSWERS,
    Columns,
    Reading,
    Turns,
    columns_read,
    conversation,
    first_turn,
    format_of,
    turn_of,
    with_system,
)
from chatbot_sft.data.messages import (
    EMPTY,
    BadRow,
    Conversation,
    Message,
    as_text,
    decoded_turns,
    shown,
)
from chatbot_sft.data.row import Row
from chatbot_sft.data.unread import unread_columns
from chatbot_sft.errors import UserError

# What one row of the training data is, by the objective's name.
CONVERSATIONS, PAIRS, ANSWERS = "conversations", "pairs", "answers"
UNITS = {"sft": CONVERSATIONS, "dpo": PAIRS, "orpo": PAIRS, "kto": ANSWERS}
ASKING = ("system", "user", "tool")  # roles that a conversation begins with, and no answer
CHOSEN, REJECTED, DESIRABLE, UNDESIRABLE = "chosen", "rejected", "desirable", "undesirable"
NO_COUNTERPART = "without another to pair with: left out"
NO_THUMB = "no thumb: left out"
PROMPTS_DIFFER = "prompts differ"
IDENTICAL = "identical pair"

# Names that files give to the two answers: TRL's, Argilla's, OpenAI's and others'.
BETTER_AND_WORSE = (
    ("chosen", "rejected"), ("chosen_response", "rejected_response"), ("response_chosen", "response_rejected"),
    ("preferred_output", "non_preferred_output"), ("preferred", "rejected"), ("preferred", "dispreferred"),
    ("accepted", "rejected"),
)  # fmt: skip
ASKED = ("prompt", "question", "instruction", "query", "conversations", "messages", "input")
LABELS = ("label", "feedback", "kto_tag")
VERDICTS = {
    "true": True, "1": True, "1.0": True, "up": True, "thumbs_up": True, "👍": True, "like": True,
    "false": False, "0": False, "0.0": False, "down": False, "thumbs_down": False, "👎": False, "dislike": False,
}  # fmt: skip
SKIN_TONE = re.compile("[\U0001f3fb-\U0001f3ff]")  # behind a thumb
TRANSCRIPT = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")  # of Anthropic's hh-rlhf


def judged_format(rows: Sequence[Row], reading: Reading, unit: str) -> tuple[str, Columns] | None:
    """(format, columns) of `rows` that are judged answers, None where they are not.

    A thumb may stand in any of them, the rest shows in the first. A column `label` belongs to the answers where
    the objective asks for labels: else it may mean anything.
    """
    for row in rows:
        found = _two_answers(row.values, reading)
        if found is None and unit != CONVERSATIONS:
            found = _labelled(row.values, reading)
        if found:
            name, columns = found
            said = {ours: its for ours, its in columns.items() if ours != its or ours in reading.columns}
            return name, with_system(said, row.values)
        if format_of(row.values, reading):
            break
    for row in rows:
        column = next((name for name in _talk(reading) if _has_thumb(row.values.get(name), reading)), None)
        if column is not None:
            return "thumbs", with_system({**reading.columns, "messages": column}, row.values)
    return None


def check_fits(source: str, format_name: str, rows: Sequence[Row], reading: Reading, objective: str) -> None:
    """The rows, of this format, are what the objective learns from.

    Raises:
        UserError: they are not; says which objective the rows fit.
    """
    learns = UNITS[objective]
    if format_name not in JUDGED:
        if learns == CONVERSATIONS:
            return
        wanted = "pairs of a chosen and a rejected answer" if learns == PAIRS else "answers with a label"
        thumbs = "" if format_name != "messages" else "; dataset.format=thumbs where thumbs come later in it"
        raise UserError(
            f"{source}: these are conversations ({format_name}): objective=sft; objective={objective} learns"
            f" from {wanted}{thumbs}"
        )
    if learns != CONVERSATIONS:
        return
    if format_name == "preference":
        chosen = reading.name(CHOSEN)
        as_pair = f"dataset.columns.prompt={reading.name('prompt')} dataset.columns.completion={chosen}"
        talk = any(first_turn(row.values.get(chosen)) for row in rows)
        options = f"dataset.message_field={chosen}" if talk else as_pair
        raise UserError(
            f"{source}: these rows are chosen/rejected pairs: objective=dpo or orpo; to learn the chosen answers"
            f" alone, say {options}"
        )
    what = "conversations with thumbs" if format_name == "thumbs" else "answers with a label"
    plain = "messages" if format_name == "thumbs" else "prompt_completion"
    raise UserError(
        f"{source}: these rows are {what}: objective=kto, or dpo and orpo where a prompt has answers of both"
        f" kinds; dataset.format={plain} trains on all of them"
    )


def judged(row: Row, format_name: str, reading: Reading, unit: str) -> list[Conversation]:
    """The judged answers of `row`, read as `format_name`; none where it has no thumb.

    Raises:
        BadRow: what is wrong with it.
    """
    made = READERS[format_name](row, reading)
    if made:
        made[0].unread = list(dict.fromkeys(name for item in made for name in item.unread))
        made[0].unread += unread_columns(row.values, columns_read(format_name, reading))
    if unit == ANSWERS:
        names = {CHOSEN: DESIRABLE, REJECTED: UNDESIRABLE}
        for item in made:
            item.part = names.get(item.part, item.part)
    return made


def paired(items: Iterator[Conversation | Refused]) -> Iterator[Conversation | Refused]:
    """Answers to one and the same prompt, one of them liked and the other not, as pairs.

    Each answer stands in one pair at most. Those that are left are handed on as such, at the end.
    """
    waiting: dict[int, list[Conversation]] = {}
    for item in items:
        if isinstance(item, Refused) or item.part in (CHOSEN, REJECTED):
            yield item
            continue
        same = waiting.setdefault(_prompt_hash(item), [])
        # One answer that was liked and disliked is no pair.
        fits = (other for other in same if other.part != item.part and _answer(other) != _answer(item))
        other = next(fits, None)
        if other is None:
            same.append(item)
            continue
        same.remove(other)
        better, worse = (item, other) if item.part == DESIRABLE else (other, item)
        worse.file, worse.row, worse.uses = better.file, better.row, better.uses
        worse.dialogue = better.dialogue
        better.part, worse.part = CHOSEN, REJECTED
        yield from (better, worse)
    left = sorted((item.file, item.row) for same in waiting.values() for item in same)
    yield from (Refused(file, row, NO_COUNTERPART, "", fault=False) for file, row in left)


def _preference(row: Row, reading: Reading) -> list[Conversation]:
    """`{"prompt", "chosen", "rejected"}`, or the two with a beginning in common."""
    row = _openai(row, reading)
    values = row.values
    answers = {name: reading.of(values, name) for name in (CHOSEN, REJECTED)}
    missing = [name for name, answer in answers.items() if answer is None]
    if missing:
        other = format_of(values, reading) if len(missing) == 2 else None
        if other:
            raise BadRow(MIXED_FORMATS, f"this row is {other}, the file is read as preference")
        raise BadRow("no pair", f"no {' and no '.join(reading.name(name) for name in missing)}")
    prompt = _prompt(values, reading)
    parts = {name: _turns(reading.name(name), answer, reading) for name, answer in answers.items()}
    texts = {name: turns for name, turns in parts.items() if isinstance(turns, str)}
    if texts and prompt is None:
        if len(texts) < 2:
            raise BadRow(PROMPTS_DIFFER, "one of the two is a text and the other messages, without a prompt")
        prompt, parts = _begun(texts)
    turns = {
        name: [turn_of("assistant", answer)] if isinstance(answer, str) else answer
        for name, answer in parts.items()
    }
    whole = [name for name in turns if _role(turns[name][0], reading) in ASKING]
    if len(whole) == 1 or (not whole and prompt is None):
        detail = "there is no prompt" if prompt is None else f"{whole[0]} has messages before its answer"
        raise BadRow(PROMPTS_DIFFER, f"{detail}, and the two have no beginning in common")
    before = [] if whole or prompt is None else prompt
    made = {}
    for name, answer in turns.items():
        said: Turns = [(reading.name("prompt"), before), (reading.name(name), answer)]
        try:
            made[name] = conversation(row, said, reading, ("role", "content"))
        except BadRow as bad:
            raise BadRow(bad.kind, f"{reading.name(name)}: {bad.detail}") from None
    chosen, rejected = made[CHOSEN], made[REJECTED]
    if chosen.messages == rejected.messages:
        raise BadRow(IDENTICAL, "chosen and rejected say the same")
    if whole:
        begin = _common(chosen, rejected)
        _check_prompt(prompt, (chosen.messages or [])[:begin], reading)
    else:
        begin = len(chosen.messages or ()) - len(turns[CHOSEN])
    return [_judged(chosen, CHOSEN, begin), _judged(rejected, REJECTED, begin)]


def _unpaired_preference(row: Row, reading: Reading) -> list[Conversation]:
    """`{"prompt", "completion", "label"}`, or a whole conversation and the label of its last answer."""
    values = row.values
    completion, label = reading.of(values, "completion"), reading.of(values, "label")
    if completion is None:
        other = format_of(values, reading)
        if other not in (None, "prompt_completion"):
            raise BadRow(MIXED_FORMATS, f"this row is {other}, the file is read as unpaired_preference")
        raise BadRow("no answer", f"no {reading.name('completion')}")
    part = _verdict(reading.name("label"), label)
    prompt = _prompt(values, reading)
    answer = _turns(reading.name("completion"), completion, reading)
    answer = [turn_of("assistant", answer)] if isinstance(answer, str) else answer
    whole = _role(answer[0], reading) in ASKING
    if prompt is None and not whole:
        raise BadRow(
            "no prompt", f"no {reading.name('prompt')}, and the answer does not begin with a question"
        )
    said: Turns = [("prompt", [] if whole else prompt or []), (reading.name("completion"), answer)]
    made = conversation(row, said, reading, ("role", "content"))
    length = len(made.messages or ())
    if whole:
        _check_prompt(prompt, (made.messages or [])[:-1], reading)
    return [_judged(made, part, length - (1 if whole else len(answer)))]


def _thumbs(row: Row, reading: Reading) -> list[Conversation]:
    """`{"messages"}` with `feedback` on answers: each of these with all that was said before it."""
    column, key = reading.name("messages"), reading.name("feedback")
    if reading.of(row.values, "messages") is None:
        other = format_of(row.values, reading)
        if other:
            raise BadRow(MIXED_FORMATS, f"this row is {other}, the file is read as thumbs")
        raise BadRow("no such column", f"no {column!r}")
    turns = _messages(decoded_turns(reading.of(row.values, "messages")), reading)
    made = []
    for number, turn in enumerate(turns, 1):
        thumb = turn.get(key) if isinstance(turn, dict) else None
        if thumb in EMPTY:
            continue
        if _role(turn, reading) != "assistant":
            raise BadRow("bad label", f"message {number} has {key}, and is no answer")
        part = _verdict(f"message {number}: {key}", thumb)
        said = [{name: value for name, value in turn.items() if name != key} for turn in turns[:number]]
        item = conversation(row, [(column, said)], reading, ("role", "content"))
        made.append(_judged(item, part, len(item.messages or ()) - 1))
    for item in made:
        item.dialogue = made[-1].dialogue  # those of one conversation stay together
    return made


READERS: dict[str, Callable[[Row, Reading], list[Conversation]]] = {
    "preference": _preference,
    "unpaired_preference": _unpaired_preference,
    "thumbs": _thumbs,
}


def _judged(item: Conversation, part: str, begin: int) -> Conversation:
    """`item` with its messages from `begin` on as the answer."""
    messages = item.messages or []
    if begin >= len(messages) or messages[begin]["role"] != "assistant":
        raise BadRow("no answer", f"{part}: no answer follows the prompt")
    if messages[-1]["role"] != "assistant":
        raise BadRow("no answer", f"{part}: the last message is by {messages[-1]['role']}")
    if all(message["role"] == "system" for message in messages[:begin]):
        raise BadRow("no prompt", f"{part}: nothing is asked before the answer")
    before = Conversation(item.file, item.row, messages[:begin])
    trained = [allowed and number >= begin for number, allowed in enumerate(item.trained)]
    return replace(item, part=part, trained=trained, begin=begin, dialogue=dialogue_hash(before))


def _common(chosen: Conversation, rejected: Conversation) -> int:
    """How many messages both begin with.

    Raises:
        BadRow: after these, not both have an answer.
    """
    one, other = chosen.messages or [], rejected.messages or []
    both = zip(one, other, strict=False)
    begin = next((number for number, (a, b) in enumerate(both) if a != b), min(len(one), len(other)))
    following = [messages[begin]["role"] for messages in (one, other) if begin < len(messages)]
    if begin and following == ["assistant", "assistant"]:
        return begin
    if len(following) < 2:
        longer = REJECTED if len(other) > len(one) else CHOSEN
        raise BadRow(PROMPTS_DIFFER, f"{longer} goes on where the other of the pair ends")
    raise BadRow(PROMPTS_DIFFER, f"message {begin + 1}: chosen and rejected differ in what was asked")


def _check_prompt(prompt: Sequence[Any] | None, beginning: Sequence[Message], reading: Reading) -> None:
    """Raises BadRow where a prompt beside whole conversations is not what they begin with."""
    key = reading.name("content")
    said = {message["content"].strip() for message in beginning}
    asked = [as_text("prompt", turn.get(key)).strip() for turn in prompt or () if isinstance(turn, dict)]
    if not set(asked) <= said:
        raise BadRow(PROMPTS_DIFFER, f"{reading.name('prompt')} is not what the conversations begin with")


def _prompt(values: Mapping[str, Any], reading: Reading) -> list[Any] | None:
    """The turns before the answer; None where the row has them in no column of their own."""
    column = reading.name("prompt")
    prompt = reading.of(values, "prompt")
    if prompt in EMPTY:
        return None
    turns = _turns(column, prompt, reading)
    if not isinstance(turns, str):
        return turns
    given = "" if reading.name("input") == column else reading.text(values, "input")
    return [turn_of("user", "\n\n".join(text for text in (turns, given) if text.strip()))]


def _turns(column: str, value: Any, reading: Reading) -> list[Any] | str:
    """Messages (a list of them, its JSON, one alone), or a text."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        if first_turn(value):
            value = decoded_turns(value)
    elif isinstance(value, dict):
        value = [value]
    messages = isinstance(value, list) and value and all(isinstance(turn, dict) for turn in value)
    if messages and ("type" not in value[0] or reading.name("role") in value[0]):
        return _messages(value, reading)
    text = as_text(column, value)
    if not text.strip():
        raise BadRow("empty content", f"{column} is empty")
    return text


def _messages(turns: list[Any], reading: Reading) -> list[Any]:
    """`turns` with role and content, ShareGPT's too."""
    if reading.name("role") != "role":
        return turns
    return [
        {
            "role": turn["from"],
            "content": turn.get("value"),
            **{key: value for key, value in turn.items() if key not in ("from", "value")},
        }
        if isinstance(turn, dict) and "from" in turn and "role" not in turn
        else turn
        for turn in turns
    ]


def _begun(texts: Mapping[str, str]) -> tuple[list[Any] | None, dict[str, list[Any] | str]]:
    """(prompt, answers) of two texts that have a beginning in common: transcripts of Human and Assistant, else
    the prompt is what both begin with, as in TRL, but for a word that was begun.
    """
    said = {name: _transcript(text) for name, text in texts.items()}
    if all(said.values()):
        return None, dict(said)
    one, other = texts.values()
    shared = next(
        (at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )
    if one == other:
        raise BadRow(IDENTICAL, "chosen and rejected say the same")
    begun = one[:shared]
    if shared < min(len(one), len(other)) or not (one[shared:] + other[shared:])[:1].isspace():
        begun = begun[: len(begun) - len(re.split(r"\s", begun)[-1])]
    if not begun.strip():
        raise BadRow(PROMPTS_DIFFER, "there is no prompt, and chosen and rejected begin differently")
    answers: dict[str, list[Any] | str] = {name: text[len(begun) :].strip() for name, text in texts.items()}
    return [turn_of("user", begun.strip())], answers


def _transcript(text: str) -> list[Any]:
    """The turns of `\\n\\nHuman: …\\n\\nAssistant: …`, none where it is no such text."""
    before, *rest = TRANSCRIPT.split(text)
    if before.strip() or not rest or rest[0] != "Human":
        return []
    roles = {"Human": "user", "Assistant": "assistant"}
    return [turn_of(roles[who], said.strip()) for who, said in zip(rest[::2], rest[1::2], strict=True)]


def _openai(row: Row, reading: Reading) -> Row:
    """OpenAI's `{"input": {"messages", "tools"}, "preferred_output", "non_preferred_output"}` as the others are."""
    column = reading.name("prompt")
    given = row.values.get(column)
    if not isinstance(given, dict) or "messages" not in given:
        return row
    tools = {reading.name("tools"): given["tools"]} if given.get("tools") else {}
    return row._replace(values={**row.values, column: given["messages"], **tools})


def _verdict(where: str, value: Any) -> str:
    """Raises BadRow where it is neither yes nor no."""
    verdict = (
        VERDICTS.get(SKIN_TONE.sub("", str(value)).strip().lower())
        if isinstance(value, (bool, int, float, str))
        else None
    )
    if verdict is None:
        raise BadRow("bad label", f"{where} {shown(value)} is neither true nor false (or 1, 0, up, down)")
    return DESIRABLE if verdict else UNDESIRABLE


def _role(turn: Any, reading: Reading) -> Any:
    return reading.role(turn.get(reading.name("role"))) if isinstance(turn, dict) else None


def _two_answers(values: Mapping[str, Any], reading: Reading) -> tuple[str, Columns] | None:
    """Chosen and rejected under the names that files give them, unless the user reads one of them as something
    else.
    """
    columns = {str(name).strip().lower(): name for name in values}
    if CHOSEN in reading.columns or REJECTED in reading.columns:
        better, worse = reading.name(CHOSEN), reading.name(REJECTED)
        if not {better, worse} <= set(values):
            return None
    else:
        pair = next((pair for pair in BETTER_AND_WORSE if set(pair) <= set(columns)), None)
        if pair is None:
            return None
        better, worse = (columns[name] for name in pair)
    others = {theirs for ours, theirs in reading.columns.items() if ours not in (CHOSEN, REJECTED)}
    if {better, worse} & others or values[better] is None or values[worse] is None:
        return None
    found = {**reading.columns, CHOSEN: better, REJECTED: worse}
    asked = next((columns[name] for name in ASKED if values.get(columns.get(name, "")) not in EMPTY), None)
    if "prompt" not in reading.columns and asked is not None:
        found["prompt"] = asked
    return "preference", found


def _labelled(values: Mapping[str, Any], reading: Reading) -> tuple[str, Columns] | None:
    """An answer with a label, under the names that files give them."""
    columns = {str(name).strip().lower(): name for name in values}
    label = reading.columns.get("label", next((columns[name] for name in LABELS if name in columns), None))
    if label is None or label not in values:
        return None
    found = {**reading.columns, "label": label}
    talk = next((name for name in _talk(reading) if first_turn(values.get(name))), None)
    if {"prompt", "completion"} <= set(reading.columns):
        return "unpaired_preference", found
    for asked, answered in QUESTIONS_AND_ANSWERS:
        if asked in columns and answered in columns:
            return "unpaired_preference", {**found, "prompt": columns[asked], "completion": columns[answered]}
    return ("unpaired_preference", {**found, "completion": talk}) if talk else None


def _talk(reading: Reading) -> tuple[str, ...]:
    """Columns in which whole conversations stand."""
    return tuple(dict.fromkeys((reading.name("messages"), "messages", "conversations")))


def _has_thumb(turns: Any, reading: Reading) -> bool:
    try:
        return any(
            isinstance(turn, dict) and turn.get(reading.name("feedback")) not in EMPTY
            for turn in decoded_turns(turns)
        )
    except BadRow:
        return False


def _prompt_hash(item: Conversation) -> int:
    """Equal for two answers to exactly the same."""
    messages = item.messages or []
    return text_hash(json.dumps([messages[: item.begin], item.tools], sort_keys=True))


def _answer(item: Conversation) -> list[Message]:
    return (item.messages or [])[item.begin :]
