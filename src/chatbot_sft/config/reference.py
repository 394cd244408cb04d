"""`python -m chatbot_sft.config.reference > docs/reference.md`: every key and every option, as a page of the site.

Made from the schema, the files of conf/ and the keys that TRL's SFTConfig shares, as `--help` is; tests/test_docs.py
holds docs/reference.md against it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chatbot_sft.config import aliases, sft_arguments
from chatbot_sft.config.key import Bound, Key
from chatbot_sft.config.schema import OVERLAYS, SECTIONS, keys
from chatbot_sft.resources import conf_dir

HEAD = """\
# Every key

<!-- Made by python -m chatbot_sft.config.reference > docs/reference.md; what is written here by hand is lost. -->

The whole configuration, section by section: what `--help` says, as a page. `group.key=value` changes a value,
`group=option` takes a file of `conf/`: [how the two go together](configuration.md).
`python -m chatbot_sft --help lora.r` says the same of one key in a terminal.

- **Default**: of the command. Where a configuration without `conf/` (Python, one YAML file) begins with something
  else, that stands below it.
- **Decides**: whether the key decides what a run learns. Such a key is in its `run.lock.json`, and a run does not
  go on with another value. Where something else stands for it there (the rows themselves, not how they were found),
  that is named.
"""
OURS = re.compile(rf"(?<![\w.])(?:(?:{'|'.join(SECTIONS)})\.[a-z_\d]*[a-z\d]\b(?:=[\w.-]+)?|_target_\b)")
KINDS = {"str": "text", "int": "whole number", "float": "number", "bool": "true or false"}


def page() -> str:
    """The page in Markdown."""
    parts = [HEAD, *(section(name) for name in ("", *SECTIONS)), *map(overlay, OVERLAYS), passed()]
    return "\n".join(parts)


def section(name: str) -> str:
    """The options and keys of one section; those at the top for an empty name."""
    lines = [f"## {f'`{name}`' if name else 'Beside the sections'}", ""]
    found = list(options(name)) if name else []
    if len(found) > 1:
        lines += ["| option | |", "|---|---|", *found, ""]
    lines += ["| key | type and choices | default | | decides |", "|---|---|---|---|---|"]
    lines += [row(key) for key in keys() if key.section == name]
    return "\n".join([*lines, ""])


def overlay(group: str) -> str:
    """The options of a group that reaches into every section."""
    return "\n".join([f"## `{group}`", "", "| option | |", "|---|---|", *options(group), ""])


def options(group: str) -> Iterator[str]:
    """A row for each file of a folder of conf/: its name, and the sentence that it begins with."""
    for file in sorted((conf_dir() / group).glob("*.yaml")):
        yield f"| `{group}={file.stem}` | {escaped(first_comment(file))} |"


def first_comment(file: Path) -> str:
    """What a file of conf/ says of itself, its command as code."""
    lines = file.read_text(encoding="utf-8").splitlines()
    comments: list[str] = []
    for line in lines:
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            comments.append(re.sub(r"(python -m chatbot_sft .*)", r"`\1`", line.lstrip("# ")))
    return " ".join(comments)


def row(key: Key) -> str:
    """| `lora.r` | whole number, 0 to 65,536 | `16` | rank; … | yes |"""
    about = key.about
    cells = [f"`{key.path}`", accepted(key), default(key), text(about.help), decides(key)]
    return f"| {' | '.join(map(escaped, cells))} |"


def accepted(key: Key) -> str:
    if key.about.choices:
        choices = " ".join(code(choice) for choice in key.about.choices)
        return f"{choices} or `null`" if "None" in key.kind else choices
    if key.name == "_target_":
        return "class or function"
    kind = kind_of(key.kind)
    return f"{kind}, {bounds(key.about.bound)}" if key.about.bound else kind


def kind_of(annotation: str) -> str:
    """In words, of a type as the schema writes it."""
    plain = annotation.removesuffix(" | None")
    if plain in KINDS:
        words = KINDS[plain]
    elif plain.startswith("list"):
        words = "list"
    elif plain.startswith("dict"):
        words = "mapping"
    elif plain.startswith("Union[bool, str]"):
        words = "true, false or text"
    else:
        words = "text or list"
    return words if plain == annotation else f"{words}, or `null`"


def bounds(bound: Bound) -> str:
    """`0 to 65,536`, `above 0, up to 1,000`"""
    upper = f"below {number(bound.largest)}" if bound.below else f"up to {number(bound.largest)}"
    if bound.smallest is None:
        return upper
    if bound.above:
        return f"above {number(bound.smallest)}, {upper}"
    if bound.below:
        return f"from {number(bound.smallest)}, {upper}"
    return f"{number(bound.smallest)} to {number(bound.largest)}"


def number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:g}"


def default(key: Key) -> str:
    """Of the command, and of Python where that is another."""
    of_python = code(key.default)
    return f"`{key.about.elsewhere}`<br>Python: {of_python}" if key.about.elsewhere else of_python


def decides(key: Key) -> str:
    if not key.about.decides:
        return "no"
    return f"yes, as *{key.about.through}*" if key.about.through else "yes"


def passed() -> str:
    """The keys that `training` shares with TRL's SFTConfig."""
    effects: dict[str, list[str]] = {}
    for name, effect in sft_arguments.PASSED.items():
        effects.setdefault(effect, []).append(f"`training.{name}`")
    lines = [
        "## Keys of TRL's `SFTConfig`",
        "",
        "`training` takes these under TRL's names; what they mean is in TRL's own documentation.",
        "",
        "| key | changes |",
        "|---|---|",
        *(f"| {' '.join(names)} | {effect} |" for effect, names in effects.items()),
        "",
        "The others are set elsewhere, and a run that is given one says where:",
        "",
        "| key of `SFTConfig` | here |",
        "|---|---|",
    ]
    reasons: dict[str, list[str]] = {}
    for name, reason in sft_arguments.MANAGED.items():
        reasons.setdefault(reason, []).append(f"`{name}`")
    lines += [f"| {' '.join(names)} | {escaped(text(reason))} |" for reason, names in reasons.items()]
    return "\n".join([*lines, ""])


def code(value: Any) -> str:
    return f"`{aliases.plain(value)}`"


def text(words: str) -> str:
    """Help as prose, keys in it as code; what is in angle or square brackets is no tag and no link."""
    return OURS.sub(r"`\g<0>`", words.replace("<", "&lt;").replace("[", "\\["))


def escaped(cell: str) -> str:
    """`|` would end the cell."""
    return cell.replace("|", "\\|")


if __name__ == "__main__":
    print(page(), end="")
