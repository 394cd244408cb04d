"""The table of docs/coming-from-*.md: what becomes of each key of a peer, from the table that converts it."""

from __future__ import annotations

from collections.abc import Iterator

from chatbot_sft.convert.peer import Peer
from chatbot_sft.convert.rules import NOTHING, Rule

BEGIN, END = "<!-- keys: made by python -m chatbot_sft.convert --keys -->", "<!-- end of keys -->"


def table(peer: Peer) -> str:
    """Markdown: a table for each part."""
    return "\n".join(_lines(peer))


def _lines(peer: Peer) -> Iterator[str]:
    yield BEGIN
    for part, rules in peer.parts.items():
        yield from ["", f"### {part[0].upper()}{part[1:]}", "", f"| {peer.title} | here | |", "|---|---|---|"]
        yield from map(_row, rules)
    yield from ["", END]


def _row(rule: Rule) -> str:
    theirs = " ".join(f"`{name}`" for name in rule.names)
    default = "" if rule.default in (NOTHING, None) else f"default there `{_plain(rule.default)}`"
    says = rule.says.replace("|", "\\|")
    return f"| {theirs} | {rule.here} | {'; '.join(filter(None, (says, default)))} |"


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value}"
