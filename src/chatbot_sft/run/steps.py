"""steps.jsonl: what each optimizer step of a run came to, a line each, in the numbers that were computed."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from chatbot_sft.run.report import finite

log = logging.getLogger(__name__)


class StepLog:
    """Writes them. A full disk is no reason to stop; then, and without a `file`, nothing is kept."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._open: TextIO | None = None

    def begin(self, step: int) -> None:
        """A start goes on behind `step`: what an earlier one wrote up to there stays, and no more than that."""
        if self._file is None:
            return
        kept = [figures for figures in read(self._file) if figures["step"] <= step] if step else []
        temporary = self._file.with_suffix(".new")
        try:
            temporary.write_text("".join(map(_line, kept)), encoding="utf-8")
            temporary.replace(self._file)
            self._open = self._file.open("a", encoding="utf-8", buffering=1)
        except OSError as error:
            self._give_up(error)

    def add(self, step: int, **figures: float) -> None:
        """`loss` (nats per trained token), `grad_norm` (before clipping), `learning_rate`, and an objective's."""
        if self._open is None:
            return
        try:
            self._open.write(_line({"step": step, **figures}))
        except OSError as error:
            self._give_up(error)

    def end(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None

    def _give_up(self, error: OSError) -> None:
        self._open = None
        log.warning("steps: %s: %s; the steps of this run are not kept", self._file, error.strerror or error)


def _line(figures: Mapping[str, Any]) -> str:
    return json.dumps(finite(dict(figures))) + "\n"


def read(file: Path) -> list[dict[str, Any]]:
    """The steps in `file`, or evaluations, in their order; a line that was cut off, is not UTF-8, or is no record, is
    passed by. An answer may hold what else ends a line for `str.splitlines`.
    """
    try:
        lines = file.read_bytes().split(b"\n") if file.is_file() else []
    except OSError:
        return []
    return [figures for line in lines if (figures := _figures(line)) is not None]


def _figures(line: bytes) -> dict[str, Any] | None:
    try:
        figures = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return figures if isinstance(figures, dict) and isinstance(figures.get("step"), int) else None
