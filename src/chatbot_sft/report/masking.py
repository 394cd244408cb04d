"""Tokens, keys and passwords taken out of what leaves the run directory."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

MASK = "***"
WORDS = r"(?:token|key|password|passwd|passphrase|secrets?|credentials?)"
SECRET_NAME = re.compile(f"{WORDS}$", re.IGNORECASE)
SPECIAL_TOKEN = re.compile(r"(bos|eos|pad|unk|sep|cls|mask)_token$")
ASSIGNMENT = re.compile(rf"""(?P<name>[\w.+-]*{WORDS})(?P<sign>[=:])(?P<value>[^\s'",}}&]+)""", re.IGNORECASE)
# Hugging Face, Weights & Biases, OpenAI and the like, GitHub, AWS; a password in an address.
KNOWN_SHAPE = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}|\bwandb_v\d_\w{20,}|\bsk-[\w-]{20,}|\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}|\bAKIA[0-9A-Z]{16}\b"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
)
SHORTEST = 8  # characters; a shorter value of an environment variable is a word that may stand anywhere


def masked(value: Any) -> Any:
    """A copy of `value` (nested mappings, lists, strings) with *** in place of every secret.

    A secret is the text under a key that is called like one (`api_key`), the value of an environment variable that is called like one (HF_TOKEN),
    what `name=value` assigns to such a name, and whatever has the shape of a known kind of token.
    """
    return _masked(value, [text for name, text in os.environ.items() if is_secret(name) and len(text) >= SHORTEST])


def is_secret(name: str) -> bool:
    """Whether something called `name` is kept to oneself: `HF_TOKEN`, `api_key`, `apiKey`; not `max_new_tokens`, `eos_token`."""
    return bool(SECRET_NAME.search(name)) and not SPECIAL_TOKEN.search(name)


def _masked(value: Any, secrets: list[str]) -> Any:
    if isinstance(value, Mapping):
        return {
            key: MASK if is_secret(str(key)) and item and isinstance(item, (str, list, Mapping)) else _masked(item, secrets)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_masked(item, secrets) for item in value]
    if not isinstance(value, str):
        return value
    for secret in secrets:
        value = value.replace(secret, MASK)
    value = KNOWN_SHAPE.sub(MASK, value)
    return ASSIGNMENT.sub(lambda found: f"{found['name']}{found['sign']}{MASK}" if is_secret(found["name"]) else found[0], value)
