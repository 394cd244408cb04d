from __future__ import annotations

import os
import sys


def main() -> None:
    """Without the current folder in the search path: a file there may hide what is imported next, and the doctor has
    to say so.
    """
    try:
        here = os.getcwd()  # noqa: PTH109 (pathlib would be imported from there)
    except FileNotFoundError:
        sys.exit("error: the current folder is not there any more; change to one that is")
    sys.path[:] = [folder for folder in sys.path if folder not in ("", here)]
    from chatbot_sft.doctor.command import main as command

    command()


if __name__ == "__main__":
    main()
