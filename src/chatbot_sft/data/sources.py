"""Where rows come from: files, folders, globs and hub ids, read as a stream. No tokenizer, no model, and never a whole file in memory."""

from __future__ import annotations

import codecs
import csv
import gzip
import itertools
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from chatbot_sft.errors import UserError, did_you_mean

KINDS = {
    ".json": "json", ".jsonl": "json", ".ndjson": "json", ".csv": "csv", ".tsv": "csv",
    ".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow", ".ipc": "arrow",
}  # fmt: skip
CHUNK = 1 << 20  # bytes read at a time
LARGEST_ROW = 64 << 20  # characters; a JSON list that never closes a row must not fill the memory
TOO_MUCH = "a value is nested too deeply, or a number has thousands of digits"  # Python's JSON reads neither
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
csv.field_size_limit(LARGEST_ROW)  # csv's own limit of 128 KiB is below a long conversation


class Row(NamedTuple):
    """One row as it stands in its file. `number` counts from 1: the item of a JSON list, the line of a JSONL file, the record of a table."""

    file: str
    number: int
    values: dict[str, Any]

    @property
    def where(self) -> str:
        return f"{self.file}: row {self.number}"


def data_files(path: str) -> list[Path]:
    """The files that `path` names: one file, the data files of a folder, or what a glob matches; sorted, so that a run can be repeated.

    Raises:
        UserError: there are none.
    """
    expanded = Path(path).expanduser()
    if expanded.is_dir():
        found = [file for file in sorted(expanded.rglob("*")) if file.is_file() and _kind_by_name(file) and not file.name.startswith(".")]
        if not found:
            raise UserError(f"{path}: no data files in this folder ({', '.join(KINDS)}, or one of these with .gz)")
        return found
    if expanded.is_file():
        return [expanded]
    if any(letter in path for letter in "*?["):
        anchor = Path(expanded.anchor)
        found = sorted(file for file in (anchor if expanded.is_absolute() else Path()).glob(str(expanded.relative_to(anchor))) if file.is_file())
        if not found:
            raise UserError(f"{path}: no file matches")
        return found
    near = did_you_mean(expanded.name, [other.name for other in expanded.parent.iterdir()]) if expanded.parent.is_dir() else ""
    raise UserError(f"{path}: no such data file{near or '; set dataset.data_path'}")


def is_hub_id(path: str) -> bool:
    """`org/name` where no such file or folder exists, and nothing says that a file was meant: no data suffix, no folder `org` here."""
    if not HUB_ID.fullmatch(path) or Path(path).exists() or path.startswith("."):
        return False
    return not _kind_by_name(Path(path)) and not Path(path).parent.is_dir()


def read_rows(path: str) -> Iterator[Row]:
    """Rows of every file that `path` names (see `data_files`), as a stream.

    Raises:
        UserError: no such file, damaged or not what its name says, not UTF-8, or no rows; names the file and, where there is one, the row.
    """
    for file in data_files(path):
        yield from read_file(file)


def read_file(file: Path) -> Iterator[Row]:
    """Rows of one JSON list, JSONL, CSV, TSV, Parquet or Arrow file, or of one of these in gzip."""
    name = str(file)
    readers = {"json": _json_rows, "csv": _csv_rows, "parquet": _parquet_rows, "arrow": _arrow_rows}
    try:
        with _open(file) as stream:
            rows = readers[_kind(file, stream)](name, stream)
            first = next(rows, None)
            if first is None:
                raise UserError(f"{name}: no conversations in it")
            yield first
            yield from rows
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{name}: the gzip file is damaged or cut short ({error}); copy or compress it again") from None
    except OSError as error:
        raise UserError(f"{name}: {error.strerror or error}") from None


def read_hub(name: str, config_name: str | None, split: str, revision: str | None) -> tuple[Iterator[Row], str]:
    """(rows, fingerprint) of a dataset on the Hugging Face hub, through `datasets`.

    Raises:
        UserError: it cannot be had.
    """
    from chatbot_sft.model.hub import allow_network

    allow_network(True)
    import datasets

    try:
        rows = datasets.load_dataset(name, config_name, split=split, revision=revision)
    except Exception as error:  # the hub client, the builder and the file readers raise types of their own
        why = " ".join(str(error).split())[:300]
        raise UserError(f"{name}: cannot be had from the Hugging Face hub ({why}); a local file or folder works without a network") from error
    label = f"{name}[{split}]"
    return (Row(label, number, dict(values)) for number, values in enumerate(rows, 1)), rows._fingerprint


def _kind_by_name(file: Path) -> str | None:
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes[-1:] == [".gz"]:
        suffixes.pop()
    return KINDS.get(suffixes[-1]) if suffixes else None


def _kind(file: Path, stream: BinaryIO) -> str:
    """By what the file begins with where that is telling, else by its name; JSON where neither says."""
    start = stream.read(6)
    stream.seek(0)
    if start.startswith(b"PAR1"):
        return "parquet"
    if start == b"ARROW1" or start[:4] == b"\xff\xff\xff\xff":
        return "arrow"
    kind = _kind_by_name(file) or "json"
    if kind in ("parquet", "arrow"):
        raise UserError(f"{file}: not {'a Parquet' if kind == 'parquet' else 'an Arrow'} file, whatever its name says")
    return kind


def _open(file: Path) -> BinaryIO:
    with file.open("rb") as stream:
        compressed = stream.read(2) == b"\x1f\x8b"
    return gzip.open(file) if compressed else file.open("rb")


def _text(name: str, stream: BinaryIO) -> Iterator[str]:
    """The file as pieces of text, without a byte order mark."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    position = 0
    while chunk := stream.read(CHUNK):
        pending = len(decoder.getstate()[0])
        yield _decode(name, decoder, chunk, position - pending)
        position += len(chunk)
    yield _decode(name, decoder, b"", position - len(decoder.getstate()[0]), final=True)


def _decode(name: str, decoder: codecs.IncrementalDecoder, chunk: bytes, offset: int, final: bool = False) -> str:
    try:
        return decoder.decode(chunk, final)
    except UnicodeDecodeError as error:
        hint = "; it looks like UTF-16" if offset == 0 and error.object[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        raise UserError(f"{name}: not UTF-8 text (byte {offset + error.start}){hint}; save the file as UTF-8") from None


def _lines(pieces: Iterator[str]) -> Iterator[str]:
    """Lines with their ends; only \\n ends a line, as in JSONL (a conversation may contain the other kinds)."""
    parts: list[str] = []
    for piece in pieces:
        first, *rest = piece.split("\n")
        parts.append(first)
        for line in rest:
            yield "".join(parts) + "\n"
            parts = [line]
    if last := "".join(parts):
        yield last


def _json_rows(name: str, stream: BinaryIO) -> Iterator[Row]:
    pieces = _text(name, stream)
    piece = next((piece for piece in pieces if piece.strip()), "")
    start = piece.lstrip()
    line = 1 + piece.count("\n", 0, len(piece) - len(start))
    if not start:
        return iter(())
    pieces = itertools.chain([start], pieces)
    if start[0] == "[":
        return _json_list(name, pieces, line)
    lines = _lines(pieces)
    first = next(lines)
    try:
        json.loads(first)
    except json.JSONDecodeError as error:
        raise _no_jsonl(name, first, lines, error) from None
    except (ValueError, RecursionError):
        pass  # named below, with its line
    rows = _json_lines(name, itertools.chain([first], lines), line)
    begin = list(itertools.islice(rows, 2))
    if len(begin) == 1 and (inside := _list_inside(begin[0].values)):
        raise UserError(f"{name}: expected a JSON list of conversations, found an object{inside}")
    return itertools.chain(begin, rows)


def _no_jsonl(name: str, first: str, lines: Iterator[str], error: ValueError) -> UserError:
    """What to say of a file whose first line is no JSON value: it may be one object over many lines with the list inside."""
    if first.startswith("{"):
        text = first + "".join(itertools.islice(lines, 1_000_000))
        try:
            return UserError(f"{name}: expected a JSON list of conversations, found an object{_list_inside(json.loads(text))}")
        except RecursionError:
            return UserError(f"{name}: {TOO_MUCH}")
        except ValueError as whole:
            error = whole
    return UserError(f"{name}: not JSON ({error}); a JSON list or one JSON object a line is read, and .csv, .parquet, .arrow by their names")


def _json_list(name: str, pieces: Iterator[str], line: int) -> Iterator[Row]:
    """Items of a JSON list, decoded one at a time. (ijson would do the same, but turns lone surrogates into "?": nobody would ever see them.)"""
    decode = json.JSONDecoder().raw_decode
    skip = re.compile(r"[ \t\n\r]*").match
    text, at = next(pieces), 1
    number = 0

    def significant() -> str:
        """The next character that is no white space; empty at the end."""
        nonlocal text, at, line
        while True:
            at = skip(text, at).end()
            if at < len(text):
                return text[at]
            line += text.count("\n")
            text, at = next(pieces, ""), 0
            if not text:
                return ""

    def broken(what: str, position: int) -> UserError:
        return UserError(f"{name}: row {number} is not JSON: {what} (line {line + text.count(chr(10), 0, position)} of the file)")

    while True:
        following = significant()
        if following == "]":
            break
        if number and following == ",":
            at += 1
            following = significant()
        elif number and following:
            number += 1
            raise broken("expected a comma before it", at)
        if not following:
            raise UserError(f"{name}: not JSON: the list is not closed after row {number}; is the file cut short?")
        number += 1
        while True:
            try:
                value, at = decode(text, at)
                break
            except json.JSONDecodeError as error:
                # An error near the end of what was read may only mean that the rest was not read yet.
                incomplete = error.pos > len(text) - 16 or error.msg.startswith("Unterminated string")
                if len(text) - at > LARGEST_ROW:
                    raise UserError(f"{name}: row {number} has over {LARGEST_ROW >> 20} million characters; is a quote or bracket missing?") from None
                more = list(itertools.islice(pieces, max(1, (len(text) - at) // CHUNK))) if incomplete else []
                if not more:
                    raise broken(error.msg, error.pos) from None
                line += text.count("\n", 0, at)
                text, at = text[at:] + "".join(more), 0
            except (ValueError, RecursionError):
                raise UserError(f"{name}: row {number}: {TOO_MUCH}") from None
        yield _row(name, number, value)
    at += 1
    if following := significant():
        raise UserError(f"{name}: more text after the list ({following!r}); is it two files in one?")


def _json_lines(name: str, lines: Iterator[str], first: int) -> Iterator[Row]:
    for number, line in enumerate(lines, first):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{name}: line {number} is not JSON: {error.msg.removesuffix(' at')} at character {error.colno}") from None
        except (ValueError, RecursionError):
            raise UserError(f"{name}: line {number}: {TOO_MUCH}") from None
        yield _row(name, number, value)


def _csv_rows(name: str, stream: BinaryIO) -> Iterator[Row]:
    lines = _lines(_text(name, stream))
    header = next(lines, "")
    if not header.strip():
        return
    delimiter = max(",;\t", key=header.count)
    reader = csv.reader(itertools.chain([header], lines), delimiter=delimiter, strict=True)
    names: list[str] = []
    number = 0
    try:
        names = next(reader)
        for number, fields in enumerate(reader, 1):
            if not fields:
                continue
            if len(fields) != len(names):
                raise UserError(
                    f"{name}: row {number} (line {reader.line_num}) has {len(fields)} fields, the header has {len(names)}: "
                    'text with commas or line breaks has to stand in "quotes"'
                )
            yield Row(name, number, dict(zip(names, fields, strict=True)))
    except csv.Error as error:
        raise UserError(f"{name}: row {number + 1} (line {reader.line_num}) is not CSV: {error}") from None


def _parquet_rows(name: str, stream: BinaryIO) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        batches = pyarrow.parquet.ParquetFile(stream).iter_batches(batch_size=1000)
        yield from _table_rows(name, batches)
    except pyarrow.ArrowException as error:
        raise UserError(f"{name}: not a whole Parquet file ({' '.join(str(error).split())})") from None


def _arrow_rows(name: str, stream: BinaryIO) -> Iterator[Row]:
    import pyarrow

    try:
        if stream.read(6) == b"ARROW1":
            file = pyarrow.ipc.open_file(stream)
            batches = (file.get_batch(index) for index in range(file.num_record_batches))
        else:
            stream.seek(0)
            batches = iter(pyarrow.ipc.open_stream(stream))
        yield from _table_rows(name, batches)
    except pyarrow.ArrowException as error:
        raise UserError(f"{name}: not a whole Arrow file ({' '.join(str(error).split())})") from None


def _table_rows(name: str, batches: Iterator[Any]) -> Iterator[Row]:
    """Record batches as rows; a cell that is null counts as absent, as a missing key of a JSON object does."""
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, 1000):
            for values in batch.slice(start, 1000).to_pylist():
                number += 1
                yield Row(name, number, {key: value for key, value in values.items() if value is not None})


def _row(name: str, number: int, value: Any) -> Row:
    if not isinstance(value, dict):
        raise UserError(f"{name}: row {number} is {_what(value)}, expected an object with the conversation")
    return Row(name, number, value)


def _list_inside(value: Any) -> str:
    """A hint where the list is one level down, as in {"data": [{…}, …]}; a messages list is not one (its items have a role)."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if isinstance(inner, list) and inner and isinstance(inner[0], dict) and not {"role", "from"} & set(inner[0]):
                return f"; save the list under its key {key!r} as the file"
    return ""


def _what(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", int: "a number", float: "a number", bool: "true/false"}
    return names.get(type(value), "null")
