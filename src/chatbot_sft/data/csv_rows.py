"""Rows of CSV and TSV files, as spreadsheets and pandas write them."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterator

from chatbot_sft.data import streams
from chatbot_sft.data.row import Fault, Row
from chatbot_sft.errors import UserError, listed


def rows(name: str, stream: streams.ByteStream, longest: int) -> Iterator[Row]:
    """Each record.

    Raises:
        UserError: not CSV, records that do not fit the header, or one of more than `longest` characters.
    """
    number, size, names = 0, 0, None

    def counted(lines: Iterator[str]) -> Iterator[str]:
        """A record may run over many lines: a quote that is not closed must not fill the memory."""
        nonlocal size
        for line in lines:
            size += len(line)
            if size > longest:
                raise streams.RowTooLong
            yield line

    csv.field_size_limit(longest)  # csv's own limit of 128 KiB is below a long conversation
    lines = counted(streams.lines(streams.text(name, stream), longest))
    reader = None
    try:
        header = next((line for line in lines if line.strip()), "")
        delimiter = _delimiter(name, header)
        if header.startswith("sep="):  # Excel's own first line
            header = next(lines, "")
        if not header.strip():
            return
        # "a, b" is a habit of people; csv itself would keep the space, and the quote after it.
        spaced = f"{delimiter} " in header and header.count(delimiter) == header.count(f"{delimiter} ")
        reader = csv.reader(
            itertools.chain([header], lines), delimiter=delimiter, strict=True, skipinitialspace=spaced
        )
        names = _names(name, next(reader))
        size = 0
        for number, fields in enumerate(reader, 1):
            size = 0
            if not fields:
                continue
            if fault := _fault(fields, names, reader.line_num):
                yield Row(name, number, {}, fault)
                continue
            named = zip(names, fields, strict=True)
            yield Row(name, number, {column: field for column, field in named if column is not None})
    except streams.RowTooLong:
        where = f"row {number + 1}" if names else "the header"
        raise UserError(
            f"{name}: {where} has over {longest / 1e6:g} million characters,"
            " the most that dataset.max_row_mb allows; is a quote missing?"
        ) from None
    except csv.Error as error:
        raise UserError(
            f"{name}: row {number + 1} (line {reader.line_num if reader else 1}) is not CSV: {error};"
            " is a quote missing?"
        ) from None


def _fault(fields: list[str], names: list[str | None], line: int) -> Fault | None:
    """Why `fields`, which end in `line`, are no row of these columns."""
    if len(fields) != len(names):
        detail = f"{len(fields)} fields, the header has {len(names)}: text with commas or line breaks has to"
        return "fields beside the header", f'line {line} has {detail} stand in "quotes"'
    if any(field.strip() for field, column in zip(fields, names, strict=True) if column is None):
        return "fields beside the header", f"line {line} has text in a column that the header gives no name"
    return None


def _delimiter(name: str, header: str) -> str:
    if told := re.fullmatch(r"sep=(.)\r?\n", header):
        return told[1]
    bare = re.sub(r'"[^"]*"', "", header)
    order = "\t,;" if ".tsv" in name.lower() else ",;\t"
    return max(order, key=bare.count)


def _names(name: str, header: list[str]) -> list[str | None]:
    """The columns' names; None for one without a name, as trailing commas make them."""
    names = [column.strip() for column in header]
    doubled = [column for column in dict.fromkeys(names) if column and names.count(column) > 1]
    if doubled:
        raise UserError(f"{name}: the header has {listed(map(repr, doubled))} twice; rename one of them")
    index_of_pandas = names[0] == "" and names.count("") == 1
    return [column if column or index_of_pandas else None for column in names]
