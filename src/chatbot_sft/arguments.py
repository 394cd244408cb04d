"""The command lines beside `python -m chatbot_sft`: what is wrong with one is a line, too."""

from __future__ import annotations

import argparse
import os
import sys
from typing import NoReturn

from chatbot_sft.report.plain import shown_line


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        sys.exit(f"error: {shown_line(message)}; --help lists the arguments")


def fail(error: Exception) -> NoReturn:
    """End with `error` in one line on stderr, with HYDRA_FULL_ERROR=1 with its traceback."""
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        raise error
    from chatbot_sft.cli import one_line

    sys.exit(f"error: {one_line(error)}")
