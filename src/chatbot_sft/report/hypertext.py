"""Text from data, models and errors, inside a page: it shows as it is, and nothing of it can run."""

from __future__ import annotations

import base64
import hashlib
import html

from chatbot_sft.report.masking import masked

# What a browser would drop, what would turn the text after it around, and half characters, which no file can hold,
# are shown as a sign of their own.
_CONTROLS = {
    *range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A),
    *range(0xD800, 0xE000),
}  # fmt: skip
_VISIBLE = {code: f"[U+{code:04X}]" for code in _CONTROLS if chr(code) not in "\t\n"}


def escaped(text: str) -> str:
    return html.escape(text.translate(_VISIBLE))


def said(text: str) -> str:
    """`escaped`, without secrets."""
    return escaped(masked(text))


def hash_of(script: str) -> str:
    """By which a page says that this very script may run, and no other."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
