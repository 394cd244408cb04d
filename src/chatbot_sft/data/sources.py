"""Files to rows. No tokenizer, no model: a bad file is refused before anything heavy is imported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from chatbot_sft.errors import UserError, did_you_mean


class Row(NamedTuple):
    """One conversation as it stands in the file. `number` counts from 1: the item of a JSON list, the line of a JSONL file."""

    number: int
    values: dict[str, Any]


def read_rows(path: str) -> list[Row]:
    """Rows of a JSON list or of a JSONL file (one object a line), told apart by the first character.

    Raises:
        UserError: no such file, not UTF-8, not JSON, not a list of objects, or no rows.
    """
    file = Path(path).expanduser()
    if not file.exists():
        near = did_you_mean(file.name, [other.name for other in file.parent.glob("*.json*")]) if file.parent.is_dir() else ""
        raise UserError(f"{path}: no such data file{near or '; set dataset.data_path'}")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); save the file as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    rows = _json_list(path, text) if text.lstrip()[:1] in ("[", "") or not _is_lines(text) else _json_lines(path, text)
    if not rows:
        raise UserError(f"{path}: no conversations in it")
    return rows


def _is_lines(text: str) -> bool:
    """Whether the first non-empty line is a JSON value of its own, as in JSONL."""
    try:
        json.loads(text.lstrip().split("\n", 1)[0])
    except ValueError:
        return False
    return True


def _json_list(path: str, text: str) -> list[Row]:
    if not text.strip():
        return []
    try:
        loaded = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); this version reads a JSON list, or one JSON object a line") from None
    if not isinstance(loaded, list):
        raise UserError(f"{path}: expected a JSON list of conversations, found {_kind(loaded)}{_list_inside(loaded)}")
    return [_row(path, number, value) for number, value in enumerate(loaded, 1)]


def _json_lines(path: str, text: str) -> list[Row]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}: line {number} is not JSON: {error.msg} at character {error.colno}") from None
        rows.append(_row(path, number, value))
    if len(rows) == 1 and _list_inside(rows[0].values):
        raise UserError(f"{path}: expected a JSON list of conversations, found an object{_list_inside(rows[0].values)}")
    return rows


def _row(path: str, number: int, value: Any) -> Row:
    if not isinstance(value, dict):
        raise UserError(f"{path}: row {number} is {_kind(value)}, expected an object with the conversation")
    return Row(number, value)


def _list_inside(value: Any) -> str:
    """A hint where the list is one level down, as in {"data": [{…}, …]}; a messages list is not one (its items have a role)."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if isinstance(inner, list) and inner and isinstance(inner[0], dict) and not {"role", "from"} & set(inner[0]):
                return f"; save the list under its key {key!r} as the file"
    return ""


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", int: "a number", float: "a number", bool: "true/false"}
    return names.get(type(value), "null")
