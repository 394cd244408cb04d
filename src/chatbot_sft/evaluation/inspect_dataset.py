"""The cases as a dataset of Inspect (https://inspect.aisi.org.uk): its `json_dataset` reads the file as it is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from chatbot_sft.evaluation.cases import Case


def samples(cases: Sequence[Case]) -> list[dict[str, Any]]:
    """A sample each: `input` are the messages, `target` the text or texts that `includes()` and `match()` look
    for, and all that is expected, as the golden file says it, is in `metadata`.
    """
    return [
        {
            "id": case.id,
            "input": case.messages,
            "target": target(case.expected),
            "metadata": {"tags": case.tags, "expected": case.expected},
        }
        for case in cases
    ]


def target(expected: dict[str, Any]) -> str | list[str]:
    """One text, or several of which one will do. What is more than that (all of several texts, a schema) has none:
    such a case needs a scorer of its own, which finds it in the metadata.
    """
    for name in ("exact", "contains", "reference", "number"):
        value = expected.get(name)
        if isinstance(value, dict):
            value = value.get("text", value.get("value"))
        if isinstance(value, list) and name == "contains":  # all of them, but for a list within it
            value = value[0] if len(value) == 1 else None
        if isinstance(value, (str, list)):
            return value
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return f"{value:.10g}"
    return ""


def as_text(cases: Sequence[Case]) -> str:
    return json.dumps(samples(cases), indent=2, ensure_ascii=False) + "\n"
