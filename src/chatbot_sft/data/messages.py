"""Messages as a chat template takes them: roles checked, parts joined, the reasoning kept or dropped."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from chatbot_sft.config.schema import ROLES
from chatbot_sft.errors import did_you_mean, listed

ALIASES = {
    "developer": "system", "human": "user", "prompter": "user", "gpt": "assistant", "bot": "assistant",
    "model": "assistant", "chatgpt": "assistant",
    "ai": "assistant", "function_response": "tool", "tool_response": "tool", "observation": "tool",
    "function": "tool", "ipython": "tool",
    "function_call": "assistant", "tool_call": "assistant",
}  # fmt: skip
KNOWN = (*ROLES, *ALIASES)
UNKNOWN_ROLE = "unknown role"
# What a role that `dataset.roles` has to name most likely is: said, never assumed.
LIKELY = {
    **dict.fromkeys(("customer", "client", "guest", "visitor", "caller", "requester"), "user"),
    **dict.fromkeys(("agent", "support", "staff", "operator", "advisor", "representative"), "assistant"),
}
WORD = re.compile(r"[A-Za-z_][\w-]*", re.ASCII)  # what may stand in a key of the command line
CALLING = ("function_call", "tool_call")  # roles whose content is the JSON of a call
# Where files keep an answer's reasoning.
THOUGHTS = ("thinking", "reasoning_content", "reasoning", "thought", "thoughts")
# Is this message trained? Ours, Axolotl's, ms-swift's and OpenAI's.
MARKS = ("train", "training", "loss", "weight", "loss_scale")
WEIGHTS = ("weight", "loss_scale")  # their 1 on a question is a default, no wish to train it
PARTIAL_MARKS = ("train_detail", "training_detail")  # Axolotl's marks on parts of a message
MARK = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
EMPTY: tuple[Any, ...] = (None, "", [], {})  # nothing is lost with such a value
INLINE_THOUGHT = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)
Message = dict[str, Any]


class BadRow(Exception):
    """A row that should not be trained on: its `kind`, as the gate counts them, and a `detail` for a person."""

    def __init__(self, kind: str, detail: str) -> None:
        detail = encodable(" ".join(detail.splitlines()))
        super().__init__(detail)
        self.kind = kind
        self.detail = detail


@dataclass
class Conversation:
    """One row, ready for the template: its messages or, where it has none, its ready-made `text`.

    `trained` says of each message whether the row allows it to be trained (`"train": false` and `"weight": 0`
    do not); `unread` are its columns and keys that nothing was made of, `named` the roles of `dataset.roles` that
    it has. Of a judged answer, `part` says how it was judged and `begin` is the number of messages before it.
    """

    file: str
    row: int
    messages: list[Message] | None
    trained: list[bool] = field(default_factory=list)
    tools: list[Any] | None = None
    text: str = ""  # empty where there are messages
    uses: int = 1  # how often a mixture takes it
    values: dict[str, Any] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)
    named: set[str] = field(default_factory=set)
    part: str = ""
    begin: int = 0
    dialogue: int = 0  # 0: the hash of what it says


def canonical_role(role: Any) -> Any:
    """`user` for human, `assistant` for gpt and Assistant, …; anything unknown in small letters."""
    if role in ROLES or not isinstance(role, str):
        return role
    word = role_word(role)
    return ALIASES.get(word, word)


def role_word(word: str) -> str:
    """As words for roles are compared: capitals do not count, nor spaces around them."""
    return word.strip().lower()


def to_messages(
    turns: Any,
    thinking: str,
    thinking_field: str | None,
    role_key: str = "role",
    content_key: str = "content",
    role_of: Callable[[Any], Any] = canonical_role,
) -> list[Message]:
    """`[{"role", "content", …}]` as templates take them, from a list of messages (or its JSON, as in CSV).

    `thinking="keep"` puts an answer's reasoning (`THOUGHTS`) before it, as `<think>…</think>` or, where the
    template reads it from a field of its own, in `thinking_field`; `"last"` does so for the last assistant
    message alone, `"drop"` for none. A `<think>…</think>` that a content begins with is reasoning too.
    `role_of` says which role a message's word for it means.

    Raises:
        BadRow: not a list, a message without role or text, an unknown role, empty content, no assistant
            message.
    """
    turns = decoded_turns(turns)
    try:
        messages = [
            _message(f"message {number}", turn, role_key, content_key, role_of)
            for number, turn in enumerate(turns, 1)
        ]
    except BadRow as bad:
        if bad.kind != UNKNOWN_ROLE:
            raise
        words = [turn.get(role_key) for turn in turns if isinstance(turn, dict)]
        others = [word for word in words if isinstance(word, str) and role_of(word) not in ROLES]
        raise BadRow(bad.kind, f"{bad.detail}{_roles_to_name(others)}") from None
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        raise BadRow("no assistant turn", "no assistant message, so there is nothing to learn from it")
    for index in answers:
        keep = thinking == "keep" or (thinking == "last" and index == answers[-1])
        messages[index] = _with_thought(f"message {index + 1}", messages[index], keep, thinking_field)
        if not messages[index]["content"].strip() and "tool_calls" not in messages[index]:
            detail = f"message {index + 1}: nothing is left of the answer without its <think> part"
            raise BadRow("empty content", detail)
    return messages


def may_be_trained(turns: Sequence[Message], messages: Sequence[Message]) -> list[bool]:
    """Of each of `messages`, made of `turns`, whether the row allows it to be trained.

    Raises:
        BadRow: a mark that says neither yes nor no, two that contradict each other, or one that asks to train
            a message that is no answer.
    """
    return [
        len(turn) == 2 or _may_be_trained(f"message {number}", turn, message["role"] == "assistant")
        for number, (turn, message) in enumerate(zip(turns, messages, strict=True), 1)
    ]


def decoded(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is none, is nested too deeply, or has a number of thousands of digits.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def decoded_turns(turns: Any) -> list[Any]:
    """A list of messages, or what its JSON says.

    Raises:
        BadRow: there is none.
    """
    if isinstance(turns, str) and turns.lstrip().startswith("["):
        try:
            turns = decoded(turns)
        except ValueError as error:
            hint = "; it is Python's text of a list: write the column with json.dumps"
            detail = f"not a list of messages: its JSON is broken ({error})"
            of_python = re.match(r"\s*\[\s*\{\s*'", turns)
            raise BadRow("not messages", f"{detail}{hint if of_python else ''}") from None
    if not isinstance(turns, list) or not turns:
        raise BadRow("not messages", "not a list of messages")
    return turns


def as_text(where: str, value: Any) -> str:
    """A string as it is, a whole number as its digits, parts joined where all are text, nothing for nothing.

    One rule for every text of a row. A fraction is not read: 1.10, 1e5 and 42.0 would be trained as 1.1,
    100000.0 and 42.0.

    Raises:
        BadRow: it is something else.
    """
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        try:
            return str(value)
        except ValueError:
            raise BadRow(
                "not text", f"{where} is a number of thousands of digits; write it as text"
            ) from None
    if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
        for part in value:
            sort = part.get("type")
            if sort not in ("text", "input_text", "output_text") or not isinstance(part.get("text"), str):
                raise BadRow(
                    "not text", f"{where} has a part of type {shown(sort)}; only text can be trained"
                )
        return "".join(part["text"] for part in value)
    raise BadRow("not text", f"{where} is {sort_of(value)}, not text")


def sort_of(value: Any) -> str:
    """What sort of value it is, for people."""
    names = {
        dict: "an object",
        list: "a list",
        str: "a text",
        int: "a number",
        float: "a number with a fraction",
        bool: "true or false",
    }
    return "null" if value is None else names.get(type(value), f"of type {type(value).__name__}")


def shown(value: Any) -> str:
    """A short value as Python writes it, a long one cut, a large one by its sort."""
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else f"{value[:59]}…")
    if value is None or isinstance(value, (bool, float)):
        return repr(value)
    return str(value) if _small(value) else sort_of(value)


def encodable(text: str) -> str:
    """`text` with halves of surrogate pairs, which no file can hold, written as \\ud83d is."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def _small(value: Any) -> bool:
    return isinstance(value, int) and abs(value) < 10**20


def _roles_to_name(words: Sequence[str]) -> str:
    """The options that say what the roles are that a row calls `words`; a slip is mended in the file."""
    likely = {
        word: LIKELY.get(role_word(word), "…")
        for word in words
        if len(word) <= 60 and not did_you_mean(word, KNOWN)
    }
    if not likely:
        return ""
    if all(map(WORD.fullmatch, likely)):
        return "; say what it is: " + " ".join(
            f"dataset.roles.{word}={role}" for word, role in likely.items()
        )
    pairs = ", ".join(f"{json.dumps(word, ensure_ascii=False)}: {role}" for word, role in likely.items())
    return f"; say what it is, in a file in --config-dir: dataset.roles: {{{pairs}}}"


def _message(
    where: str, turn: Any, role_key: str, content_key: str, role_of: Callable[[Any], Any]
) -> Message:
    if (
        not isinstance(turn, dict)
        or role_key not in turn
        or not (content_key in turn or turn.get("tool_calls") or turn.get("function_call"))
    ):
        given = listed(turn) if isinstance(turn, dict) else sort_of(turn)
        raise BadRow(
            "not messages", f"{where}: expected an object with {role_key} and {content_key}, found {given}"
        )
    role = role_of(turn[role_key])
    if role not in ROLES:
        near = did_you_mean(role[:60], KNOWN) if isinstance(role, str) else ""
        raise BadRow(
            UNKNOWN_ROLE, f"{where}: role {shown(turn[role_key])} is none of {', '.join(ROLES)}{near}"
        )
    content = turn.get(content_key)
    calls = _calls(where, turn) if len(turn) > 2 or content_key not in turn else []
    if turn[role_key] != role and role_word(turn[role_key]) in CALLING:
        said = _decoded_call(where, content) if isinstance(content, str) else content
        calls, content = [*calls, *(said if isinstance(said, list) else [said])], ""
    message: Message = {
        "role": role,
        "content": _result(where, content) if role == "tool" else as_text(f"{where}: content", content),
    }
    if calls:
        if role != "assistant":
            raise BadRow(
                "bad tool call", f"{where}: tool calls of the role {role}; only the assistant calls tools"
            )
        message["tool_calls"] = [_tool_call(where, call) for call in calls]
    elif role != "tool" and not message["content"].strip():
        raise BadRow("empty content", f"{where}: content is empty")
    if len(turn) > 2:
        for key in ("name", "tool_call_id"):
            if turn.get(key) is not None:
                message[key] = as_text(f"{where}: {key}", turn[key])
        if role == "assistant" and (thought := _thought(where, turn)):
            message["thinking"] = thought
    return message


def _result(where: str, content: Any) -> str:
    """What a tool returned: text, or the JSON of anything else; tools may return nothing."""
    if isinstance(content, str):
        return content
    if (
        isinstance(content, list)
        and content
        and all(isinstance(part, dict) and part.get("type") == "text" for part in content)
    ):
        return as_text(f"{where}: content", content)
    try:
        return "" if content is None else json.dumps(content, ensure_ascii=False)
    except (ValueError, RecursionError):
        raise BadRow(
            "not text", f"{where}: content is nested too deeply, or has a number of thousands of digits"
        ) from None


def _calls(where: str, turn: Message) -> list[Any]:
    """The calls of a message: `tool_calls` or, as OpenAI had it before, the one in `function_call`."""
    calls, one = turn.get("tool_calls"), turn.get("function_call")
    if calls not in EMPTY and one not in EMPTY:
        raise BadRow("bad tool call", f"{where}: it has tool_calls and a function_call; keep one of them")
    if isinstance(calls, str) and calls.strip():
        calls = _decoded_call(where, calls)
    if isinstance(calls, dict) and calls:
        calls = [calls]
    if calls not in EMPTY and not isinstance(calls, list):
        raise BadRow("bad tool call", f"{where}: tool_calls is {sort_of(calls)}, expected a list of calls")
    return [one] if one not in EMPTY else calls or []


def _tool_call(where: str, call: Any) -> dict[str, Any]:
    """A call as templates expect it, its arguments an object (OpenAI's format has them as a JSON string)."""
    if isinstance(call, str):
        call = _decoded_call(where, call)
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise BadRow("bad tool call", f"{where}: a tool call needs a function with a name")
    name = shown(function["name"])[1:-1]
    # `parameters` is Llama's word.
    arguments = function["arguments"] if "arguments" in function else function.get("parameters")
    if isinstance(arguments, str) and arguments.strip():
        try:
            arguments = decoded(arguments)
        except ValueError as error:
            raise BadRow(
                "bad tool call", f"{where}: the arguments of {name} are not JSON ({error})"
            ) from None
    if arguments not in EMPTY and not isinstance(arguments, dict):
        raise BadRow(
            "bad tool call", f"{where}: the arguments of {name} are {sort_of(arguments)}, expected an object"
        )
    extra = {} if call.get("id") is None else {"id": as_text(f"{where}: the id of a call", call["id"])}
    return {**extra, "type": "function", "function": {"name": function["name"], "arguments": arguments or {}}}


def _decoded_call(where: str, content: str) -> Any:
    try:
        return decoded(content)
    except ValueError as error:
        raise BadRow("bad tool call", f"{where}: the function call is not JSON ({error})") from None


def _thought(where: str, turn: Message) -> str:
    """The reasoning of an answer, whatever name it has; an empty text where there is none."""
    said = {
        name: as_text(f"{where}: {name}", turn[name])
        for name in THOUGHTS
        if name in turn and turn[name] not in EMPTY
    }
    said = {name: text for name, text in said.items() if text.strip()}
    if len({text.strip() for text in said.values()}) > 1:
        raise BadRow("two thoughts", f"{where}: {' and '.join(said)} say different things; keep one of them")
    return next(iter(said.values()), "")


def _with_thought(where: str, message: Message, keep: bool, thinking_field: str | None) -> Message:
    message = dict(message)
    thought = message.pop("thinking", "")
    inline = INLINE_THOUGHT.match(message["content"])
    if inline and (thought or thinking_field or not keep):
        said = inline.group(1).strip()
        if keep and thought and said and said != thought.strip():
            detail = f"{where}: its <think> part and its reasoning say different things; keep one of them"
            raise BadRow("two thoughts", detail)
        message["content"] = message["content"][inline.end() :]
        thought = thought or said
    if keep and thought:
        if thinking_field:
            message[thinking_field] = thought
        else:
            message["content"] = f"<think>\n{thought}\n</think>\n\n{message['content']}"
    return message


def _may_be_trained(where: str, turn: Message, answer: bool) -> bool:
    said = {key: turn[key] for key in MARKS if turn.get(key) is not None}
    for key, value in said.items():
        may_say = isinstance(value, (bool, str, float)) or _small(value)
        mark = MARK.get(str(value).lower()) if may_say else None
        if mark is None:
            asked = "neither 0 nor 1" if key in WEIGHTS else "neither true nor false"
            raise BadRow("bad weight", f"{where}: {key} {shown(value)} is {asked}")
        if mark and not answer and key not in WEIGHTS:
            raise BadRow(
                "bad weight",
                f"{where}: only assistant messages can be trained one by one;"
                " dataset.train_on=all trains everything",
            )
        said[key] = mark
    if len(set(said.values())) > 1:
        raise BadRow("bad weight", f"{where}: {' and '.join(said)} contradict each other")
    for key in PARTIAL_MARKS:
        if turn.get(key) not in EMPTY:
            raise BadRow(
                "bad weight",
                f"{where}: {key} marks parts of a message; only whole messages can be left out of training",
            )
    return all(said.values())


def repeated_role(messages: Sequence[Message]) -> int | None:
    """Number (from 1) of the first message with the role of the one before it, but for results of tools."""
    for number, (before, message) in enumerate(itertools.pairwise(messages), 2):
        if before["role"] == message["role"] != "tool":
            return number
    return None
