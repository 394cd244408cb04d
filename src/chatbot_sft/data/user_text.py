"""Texts that a function of the user's own writes: a `formatting_prompts_func` over a batch of columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from chatbot_sft.data import unread
from chatbot_sft.data.messages import Conversation
from chatbot_sft.data.unread import Asked
from chatbot_sft.errors import UserError
from chatbot_sft.report.words import amount


@dataclass(frozen=True)
class UserText:
    """`function` makes `{"text": [...]}` of {column: values}; errors call it by its `name`, Class.method."""

    function: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    name: str

    def texts(self, batch: list[Conversation], message_field: str, not_read: dict[str, int]) -> list[str]:
        """One text per conversation: the function gets the file's columns, and checked messages where the
        rows have them.

        Columns that it does not ask for, and that no messages it asks for were made of, are counted in
        `not_read`.

        Raises:
            UserError: it does not return one text for each conversation.
        """
        names = list(dict.fromkeys(name for item in batch for name in item.values))
        columns = Asked({name: [item.values.get(name) for item in batch] for name in names})
        if any(item.messages is not None for item in batch):
            columns[message_field] = [item.messages for item in batch]
        returned = self.function(columns)
        if not isinstance(returned, Mapping) or "text" not in returned:
            raise UserError(f'{self.name}: expected {{"text": [...]}}, got {type(returned).__name__}')
        for item in batch:
            made = set(item.values) - {name for name in item.values if unread.named(name) in item.unread}
            by_messages = item.messages is not None and message_field in columns.asked
            read = columns.asked | (made if by_messages else set())
            unread.count(unread.unread_columns(item.values, read), not_read)
        texts = returned["text"]
        if len(texts) != len(batch) or not all(isinstance(text, str) for text in texts):
            raise UserError(
                f"{self.name}: expected one text for each of {amount(len(batch), 'conversation')}"
            )
        return texts
