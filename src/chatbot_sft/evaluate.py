"""`python -m chatbot_sft.evaluate --export inspect FILE`, or `lm-eval`: the cases of a golden file for an evaluation
framework.

Benchmarks and agents are their work; golden answers are `python -m chatbot_sft task=evaluate`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from chatbot_sft.arguments import Parser, ended
from chatbot_sft.errors import UserError
from chatbot_sft.evaluation import cases, inspect_dataset, lm_eval_task
from chatbot_sft.report.plain import shown_line


def main() -> None:
    """Write the dataset to the terminal, or to `--output`. What goes wrong is a line on stderr."""
    parser = Parser(
        prog="python -m chatbot_sft.evaluate",
        description="Write the cases of a golden file for another evaluation framework; to put them to a model:"
        " python -m chatbot_sft task=evaluate run=RUN evaluation.golden=FILE",
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="the golden file")
    parser.add_argument(
        "--export",
        choices=["inspect", "lm-eval"],
        required=True,
        help="a JSON dataset of Inspect, or a task of the lm-evaluation-harness",
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        type=Path,
        help="where it goes, a folder for lm-eval; the terminal, where none is named",
    )
    arguments = parser.parse_args()
    if arguments.export == "lm-eval" and arguments.output is None:
        parser.error("--export lm-eval writes several files: name a new folder with --output")
    with ended():
        read = cases.read(arguments.file)
        if arguments.export == "lm-eval":
            for line in lm_eval_task.write(read, arguments.output):
                print(shown_line(f"left out: {line}"), file=sys.stderr)
            return
        text = inspect_dataset.as_text(read)
        if arguments.output is None:
            sys.stdout.write(text)
        else:
            write(arguments.output, text)


def write(file: Path, text: str) -> None:
    """Raises UserError where there is a file already, or none can be written."""
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise UserError(f"{file}: is there already; name another file") from None
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from None


if __name__ == "__main__":
    main()
