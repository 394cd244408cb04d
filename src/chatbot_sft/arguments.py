"""The command lines beside `python -m chatbot_sft`: what is wrong with one is a line, too, and how they end."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from typing import NoReturn

from chatbot_sft.report.plain import shown_line


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        sys.exit(f"error: {shown_line(message)}; --help lists the arguments")


@contextlib.contextmanager
def ended() -> Iterator[None]:
    """What goes wrong within it ends the program with a line on stderr, see `fail`; Ctrl-C and a reader that has read
    enough end it without one.
    """
    try:
        yield
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        read_enough()
    except Exception as error:
        fail(error)


def read_enough() -> None:
    """Whoever read standard output (`| head`) has enough of it, which is no error; nothing more is written there."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def fail(error: Exception) -> NoReturn:
    """End with `error` in one line on stderr, with HYDRA_FULL_ERROR=1 with its traceback."""
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        raise error
    from chatbot_sft.cli import one_line

    sys.exit(f"error: {one_line(error)}")
