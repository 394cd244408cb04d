"""The golden file: one case a line, {"messages": […], "contains": "Tuesday", "tags": ["hours"], "id": "hours-3"}."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chatbot_sft.config.schema import ROLES
from chatbot_sft.data import json_rows, streams
from chatbot_sft.data.messages import BadRow, Message, as_text, canonical_role, sort_of
from chatbot_sft.data.row import Row
from chatbot_sft.errors import UserError, did_you_mean, from_here, listed
from chatbot_sft.evaluation.checks import CHECKS, BadCheck, Check
from chatbot_sft.report.words import amount

OTHERS = ("messages", "tags", "id", "case_sensitive")  # keys of a case beside the checks
LONGEST = 10**7  # characters of a line
NO_MESSAGES = 'messages is missing: [{"role": "user", "content": "…"}]'
TOLD = 3  # bad rows that an error names


class BadCase(Exception):
    """What is wrong with a row, in one line."""


@dataclass(frozen=True)
class Case:
    """One question, of several turns perhaps, and what is expected of its answer: all of `checks`."""

    id: str
    row: int
    messages: list[Message]
    checks: dict[str, Check]
    expected: dict[str, Any]  # what the file says of the checks
    tags: list[str] = field(default_factory=list)
    case_sensitive: bool = False

    @property
    def question(self) -> str:
        return self.messages[-1]["content"]


def read(file: Path) -> list[Case]:
    """The cases of a golden file: JSONL, or a JSON list.

    Raises:
        UserError: it cannot be read, has no case, or bad ones: the first three are named, each by its row.
    """
    cases: list[Case] = []
    bad: list[str] = []
    name = str(file)
    for row in _rows(file, name):
        try:
            cases.append(_case(row))
        except (BadCase, BadCheck, BadRow) as error:
            bad.append(f"row {row.number}: {error}")
    doubled = [name for name, count in Counter(case.id for case in cases).items() if count > 1]
    if doubled:
        rows = [case.row for case in cases if case.id == doubled[0]]
        bad.append(f"row {rows[1]}: the id {doubled[0]} is that of row {rows[0]} too")
    if bad:
        more = f"; and {amount(len(bad) - TOLD, 'more bad row')}" if len(bad) > TOLD else ""
        raise UserError(f"{name}: {'; '.join(bad[:TOLD])}{more}")
    if not cases:
        raise UserError(f"{name}: there is no case in it")
    return cases


def questions(file: Path) -> dict[int, list[Message]]:
    """The messages of each row. The checks are not looked at: they may need what is not installed here.

    Raises:
        UserError: it cannot be read, or has a row without a question.
    """
    asked = {}
    for row in _rows(file, str(file)):
        try:
            asked[row.number] = _messages(row.values)
        except (BadCase, BadRow) as error:
            raise UserError(f"{file}: row {row.number}: {error}; mend it there") from None
    return asked


def opened(case: Case, system_prompt: str | None) -> list[Message]:
    """The messages of a case, behind `system_prompt` where it has none of its own."""
    if system_prompt is None or case.messages[0]["role"] == "system":
        return case.messages
    return [{"role": "system", "content": system_prompt}, *case.messages]


def _rows(file: Path, name: str) -> Iterator[Row]:
    if not file.expanduser().is_file():
        raise UserError(f"evaluation.golden={file}: no such file{from_here(file)}")
    with streams.opened(file.expanduser()) as members:
        for member, stream in members:
            kind, whole = streams.kind(member, stream)
            if kind != "json":
                raise UserError(
                    f"{name}: expected JSONL, one case a line, or a JSON list of them; save it so"
                )
            yield from json_rows.rows(member, whole, LONGEST, "cases")


def _case(row: Row) -> Case:
    values = row.values
    if row.fault:
        raise BadCase(row.fault[1])
    if "messages" not in values and not any(did_you_mean(key, ["messages"]) for key in values):
        raise BadCase(f"{NO_MESSAGES}; it has {listed(values) or 'nothing'}")
    for key in values:
        if key not in CHECKS and key not in OTHERS:
            known = [*CHECKS, *OTHERS]
            raise BadCase(
                f"{key}: no such check{did_you_mean(key, known) or f'; there are {listed(CHECKS, 20)}'}"
            )
    sensitive = values.get("case_sensitive", False)
    if not isinstance(sensitive, bool):
        raise BadCase("case_sensitive: expected true or false")
    expected = {name: value for name, value in values.items() if name in CHECKS}
    if not expected:
        raise BadCase(f"no check; what is expected of the answer? One of {listed(CHECKS, 20)}")
    checks = {name: _check(name, value, sensitive) for name, value in expected.items()}
    return Case(_id(row), row.number, _messages(values), checks, expected, _tags(values), sensitive)


def _check(name: str, value: Any, case_sensitive: bool) -> Check:
    try:
        return CHECKS[name].read(value, case_sensitive)
    except BadCheck as error:
        raise BadCase(f"{name}: {error}") from None


def _id(row: Row) -> str:
    given = row.values.get("id", row.number)
    if isinstance(given, bool) or not isinstance(given, (str, int)) or not str(given).strip():
        raise BadCase(f"id: expected a text, found {sort_of(given)}")
    return str(given)


def _tags(values: Mapping[str, Any]) -> list[str]:
    given = values.get("tags", [])
    tags = [given] if isinstance(given, str) else given
    if not isinstance(tags, list) or not all(isinstance(tag, str) and tag.strip() for tag in tags):
        raise BadCase("tags: expected a list of words")
    return list(dict.fromkeys(tags))


def _messages(values: Mapping[str, Any]) -> list[Message]:
    """The conversation up to the question. Answers within it are given as they stand."""
    turns = values.get("messages")
    if turns is None:
        raise BadCase(NO_MESSAGES)
    if not isinstance(turns, list) or not turns:
        raise BadCase("messages: expected a list of {role, content}")
    messages = [_message(number, turn) for number, turn in enumerate(turns, 1)]
    last = messages[-1]["role"]
    if last == "assistant":
        raise BadCase(
            "messages end with an answer; leave it out, and say what is expected: reference, contains …"
        )
    if last == "system":
        raise BadCase("messages end with the system prompt; the question is missing")
    return messages


def _message(number: int, turn: Any) -> Message:
    where = f"message {number}"
    if not isinstance(turn, dict) or "role" not in turn or "content" not in turn:
        raise BadCase(f"{where}: expected role and content")
    role = canonical_role(turn["role"])
    if role not in ROLES:
        raise BadCase(
            f"{where}: role {turn['role']!r}{did_you_mean(str(role), ROLES) or f' is none of {listed(ROLES)}'}"
        )
    if role == "system" and number > 1:
        raise BadCase(f"{where}: a system prompt stands before all others")
    content = as_text(where, turn["content"])
    if not content.strip():
        raise BadCase(f"{where}: empty content")
    return {"role": role, "content": content}
