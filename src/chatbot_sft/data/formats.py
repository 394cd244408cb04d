"""What rows look like: one small function per format, and how a format is recognised by its content."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from chatbot_sft.config.schema import ROLES
from chatbot_sft.data.messages import (
    EMPTY,
    MARKS,
    BadRow,
    Conversation,
    Message,
    as_text,
    canonical_role,
    decoded,
    decoded_turns,
    may_be_trained,
    role_word,
    sort_of,
    to_messages,
)
from chatbot_sft.data.row import Row
from chatbot_sft.data.unread import BOOKKEEPING, unread_columns, unread_keys
from chatbot_sft.errors import UserError, did_you_mean, listed
from chatbot_sft.report.words import amount

MIXED_FORMATS = "mixed formats"
Columns = Mapping[str, str]  # our name of a field → the file's
Turns = list[tuple[str, list[Any]]]  # (the column they stand in, turns), one after the other


@dataclass(frozen=True)
class Reading:
    """How the rows of one source become conversations."""

    columns: Columns
    thinking: str = "keep"
    thinking_field: str | None = None
    system_prompt: str | None = None
    names_of: frozenset[str] = frozenset(ROLES)  # roles of whose messages the template writes the `name`
    roles: Mapping[str, str] = field(
        default_factory=dict
    )  # the file's name of a role, in small letters → the role

    def name(self, name: str) -> str:
        """The file's name of a field."""
        return self.columns.get(name, name)

    def of(self, values: Mapping[str, Any], name: str) -> Any:
        return values.get(self.columns.get(name, name))

    def role(self, word: Any) -> Any:
        """The role that a message's `word` for it means."""
        own = self.roles.get(_small(word)) if self.roles else None
        return own or canonical_role(word)

    def named(self, turns: Sequence[Message], role_key: str) -> set[str]:
        """Those of `roles` that messages have."""
        return self.roles.keys() & {_small(turn[role_key]) for turn in turns} if self.roles else set()

    def text(self, values: Mapping[str, Any], name: str) -> str:
        """A field that holds text.

        Raises:
            BadRow: it holds something else.
        """
        return as_text(self.name(name), self.of(values, name))


def _small(word: Any) -> str:
    return role_word(word) if isinstance(word, str) else ""


def messages(values: Mapping[str, Any], reading: Reading) -> Turns:
    """`{"messages": [{"role", "content"}, …]}`: ChatML, OpenAI, TRL."""
    return [(reading.name("messages"), decoded_turns(reading.of(values, "messages")))]


def sharegpt(values: Mapping[str, Any], reading: Reading) -> Turns:
    """`{"conversations": [{"from": "human", "value"}, …]}`: ShareGPT, Vicuna, LLaMA-Factory."""
    return [(reading.name("conversations"), decoded_turns(reading.of(values, "conversations")))]


def alpaca(values: Mapping[str, Any], reading: Reading) -> Turns:
    """`{"instruction", "input"?, "output", "history"?}`, the last as LLaMA-Factory has it.

    The input stands under the instruction, after an empty line; the history is pairs of question and answer.
    """
    texts = (reading.text(values, "instruction"), reading.text(values, "input"))
    question = [text for text in texts if text.strip()]
    return [
        (reading.name("history"), _history(reading.name("history"), reading.of(values, "history"))),
        (reading.name("instruction"), [turn_of("user", "\n\n".join(question))]),
        (reading.name("output"), [turn_of("assistant", reading.text(values, "output"))]),
    ]


def prompt_completion(values: Mapping[str, Any], reading: Reading) -> Turns:
    """`{"prompt", "completion"}` of TRL: each a text or a list of messages. The prompt is not trained."""
    label = values.get("label")
    if label is False or label in ("false", "False"):
        raise BadRow(
            "preference data",
            "label is false: this completion was marked as one not to give (KTO's data); objective=kto"
            " learns from both kinds, or leave such rows out",
        )
    prompt, completion = reading.of(values, "prompt"), reading.of(values, "completion")
    if not isinstance(prompt, list):
        prompt = [turn_of("user", reading.text(values, "prompt"))]
    if not isinstance(completion, list):
        completion = [turn_of("assistant", reading.text(values, "completion"))]
    return [
        (reading.name("prompt"), [untrained(turn, reading) for turn in prompt]),
        (reading.name("completion"), completion),
    ]


def turn_of(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def untrained(turn: Any, reading: Reading) -> Any:
    """An answer that stands in a prompt, whatever its own marks are."""
    if not isinstance(turn, dict) or reading.role(turn.get("role")) != "assistant":
        return turn
    return {**{key: value for key, value in turn.items() if key not in MARKS}, "train": False}


def _history(column: str, pairs: Any) -> list[Message]:
    """`[[question, answer], …]`, or its JSON, as turns."""
    if isinstance(pairs, str):
        pairs = json_cell(column, "not messages", pairs)
    if pairs in EMPTY:
        return []
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise BadRow("not messages", f"{column}: expected a list of pairs, each a question and its answer")
    texts = [
        (as_text(f"{column}: a question", asked), as_text(f"{column}: an answer", answered))
        for asked, answered in pairs
    ]
    turns = ((turn_of("user", asked), turn_of("assistant", answered)) for asked, answered in texts)
    return [turn for pair in turns for turn in pair]


@dataclass(frozen=True)
class Format:
    """`needs` are the fields a row must have, `optional` those that are read as well, `keys` a message's."""

    turns: Callable[[Mapping[str, Any], Reading], Turns] | None  # None: the row has no turns
    needs: tuple[str, ...]
    optional: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()  # of the role and of the content, where `dataset.columns` may name them

    @property
    def fields(self) -> tuple[str, ...]:
        return (*self.needs, *self.optional, *self.keys)


ABOUT = ("system", "tools", "functions")  # beside the turns of a conversation, whatever its format
FORMATS = {
    "messages": Format(messages, ("messages",), ABOUT, ("role", "content")),
    "sharegpt": Format(sharegpt, ("conversations",), ABOUT, ("from", "value")),
    "alpaca": Format(alpaca, ("instruction", "output"), ("input", "history", *ABOUT)),
    "prompt_completion": Format(prompt_completion, ("prompt", "completion"), ABOUT),
    "text": Format(None, ("text",)),
}
# Answers with a judgement, which `preferences` reads.
JUDGED = {
    "preference": Format(None, ("chosen", "rejected"), ("prompt", "input", *ABOUT), ("role", "content")),
    "unpaired_preference": Format(None, ("completion", "label"), ("prompt", *ABOUT), ("role", "content")),
    "thumbs": Format(None, ("messages",), ABOUT, ("role", "content", "feedback")),
}
EVERY = {**FORMATS, **JUDGED}
FIELDS = sorted({name for form in EVERY.values() for name in form.fields})
KEYS = {name for form in EVERY.values() for name in form.keys}
# Two columns that can only be a question and its answer, by the names that tables give them.
QUESTIONS_AND_ANSWERS = (
    ("question", "answer"), ("question", "response"), ("q", "a"), ("query", "response"), ("query",
    "answer"), ("prompt", "completion"),
    ("prompt", "response"), ("prompt", "answer"), ("instruction", "output"), ("instruction", "response"),
    ("instruction", "completion"),
    ("instruction", "answer"), ("input", "output"), ("input", "response"), ("user", "assistant"), ("human",
    "assistant"),
)  # fmt: skip
SYSTEM = ("system", "system_prompt")
GIVEN = ("context", "input", "passage")  # beside a pair: where it belongs is the user's to say


def to_conversation(row: Row, format_name: str, reading: Reading) -> Conversation:
    """The conversation of `row`, read as `format_name`.

    Raises:
        BadRow: what is wrong with it.
    """
    form = FORMATS[format_name]
    missing = [reading.name(name) for name in form.needs if reading.of(row.values, name) is None]
    if missing:
        other = format_of(row.values, reading)
        if other and other != format_name:
            detail = f"this row is {other}, the file is read as {format_name}; one format per file"
            raise BadRow(MIXED_FORMATS, detail)
        if missing[0] in row.values:
            raise BadRow("empty content", f"{missing[0]} is null")
        columns = listed(row.values) or "nothing"
        detail = f"no {missing[0]!r}; it has {columns}{_near(missing[0], row.values)}"
        raise BadRow("no such column", detail)
    unread = unread_columns(row.values, columns_read(format_name, reading))
    if form.turns is None:
        text = reading.text(row.values, "text")
        if not text.strip():
            raise BadRow("empty content", f"{reading.name('text')} is empty")
        return Conversation(row.file, row.number, None, text=text, values=row.values, unread=unread)
    return conversation(
        row, form.turns(row.values, reading), reading, form.keys or ("role", "content"), unread
    )


def conversation(
    row: Row, parts: Turns, reading: Reading, keys: Sequence[str], unread: Sequence[str] = ()
) -> Conversation:
    """What the turns of `parts` say one after the other; `keys` are the format's names for role and content.

    Raises:
        BadRow: what is wrong with it.
    """
    role_key, content_key = (reading.name(key) for key in keys)
    turns = [turn for _, part in parts for turn in part]
    chat = to_messages(turns, reading.thinking, reading.thinking_field, role_key, content_key, reading.role)
    allowed, unread = may_be_trained(turns, chat), list(unread)
    at = 0
    for column, part in parts:
        read = chat[at : at + len(part)]
        unread.extend(unread_keys(column, part, read, role_key, content_key, reading.names_of))
        at += len(part)
    if system := _system(row.values, reading, chat):
        chat.insert(0, turn_of("system", system))
        allowed.insert(0, True)
    tools = _tools(row.values, reading)
    named = reading.named(turns, role_key)
    return Conversation(
        row.file, row.number, chat, allowed, tools, values=row.values, unread=unread, named=named
    )


def columns_read(format_name: str, reading: Reading) -> frozenset[str]:
    """The file's columns that this format makes something of."""
    form = EVERY[format_name]
    return frozenset(reading.name(name) for name in (*form.needs, *form.optional))


def _system(values: Mapping[str, Any], reading: Reading, chat: Sequence[Message]) -> str | None:
    """The system prompt that `chat` lacks: of a column of its own, else the configured one.

    Raises:
        BadRow: the row has another among its messages.
    """
    own = reading.text(values, "system")
    first = chat[0]["content"] if chat[0]["role"] == "system" else None
    if not own.strip():
        return reading.system_prompt if first is None else None
    if first is None:
        return own
    if first.strip() != own.strip():
        raise BadRow(
            "two system prompts",
            f"{reading.name('system')} and the system message say different things; keep one of them",
        )
    return None


def _tools(values: Mapping[str, Any], reading: Reading) -> list[Any] | None:
    """The definitions of tools, from a list, its JSON, or OpenAI's `functions` of before; None without any.

    Raises:
        BadRow: they are something else.
    """
    tools, functions = reading.of(values, "tools"), reading.of(values, "functions")
    if tools in EMPTY and functions in EMPTY:
        return None
    if tools not in EMPTY and functions not in EMPTY:
        raise BadRow(
            "bad tools", f"it has {reading.name('tools')} and {reading.name('functions')}; keep one of them"
        )
    column = reading.name("functions" if tools in EMPTY else "tools")
    tools = functions if tools in EMPTY else tools
    # Parquet has no lists of objects that differ, so files have them as text, all or each.
    if isinstance(tools, str):
        tools = json_cell(column, "bad tools", tools)
    if isinstance(tools, dict):
        tools = [tools]
    if tools not in EMPTY and not isinstance(tools, list):
        raise BadRow("bad tools", f"{column} is {sort_of(tools)}, expected a list of tools")
    each = (json_cell(column, "bad tools", tool) if isinstance(tool, str) else tool for tool in tools or ())
    return [_tool(f"{column}: tool {number}", tool) for number, tool in enumerate(each, 1)] or None


def json_cell(column: str, kind: str, text: str) -> Any:
    """The value of a cell that holds JSON, None of an empty one.

    Raises:
        BadRow: of the `kind`; it holds something else.
    """
    if not text.strip():
        return None
    try:
        return decoded(text)
    except ValueError as error:
        raise BadRow(kind, f"{column} is not JSON ({error})") from None


def _tool(where: str, tool: Any) -> dict[str, Any]:
    """`{"type": "function", "function": {"name", …}}`, around a bare function as well."""
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise BadRow("bad tools", f"{where} needs a function with a name")
    if function is not tool:
        return tool
    return {"type": "function", "function": {key: value for key, value in tool.items() if key != "type"}}


def format_of(values: Mapping[str, Any], reading: Reading) -> str | None:
    """The format that the content of one row shows, None where it is none of ours."""
    turns = reading.of(values, "messages")
    if isinstance(turns, (list, str)) and "from" not in first_turn(turns):
        return "messages"
    talk = reading.of(values, "conversations")
    if isinstance(talk, list) or first_turn(talk):
        return "sharegpt"
    for name in ("alpaca", "prompt_completion", "text", "preference"):
        if all(reading.of(values, needed) is not None for needed in EVERY[name].needs):
            return name
    return None


def first_turn(turns: Any) -> Mapping[str, Any]:
    """The first of some turns, or of their JSON; empty where it is no object."""
    try:
        turns = decoded_turns(turns)
    except BadRow:
        return {}
    return turns[0] if isinstance(turns[0], dict) else {}


def detect(rows: Sequence[Row], reading: Reading) -> tuple[str, Columns]:
    """(format, columns) of a source, from its first `rows`.

    Turns with role and content under `conversations`, or with from and value under `messages`, are found too,
    and so is a question with its answer under the names that tables give them.

    Raises:
        UserError: no row is of any format, or can be read; says which columns there are.
    """
    for row in rows:
        detected = _crossed(row.values, reading)
        if detected is None and (name := format_of(row.values, reading)) in FORMATS:
            detected = name, reading.columns
        if detected := detected or _paired(row, reading):
            name, columns = detected
            return name, with_system(columns, row.values)
    _refuse_unread(rows)
    raise UserError(_unrecognised(next((row for row in rows if row.values), rows[0]), reading))


def _refuse_unread(rows: Sequence[Row]) -> None:
    """Raises UserError where none of `rows` could be read: which columns there are is not known then."""
    faults = [row.fault for row in rows if row.fault and not row.values]
    if rows and len(faults) == len(rows):
        none = f"none of {amount(len(rows), 'row')} looked at can be read"
        raise UserError(f"{rows[0].where}: {faults[0][1]}; {none}; mend them")


def _crossed(values: Mapping[str, Any], reading: Reading) -> tuple[str, Columns] | None:
    """ShareGPT's turns in a column called messages, or role and content in one called conversations."""
    listed_in, talk = reading.name("messages"), reading.name("conversations")
    first = first_turn(values.get(listed_in))
    if reading.name("from") in first and "role" not in first:
        return "sharegpt", {**reading.columns, "conversations": listed_in}
    if listed_in not in values and reading.name("role") in first_turn(values.get(talk)):
        return "messages", {**reading.columns, "messages": talk}
    return None


def _paired(row: Row, reading: Reading) -> tuple[str, Columns] | None:
    """A question and its answer, whatever capitals their columns are written in.

    Raises:
        UserError: a third column belongs to the question, and nothing says where.
    """
    if not {"instruction", "output", "prompt", "completion", "conversations"}.isdisjoint(reading.columns):
        return None
    columns = {str(name).strip().lower(): name for name in row.values}
    for asked, answered in QUESTIONS_AND_ANSWERS:
        question, answer = columns.get(asked), columns.get(answered)
        if question is None or answer is None:
            continue
        if not all(_may_be_text(row.values[name]) for name in (question, answer)):
            continue
        others = (columns[name] for name in GIVEN if name in columns and name not in (asked, answered))
        given = next(others, None)
        if given is None:
            return "prompt_completion", {**reading.columns, "prompt": question, "completion": answer}
        names = (
            f"dataset.columns.instruction={question} dataset.columns.input={given}"
            f" dataset.columns.output={answer}"
        )
        raise UserError(
            f"{row.where} has {question}, {given} and {answer}: to put {given} under {question}, say {names}"
        )
    return None


def _may_be_text(value: Any) -> bool:
    return value is not None and not isinstance(value, (dict, bool))


def with_system(columns: Columns, values: Mapping[str, Any]) -> Columns:
    """`columns` with the one of the system prompt, where it has the other name for it."""
    name = next((name for name in SYSTEM if name in values), None)
    return columns if name is None or "system" in columns else {**columns, "system": name}


def _unrecognised(row: Row, reading: Reading) -> str:
    """Why `row` is of no format: the real cause where it can be told."""
    values = row.values
    if values and all(isinstance(value, dict) for value in values.values()):
        return (
            f"{row.where} is an object keyed by {listed(values, 3)};"
            " save its values as a list, a conversation each"
        )
    wanted = reading.name("messages")
    needed = [wanted, *(name for form in FORMATS.values() for name in form.needs)]
    near = next(filter(None, (_near(name, values) for name in needed)), "")
    return (
        f"{row.where} has no {wanted!r}; it has {listed(values) or 'nothing'}: no format recognised"
        " (messages, conversations, instruction + output, prompt + completion, text);"
        f" name its columns with {_columns_to_name(values)}{near}"
    )


def _columns_to_name(values: Mapping[str, Any]) -> str:
    """The options that tell a format of columns with other names, with an example where these make one."""
    options = "dataset.message_field, dataset.text_field or dataset.columns"
    texts = [
        str(name) for name, value in values.items() if isinstance(value, str) and name not in BOOKKEEPING
    ]
    if len(texts) < 2:
        return options
    asked = shlex.quote(f"dataset.columns.instruction={texts[0]}")
    answered = shlex.quote(f"dataset.columns.output={texts[-1]}")
    return f"{options}, for instance {asked} {answered}"


def check_columns(source: str, rows: Sequence[Row], columns: Columns) -> None:
    """Every column that the configuration names exists in the first `rows`.

    Raises:
        UserError: it does not; names those that do, and the nearest.
    """
    present = list(dict.fromkeys(name for row in rows for name in row.values))
    for name, column in columns.items():
        if name not in FIELDS and column in FIELDS and name in present:
            turned = shlex.quote(f"dataset.columns.{column}={name}")
            raise UserError(
                f"dataset.columns.{name}={column}: the other way round: a field of the format is the key,"
                f" the column the value; write {turned}"
            )
        if name not in FIELDS:
            hint = did_you_mean(name, FIELDS)
            raise UserError(f"dataset.columns.{name}: no such field{hint} (there are {', '.join(FIELDS)})")
        if column not in present and name not in KEYS:
            _refuse_unread(rows)
            hint = did_you_mean(column, present)
            raise UserError(f"{source}: no column {column!r} for {name}{hint} (it has {listed(present)})")


def check_used(source: str, format_name: str, columns: Columns, reading: Reading) -> None:
    """Everything that the configuration maps in `columns` is read by the format.

    Raises:
        UserError: it is not; names what the format reads.
    """
    read, fields = columns_read(format_name, reading), EVERY[format_name].fields
    own_keys = {"messages": "dataset.message_field", "text": "dataset.text_field"}
    for name, column in columns.items():
        if name not in fields if name in KEYS else column not in read:
            key = own_keys.get(name, f"dataset.columns.{name}")
            raise UserError(
                f"{source}: {key}={column} has no effect: these rows are read as {format_name},"
                f" which has {', '.join(fields)}; leave it out"
            )


def _near(wanted: str, values: Mapping[str, Any]) -> str:
    return did_you_mean(wanted, [str(name) for name in values])
