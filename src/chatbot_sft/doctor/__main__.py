from __future__ import annotations

import os
import sys


def main() -> None:
    """Without the current folder in the search path: a file there may hide what is imported next, and the doctor has
    to say so.
    """
    here = os.getcwd() if os.path.isdir(".") else ""  # noqa: PTH109, PTH112 (pathlib would be imported from there)
    sys.path[:] = [folder for folder in sys.path if folder not in ("", here)]
    from chatbot_sft.doctor.command import main as command

    command()


if __name__ == "__main__":
    main()
