"""What files of data become: one of them `dataset.*`, several `dataset.sources`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from chatbot_sft.config.aliases import plain
from chatbot_sft.config.schema import ROLES
from chatbot_sft.convert.rules import Kind, Line

# A source's columns that have a key of their own where it is the only one.
OWN_KEYS = {"columns.messages": "message_field", "columns.text": "text_field"}


@dataclass
class Source:
    """One file or hub id: its lines, and what each of them says of it ("columns.prompt": "question").

    `beside` are settings that are not of a source alone: "dataset.train_on": "all".
    """

    lines: list[Line] = field(default_factory=list)
    parts: list[dict[str, Any]] = field(default_factory=list)
    beside: list[dict[str, Any]] = field(default_factory=list)

    def add(self, line: Line, part: dict[str, Any] | None = None, **beside: Any) -> None:
        """A line, with what it says of the source and of the dataset as a whole (`train_on="all"`)."""
        self.lines.append(line)
        self.parts.append(part or {})
        self.beside.append({f"dataset.{name}": value for name, value in beside.items()})


def may_be_named(word: Any, role: Any) -> bool:
    """Whether `dataset.roles` can say that a file's `word` is `role`: in our paths a dot parts two keys."""
    return isinstance(word, str) and bool(word.strip()) and "." not in word and role in ROLES


def settled(sources: Sequence[Source]) -> list[Line]:
    """The lines of all of them, with our settings in them."""
    lines = _alone(sources[0]) if len(sources) == 1 else _mixture(sources)
    return _agreeing(lines)


def _alone(source: Source) -> list[Line]:
    for line, part, beside in zip(source.lines, source.parts, source.beside, strict=True):
        line.settings = {f"dataset.{_own_key(name, part)}": value for name, value in part.items()} | beside
    return source.lines


def _own_key(name: str, part: dict[str, Any]) -> str:
    if name == "count":
        return "max_rows"
    return OWN_KEYS.get(name, name)


def _mixture(sources: Sequence[Source]) -> list[Line]:
    """Each line shows its place in the mixture; the first holds all of it."""
    mixture: list[dict[str, Any]] = []
    for number, source in enumerate(sources):
        whole: dict[str, Any] = {}
        for line, part, beside in zip(source.lines, source.parts, source.beside, strict=True):
            for name, value in part.items():
                holder, _, key = name.rpartition(".")
                (whole.setdefault(holder, {}) if holder else whole)[key or name] = value
            line.settings = beside
            told = [f"dataset.sources[{number}].{name}: {plain(value)}" for name, value in part.items()]
            line.shown = ", ".join([*told, *(f"{path}: {plain(value)}" for path, value in beside.items())])
        if "data_path" in whole:
            mixture.append(whole)
    lines = [line for source in sources for line in source.lines]
    if mixture:
        lines[0].settings = {"dataset.sources": mixture, **lines[0].settings}
    return lines


def _agreeing(lines: list[Line]) -> list[Line]:
    """What counts for all rows is said once: a second file that says otherwise is not carried."""
    said: dict[str, Any] = {}
    for line in lines:
        for path, value in line.settings.items():
            if said.setdefault(path, value) != value:
                line.kind, line.settings, line.shown = Kind.NOT_CARRIED, {}, ""
                line.note = f"{path}={plain(said[path])} counts for all files alike"
                break
    return lines
