"""Placeholders in messages, calls and tools: texts inside of mappings and lists."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from chatbot_sft.data.personal.detector import Detector

NOT_SAID = ("role", "type")  # of a message or a call: what it is


def placeholders(detector: Detector, value: Any, written: str) -> tuple[Any, Counter[str]]:
    """(`value` with placeholders, in keys too; the kinds that they stand for). A whole number may be a card's."""
    found: Counter[str] = Counter()

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {clean(name): item if name in NOT_SAID else clean(item) for name, item in value.items()}
        if isinstance(value, list):
            return [clean(item) for item in value]
        if not isinstance(value, str | int) or isinstance(value, bool):
            return value
        text, kinds = detector.redact(str(value), written)
        if not kinds:
            return value
        found.update(kinds)
        return text

    return clean(value), found


def texts(value: Any) -> Iterator[str]:
    """All that is written in it."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield str(name)
            yield from texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)
    elif isinstance(value, int):
        yield str(value)


def without_values(detector: Detector | None, findings: dict[str, Any]) -> dict[str, Any]:
    """`findings` of other checks, which may name what rows say, with placeholders."""
    return placeholders(detector, findings, "")[0] if detector else findings
