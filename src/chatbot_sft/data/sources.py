"""Where rows come from: files, folders, globs and hub ids, as a stream: never a whole file in memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

from chatbot_sft.data import csv_rows, json_rows, streams, tables
from chatbot_sft.data.files import TRAIN, data_files
from chatbot_sft.data.row import Row
from chatbot_sft.errors import UserError
from chatbot_sft.network import allow_network

MAX_ROW_MB = 10.0  # a million tokens are about 5


def read_rows(path: str, split: str = TRAIN, max_row_mb: float = MAX_ROW_MB) -> Iterator[Row]:
    """Rows of every file of `split` that `path` names (see `data_files`), as a stream.

    Raises:
        UserError: no such file, damaged or not what its name says, not UTF-8, a row that is too long, or no
            rows; names the file and, where there is one, the row.
    """
    for file in data_files(path, split):
        yield from read_file(file, max_row_mb)


def read_file(file: Path, max_row_mb: float = MAX_ROW_MB) -> Iterator[Row]:
    """Rows of one JSON, JSONL, CSV, TSV, Parquet or Arrow file, compressed or not; of a zip file those in it."""
    readers = {
        "json": json_rows.rows,
        "csv": csv_rows.rows,
        "parquet": tables.parquet_rows,
        "arrow": tables.arrow_rows,
    }
    with streams.opened(file) as members:
        for name, opened in members:
            kind, stream = streams.kind(name, opened)
            rows = readers[kind](name, stream, int(max_row_mb * 1e6))
            first = next(rows, None)
            if first is None:
                raise UserError(f"{name}: no conversations in it; is it the right file?")
            yield from itertools.chain([first], rows)


def read_hub(
    name: str, config_name: str | None, split: str, revision: str | None, max_row_mb: float = MAX_ROW_MB
) -> tuple[Iterator[Row], str]:
    """(rows, fingerprint) of a dataset on the Hugging Face hub, through `datasets`.

    Raises:
        UserError: it cannot be had.
    """
    allow_network(True)
    import datasets

    try:
        rows = datasets.load_dataset(name, config_name, split=split, revision=revision)
    except Exception as error:  # the hub client, the builder and the file readers raise types of their own
        why = " ".join(str(error).split())[:300]
        raise UserError(
            f"{name}: cannot be had from the Hugging Face hub ({why});"
            " a local file or folder works without a network"
        ) from error
    label = f"{name}[{split}]"
    batches = (batch for table in rows.with_format("arrow").iter(tables.ROWS) for batch in table.to_batches())
    return tables.table_rows(label, batches, int(max_row_mb * 1e6)), rows._fingerprint
