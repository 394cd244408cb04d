"""Tokens, keys and passwords taken out of all that a run writes and says."""

from __future__ import annotations

import copy
import functools
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from chatbot_sft.report.token_shapes import TOKENS

MASK = "***"
WORDS = r"(?:token|key|password|passwd|passphrase|secrets?|credentials?)"
SECRET_NAME = re.compile(rf"^\S*{WORDS}(?:_?\d+)?$", re.IGNORECASE)  # what has spaces is a sentence
SPECIAL_TOKEN = re.compile(r"(bos|eos|pad|unk|sep|cls|mask)_token$")
REFERENCE = re.compile(r"\$\{oc\.env:(\w+)\}")  # names a variable, and holds no value
ASSIGNMENT = re.compile(
    rf"""(?P<name>[\w.+-]*{WORDS})(?P<sign>[=:])(?!\$\{{oc\.env:\w+\}})(?P<value>[^\s'",}}&]+)"""
    r"|(?P<query>[?&](?:sig|signature|auth|x-amz-signature|x-amz-credential)=)[^\s'\"&]+",
    re.IGNORECASE,
)
# Tokens of known kinds; what a request's header says; user and password in an address.
KNOWN_SHAPE = re.compile(
    rf"{TOKENS}"
    r"|(?<=\bBearer )[\w.~+/=-]{8,}"
    r"|(?<=://)[^/\s@:'\"]*:(?!\d+[/\s])[^\s'\"]+(?=@)|(?<=://)[^/\s@:'\"]+(?=@)"
    r"|(?<=:/)[^/\s@:'\"]*:(?!\d+[/\s])[^/\s'\"]+(?=@)"  # an address that went through pathlib
)
SHORTEST = 8  # characters; a shorter value of an environment variable is a word that may stand anywhere


def masked(value: Any) -> Any:
    """A copy of `value` (nested mappings, lists, strings) with *** in place of every secret.

    A secret is the text under a key that is called like one (`api_key`), the value of an environment variable
    that is called like one (HF_TOKEN), what `name=value` assigns to such a name, and whatever has the shape
    of a known kind of token. `${oc.env:HF_TOKEN}` says only where one is.
    """
    return _masked(value, _environment())


@functools.lru_cache(4096)  # the same names again and again: of keys, and of the environment at each call
def is_secret(name: str) -> bool:
    """Whether something called `name` is kept to oneself: `HF_TOKEN`, `apiKey`; not `max_new_tokens`."""
    return bool(SECRET_NAME.search(name)) and not SPECIAL_TOKEN.search(name)


def referring(value: Any) -> Any:
    """`masked`, but with `${oc.env:NAME}` for what an environment variable holds: `resolved` finds it again."""
    return _masked(value, _references())


def by_name(value: Any) -> Any:
    """A copy of `value` with `${oc.env:NAME}` for what an environment variable holds, and else as it is.

    For what a model or a library reads again: what only looks like a secret stays there.
    """
    return _by_name(value, _references())


def places(text: str) -> list[tuple[int, int]]:
    """(begin, end) of everything in `text` that an environment variable holds."""
    long = (secret for secret in _named_environment() if len(secret) >= SHORTEST)
    return [match.span() for secret in long for match in re.finditer(re.escape(secret), text)]


def masked_arguments(arguments: Any) -> Any:
    """A copy of transformers' training arguments, which it keeps and logs, with *** for every secret."""
    plain = {name: value for name, value in vars(arguments).items() if isinstance(value, (str, list, dict))}
    clean = masked(plain)
    copied = copy.copy(arguments)
    vars(copied).update({name: clean[name] for name, value in plain.items() if clean[name] != value})
    return copied


def resolved(value: Any) -> Any:
    """What `referring` or `by_name` wrote, with the environment's values in place again.

    A variable that is gone leaves its name.
    """
    if isinstance(value, Mapping):
        return {key: resolved(item) for key, item in value.items()}
    if isinstance(value, list):
        return [resolved(item) for item in value]
    if not isinstance(value, str):
        return value
    return REFERENCE.sub(
        lambda match: os.environ.get(match[1], match[0]) if is_secret(match[1]) else match[0], value
    )


def read_yaml(text: str) -> Any:
    """What `yaml.safe_load` makes of it, ten times as fast where there is LibYAML."""
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def mask_yaml(file: Path) -> None:
    """Take the secrets out of a YAML file, in one step; one without any is not written again."""
    before = read_yaml(file.read_text(encoding="utf-8"))
    after = masked(before)
    if after != before:
        temporary = file.with_name(f".{file.name}.{os.getpid()}")
        temporary.write_text(yaml.safe_dump(after, allow_unicode=True, sort_keys=False), encoding="utf-8")
        temporary.replace(file)


def _named_environment() -> dict[str, str]:
    """Value → name of every environment variable that is called like a secret.

    The longest come first, as one may hold another.
    """
    secret = [(os.environ.get(name, ""), name) for name in os.environ if is_secret(name)]
    names = {text: name for text, name in secret if text.strip()}
    return dict(sorted(names.items(), key=lambda item: -len(item[0])))


def _environment() -> dict[str, str]:
    return dict.fromkeys(_named_environment(), MASK)


def _references() -> dict[str, str]:
    return {text: f"${{oc.env:{name}}}" for text, name in _named_environment().items()}


def _by_name(value: Any, references: Mapping[str, str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _by_name(item, references) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_by_name(item, references) for item in value]
    return _replaced(value, references) if isinstance(value, str) else value


def _replaced(text: str, secrets: Mapping[str, str]) -> str:
    if text in secrets and len(text) >= 4:
        return secrets[text]
    for secret, instead in secrets.items():
        if len(secret) >= SHORTEST:
            text = text.replace(secret, instead)
    return text


def _masked(value: Any, secrets: Mapping[str, str]) -> Any:
    """`secrets` maps each to what stands for it."""
    if isinstance(value, Mapping):
        return {key: _of_key(str(key), item, secrets) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_masked(item, secrets) for item in value]
    if not isinstance(value, str):
        return value
    value = KNOWN_SHAPE.sub(MASK, _replaced(value, secrets))
    return ASSIGNMENT.sub(_assigned, value)


def _of_key(key: str, item: Any, secrets: Mapping[str, str]) -> Any:
    """The value under `key`, which may be called like a secret."""
    if not is_secret(key) or not item or not isinstance(item, (str, list, Mapping)):
        return _masked(item, secrets)
    if isinstance(item, str) and REFERENCE.fullmatch(item):
        return item
    return secrets.get(item, MASK) if isinstance(item, str) else MASK


def _assigned(match: re.Match[str]) -> str:
    if match["query"]:
        return f"{match['query']}{MASK}"
    # Of our own texts: "not understood as key=value".
    words = match["name"] == "key" and match["value"].startswith("value")
    return f"{match['name']}{match['sign']}{MASK}" if is_secret(match["name"]) and not words else match[0]
