"""Messages as a chat template takes them: roles checked, parts joined, the teacher's reasoning kept or dropped. What is wrong is a BadRow."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from chatbot_sft.errors import did_you_mean

ROLES = ("system", "user", "assistant", "tool")
ALIASES = {
    "human": "user", "prompter": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "chatgpt": "assistant",
    "function_response": "tool", "observation": "tool", "function": "tool", "ipython": "tool", "function_call": "assistant",
}  # fmt: skip
INLINE_THOUGHT = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)
Message = dict[str, Any]


class BadRow(Exception):
    """A row that should not be trained on. `kind` is its sort, as the gate counts them; `detail` says what and where in the row."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail


@dataclass
class Conversation:
    """One row, ready for the template: its messages or, where it has none, its ready-made `text`.

    `trained` says of each message whether the row allows it to be trained (`"train": false` and `"weight": 0` do not).
    """

    file: str
    row: int
    messages: list[Message] | None
    trained: list[bool] = field(default_factory=list)
    tools: list[Any] | None = None
    text: str | None = None
    uses: int = 1  # how often a mixture takes it
    values: dict[str, Any] = field(default_factory=dict)


def to_messages(turns: Any, thinking: str, thinking_field: str | None, role_key: str = "role", content_key: str = "content") -> list[Message]:
    """`[{"role", "content", …}]` as templates take them, from a list of messages (or its JSON, as CSV has it).

    `thinking="keep"` puts a `thinking` or `reasoning_content` value before the answer, as `<think>…</think>` or, where the template reads it
    from a field of its own, in `thinking_field`; `"last"` does so for the last assistant message alone, `"drop"` for none. What `last` and
    `drop` leave out includes a `<think>…</think>` that a content begins with.

    Raises:
        BadRow: not a list, a message without role or text, an unknown role, empty content, no assistant message.
    """
    turns = _decoded(turns)
    if not isinstance(turns, list) or not turns:
        raise BadRow("not messages", "not a list of messages")
    messages = [_message(f"message {number}", turn, role_key, content_key) for number, turn in enumerate(turns, 1)]
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        raise BadRow("no assistant turn", "no assistant message, so there is nothing to learn from it")
    for index in answers:
        keep = thinking == "keep" or (thinking == "last" and index == answers[-1])
        messages[index] = _with_thought(messages[index], keep, thinking_field)
        if not messages[index]["content"].strip() and "tool_calls" not in messages[index]:
            raise BadRow("empty content", f"message {index + 1}: nothing is left of the answer without its <think> part")
    return messages


def may_be_trained(turns: Any) -> list[bool]:
    """Of each message whether the row allows it to be trained.

    Raises:
        BadRow: a `weight` other than 0 and 1, or a `train: true` on a message that is not the assistant's.
    """
    allowed = []
    for number, turn in enumerate(_decoded(turns), 1):
        weight, train = turn.get("weight"), turn.get("train")
        if weight is not None and weight not in (0, 1):
            raise BadRow("bad weight", f"message {number}: weight {weight!r} is neither 0 nor 1")
        if train is True and canonical_role(turn.get("role", turn.get("from"))) != "assistant":
            raise BadRow("bad weight", f"message {number}: only assistant messages can be trained one by one; dataset.train_on=all trains everything")
        allowed.append(train is not False and weight != 0)
    return allowed


def canonical_role(role: Any) -> Any:
    """`user` for human, `assistant` for gpt and bot, …; anything unknown unchanged."""
    return ALIASES.get(role, role) if isinstance(role, str) else role


def _decoded(turns: Any) -> Any:
    if isinstance(turns, str) and turns.lstrip().startswith("["):
        try:
            return json.loads(turns)
        except ValueError as error:
            raise BadRow("not messages", f"not a list of messages: its JSON is broken ({error})") from None
    return turns


def _message(where: str, turn: Any, role_key: str, content_key: str) -> Message:
    if not isinstance(turn, dict) or role_key not in turn or (content_key not in turn and not turn.get("tool_calls")):
        found = f"found {', '.join(map(str, turn))}" if isinstance(turn, dict) else "found no object"
        raise BadRow("not messages", f"{where}: expected an object with {role_key} and {content_key}, {found}")
    role = canonical_role(turn[role_key])
    if role not in ROLES:
        known = (*ROLES, *ALIASES)
        raise BadRow("unknown role", f"{where}: role {turn[role_key]!r} is none of {', '.join(ROLES)}{did_you_mean(str(role).lower(), known)}")
    message: Message = {"role": role, "content": _text(where, turn.get(content_key))}
    calls = turn.get("tool_calls")
    if turn[role_key] == "function_call":
        calls, message["content"] = [_decoded_call(where, message["content"])], ""
    if calls:
        message["tool_calls"] = [_tool_call(where, call) for call in calls]
    elif not message["content"].strip():
        raise BadRow("empty content", f"{where}: content is empty")
    for key in ("name", "tool_call_id"):
        if isinstance(turn.get(key), str):
            message[key] = turn[key]
    thought = turn.get("thinking") or turn.get("reasoning_content")
    if role == "assistant" and isinstance(thought, str) and thought.strip():
        message["thinking"] = thought
    return message


def _text(where: str, content: Any) -> str:
    """A string as it is; typed parts joined where all of them are text."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and content and all(isinstance(part, dict) for part in content):
        for part in content:
            if part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise BadRow("not text", f"{where}: content has a part of type {part.get('type')!r}; only text can be trained")
        return "".join(part["text"] for part in content)
    raise BadRow("not text", f"{where}: content is not text")


def _tool_call(where: str, call: Any) -> dict[str, Any]:
    """A call as templates expect it, its arguments an object (OpenAI's format has them as a JSON string)."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadRow("bad tool call", f"{where}: a tool call needs a function with a name")
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError as error:
            raise BadRow("bad tool call", f"{where}: the arguments of {function['name']} are not JSON ({error})") from None
    extra = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    return {**extra, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _decoded_call(where: str, content: str) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise BadRow("bad tool call", f"{where}: the function call is not JSON ({error})") from None


def _with_thought(message: Message, keep: bool, thinking_field: str | None) -> Message:
    message = dict(message)
    thought = message.pop("thinking", None)
    inline = INLINE_THOUGHT.match(message["content"])
    if not keep:
        if inline:
            message["content"] = message["content"][inline.end() :]
        return message
    if thought and not inline:
        if thinking_field:
            message[thinking_field] = thought
        else:
            message["content"] = f"<think>\n{thought}\n</think>\n\n{message['content']}"
    return message


def repeated_role(messages: Sequence[Message]) -> int | None:
    """Number (from 1) of the first message with the role of the one before it; tool results may follow each other."""
    for number, (before, message) in enumerate(itertools.pairwise(messages), 2):
        if before["role"] == message["role"] != "tool":
            return number
    return None
