"""A tool whose files are read here: its name, the version whose keys these are, and a rule for each key."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from chatbot_sft.convert.rules import Rule


@dataclass(frozen=True)
class Peer:
    name: str  # as --from takes it
    title: str
    version: str  # that was read
    model: str  # the key that every file of it has
    parts: Mapping[str, tuple[Rule, ...]]  # heading of its pages → rules

    @functools.cached_property
    def rules(self) -> dict[str, Rule]:
        """By the peer's key."""
        return {name: rule for rule in self.every() for name in rule.names}

    def every(self) -> Iterator[Rule]:
        for rules in self.parts.values():
            yield from rules
