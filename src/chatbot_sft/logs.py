"""What a person sees while a run goes on, and what run.log keeps: everything, third-party chatter too."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from chatbot_sft.report.masking import masked
from chatbot_sft.report.plain import plain_line, shown, uncoloured

THIRD_PARTY = logging.getLogger("third_party")
_displayed: set[str] | None = None  # where one display shows all runs: the warnings that were told


@contextlib.contextmanager
def one_display() -> Iterator[None]:
    """Within it one display shows how far all runs of this process are: they draw no bars, and tell nothing but
    warnings, each once. Their run.log keeps all of it.
    """
    global _displayed
    before, _displayed = _displayed, set()
    try:
        yield
    finally:
        _displayed = before


def displayed() -> bool:
    """Whether a display of all runs shows how far each is."""
    return _displayed is not None


def _told(record: logging.LogRecord) -> bool:
    """Whether a line of ours goes to the terminal."""
    if record.exc_info is not None:
        return False
    if _displayed is None:
        return True
    if record.levelno < logging.WARNING or (text := record.getMessage()) in _displayed:
        return False
    _displayed.add(text)
    return True


@contextlib.contextmanager
def run_log(target: Path, first: bool = True) -> Iterator[None]:
    """Within it, our lines go to the terminal and every logger's to the file `target`.

    In a process that is not the run's `first` they go nowhere.
    """
    root, ours = logging.getLogger(), logging.getLogger("chatbot_sft")
    if not first:
        silent = logging.NullHandler()
        root.addHandler(silent)
        try:
            yield
        finally:
            root.removeHandler(silent)
        return
    file = logging.FileHandler(target, encoding="utf-8")
    file.setFormatter(Shown("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setFormatter(Shown("%(message)s"))
    terminal.addFilter(_told)
    before, shown_before = root.level, warnings.showwarning
    root.setLevel(logging.INFO)
    root.addHandler(file)
    ours.addHandler(terminal)
    # Not logging.captureWarnings: that is one switch for the process, and two runs may take turns in it.
    warnings.showwarning = _log_warning
    try:
        yield
    finally:
        warnings.showwarning = shown_before
        ours.removeHandler(terminal)
        root.removeHandler(file)
        root.setLevel(before)
        file.close()


def kept() -> Callable[[], None]:
    """Who gets log records and warnings now; returns what makes it so again."""
    loggers = [logging.getLogger(), logging.getLogger("chatbot_sft")]
    before = [(logger, list(logger.handlers), logger.level) for logger in loggers]
    showing = warnings.showwarning

    def again() -> None:
        for logger, handlers, level in before:
            for handler in [one for one in logger.handlers if one not in handlers]:
                logger.removeHandler(handler)
            for handler in handlers:
                logger.addHandler(handler)
            logger.setLevel(level)
        warnings.showwarning = showing

    return again


def _log_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    logging.getLogger("py.warnings").warning(
        "%s", warnings.formatwarning(message, category, filename, lineno, line)
    )


class MaskedStream(io.TextIOBase):
    """`stream` without secrets, for what others write there: Hydra names a failing job by its overrides."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(masked(text))
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()


class Shown(logging.Formatter):
    """Records without secrets and what a terminal would obey, tracebacks too; a message of ours is a line."""

    def format(self, record: logging.LogRecord) -> str:
        return shown(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:
        if record.name.startswith("chatbot_sft"):
            record.message = plain_line(record.message)
        return super().formatMessage(record)


@contextlib.contextmanager
def quiet(*, progress: bool = False) -> Iterator[None]:
    """Send what libraries print to run.log. `progress=True` leaves stderr alone, for download bars."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(_LogWriter()))
        if not progress or displayed():
            stack.enter_context(contextlib.redirect_stderr(_LogWriter()))
        yield


class _LogWriter(io.TextIOBase):
    def __init__(self) -> None:
        self._rest = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self._rest = uncoloured(self._rest + text).replace("\r", "\n").split("\n")
        for line in filter(str.strip, lines):
            THIRD_PARTY.info("%s", line.rstrip())
        return len(text)
