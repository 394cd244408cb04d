"""What was answered, by whom, and kept as it comes: a second start asks only for the rest."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from chatbot_sft.data.messages import Message
from chatbot_sft.errors import UserError
from chatbot_sft.evaluation.at_once import all_of
from chatbot_sft.report.masking import masked
from chatbot_sft.report.words import amount

if TYPE_CHECKING:
    from chatbot_sft.evaluation.server import Server
    from chatbot_sft.inference import ChatModel


@dataclass(frozen=True)
class Answer:
    """`text` is all that was said; `tokens` without the one that ended it, None where a server does not tell;
    `ended`: by itself, not cut off at evaluation.max_new_tokens.
    """

    text: str
    tokens: int | None = None
    ended: bool | None = None

    @property
    def spoken(self) -> str:
        """What a user would read: without the thinking before it, and nothing where that does not end."""
        _, thought, said = self.text.rpartition("</think>")
        if thought:
            return said.strip()
        return "" if self.text.lstrip().startswith("<think>") else self.text


@dataclass(frozen=True)
class Prompt:
    """The `messages` of the case in `row`."""

    row: int
    messages: Sequence[Message]


class Keeping(Protocol):
    """Where answers are kept: `Kept`, or nowhere."""

    def get(self, prompt: Prompt) -> Answer | None: ...
    def put(self, prompt: Prompt, answer: Answer) -> None: ...


class Kept:
    """Answers in a file, a line each as soon as it is there. `identity` says who answers, and how."""

    def __init__(self, file: Path, identity: Any) -> None:
        self._file = file
        self._identity = identity
        self._lock = threading.Lock()
        self._known = dict(_lines(file))

    def get(self, prompt: Prompt) -> Answer | None:
        return self._known.get(self._key(prompt))

    def put(self, prompt: Prompt, answer: Answer) -> None:
        key = self._key(prompt)
        line = json.dumps({"key": key, **masked(asdict(answer))}, ensure_ascii=False)
        with self._lock, self._file.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{line}\n")
            self._known[key] = answer

    def _key(self, prompt: Prompt) -> str:
        asked = json.dumps([self._identity, list(prompt.messages)], sort_keys=True)
        return hashlib.sha256(asked.encode()).hexdigest()


def _lines(file: Path) -> Iterator[tuple[str, Answer]]:
    """What `file` holds, but for lines that are no whole answer: the process may have died as it wrote."""
    if not file.is_file():
        return
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            values = json.loads(line)
            yield values.pop("key"), Answer(**values)


class Asked(Protocol):
    """Who answers: `Local` and `Remote` are the two."""

    def answers(self, prompts: Sequence[Prompt], kept: Keeping, told: Callable[[int], Any]) -> list[Answer]:
        """One for each of `prompts`; `told` hears how many more there are, each time.

        Raises:
            UserError: one cannot be answered. Those before are kept.
        """


class Local:
    """A loaded model, greedy, `batch_size` prompts of about a length at a time.

    A batch is answered as a whole or taken from what was kept as a whole: what stands beside a prompt moves the last
    bits of its numbers.
    """

    def __init__(self, model: ChatModel, max_new_tokens: int, batch_size: int) -> None:
        self.model = model
        self.max_new_tokens = max_new_tokens
        self.batch_size = batch_size

    def answers(self, prompts: Sequence[Prompt], kept: Keeping, told: Callable[[int], Any]) -> list[Answer]:
        ids = [self._ids(prompt) for prompt in prompts]
        order = sorted(range(len(prompts)), key=lambda place: -len(ids[place]))
        found: dict[int, Answer] = {}
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            earlier = [answer for place in batch if (answer := kept.get(prompts[place]))]
            if len(earlier) < len(batch):
                said = self.model.answers([ids[place] for place in batch], self.max_new_tokens)
                earlier = [self._answer(tokens) for tokens in said]
                for place, answer in zip(batch, earlier, strict=True):
                    kept.put(prompts[place], answer)
            found |= dict(zip(batch, earlier, strict=True))
            told(len(batch))
        return [found[place] for place in range(len(prompts))]

    def _ids(self, prompt: Prompt) -> list[int]:
        try:
            ids = self.model.prompt_ids(prompt.messages)
        except UserError as error:
            raise UserError(f"row {prompt.row}: {error}") from None
        if len(ids) >= self.model.context:
            raise UserError(
                f"row {prompt.row}: {len(ids):,} tokens leave no room for an answer in the"
                f" {self.model.context:,} of {self.model.name}"
            )
        return ids

    def _answer(self, tokens: Sequence[int]) -> Answer:
        ended = bool(tokens) and tokens[-1] in self.model.stop_ids
        return Answer(self.model.text(tokens), len(tokens) - ended, ended)


class Remote:
    """A server, `at_once` requests at a time."""

    def __init__(self, server: Server, max_new_tokens: int, at_once: int) -> None:
        self.server = server
        self.max_new_tokens = max_new_tokens
        self.at_once = at_once

    def answers(self, prompts: Sequence[Prompt], kept: Keeping, told: Callable[[int], Any]) -> list[Answer]:
        missing = [prompt for prompt in prompts if kept.get(prompt) is None]
        told(len(prompts) - len(missing))
        try:
            all_of(lambda prompt: self._ask(prompt, kept), missing, self.at_once, told)
        except UserError as error:
            count = sum(kept.get(prompt) is not None for prompt in prompts)
            raise UserError(f"{error}; {count} of {amount(len(prompts), 'answer')} kept") from None
        return [answer for prompt in prompts if (answer := kept.get(prompt))]

    def _ask(self, prompt: Prompt, kept: Keeping) -> Answer:
        try:
            answer = self.server.answer(prompt.messages, self.max_new_tokens)
        except UserError as error:
            raise UserError(f"row {prompt.row}: {error}") from None
        kept.put(prompt, answer)
        return answer
