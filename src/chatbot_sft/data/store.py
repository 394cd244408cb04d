"""Tokenised rows on disk: written once as an Arrow stream, mapped by every later run and the jobs of a sweep."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatbot_sft.cache import cached
from chatbot_sft.data.encode import EncodedRow, in_batches, text_hash
from chatbot_sft.data.labels import IGNORED

if TYPE_CHECKING:
    import numpy as np
    import pyarrow

ROWS, ABOUT = "rows.arrow", "about.json"
# Raise it with every change by which the same data, tokenizer and options become another entry: all are then
# made anew.
VERSION = 5
BATCH = 256  # rows per record batch


@dataclass(frozen=True)
class Entry:
    """An opened entry: `file` holds the rows, `about` what was found while they were made."""

    file: Path
    about: dict[str, Any]
    reused: bool
    scratch: tempfile.TemporaryDirectory[str] | None = None  # where they are for this process alone

    def table(self) -> pyarrow.Table:
        """The rows, mapped: columns are read from disk as they are asked for."""
        import pyarrow

        return pyarrow.ipc.open_stream(pyarrow.memory_map(str(self.file))).read_all()


def numbers(table: pyarrow.Table, name: str) -> np.ndarray:
    """A column of numbers, shape (rows,).

    Through DLPack: pyarrow's own conversion imports pandas, which takes longer than all the rest.
    """
    import numpy as np

    return np.from_dlpack(table.column(name).combine_chunks())


def flat(table: pyarrow.Table, name: str) -> np.ndarray:
    """A column of lists of numbers, shape (rows, length of each), which all have."""
    import numpy as np

    chunks = [np.from_dlpack(chunk.values) for chunk in table.column(name).chunks]
    return np.concatenate(chunks).reshape(len(table), -1) if chunks else np.zeros((0, 1), np.int32)


def sequences(table: pyarrow.Table, limit: int) -> np.ndarray:
    """The tokens of each sequence as it is trained, cut at `limit`, shape (rows, sequences in a row)."""
    import numpy as np

    if "parts" in table.column_names:
        return flat(table, "parts")
    return np.minimum(numbers(table, "length"), limit)[:, None]


def open_or_build(key: str, build: Callable[[Path], dict[str, Any]]) -> Entry:
    """The entry of `key`; where there is no whole one, `build(rows_file)` makes it and returns its `about`."""

    def fill(folder: Path) -> None:
        about = build(folder / ROWS)
        (folder / ABOUT).write_text(json.dumps(about, ensure_ascii=False), encoding="utf-8")

    folder, reused = cached("data", key, fill, "data: the cached rows")
    return Entry(folder / ROWS, json.loads((folder / ABOUT).read_text(encoding="utf-8")), reused)


def schema(parted: bool) -> pyarrow.Schema:
    """One row per conversation (or piece of one); `input_ids` and `labels` have one entry a token. Where rows are
    `parted`, several sequences stand end to end in each.
    """
    import pyarrow as pa

    of_parts: dict[str, pyarrow.DataType] = {
        "parts": pa.large_list(pa.int32()),  # tokens of each
        "kinds": pa.large_list(pa.large_string()),
        "trained_of_parts": pa.large_list(pa.int32()),
        "characters_of_parts": pa.large_list(pa.int32()),
        # Hash of what the parts say, each as what it is, and of the same the other way round.
        "said": pa.uint64(),
        "opposite": pa.uint64(),
    }
    return pa.schema(
        {
            "text": pa.large_string(),
            "input_ids": pa.large_list(pa.int32()),
            "labels": pa.large_list(pa.int32()),
            "opening": pa.large_string(),  # JSON: the messages before the first answer
            "messages": pa.large_string(),  # JSON: all of them
            "file": pa.large_string(),
            "row": pa.int64(),
            "length": pa.int32(),  # tokens before any cut
            "trained": pa.int32(),  # tokens with a label
            "bad": pa.uint8(),  # the gate found something wrong with it
            "truncated": pa.uint8(),
            "uses": pa.int32(),  # how often the mixture takes it
            "held_out": pa.uint8(),  # comes from dataset.eval_data_path
            # Hash of the text, its length and what is trained of it: equal for exact duplicates.
            "identity": pa.uint64(),
            "dialogue": pa.uint64(),  # hash of what is said, whatever the system prompt, case and white space
            **(of_parts if parted else {}),
        }
    )


def write_rows(file: Path, rows: Iterator[tuple[EncodedRow, bool]], parted: bool = False) -> None:
    """Write (row, held out) as they come; at most `BATCH` rows are in memory, fewer where they are long."""
    import pyarrow as pa

    layout = schema(parted)
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, layout) as writer:
        for batch in in_batches(rows, BATCH, lambda item: len(item[0].text)):
            columns = _columns(batch) + (_columns_of_parts([row for row, _ in batch]) if parted else [])
            writer.write_batch(pa.record_batch(columns, schema=layout))


def _columns(batch: Sequence[tuple[EncodedRow, bool]]) -> list[pyarrow.Array]:
    """The columns of `schema` for some rows."""
    import numpy as np
    import pyarrow as pa

    rows = [row for row, _ in batch]
    sizes = [len(row.input_ids) for row in rows]
    begins = np.cumsum([0, *sizes], dtype=np.int64)
    ids = np.fromiter(itertools.chain.from_iterable(row.input_ids for row in rows), np.int32, begins[-1])
    labels = np.full(len(ids), IGNORED, np.int32)
    for row, begin in zip(rows, begins.tolist(), strict=False):
        for first, last in row.trained:
            labels[begin + first : begin + last] = ids[begin + first : begin + last]
    return [
        _strings([row.text for row in rows]),
        _lists(begins, ids),
        _lists(begins, labels),
        _strings([json.dumps(row.opening, ensure_ascii=False) for row in rows]),
        _strings([json.dumps(row.messages, ensure_ascii=False) for row in rows]),
        _strings([row.file for row in rows]),
        _numbers([row.row for row in rows], pa.int64()),
        _numbers([row.length for row in rows], pa.int32()),
        _numbers([sum(last - first for first, last in row.trained) for row in rows], pa.int32()),
        _numbers([bool(row.problems) for row in rows], pa.uint8()),
        _numbers([row.truncated for row in rows], pa.uint8()),
        _numbers([row.uses for row in rows], pa.int32()),
        _numbers([held_out for _, held_out in batch], pa.uint8()),
        _numbers([text_hash(f"{row.trained} {len(row.input_ids)} {row.text}") for row in rows], pa.uint64()),
        _numbers([row.dialogue for row in rows], pa.uint64()),
    ]


def _columns_of_parts(rows: Sequence[EncodedRow]) -> list[pyarrow.Array]:
    """The columns of a parted `schema` beside these."""
    import numpy as np
    import pyarrow as pa

    parts = [part for row in rows for part in row.parts]
    begins = np.cumsum([0, *(len(row.parts) for row in rows)], dtype=np.int64)

    def numbers(values: list[int]) -> pyarrow.Array:
        return _lists(begins, np.array(values, np.int32))

    return [
        numbers([part.tokens for part in parts]),
        _lists_of(begins, _strings([part.kind for part in parts])),
        numbers([part.trained for part in parts]),
        numbers([part.characters for part in parts]),
        _numbers([row.said for row in rows], pa.uint64()),
        _numbers([row.opposite for row in rows], pa.uint64()),
    ]


# Arrow arrays from their buffers: `pyarrow.array` would import pandas, which takes longer than the gate.


def _numbers(values: Sequence[int], kind: pyarrow.DataType) -> pyarrow.Array:
    import numpy as np
    import pyarrow as pa

    array = np.array(values, kind.to_pandas_dtype())
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(array)])


def _strings(values: Sequence[str]) -> pyarrow.Array:
    import numpy as np
    import pyarrow as pa

    parts = [value.encode() for value in values]
    offsets = np.cumsum([0, *map(len, parts)], dtype=np.int64)
    return pa.Array.from_buffers(
        pa.large_string(), len(parts), [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(parts))]
    )


def _lists(begins: np.ndarray, values: np.ndarray) -> pyarrow.Array:
    import pyarrow as pa

    return _lists_of(begins, pa.Array.from_buffers(pa.int32(), len(values), [None, pa.py_buffer(values)]))


def _lists_of(begins: np.ndarray, values: pyarrow.Array) -> pyarrow.Array:
    import pyarrow as pa

    kind = pa.large_list(values.type)
    return pa.Array.from_buffers(kind, len(begins) - 1, [None, pa.py_buffer(begins)], children=[values])
