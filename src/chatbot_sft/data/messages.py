"""A row to the messages that a chat template renders: roles checked, the teacher's reasoning kept or dropped."""

from __future__ import annotations

from typing import Any

from chatbot_sft.data.sources import Row
from chatbot_sft.errors import UserError, did_you_mean

ROLES = ("system", "user", "assistant", "tool")
Message = dict[str, Any]


def to_messages(path: str, row: Row, message_field: str, thinking: str) -> list[Message]:
    """The conversation of `row` as `[{"role", "content"}, …]`.

    `thinking="keep"` writes a `thinking` value as `<think>…</think>` before the answer, `"drop"` leaves it out.

    Raises:
        UserError: no such field, not a list, a message without role or text, an unknown role, no assistant message; names file and row.
    """
    where = f"{path}: row {row.number}"
    if message_field not in row.values:
        columns = ", ".join(row.values) or "nothing"
        raise UserError(
            f"{where} has no {message_field!r}; it has {columns}: name its column of messages with dataset.message_field, "
            f"or of ready-made text with dataset.text_field{did_you_mean(message_field, row.values)}"
        )
    turns = row.values[message_field]
    if not isinstance(turns, list) or not turns:
        raise UserError(f"{where}: {message_field!r} is not a list of messages")
    messages = [_message(f"{where}, message {index}", turn, thinking) for index, turn in enumerate(turns, 1)]
    if not any(message["role"] == "assistant" for message in messages):
        raise UserError(f"{where}: no assistant message, so there is nothing to learn from it")
    return messages


def _message(where: str, turn: Any, thinking: str) -> Message:
    if not isinstance(turn, dict) or "role" not in turn or "content" not in turn:
        found = f"found {', '.join(map(str, turn))}" if isinstance(turn, dict) else "found no object"
        raise UserError(f"{where}: expected an object with role and content, {found}")
    role, content = turn["role"], turn["content"]
    if role not in ROLES:
        raise UserError(f"{where}: role {role!r} is none of {', '.join(ROLES)}{did_you_mean(str(role).lower(), ROLES)}")
    if not isinstance(content, str):
        raise UserError(f"{where}: content is not text")
    if not content.strip():
        raise UserError(f"{where}: content is empty")
    thought = turn.get("thinking")
    if role == "assistant" and thought and thinking == "keep":
        content = f"<think>\n{thought}\n</think>\n\n{content}"
    return {"role": role, "content": content}
