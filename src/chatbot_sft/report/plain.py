"""Text from elsewhere, made safe to show: what a terminal or an editor would obey is written as an escape."""

from __future__ import annotations

import re

from chatbot_sft.report.masking import masked

# C0 and C1 controls but tab and newline, DEL, line and paragraph separators, the bidirectional embeddings,
# overrides and isolates, half characters.
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
COLOURS = re.compile(r"\x1b\[[0-9;:]*m")


def plain(text: str) -> str:
    r"""`text` with `\x1b` in place of the escape character, and so on; lines and tabs stay."""
    return OBEYED.sub(_written_out, text.replace("\r\n", "\n"))


def plain_line(text: str) -> str:
    r"""`plain` in one line, with `\n` and `\t` written out: a file name may hold both."""
    return plain(text).replace("\n", "\\n").replace("\t", "\\t")


def shown(text: str) -> str:
    """`text` as it may reach a terminal or a log: `plain`, and without secrets."""
    return plain(masked(text))


def shown_line(text: str) -> str:
    """`plain_line` without secrets."""
    return plain_line(masked(text))


def uncoloured(text: str) -> str:
    """What a library wrote for a terminal, without its colours."""
    return COLOURS.sub("", text)


def _written_out(match: re.Match[str]) -> str:
    code = ord(match[0])
    if match[0] == "\r":
        return "\\r"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
