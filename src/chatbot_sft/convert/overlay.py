"""The overlay as text: what differs from our config tree, each line with the peer's key that it came from."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from chatbot_sft.config.schema import SECTIONS, names
from chatbot_sft.convert import options
from chatbot_sft.convert.conversion import Conversion, put
from chatbot_sft.convert.peer import Peer
from chatbot_sft.convert.rules import Line
from chatbot_sft.report.masking import by_name
from chatbot_sft.report.plain import shown_line
from chatbot_sft.resources import conf_dir

# Text that YAML, Hydra and OmegaConf read as text without quotes.
BARE = re.compile(r"[A-Za-z./~][\w./~@-]*(?: [\w./~@-]+)*")


def text(conversion: Conversion, command: str) -> str:
    """The file, with the `command` that uses it in its head."""
    differing = conversion.differing()
    lines = ["# @package _global_", *_head(conversion, command)]
    chosen = options.chosen(differing)
    overrides = [
        f"  - override /{group}: {name}" for group, name in chosen.items() if options.USUAL[group] != name
    ]
    lines += ["defaults:", *overrides]
    origins = dict(_origins(conversion))
    nested: dict[str, Any] = {}
    for path, value in differing.items():
        if not path.startswith("/"):
            put(nested, path, value)
    for name in [key for key in ("seed",) if key in nested]:
        lines += ["", f"{name}: {written(nested.pop(name))}{_comment(origins.get(name))}"]
    for section in [*SECTIONS, "hydra"]:
        if section in nested:
            lines += ["", f"{section}:", *_keys(nested[section], section, origins)]
    return "\n".join(lines) + "\n"


def _head(conversion: Conversion, command: str) -> Iterator[str]:
    peer = conversion.peer
    yield f"# From {shown_line(conversion.file.name)}, by the keys of {peer.title} {peer.version}: what differs here."
    yield f"# {command}"
    leftovers = [shown_line(line.key) for line in conversion.leftovers]
    if leftovers:
        yield f"# Not carried: {', '.join(leftovers)}."


def _origins(conversion: Conversion) -> Iterator[tuple[str, str]]:
    """Our path → the peer's key, or that it is a default of theirs."""
    for line in conversion.defaults:
        for path in line.settings:
            yield path, ", ".join(filter(None, (_theirs(line, path), f"{conversion.peer.title}'s default")))
    for line in conversion.lines:
        for path in line.settings:
            yield path, _theirs(line, path)


def _theirs(line: Line, path: str) -> str:
    """The peer's key, where it is another word than ours."""
    return "" if line.key == path.rpartition(".")[2] else shown_line(line.key)


def _keys(keys: Mapping[str, Any], section: str, origins: Mapping[str, str]) -> Iterator[str]:
    """The lines of one section, in the schema's order."""
    order = names(SECTIONS[section]) if section in SECTIONS else []
    for name in sorted(keys, key=lambda name: order.index(name) if name in order else len(order)):
        value, path = keys[name], f"{section}.{name}"
        origin = origins.get(path) or next(
            (said for of, said in origins.items() if of.startswith(f"{path}.")), None
        )
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            yield f"  {name}:{_comment(origin)}"
            yield from (f"    - {written(item)}" for item in value)
        elif section == "hydra":
            yield f"  {name}:"
            yield from (
                f"    {inner}: {written(text)}{_comment(origins.get(f'{path}.{inner}'))}"
                for inner, text in value.items()
            )
        else:
            yield f"  {name}: {written(value)}{_comment(origin)}"


def _comment(origin: str | None) -> str:
    return f" # {origin}" if origin else ""


def written(value: Any) -> str:
    """A value in one line of YAML, as Hydra reads it back: nothing in it is looked up or resolved."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{written(str(key))}: {written(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(written, value)) + "]"
    if isinstance(value, str):
        value = by_name(value.replace("${", "\\${"))  # a secret of the environment stands there by its name
        return value if BARE.fullmatch(value) and yaml.safe_load(value) == value else _quoted(value)
    return yaml.safe_dump(value).removesuffix("...\n").strip()


def _quoted(text: str) -> str:
    """Between quotes; what is no letter, sign or space is written as its number."""
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(letter if letter.isprintable() else f"\\U{ord(letter):08x}" for letter in quoted)


def place(out: Path, file: Path, peer: Peer) -> Path:
    """Where the overlay goes: `out` itself if it is a YAML file, else experiment/NAME.yaml below it."""
    if out.suffix in (".yaml", ".yml"):
        return out
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", file.stem).strip("_-") or "converted"
    return out / "experiment" / f"{f'{name}_{peer.name}' if ours(name) else name}.yaml"


def ours(name: str) -> bool:
    """Whether our config tree has an overlay of that name, which Hydra would find before the user's."""
    return (conf_dir() / "experiment" / f"{name}.yaml").exists()
