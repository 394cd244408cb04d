"""A server to talk with, beside the models on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from chatbot_sft.config.checks import check_url
from chatbot_sft.data.messages import Message
from chatbot_sft.errors import UserError
from chatbot_sft.evaluation.server import Server

WORDS = ("url", "model", "api_key_variable")  # url=http://localhost:8000/v1 model=mai


@dataclass(frozen=True)
class ServedModel:
    """What `server` has. Its prompts are the messages themselves: the server renders them, and knows its context."""

    server: Server
    name: str
    context: int = 1 << 30
    system_prompt: None = None

    @classmethod
    def open(cls, words: Sequence[str]) -> ServedModel:
        """From `url=…`, and perhaps `model=…` and `api_key_variable=…`.

        Raises:
            UserError: the address is none, the server does not answer, or it does not have the model.
        """
        given = dict(word.split("=", 1) for word in words)
        check_url("url", given["url"])
        server = Server(given["url"], given.get("model"), given.get("api_key_variable"), retries=1, key="url")
        return cls(server, server.choose())

    def prompt_ids(self, messages: Sequence[Message]) -> list[Any]:
        return list(messages)

    def say(
        self,
        messages: Sequence[Message],
        max_new_tokens: int,
        temperature: float,
        show: Callable[[str], None],
    ) -> tuple[str, str]:
        """(answer, what ended it, unless the model itself); `show` is told the text as it grows.

        Raises:
            UserError: there is no answer, or it breaks off.
        """
        text, finish = "", None
        try:
            for piece, why in self.server.stream(messages, max_new_tokens, temperature):
                text, finish = text + piece, why or finish
                show(text)
        except KeyboardInterrupt:
            return text, "stopped"
        return text, "cut off: --max-new-tokens, or the server's own limit" if finish == "length" else ""


def is_word(word: str) -> bool:
    """Whether it belongs to a server: url=, model=, api_key_variable=."""
    return word.partition("=")[0] in WORDS and "=" in word


def grouped(words: Sequence[str]) -> list[list[str]]:
    """Each path alone, each `url=` with the words that belong to it.

    Raises:
        UserError: such a word without a url= before it.
    """
    groups: list[list[str]] = []
    for word in words:
        if is_word(word) and not word.startswith("url="):
            if not groups or not groups[-1][0].startswith("url="):
                raise UserError(f"{word}: is of a server; write url=http://HOST:PORT/v1 before it")
            groups[-1].append(word)
        else:
            groups.append([word])
    return groups
