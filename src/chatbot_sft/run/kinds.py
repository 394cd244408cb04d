"""Whether what was read from a file is of the kinds that a dataclass says."""

from __future__ import annotations

import dataclasses
import json
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

LONGEST = 60  # characters of a value


def fault(value: Any, kind: Any, name: str = "") -> str:
    """What of `value`, which is called `name`, is not of `kind`: `threads is "two"`; empty where all is."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return ""
    if origin is UnionType:
        faults = [fault(value, one, name) for one in inner]
        return "" if "" in faults else faults[0]
    parts: list[tuple[str, Any, Any]] = []  # what is in it: its name, value and kind
    if isinstance(kind, type) and dataclasses.is_dataclass(kind) and isinstance(value, kind):
        hints = get_type_hints(kind)
        parts = [(f".{of}", part, hints[of]) for of, part in vars(value).items()]
    elif origin is dict and isinstance(value, dict):
        parts = [(f".{of}", part, inner[1]) for of, part in value.items()]
    elif origin is list and isinstance(value, list):
        parts = [(f"[{at}]", part, inner[0]) for at, part in enumerate(value)]
    elif type(value) is not kind:  # a bool is no number
        return f"{name.lstrip('.')} is {json.dumps(value, default=str)[:LONGEST]}"
    return next((found for of, part, one in parts if (found := fault(part, one, name + of))), "")
