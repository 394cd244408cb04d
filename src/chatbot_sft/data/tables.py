"""Rows of Parquet and Arrow files: record batches, their cells as JSON would have them."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from chatbot_sft.data.row import Row
from chatbot_sft.data.streams import ARROW_FILE, CHUNK, ByteStream
from chatbot_sft.errors import UserError, listed, reason

if TYPE_CHECKING:
    import pyarrow

Cell = Callable[[Any], Any]
ROWS, BYTES = 1000, 32 << 20  # of a Parquet file that are in memory at a time


def parquet_rows(name: str, stream: ByteStream, longest: int) -> Iterator[Row]:
    """Each row.

    Raises:
        UserError: the file is damaged, or a row has more than `longest` bytes.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(stream, buffer_size=CHUNK)
        groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
        averages = [group.total_byte_size // group.num_rows for group in groups if group.num_rows]
        average = max(averages, default=0)
        if average > longest:
            raise _too_long(f"{name}: a row", longest)
        at_a_time = max(1, min(ROWS, BYTES // max(average, 1)))
        yield from table_rows(name, file.iter_batches(batch_size=at_a_time), longest)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(
            f"{name}: not a whole Parquet file ({reason(error)}); copy or write it again"
        ) from None


def arrow_rows(name: str, stream: ByteStream, longest: int) -> Iterator[Row]:
    """Each row of an Arrow file or stream.

    Raises:
        UserError: the file is damaged, or a row has more than `longest` bytes.
    """
    import pyarrow

    try:
        if isinstance(stream, io.BufferedReader) and isinstance(stream.raw, io.FileIO):
            stream = pyarrow.memory_map(stream.name)  # a batch may be the whole file
        if stream.read(len(ARROW_FILE)) == ARROW_FILE:
            file = pyarrow.ipc.open_file(stream)
            batches = (file.get_batch(index) for index in range(file.num_record_batches))
        else:
            stream.seek(0)
            batches = iter(pyarrow.ipc.open_stream(stream))
        yield from table_rows(name, map(_validated, batches), longest)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{name}: not a whole Arrow file ({reason(error)}); copy or write it again") from None


def _validated(batch: pyarrow.RecordBatch) -> pyarrow.RecordBatch:
    """Arrow believes the offsets in a file: a wrong one is text from elsewhere in memory, or a crash."""
    batch.validate(full=True)
    return batch


def table_rows(name: str, batches: Iterable[pyarrow.RecordBatch], longest: int) -> Iterator[Row]:
    """Record batches as rows; a cell that is null counts as absent, as a missing key of a JSON object does."""
    numbers = itertools.count(1)
    for batch in batches:
        cell = _struct(name, zip(batch.schema.names, batch.schema.types, strict=True))
        for rows in _in_parts(name, batch, longest):
            for values in rows.to_pylist():
                yield Row(name, next(numbers), cell(values))


def _in_parts(name: str, batch: pyarrow.RecordBatch, longest: int) -> Iterator[pyarrow.RecordBatch]:
    """Slices to be turned into objects; one row each where a row may be too long, or has a dictionary."""
    import pyarrow

    encoded = [index for index, kind in enumerate(batch.schema.types) if pyarrow.types.is_dictionary(kind)]
    if batch.nbytes <= longest and not encoded:
        for start in range(0, batch.num_rows, ROWS):
            yield batch.slice(start, ROWS)
        return
    for start in range(batch.num_rows):
        row = batch.slice(start, 1)
        for index in encoded:
            row = row.set_column(index, row.schema.names[index], row.column(index).dictionary_decode())
        if row.nbytes > longest:
            columns = listed(repr(column) for column in row.schema.names)
            raise _too_long(f"{name}: a row with {columns}", longest)
        yield row


def _too_long(where: str, longest: int) -> UserError:
    return UserError(
        f"{where} has over {longest / 1e6:g} million bytes, the most that dataset.max_row_mb allows; raise it"
    )


def _cell(name: str, kind: pyarrow.DataType) -> Cell | None:
    """What turns a value of `kind` into what JSON would have; None where it is that already."""
    from pyarrow import types

    if types.is_struct(kind):
        return _struct(name, ((field.name, field.type) for field in kind))
    if types.is_map(kind):
        return _map_of(_cell(name, kind.item_type) or _same)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        item = _cell(name, kind.value_type)
        return None if item is None else _list_of(item)
    if types.is_dictionary(kind):
        return _cell(name, kind.value_type)
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
        return _text
    if str(kind) == "extension<arrow.json>":
        return lambda value: value if value is None else json.loads(value)
    return None


def _map_of(cell: Cell) -> Cell:
    """Pairs as a dictionary."""
    return lambda value: value if value is None else {key: cell(item) for key, item in value}


def _list_of(cell: Cell) -> Cell:
    return lambda value: value if value is None else [cell(item) for item in value]


def _struct(name: str, fields: Iterable[tuple[str, pyarrow.DataType]]) -> Cell:
    """All rows of a table share one struct: the keys that a row does not have are null, and left out again."""
    cells: dict[str, Cell] = {}
    for key, kind in fields:
        if key in cells:
            raise UserError(f"{name}: two columns are called {key!r}; rename one of them")
        cells[key] = _cell(name, kind) or _same

    def without_nulls(values: Mapping[str, Any] | None) -> dict[str, Any] | None:
        if values is None:
            return None
        # NaN, which is not equal to itself, is no value either.
        given = {key: value for key, value in values.items() if value is not None and value == value}
        return {key: cells[key](value) for key, value in given.items()}

    return without_nulls


def _same(value: Any) -> Any:
    return value


def _text(value: Any) -> Any:
    """Text that a writer did not mark as text, as Spark leaves it; what is no UTF-8 stays bytes."""
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        return value
