"""Text from data, models and errors, inside Markdown: it shows as it is, and cannot end a table or a quote."""

from __future__ import annotations

import re

from chatbot_sft.report.plain import plain

SYNTAX = re.compile(r"""[\\`*\[\]|<>~]|(?<!\w)_|_(?!\w)|&(?=[#\w]+;)|!(?=\[)""")
LINE_BEGINS = re.compile(r"^(\s*)([#+=-]|\d+(?=[.)]))")


def inline(text: str) -> str:
    """`text` as one line of a paragraph."""
    return SYNTAX.sub(r"\\\g<0>", " ".join(plain(text).split()))


def cell(text: str) -> str:
    """Our own Markdown, with what may stand in it, in a table: one line without a column's border."""
    return re.sub(r"(?<!\\)\|", r"\|", " ".join(plain(text).split()))


def quoted(text: str) -> list[str]:
    """`text` as the lines of a quote."""
    lines = plain(text or "(nothing)").split("\n")
    return [f"> {LINE_BEGINS.sub(_escaped_begin, SYNTAX.sub(_escaped, line).strip())}" for line in lines]


def _escaped(match: re.Match[str]) -> str:
    return f"\\{match[0]}"


def _escaped_begin(match: re.Match[str]) -> str:
    return f"{match[1]}{match[2]}\\" if match[2].isdigit() else f"{match[1]}\\{match[2]}"
