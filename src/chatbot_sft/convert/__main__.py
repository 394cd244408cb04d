"""The command: `python -m chatbot_sft.convert FILE.yaml [--out DIR] [--from PEER] [--strict]`."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from chatbot_sft.arguments import Parser, ended
from chatbot_sft.convert import overlay, page, reading, told
from chatbot_sft.convert.axolotl import AXOLOTL
from chatbot_sft.convert.conversion import Conversion, convert
from chatbot_sft.convert.llama_factory import LLAMA_FACTORY
from chatbot_sft.errors import UserError, listed
from chatbot_sft.report.plain import shown_line

PEERS = {peer.name: peer for peer in (AXOLOTL, LLAMA_FACTORY)}
NOT_CARRIED = 1  # the exit code of --strict


def main() -> None:
    """What goes wrong is a line on stderr, with HYDRA_FULL_ERROR=1 a traceback."""
    arguments = parse()
    code = 0
    with ended():
        code = run(arguments)
    sys.exit(code)


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m chatbot_sft.convert",
        description="A training YAML of Axolotl or LLaMA-Factory as an overlay for this program, with a word"
        " on each of"
        " its keys: what it is here, what changes its meaning, what is not carried and what to do.",
        epilog="docs/coming-from-axolotl.md and docs/coming-from-llama-factory.md have every key.",
    )
    add = parser.add_argument
    add("file", metavar="FILE.yaml", nargs="?", type=Path, help="the training file")
    add(
        "--out",
        metavar="PATH",
        type=Path,
        default=Path("mine"),
        help="a folder for --config-dir, in which experiment/NAME.yaml is written, or that file (%(default)s)",
    )
    add(
        "--from",
        dest="peer",
        choices=PEERS,
        metavar="PEER",
        help="axolotl or llama-factory (told from its keys)",
    )
    add("--overwrite", action="store_true", help="replace an overlay that is there")
    add("--strict", action="store_true", help="exit with 1 where something is not carried")
    add(
        "--keys",
        choices=PEERS,
        metavar="PEER",
        help="print the table of all keys of a peer instead, in Markdown",
    )
    given = parser.parse_args(words)
    if (given.file is None) == (given.keys is None):
        parser.error("name a FILE.yaml, or --keys axolotl")
    return given


def run(arguments: argparse.Namespace) -> int:
    """Print, and write the overlay; the exit code.

    Raises:
        UserError: the file cannot be read, it may be either's, or the overlay is there already.
    """
    if arguments.keys:
        print(page.table(PEERS[arguments.keys]))
        return 0
    file: Path = arguments.file.expanduser()
    values = reading.read(file)
    peer = PEERS[arguments.peer] if arguments.peer else reading.told(values, file, list(PEERS.values()))
    conversion = convert(values, peer, file)
    target = overlay.place(arguments.out.expanduser(), file, peer)
    words = use(target)
    several = conversion.settings.get("training.shard") is True
    command = f"{'torchrun --nproc-per-node 2' if several else 'python'} {words}"
    _write(target, overlay.text(conversion, command), arguments.overwrite)
    for line in told.lines(conversion):
        print(line)
    print(
        f"\nwrote  {shown_line(str(target))}\nlook   python {words} task=check\ntrain  {command}", flush=True
    )
    return _ended(conversion, arguments.strict)


def use(target: Path) -> str:
    """The words of the command that trains with the overlay.

    Raises:
        UserError: it is in no folder called experiment, where the command would not find it, or has a name that Hydra
            does not take or that our own overlays have.
    """
    if target.parent.name != "experiment":
        raise UserError(
            f"--out {target}: an overlay stands in a folder called experiment; write"
            f" --out mine/experiment/{target.stem}.yaml"
        )
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", target.stem):
        raise UserError(f"--out {target}: the name of an overlay has letters, digits, _ and -")
    if overlay.ours(target.stem):
        raise UserError(f"--out {target}: there is an experiment={target.stem} already; take another name")
    folder = shlex.quote(str(target.parent.parent))
    return shown_line(f"-m chatbot_sft --config-dir {folder} experiment={target.stem}")


def _write(target: Path, text: str, overwrite: bool) -> None:
    if target.exists() and not overwrite:
        raise UserError(f"{target}: is there already; --overwrite replaces it, --out names another place")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{error.filename or target}: {error.strerror or error}") from None


def _ended(conversion: Conversion, strict: bool) -> int:
    """Says on stderr what is left over, which `strict` makes an error, and which files are not there."""
    left = [shown_line(line.key) for line in conversion.leftovers]
    for missing in (*conversion.missing, *conversion.absent):
        print(f"warning: {shown_line(missing)}", file=sys.stderr)
    if left:
        print(f"warning: not carried: {listed(left, 20)}", file=sys.stderr)
    return NOT_CARRIED if strict and (left or conversion.missing) else 0


if __name__ == "__main__":
    main()
