"""`--json`: one object on standard output, and nothing else there, whatever is printed meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

FLAG = "--json"


@contextlib.contextmanager
def answering(asked: bool) -> Iterator[dict[str, Any]]:
    """Yields the object to fill. Where it is `asked` for it is printed at the end, in one line and without secrets,
    however this ends: a command that fails ends with its line as `error`, and its exit code as ever.

    Within it, what this process, its libraries and those it starts write to standard output goes to standard error.
    """
    values: dict[str, Any] = {}
    if not asked:
        yield values
        return
    with _set_aside() as output:
        try:
            yield values
        except BaseException as ending:
            if said := _said(ending):
                values["error"] = said
            _write({"error": None, **values}, output)
            raise
        _write({"error": None, **values}, output)


def _said(ending: BaseException) -> str | None:
    """What ended the command; None where a number alone did, which may be a verdict."""
    if isinstance(ending, KeyboardInterrupt):
        return "interrupted"
    if not isinstance(ending, SystemExit):
        return f"{type(ending).__name__}: {ending}"
    return ending.code.removeprefix("error: ") if isinstance(ending.code, str) else None


@contextlib.contextmanager
def _set_aside() -> Iterator[TextIO]:
    """Standard output, which is standard error for everybody else meanwhile."""
    sys.stdout.flush()
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as output:
        os.dup2(2, 1)
        try:
            yield output
        finally:
            with contextlib.suppress(OSError):
                sys.stdout.flush()
            os.dup2(output.fileno(), 1)


def _write(values: dict[str, Any], output: TextIO) -> None:
    from chatbot_sft.report.masking import masked
    from chatbot_sft.run.report import finite

    text = json.dumps(finite(masked(values)), ensure_ascii=False, allow_nan=False)
    with contextlib.suppress(BrokenPipeError):
        output.write(text.encode(errors="backslashreplace").decode() + "\n")
        output.flush()
