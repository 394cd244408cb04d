"""Rows of a JSON list or of JSONL, decoded one at a time.

(ijson would do the same, but turns lone surrogates into "?": nobody would see them.)
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator
from typing import Any

from chatbot_sft.data import streams
from chatbot_sft.data.messages import sort_of
from chatbot_sft.data.row import Fault, Row
from chatbot_sft.errors import UserError, listed

CONVERSATIONS = "conversations"
# An object that has one of them is a row.
ROW_COLUMNS = {
    "messages", "conversations", "instruction", "output", "prompt", "completion", "text", "chosen", "rejected",
    "preferred_output",
}  # fmt: skip
NO_NUMBER = (
    "not a number",
    "it has NaN, Infinity or a number too large for a float, which is no JSON and no number",
)


class Decoder:
    """JSON as the standard library decodes it, which says nothing of doubled keys, NaN and too large floats."""

    def __init__(self) -> None:
        decoder = json.JSONDecoder(
            object_pairs_hook=self._object, parse_constant=self._number, parse_float=self._number
        )
        self._decode = decoder.raw_decode
        self._doubled = ""
        self._no_number = False

    def value(self, source: str, at: int = 0) -> tuple[Any, int, Fault | None]:
        """(value, where it ends, what is wrong with it).

        Raises:
            json.JSONDecodeError: it is no JSON.
            ValueError: a number with too many digits.
            RecursionError: it is nested too deeply.
        """
        self._doubled, self._no_number = "", False
        value, end = self._decode(source, at)
        if self._doubled:
            detail = f"the key {self._doubled!r} stands twice in one object, with different values"
            return value, end, ("doubled key", detail)
        if self._no_number:
            if isinstance(value, dict):
                # What pandas writes for an empty cell counts as absent, as the null of a table does.
                value = {key: inner for key, inner in value.items() if not _is_nan(inner)}
            if _has_no_number(value):
                return value, end, NO_NUMBER
        return value, end, None

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs) and (different := [key for key, value in pairs if value != values[key]]):
            self._doubled = different[0]
        return values

    def _number(self, literal: str) -> float:
        value = float(literal)
        self._no_number |= not math.isfinite(value)
        return value


def rows(name: str, stream: streams.ByteStream, longest: int, of: str = CONVERSATIONS) -> Iterator[Row]:
    """Each row; its number is the item of a list, the line of JSONL. `of` is what rows of the file are.

    Raises:
        UserError: not JSON, not objects, or a row of more than `longest` characters.
    """
    pieces = streams.text(name, stream)
    piece = next((piece for piece in pieces if piece.strip()), "")
    start = piece.lstrip()
    line = 1 + piece.count("\n", 0, len(piece) - len(start))
    if not start:
        return iter(())
    pieces = itertools.chain([start], pieces)
    return _items(name, pieces, line, longest) if start[0] == "[" else _lines(name, pieces, line, longest, of)


def _items(name: str, pieces: Iterator[str], line: int, longest: int) -> Iterator[Row]:
    """Items of a JSON list."""
    decoder = Decoder()
    next_token = re.compile(r"[^ \t\n\r]").search
    buffer, at = next(pieces), 1
    number = 0

    def significant() -> str:
        """The next character that is no white space; empty at the end."""
        nonlocal buffer, at, line
        while True:
            if token := next_token(buffer, at):
                at = token.start()
                return buffer[at]
            line += buffer.count("\n")
            buffer, at = next(pieces, ""), 0
            if not buffer:
                return ""

    def in_line(position: int) -> int:
        return line + buffer.count("\n", 0, position)

    def broken(reason: str, position: int) -> UserError:
        if slip := _slip(buffer, position):
            return UserError(f"{name}: line {in_line(position)} {slip}")
        return UserError(
            f"{name}: row {number} is not JSON: {reason} (line {in_line(position)} of the file); mend it there"
        )

    while True:
        following = significant()
        if following == "]":
            break
        if number and following == ",":
            at += 1
            following = significant()
            if following == "]":
                raise UserError(f"{name}: line {in_line(at)} has a comma before its ]; take it out")
        elif number and following:
            number += 1
            raise broken("expected a comma before it", at)
        if not following:
            raise UserError(
                f"{name}: not JSON: the list is not closed after row {number}; is the file cut short?"
            )
        number += 1
        while True:
            try:
                value, end, fault = decoder.value(buffer, at)
                break
            except json.JSONDecodeError as error:
                # An error near the end of what was read may only mean that the rest was not read yet.
                incomplete = error.pos > len(buffer) - 16 or error.msg.startswith("Unterminated string")
                if len(buffer) - at > longest:
                    raise _too_long(name, f"row {number}", longest) from None
                wanted = max(1, (len(buffer) - at) // streams.CHUNK) if incomplete else 0
                more = list(itertools.islice(pieces, wanted))
                if not more:
                    raise broken(error.msg, error.pos) from None
                line += buffer.count("\n", 0, at)
                buffer, at = buffer[at:] + "".join(more), 0
            except (ValueError, RecursionError) as error:
                raise UserError(f"{name}: row {number} {_beyond(error)}") from None
        if end - at > longest:
            raise _too_long(name, f"row {number}", longest)
        at = end
        yield Row(name, number, _object(name, f"row {number}", value), fault)
    at += 1
    if following := significant():
        raise UserError(f"{name}: more text after the list ({following!r}); is it two files in one?")


def _lines(name: str, pieces: Iterator[str], first: int, longest: int, of: str) -> Iterator[Row]:
    """Rows of JSONL. A file of one object alone may be the whole data in an object: that is said."""
    decoded = _decoded_lines(name, streams.lines(pieces, longest), first, longest, of)
    begin = list(itertools.islice(decoded, 2))
    if len(begin) == 1 and (inside := _data_inside(begin[0].values)):
        raise UserError(f"{name}: expected a JSON list of {of}, found an object{inside}")
    return itertools.chain(begin, decoded)


def _decoded_lines(name: str, lines: Iterator[str], first: int, longest: int, of: str) -> Iterator[Row]:
    """A line that is not JSON is a bad row between others; at the end it says that the file is cut short."""
    decoder = Decoder()
    number = first - 1
    broken: Row | None = None
    try:
        for number, whole in enumerate(lines, first):
            line = whole.strip("\ufeff \t\r\n")  # a byte order mark stands inside where files were joined
            if not line:
                continue
            if broken:
                yield broken
                broken = None
            try:
                value, end, fault = decoder.value(line)
                if end < len(line):
                    raise json.JSONDecodeError("Extra data", line, end)
            except json.JSONDecodeError as error:
                if number == first:
                    raise _no_jsonl(name, line, lines, error, longest, first, of) from None
                reason = f"not JSON: {error.msg.removesuffix(' at')} at character {error.colno}"
                slip = _slip(line, error.pos)
                broken = Row(name, number, {}, ("not JSON", f"the line {slip or f'is {reason}'}"))
            except (ValueError, RecursionError) as error:
                if number == first:
                    raise UserError(f"{name}: line {number} {_beyond(error)}") from None
                yield Row(name, number, {}, ("not JSON", f"the line {_beyond(error)}"))
            else:
                yield Row(name, number, _object(name, f"row {number}", value), fault)
    except streams.RowTooLong:
        hint = "; is it all of the data in one object?" if number < first else ""
        raise _too_long(name, f"line {number + 1}", longest, hint) from None
    if broken:
        if slip:
            raise UserError(f"{name}: line {broken.number} {slip}")
        raise UserError(f"{name}: line {broken.number} is {reason}, and the last one; is the file cut short?")


def _slip(text: str, at: int) -> str | None:
    """What a person, or Python, wrote at the place where JSON ends; None where it is nothing that is known."""
    there, before = text[at:].lstrip(), text[:at].rstrip()
    if there.startswith(("//", "/*", "#")):
        return "has a comment, and JSON has none; take it out"
    if there.startswith("'"):
        return (
            "has 'single quotes', as Python prints, where JSON has \"double\" ones; write it with json.dumps"
        )
    if there.startswith(("]", "}")) and before.endswith(","):
        return f"has a comma before its {there[0]}; take it out"
    if there == ",":
        return "ends with a comma; leave them out where each line is a row, or put [ ] around all"
    return None


def _no_jsonl(
    name: str, first: str, rest: Iterator[str], error: json.JSONDecodeError, longest: int, line: int, of: str
) -> UserError:
    """What to say of a file whose first line, of that number, is no JSON value: it may be one object over many
    lines.
    """
    if slip := _slip(first, error.pos):
        return UserError(f"{name}: line {line} {slip}")
    if first.startswith("{"):
        whole, size = [first], len(first)
        for more in rest:
            whole.append(more)
            size += len(more)
            if size > longest:
                return UserError(
                    f"{name}: expected a JSON list of {of} or one JSON object a line,"
                    " found an object over many lines"
                )
        try:
            inside = _data_inside(json.loads("\n".join(whole)))
            return UserError(f"{name}: expected a JSON list of {of}, found an object{inside}")
        except json.JSONDecodeError as of_the_whole:
            if of_the_whole.msg == "Extra data" and of_the_whole.doc[of_the_whole.pos] in "{,":
                return UserError(
                    f"{name}: JSON objects one after another;"
                    " write one a line (`jq -c .` does) or a list of them"
                )
            if slip := _slip(of_the_whole.doc, of_the_whole.pos):
                return UserError(f"{name}: line {line + of_the_whole.lineno - 1} {slip}")
            error = of_the_whole
        except ValueError as too_long:
            return UserError(f"{name}: row 1 {_beyond(too_long)}")
        except RecursionError as too_deep:
            return UserError(f"{name}: row 1 {_beyond(too_deep)}")
    others = ", and .csv, .parquet, .arrow by their names" if of == CONVERSATIONS else ""
    return UserError(f"{name}: not JSON ({error}); a JSON list or one JSON object a line is read{others}")


def _object(name: str, where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{name}: {where} is {sort_of(value)}, expected an object with the conversation")
    return value


def _data_inside(value: Any) -> str:
    """A hint where one object has all of the data: in a list, as in {"data": [{…}, …]}, in splits, or by ids.

    A messages list is none of that.
    """
    if not isinstance(value, dict) or not ROW_COLUMNS.isdisjoint(value):
        return ""
    inside = [key for key, inner in value.items() if isinstance(inner, list) and inner and _is_row(inner[0])]
    if len(inside) > 1:
        return f" with several lists ({listed(inside)}); save each as a file of its own"
    if inside:
        return f"; save the list under its key {inside[0]!r} as the file"
    if len(value) > 1 and all(isinstance(inner, (dict, list)) for inner in value.values()):
        first = next(iter(value.values()))
        if _is_row(first) or (isinstance(first, list) and first and isinstance(first[0], dict)):
            return f" keyed by {listed(map(repr, value))}; save its values as a list"
    return ""


def _is_row(value: Any) -> bool:
    """Whether it may be a conversation, and is no message."""
    return isinstance(value, dict) and bool(value) and not {"role", "from"} & set(value)


def _too_long(
    name: str, where: str, longest: int, hint: str = "; is a quote or bracket missing?"
) -> UserError:
    return UserError(
        f"{name}: {where} has over {longest / 1e6:g} million characters,"
        f" the most that dataset.max_row_mb allows{hint or '; raise it'}"
    )


def _beyond(error: Exception) -> str:
    """What is too much for the decoder."""
    if isinstance(error, RecursionError):
        return "is nested too deeply to be read (about 1,000 levels are the most); take it out"
    return "has a number of over 4,300 digits, which is not read; write it as a string"


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _has_no_number(value: Any) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, dict):
        return any(map(_has_no_number, value.values()))
    return isinstance(value, list) and any(map(_has_no_number, value))
