"""One row of a file, as the readers of each kind of file give it."""

from __future__ import annotations

from typing import Any, NamedTuple

Fault = tuple[str, str]  # kind, detail: what is wrong with a row that could be read all the same


class Row(NamedTuple):
    """One row as it stands in its file.

    `number` counts from 1: the item of a JSON list, the line of a JSONL file, the record of a table. A row
    with a `fault` could be read and must not be believed.
    """

    file: str
    number: int
    values: dict[str, Any]
    fault: Fault | None = None

    @property
    def where(self) -> str:
        return f"{self.file}: row {self.number}"
