"""The prompts of a run, put to a server: what it makes of them, and all that it tells beside the answers.

Every server counts tokens. vLLM also tells the ids of prompt and answer, llama.cpp those of a text, several the log
probabilities: each is asked for once, and left out where the server refuses the request because of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from chatbot_sft.data.messages import Message
from chatbot_sft.evaluation.server import Refused, Server
from chatbot_sft.save.verify.kept import TrainedAnswers

log = logging.getLogger(__name__)

# What is asked for beside the answer, the most first. vLLM: return_token_ids, return_tokens_as_token_ids.
WISHES: tuple[dict[str, Any], ...] = (
    {"logprobs": True, "top_logprobs": 5, "return_token_ids": True, "return_tokens_as_token_ids": True},
    {"logprobs": True, "top_logprobs": 5},
    {},
)
# Penalties of a server's own defaults, each under the names that servers have for it; transformers takes a
# frequency_penalty for a repetition_penalty.
WITHOUT_PENALTIES: tuple[dict[str, Any], ...] = (
    {"repetition_penalty": 1.0, "repeat_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0},
    {"frequency_penalty": 0.0},
)
AS_ID = "token_id:"  # how vLLM writes a token in place of its text


@dataclass(frozen=True)
class Likely:
    """A token at one place of an answer: by id where the server tells it, else by its text."""

    id: int | None
    text: str
    logprob: float


@dataclass(frozen=True)
class Reply:
    """To one prompt. What the server does not tell is None, or empty."""

    text: str
    thinking: str = ""  # that the server has taken out of the text
    finish: str | None = None
    prompt_count: int | None = None
    prompt_ids: list[int] | None = None
    prompt_text: str | None = None
    ids: list[int] | None = None
    likely: list[list[Likely]] = field(default_factory=list)  # at each place, the likeliest first


@dataclass(frozen=True)
class Observed:
    """What a server made of the prompts. `alone` is the reply to the first question without a system prompt, `again`
    the replies to the prompts that have trained answers, asked a second time; `plain` those without penalties.
    """

    replies: list[Reply]
    alone: Reply | None = None
    again: list[Reply] = field(default_factory=list)
    plain: list[Reply] = field(default_factory=list)


class Asking:
    """Puts prompts to `server`, with as many wishes as it takes."""

    def __init__(self, server: Server, kept: TrainedAnswers) -> None:
        self.server = server
        self.kept = kept
        day = {} if kept.date_string is None else {"date_string": kept.date_string}
        self._always: dict[str, Any] = {"chat_template_kwargs": day} if day else {}
        self._wishes = list(WISHES)
        self._settled = False  # what this server takes is known once it has answered
        self._ways = [self._by_messages, self._by_template]

    def ask(self, messages: Sequence[Message], max_new_tokens: int, **more: Any) -> Reply:
        """Raises Refused where the server does not take `more`; UserError where there is no answer."""
        while True:
            wishes = {**self._always, **self._wishes[0], **more}
            try:
                found = self.server.completion(messages, max_new_tokens, **wishes)
            except Refused as refused:
                if self._settled or not self._wish_less():
                    raise
                log.debug("asked again with less: %s", refused)
                continue
            self._settled = True
            return _reply(found, *self._prompt(found, messages))

    def _wish_less(self) -> bool:
        """False where there is nothing left to leave out."""
        if len(self._wishes) > 1:
            del self._wishes[0]
        elif self._always:
            self._always = {}
        else:
            return False
        return True

    def _prompt(
        self, reply: Mapping[str, Any], messages: Sequence[Message]
    ) -> tuple[list[int] | None, str | None]:
        """Its ids and text: from the reply, else in the first of the ways that this server has."""
        if (told := _ids(reply.get("prompt_token_ids"))) is not None:
            return told, None
        while self._ways:
            ids, text = self._ways[0](messages)
            if ids:
                return ids, text
            del self._ways[0]
        return None, None

    def _by_messages(self, messages: Sequence[Message]) -> tuple[list[int] | None, None]:
        """vLLM's /tokenize."""
        body = {"model": self.server.model, "messages": list(messages), "add_generation_prompt": True}
        return _ids(self.server.offered("tokenize", {**body, **self._always}).get("tokens")), None

    def _by_template(self, messages: Sequence[Message]) -> tuple[list[int] | None, str | None]:
        """llama.cpp's /apply-template, and its /tokenize as its own chat takes it."""
        text = self.server.offered("apply-template", {"messages": list(messages), **self._always}).get(
            "prompt"
        )
        if not isinstance(text, str):
            return None, None
        body = {"content": text, "add_special": True, "parse_special": True}
        return _ids(self.server.offered("tokenize", body).get("tokens")), text


def observe(server: Server, kept: TrainedAnswers, told: Callable[[int], Any]) -> Observed:
    """Ask everything; `told` hears of each prompt that is answered.

    Raises:
        UserError: there is no answer.
    """
    asking, replies = Asking(server, kept), []
    for number, prompt in enumerate(kept.prompts):
        most = kept.max_new_tokens if number < len(kept.answers) else 1
        replies.append(asking.ask(prompt.messages, most))
        told(1)
    first = kept.prompts[0]
    alone = asking.ask(first.messages[1:], 1) if first.without_system is not None else None
    other = [
        n
        for n, (answer, reply) in enumerate(zip(kept.answers, replies, strict=False))
        if reply.text.strip() != answer.text.strip()
    ]
    if not other:
        return Observed(replies, alone)
    again = list(replies[: len(kept.answers)])
    plain = list(again)
    for number in other:
        messages = kept.prompts[number].messages
        again[number] = asking.ask(messages, kept.max_new_tokens)
        plain[number] = _without_penalties(asking, messages, kept.max_new_tokens) or again[number]
    return Observed(replies, alone, again, plain)


def _without_penalties(asking: Asking, messages: Sequence[Message], most: int) -> Reply | None:
    for neutral in WITHOUT_PENALTIES:
        try:
            return asking.ask(messages, most, **neutral)
        except Refused as refused:
            log.debug("asked again otherwise: %s", refused)
    return None


def _reply(reply: Mapping[str, Any], prompt_ids: list[int] | None, prompt_text: str | None) -> Reply:
    choice = reply["choices"][0]
    message, usage = choice["message"], reply.get("usage")
    thinking = message.get("reasoning_content") or message.get("reasoning")
    count = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    finish = choice.get("finish_reason")
    likely = _likely(choice.get("logprobs"))
    return Reply(
        message.get("content") or "",
        thinking if isinstance(thinking, str) else "",
        finish if isinstance(finish, str) else None,
        count if isinstance(count, int) and not isinstance(count, bool) and count > 0 else None,
        prompt_ids,
        prompt_text,
        _ids(choice.get("token_ids")) or _said(choice.get("logprobs")),
        likely,
    )


def _ids(value: Any) -> list[int] | None:
    """A list of token ids; None for anything else, and for an empty one."""
    whole = isinstance(value, list) and value and all(type(number) is int for number in value)
    return value if whole else None


def _places(logprobs: Any) -> list[dict[str, Any]]:
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    return [place for place in content or [] if isinstance(place, dict)] if isinstance(content, list) else []


def _said(logprobs: Any) -> list[int] | None:
    """The ids of the answer where each of its places has one."""
    ids = [_id(place) for place in _places(logprobs)]
    return None if not ids or None in ids else [number for number in ids if number is not None]


def _likely(logprobs: Any) -> list[list[Likely]]:
    return [_at(place) for place in _places(logprobs)]


def _at(place: Mapping[str, Any]) -> list[Likely]:
    top = place.get("top_logprobs")
    entries = [entry for entry in top if isinstance(entry, dict)] if isinstance(top, list) else []
    found = [
        Likely(_id(entry), str(entry.get("token", "")), float(entry["logprob"]))
        for entry in entries or [dict(place)]
        if isinstance(entry.get("logprob"), (int, float))
    ]
    return sorted(found, key=lambda likely: -likely.logprob)


def _id(entry: Mapping[str, Any]) -> int | None:
    """llama.cpp writes an id beside the text, vLLM in its place."""
    number, text = entry.get("id"), entry.get("token")
    if type(number) is int:
        return number
    if isinstance(text, str) and text.startswith(AS_ID) and text.removeprefix(AS_ID).isdigit():
        return int(text.removeprefix(AS_ID))
    return None
