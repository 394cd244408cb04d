"""Secrets in a text: tokens and keys by their shape, and what stands behind a word like password."""

from __future__ import annotations

import re
from collections.abc import Iterator

from chatbot_sft.report.token_shapes import HINTS, TOKEN

Span = tuple[int, int]
_VALUE = r"[^\s'\"`<>()\[\]{}$*,;|\\]"
# user and password in an address; what a request's header says.
ADDRESS = re.compile(
    r"(?<=://)(?:[^/\s@:'\"<>{}\[\]$]{1,64}:(?!\d+[/\s]))(?P<value>[^\s'\"@/<>{}\[\]$*]{3,128})(?=@)"
)
BEARER = re.compile(r"\bBearer (?P<value>(?=[\w.~+/=-]*\d)[\w.~+/=-]{20,})")
ASSIGNED = re.compile(
    r"(?:passw(?:or)?d|passphrase|pwd|secret|api[_ -]?key|(?:access|secret|private|account)[_ -]?key"
    r"|(?:auth|access|refresh|bearer|api)[_ -]?token|token|mật khẩu|mot de passe|contraseña|passwort|kennwort)"
    rf"['\"`]?\s?(?:=>|:=|[:=])\s?['\"`]?(?P<value>{_VALUE}{{6,128}})(?!\()",
    re.IGNORECASE,
)
SPOKEN = re.compile(
    r"(?:password|passphrase|passcode|mật khẩu|mot de passe|contraseña|passwort|kennwort)(?: của \w+)?"
    rf" (?:is|was|là|ist|lautet|est|es) ['\"“]?(?P<value>(?=\S*[A-Za-z]){_VALUE}{{6,128}})",
    re.IGNORECASE,
)
ASSIGNED_HINTS = (
    "assw", "ASSW", "assphrase", "ASSPHRASE", "pwd", "PWD", "ecret", "ECRET", "key", "Key", "KEY", "oken", "OKEN",
    "ật khẩu", "mot de passe", "ontraseña", "ennwort",
)  # fmt: skip
EXAMPLE = re.compile(
    r"your|example|placeholder|change_?me|x{4}|\.{3}|password|secret|environ|process\.", re.IGNORECASE
)


_ALL_HINTS = (*HINTS, *ASSIGNED_HINTS, "Bearer ")


def may_hold_secrets(text: str) -> bool:
    """False where certainly none is in it; quick."""
    return _has(text, _ALL_HINTS) or ("://" in text and "@" in text)


def secrets(text: str) -> Iterator[Span]:
    """Where they are, without what names them."""
    if _has(text, HINTS):
        yield from (match.span() for match in TOKEN.finditer(text))
    if "://" in text and "@" in text:
        yield from (match.span("value") for match in ADDRESS.finditer(text) if _real(match["value"]))
    if "Bearer " in text:
        yield from (match.span("value") for match in BEARER.finditer(text))
    if _has(text, ASSIGNED_HINTS):
        for match in (*ASSIGNED.finditer(text), *SPOKEN.finditer(text)):
            quoted = text[match.end("value") :][:1] in ("'", '"', "`")
            value = match["value"] if quoted else match["value"].rstrip(".!?:")
            if len(value) >= 6 and re.search(r"\d", value) and _real(value):
                yield match.start("value"), match.start("value") + len(value)


def _has(text: str, hints: tuple[str, ...]) -> bool:
    for hint in hints:  # noqa: SIM110 (any() takes twice the time, of every text)
        if hint in text:
            return True
    return False


def _real(value: str) -> bool:
    """No word that stands for a password in examples."""
    return value not in ("pass", "pwd") and not EXAMPLE.search(value)
