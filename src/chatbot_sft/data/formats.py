"""What rows look like: one small function per format, from a row to a conversation, and how a format is recognised by its content."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chatbot_sft.data.messages import BadRow, Conversation, may_be_trained, to_messages
from chatbot_sft.data.sources import Row
from chatbot_sft.errors import UserError, did_you_mean

Columns = Mapping[str, str]  # our name of a field → the file's


@dataclass(frozen=True)
class Reading:
    """How the rows of one source become conversations."""

    columns: Columns
    thinking: str = "keep"
    thinking_field: str | None = None
    system_prompt: str | None = None

    def of(self, values: Mapping[str, Any], name: str) -> Any:
        return values.get(self.columns.get(name, name))


def messages(values: Mapping[str, Any], reading: Reading) -> tuple[Any, str, str]:
    """`{"messages": [{"role", "content"}, …]}`: ChatML, OpenAI, TRL."""
    return reading.of(values, "messages"), reading.columns.get("role", "role"), reading.columns.get("content", "content")


def sharegpt(values: Mapping[str, Any], reading: Reading) -> tuple[Any, str, str]:
    """`{"conversations": [{"from": "human", "value"}, …], "system"?}`: ShareGPT, Vicuna, LLaMA-Factory."""
    speaker, said = reading.columns.get("from", "from"), reading.columns.get("value", "value")
    turns = reading.of(values, "conversations")
    system = reading.of(values, "system")
    if isinstance(turns, list) and isinstance(system, str) and system.strip():
        turns = [{speaker: "system", said: system}, *turns]
    return turns, speaker, said


def alpaca(values: Mapping[str, Any], reading: Reading) -> tuple[Any, str, str]:
    """`{"instruction", "input"?, "output", "system"?}`: the input stands under the instruction, after an empty line."""
    instruction, given, output = (reading.of(values, name) for name in ("instruction", "input", "output"))
    question = f"{instruction}\n\n{given}" if isinstance(given, str) and given.strip() else instruction
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": output}]
    system = reading.of(values, "system")
    return ([{"role": "system", "content": system}] if isinstance(system, str) and system.strip() else []) + turns, "role", "content"


def prompt_completion(values: Mapping[str, Any], reading: Reading) -> tuple[Any, str, str]:
    """`{"prompt", "completion"}` of TRL: both strings, or both lists of messages. The prompt is not trained."""
    prompt, completion = reading.of(values, "prompt"), reading.of(values, "completion")
    if isinstance(prompt, list) and isinstance(completion, list):
        given = [{**turn, "train": False} if isinstance(turn, dict) and turn.get("role") == "assistant" else turn for turn in prompt]
        return [*given, *completion], "role", "content"
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}], "role", "content"


@dataclass(frozen=True)
class Format:
    """`needs` are the fields a row must have to be of this format; `optional` those that are read as well."""

    turns: Callable[[Mapping[str, Any], Reading], tuple[Any, str, str]] | None  # None: the row is text already
    needs: tuple[str, ...]
    optional: tuple[str, ...] = ()


FORMATS = {
    "messages": Format(messages, ("messages",), ("role", "content", "tools")),
    "sharegpt": Format(sharegpt, ("conversations",), ("from", "value", "system", "tools")),
    "alpaca": Format(alpaca, ("instruction", "output"), ("input", "system")),
    "prompt_completion": Format(prompt_completion, ("prompt", "completion"), ("tools",)),
    "text": Format(None, ("text",)),
}
FIELDS = sorted({name for found in FORMATS.values() for name in (*found.needs, *found.optional)})


def to_conversation(row: Row, format_name: str, reading: Reading) -> Conversation:
    """The conversation of `row`, read as `format_name`.

    Raises:
        BadRow: what is wrong with it.
    """
    found = FORMATS[format_name]
    missing = [reading.columns.get(name, name) for name in found.needs if reading.of(row.values, name) is None]
    if missing:
        other = format_of(row.values, reading)
        if other:
            raise BadRow("mixed formats", f"this row is {other}, the file is read as {format_name}; one format per file")
        if missing[0] in row.values:
            raise BadRow("empty content", f"{missing[0]} is null")
        raise BadRow("no such column", f"no {missing[0]!r}; it has {', '.join(map(str, row.values)) or 'nothing'}{_near(missing[0], row.values)}")
    if found.turns is None:
        text = reading.of(row.values, "text")
        if not isinstance(text, str) or not text.strip():
            raise BadRow("empty content", f"{reading.columns.get('text', 'text')} is empty")
        return Conversation(row.file, row.number, None, text=text, values=row.values)
    turns, role_key, content_key = found.turns(row.values, reading)
    made = to_messages(turns, reading.thinking, reading.thinking_field, role_key, content_key)
    allowed = may_be_trained(turns)
    if reading.system_prompt and made[0]["role"] != "system":
        made.insert(0, {"role": "system", "content": reading.system_prompt})
        allowed.insert(0, True)
    tools = reading.of(row.values, "tools")
    return Conversation(row.file, row.number, made, allowed, tools if isinstance(tools, list) and tools else None, values=row.values)


def format_of(values: Mapping[str, Any], reading: Reading) -> str | None:
    """The format that the content of one row shows, None where it is none of ours."""
    if isinstance(reading.of(values, "messages"), (list, str)) and _keys(reading.of(values, "messages"), "from") is False:
        return "messages"
    if isinstance(reading.of(values, "conversations"), list):
        return "sharegpt"
    for name in ("alpaca", "prompt_completion", "text"):
        if all(reading.of(values, needed) is not None for needed in FORMATS[name].needs):
            return name
    return None


def _keys(turns: Any, key: str) -> bool:
    return isinstance(turns, list) and bool(turns) and isinstance(turns[0], dict) and key in turns[0]


def detect(rows: Sequence[Row], reading: Reading) -> tuple[str, Columns]:
    """(format, columns) of a source, from its first `rows`.

    Turns with role and content under `conversations`, or with from and value under `messages`, are found too.

    Raises:
        UserError: no row is of any format; says which columns there are.
    """
    for row in rows:
        crossed = _crossed(row.values, reading)
        if crossed:
            name, columns = crossed
        else:
            name, columns = format_of(row.values, reading), reading.columns
        if name:
            return name, columns
    first = rows[0]
    wanted = reading.columns.get("messages", "messages")
    near = _near(wanted, first.values) or next(filter(None, (_near(needed, first.values) for f in FORMATS.values() for needed in f.needs)), "")
    raise UserError(
        f"{first.where} has no {wanted!r}; it has {', '.join(map(str, first.values)) or 'nothing'}: no format recognised (messages, conversations, "
        f"instruction + output, prompt + completion, text); name its columns with dataset.message_field, dataset.text_field or dataset.columns{near}"
    )


def _crossed(values: Mapping[str, Any], reading: Reading) -> tuple[str, Columns] | None:
    """ShareGPT's turns in a column called messages, or role and content in one called conversations."""
    listed, talk = reading.columns.get("messages", "messages"), reading.columns.get("conversations", "conversations")
    if _keys(values.get(listed), reading.columns.get("from", "from")) and not _keys(values.get(listed), "role"):
        return "sharegpt", {**reading.columns, "conversations": listed}
    if listed not in values and _keys(values.get(talk), reading.columns.get("role", "role")):
        return "messages", {**reading.columns, "messages": talk}
    return None


def check_columns(source: str, rows: Sequence[Row], columns: Columns) -> None:
    """Every column that the configuration names exists in the first `rows`.

    Raises:
        UserError: it does not; names those that do, and the nearest.
    """
    there = list(dict.fromkeys(name for row in rows for name in row.values))
    for ours, theirs in columns.items():
        if ours not in FIELDS:
            raise UserError(f"dataset.columns.{ours}: no such field (there are {', '.join(FIELDS)}){did_you_mean(ours, FIELDS)}")
        inside_a_turn = ours in ("role", "content", "from", "value")
        if theirs not in there and not inside_a_turn:
            raise UserError(f"{source}: no column {theirs!r} for {ours}; it has {', '.join(map(str, there))}{did_you_mean(theirs, there)}")


def _near(wanted: str, values: Mapping[str, Any]) -> str:
    return did_you_mean(wanted, [str(name) for name in values])
