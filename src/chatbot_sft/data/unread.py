"""What of a row nothing was made of: columns, and keys inside messages, so that none is lost in silence."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from chatbot_sft.data.messages import EMPTY, MARKS, PARTIAL_MARKS, THOUGHTS, Message, encodable

if TYPE_CHECKING:
    from _collections_abc import dict_items, dict_keys, dict_values  # what dict itself returns

# Keys beside role and content that are read in every message.
ANY = frozenset({"tool_call_id", *MARKS, *PARTIAL_MARKS})
ANSWER = ANY | {"tool_calls", "function_call", *THOUGHTS}
CALL = frozenset({"id", "type", "function", "name", "arguments", "parameters"})
PART = frozenset({"type", "text"})
BOOKKEEPING = frozenset({
    "id", "idx", "index", "uuid", "source", "dataset", "category", "created", "timestamp", "prompt_id",
    "__index_level_0__",
})  # fmt: skip
MOST = 1000  # names that are counted apart; an object keyed by id has one a row
OTHERS = "others"


def unread_columns(values: Mapping[str, Any], read: Collection[str]) -> list[str]:
    """The columns that hold something and are not among those `read`."""
    return [named(name) for name, value in values.items() if name not in read and value not in EMPTY]


def unread_keys(
    column: str,
    turns: Sequence[Message],
    messages: Sequence[Message],
    role_key: str,
    content_key: str,
    names_of: Collection[str],
) -> Iterator[str]:
    """The keys inside `turns` of `column` that nothing in `messages` was made of: `messages[].score`.

    A `name` is read in messages of the roles `names_of`: elsewhere the chat template does not write it.
    """
    for turn, message in zip(turns, messages, strict=True):
        content = turn.get(content_key)
        if isinstance(content, list) and message["role"] != "tool":
            yield from (
                named(f"{column}[].{content_key}[].{key}") for part in content for key in _beside(part, PART)
            )
        if len(turn) == 2:
            continue
        read = ANSWER if message["role"] == "assistant" else ANY
        yield from (
            named(f"{column}[].{key}")
            for key in _beside(turn, read)
            if key not in (role_key, content_key) and not (key == "name" and message["role"] in names_of)
        )
        calls = turn.get("tool_calls")
        for call in calls if isinstance(calls, list) else ():
            if isinstance(call, dict):
                inner = call.get("function")
                keys = [*_beside(call, CALL), *(_beside(inner, CALL) if isinstance(inner, dict) else ())]
                yield from (named(f"{column}[].tool_calls[].{key}") for key in keys)


def count(names: Collection[str], counts: dict[str, int]) -> None:
    """Count a row's unread names, each once."""
    for name in set(names):
        known = name if name in counts or len(counts) < MOST else OTHERS
        counts[known] = counts.get(known, 0) + 1


def ordered(counts: Mapping[str, int]) -> dict[str, int]:
    """What touches most rows first, bookkeeping last."""
    return dict(sorted(counts.items(), key=lambda item: (item[0] in BOOKKEEPING, -item[1], item[0])))


def named(name: str) -> str:
    """A name that fits into a line and a file."""
    return encodable(" ".join((name if len(name) <= 80 else f"{name[:79]}…").split()))


def _beside(values: Mapping[str, Any], read: Collection[str]) -> Iterator[str]:
    return (key for key, value in values.items() if key not in read and value not in EMPTY)


class Asked(dict[str, Any]):
    """Columns for a user's own function, which note what it asks for; going through them asks for all."""

    def __init__(self, columns: Mapping[str, Any]) -> None:
        super().__init__(columns)
        self.asked: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.asked.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.asked.add(name)
        return super().get(name, default)

    def pop(self, name: str, *default: Any) -> Any:
        self.asked.add(name)
        return super().pop(name, *default)

    def __iter__(self) -> Iterator[str]:
        self.asked.update(super().keys())
        return super().__iter__()

    def keys(self) -> dict_keys[str, Any]:
        self.asked.update(super().keys())
        return super().keys()

    def values(self) -> dict_values[str, Any]:
        self.asked.update(super().keys())
        return super().values()

    def items(self) -> dict_items[str, Any]:
        self.asked.update(super().keys())
        return super().items()

    def copy(self) -> dict[str, Any]:
        return dict(self.items())
