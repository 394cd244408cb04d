"""An OpenAI-compatible server: its models, and one answer at a time, within a time and with bounded retries.

The key comes from the environment and goes into one header, nowhere else. A redirect is not followed: the key
would go along.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from chatbot_sft.data.messages import Message
from chatbot_sft.errors import UserError, did_you_mean, listed
from chatbot_sft.evaluation.answer import Answer
from chatbot_sft.report.masking import masked

if TYPE_CHECKING:
    import httpx

log = logging.getLogger(__name__)

LARGEST = 64 << 20  # bytes of one reply
LONGEST_WAIT = 30.0  # seconds between two tries, whatever the server asks for
CONNECT = 10.0  # seconds
ABSENT = (404, 405, 500, 501)  # of what not every server has; 500: transformers serve without a hub cache
BUSY = (408, 409, 425, 429, 500, 502, 503, 504)  # worth another try


class Failed(Exception):
    """A try that came to nothing, and may come to something the next time, after `wait` seconds at the least."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class Refused(UserError):
    """The server does not take what the request has in it (400, 422); another one it may take."""


@dataclass
class Server:
    """The server at `url`, which ends in /v1 as a rule. `key` (as evaluation.url) is what messages name it by,
    `variable` that of the environment with its API key, `model` what it is to answer with: None is the only
    one that it has, which `choose` finds.
    """

    url: str
    model: str | None = None
    variable: str | None = None
    timeout: float = 120.0
    retries: int = 3
    key: str = "evaluation.url"
    pause: float = 0.5  # seconds before the second try, twice that before the third
    client: httpx.Client = field(init=False, repr=False)

    def __post_init__(self) -> None:
        import httpx

        self.url = self.url.rstrip("/").removesuffix("/chat/completions").rstrip("/")
        self.client = httpx.Client(
            headers=_headers(self.key, self.variable),
            timeout=httpx.Timeout(self.timeout, connect=min(CONNECT, self.timeout)),
            limits=httpx.Limits(max_connections=None),
        )

    @property
    def where(self) -> str:
        return f"{self.key}={self.url}"

    def close(self) -> None:
        self.client.close()

    def choose(self) -> str:
        """The model that answers; asks the server which it has.

        Raises:
            UserError: the server does not answer, does not have the model, or has several to choose from.
        """
        key = self.key.replace("url", "model")
        there = self.models()
        if self.model is None:
            if not there:
                raise UserError(f"{self.where}: it does not say which models it has; name one: {key}=NAME")
            if len(there) > 1:
                raise UserError(f"{self.where}: it has {len(there)} models; name one: {key}={listed(there)}")
            self.model = there[0]
        # Ollama calls its llama3 llama3:latest.
        elif there and self.model not in there and f"{self.model}:latest" not in there:
            hint = did_you_mean(self.model, there)
            # transformers serve lists the hub's cache, and not the folder that it serves.
            if hint or "/" not in self.model:
                raise UserError(
                    f"{key}={self.model}: {self.url} has no such model{hint or f'; it has {listed(there)}'}"
                )
        return self.model

    def paths(self) -> list[str]:
        """Where the model lies, where the server says so: vLLM beside its name, llama.cpp in /props."""
        data = self._asked("GET", "models", None, absent=True).get("data")
        roots = [
            one.get("root") for one in data or [] if isinstance(one, dict) and one.get("id") == self.model
        ]
        path = self.offered("props").get("model_path")
        return [place for place in (*roots, path) if isinstance(place, str)]

    def models(self) -> list[str]:
        """Their names; empty where the server has no such list."""
        found = self._asked("GET", "models", None, absent=True)
        data = found.get("data")
        return [one["id"] for one in data or [] if isinstance(one, dict) and isinstance(one.get("id"), str)]

    def answer(self, messages: Sequence[Message], max_new_tokens: int) -> Answer:
        """The greedy answer to `messages`.

        Raises:
            UserError: there is none after all retries, or the server refuses.
        """
        reply = self.completion(messages, max_new_tokens)
        choice = reply["choices"][0]
        finish = choice.get("finish_reason")
        usage = reply.get("usage")
        count = usage.get("completion_tokens") if isinstance(usage, dict) else None
        tokens = count if isinstance(count, int) and not isinstance(count, bool) else None
        ended = {"stop": True, "length": False}.get(finish) if isinstance(finish, str) else None
        return Answer((choice["message"].get("content") or "").strip(), tokens, ended)

    def completion(self, messages: Sequence[Message], max_new_tokens: int, **more: Any) -> dict[str, Any]:
        """The whole reply to a request for a greedy answer, with one in it; `more` is put into the request.

        Raises:
            UserError: there is none after all retries, or the server refuses.
        """
        reply = self._asked("POST", "chat/completions", self.request(messages, max_new_tokens, **more))
        try:
            text = reply["choices"][0]["message"].get("content") or ""
        except (KeyError, IndexError, TypeError, AttributeError):
            text = None
        if not isinstance(text, str):
            raise UserError(
                f"{self.where}: the reply holds no answer (choices[0].message.content);"
                " is the server OpenAI-compatible?"
            )
        return reply

    def request(self, messages: Sequence[Message], max_new_tokens: int, **more: Any) -> dict[str, Any]:
        """The body of a request for a greedy answer."""
        return {
            "model": self.model,
            "messages": list(messages),
            "temperature": 0,
            "max_tokens": max_new_tokens,
            "stream": False,
            **more,
        }

    def offered(self, path: str, body: Any = None) -> dict[str, Any]:
        """The reply of a way that only some servers have, beside /v1; {} where this one does not."""
        method = "GET" if body is None else "POST"
        beside = self.url.removesuffix("/v1")
        try:
            return self._asked(method, path, body, absent=True, root=beside)
        except UserError as error:
            log.info("%s/%s: not offered: %s", beside, path, error)
            return {}

    def _asked(
        self, method: str, path: str, body: Any, absent: bool = False, root: str | None = None
    ) -> dict[str, Any]:
        """The JSON object that the server replies with; {} for what it does not have and that may be `absent`."""
        for count in range(self.retries + 1):
            try:
                return self._once(method, f"{self.url if root is None else root}/{path}", body, absent)
            except Failed as failed:
                if count == self.retries:
                    tries = f", {count + 1} times" if count else ""
                    raise UserError(f"{self.where}: {failed}{tries}; is it up?") from None
                time.sleep(min(LONGEST_WAIT, max(failed.wait, self.pause * 2**count)))
        raise AssertionError("unreachable")

    def _once(self, method: str, address: str, body: Any, absent: bool) -> dict[str, Any]:
        with self._said_plainly(), self.client.stream(method, address, json=body) as response:
            content = self._read(response)
        return self._judged(response, content, absent)

    def stream(
        self, messages: Sequence[Message], max_new_tokens: int, temperature: float = 0.0
    ) -> Iterator[tuple[str, str | None]]:
        """(what is new of the answer, why it ended: None until it has), as it comes; asked once.

        Raises:
            UserError: there is no answer, or it breaks off.
        """
        body = self.request(messages, max_new_tokens, temperature=temperature, stream=True)
        address = f"{self.url}/chat/completions"
        try:
            with self._said_plainly(), self.client.stream("POST", address, json=body) as response:
                if response.headers.get("content-type", "").startswith("text/event-stream"):
                    yield from self._events(response)
                else:
                    yield from _whole(self._judged(response, self._read(response), absent=False))
        except Failed as failed:
            raise UserError(f"{self.where}: {failed}; is it up?") from None

    def _events(self, response: httpx.Response) -> Iterator[tuple[str, str | None]]:
        finish = None
        for line in response.iter_lines():
            data = line.removeprefix("data:").strip()
            if not line.startswith("data:") or not data:
                continue
            if data == "[DONE]":
                return
            try:
                event = json.loads(data)
            except (ValueError, RecursionError):
                raise Failed(f"the reply is no JSON ({data[:60]!r})") from None
            if not isinstance(event, dict) or event.get("error"):
                raise UserError(
                    f"{self.where}: answers with an error{_said(data.encode())}; its own log says more"
                )
            for text, why in _whole(event, "delta"):
                finish = why or finish
                yield text, why
        if finish is None:
            raise Failed("the reply broke off")

    @contextlib.contextmanager
    def _said_plainly(self) -> Iterator[None]:
        """What httpx raises as Failed."""
        import httpx

        try:
            yield
        except httpx.ConnectTimeout:
            raise Failed("no server answers") from None
        except httpx.TimeoutException:
            raise Failed(self._too_slow) from None
        except httpx.ConnectError as error:
            raise Failed(f"no server answers ({error})") from None
        except httpx.TransportError as error:  # the connection ended within the reply
            raise Failed(f"the reply broke off ({error})") from None

    @property
    def _too_slow(self) -> str:
        key = " (evaluation.timeout)" if self.key.startswith("evaluation.") else ""
        return f"no whole reply within {self.timeout:g} s{key}"

    def _read(self, response: httpx.Response) -> bytes:
        """All of it: httpx's own time-out is one between two bytes."""
        latest = time.monotonic() + self.timeout
        content = bytearray()
        for part in response.iter_bytes():
            content += part
            if time.monotonic() > latest:
                raise Failed(self._too_slow)
            if len(content) > LARGEST:
                raise UserError(
                    f"{self.where}: a reply of more than {LARGEST >> 20} MB; is the server OpenAI-compatible?"
                )
        return bytes(content)

    def _judged(self, response: httpx.Response, content: bytes, absent: bool) -> dict[str, Any]:
        status = response.status_code
        said = _said(content)
        if absent and status in ABSENT:
            return {}
        if status in BUSY:
            raise Failed(f"answers {status}{said}", _retry_after(response.headers))
        if response.is_redirect:
            raise UserError(
                f"{self.where}: it sends on to {response.headers.get('location')}; name that address, with its /v1"
            )
        if status in (401, 403):
            hint = (
                ("its key is refused" if "authorization" in self.client.headers else "it wants a key")
                + f": set {self.key.replace('url', 'api_key_variable')}=NAME, an environment variable that holds it"
            )
            raise UserError(f"{self.where}: answers {status}, {hint}{said}")
        if status == 404 and not said:
            raise UserError(f"{self.where}: answers 404; does the address end in /v1?")
        if status >= 400:
            kind = Refused if status in (400, 422) else UserError
            raise kind(f"{self.where}: answers {status}{said}")
        try:
            reply = json.loads(content)
        except (ValueError, RecursionError):
            if content.lstrip()[:1] == b"<":
                raise UserError(
                    f"{self.where}: answers with a web page; does the address end in /v1?"
                ) from None
            raise Failed(f"the reply is no JSON ({content[:60].decode(errors='replace')!r})") from None
        if not isinstance(reply, dict):
            raise UserError(f"{self.where}: the reply is no JSON object; is the server OpenAI-compatible?")
        if reply.get("error"):
            raise UserError(f"{self.where}: answers with an error{said}; its own log says more")
        return reply


def _whole(reply: Mapping[str, Any], part: str = "message") -> Iterator[tuple[str, str | None]]:
    """The text of a reply, or of an event with a `delta`, and why it ended; what was thought before the rest."""
    choices = reply.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get(part) if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        return
    texts = (message.get(name) for name in ("reasoning_content", "reasoning", "content"))
    finish = choice.get("finish_reason")
    yield (
        "".join(text for text in texts if isinstance(text, str)),
        finish if isinstance(finish, str) else None,
    )


def check_variable(key: str, name: str | None) -> None:
    """Raises UserError where the environment variable that `key` names is not set. Its name is not repeated: it
    may be a key, pasted to the wrong place.
    """
    if name and not os.environ.get(name, "").strip():
        raise UserError(f"{key}: the environment has no variable of that name; export it first")


def _headers(key: str, variable: str | None) -> dict[str, str]:
    name = key.replace("url", "api_key_variable")
    check_variable(name, variable)
    if not variable:
        return {}
    value = os.environ[variable].strip()
    if not value.isascii() or not value.isprintable():
        raise UserError(f"{name}: what the variable holds is no key: it has other than ASCII characters")
    return {"Authorization": f"Bearer {value}"}


def _said(content: bytes) -> str:
    """What the body of an error says, shortened and without secrets; nothing for a web page."""
    try:
        reply = json.loads(content)
    except (ValueError, RecursionError):
        return ""
    error = reply.get("error", reply) if isinstance(reply, dict) else reply
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail")
    text = " ".join(str(error).split()) if isinstance(error, str) else ""
    return f": {masked(text)[:200]}" if text else ""


def _retry_after(headers: Mapping[str, str]) -> float:
    try:
        return max(0.0, float(headers.get("retry-after", "0")))
    except ValueError:  # a date
        return 0.0
