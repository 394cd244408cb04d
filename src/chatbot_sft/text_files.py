"""Text files that a person gives: UTF-8 is read, with or without a byte order mark; anything else is named."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from chatbot_sft.errors import UserError, not_yaml

MARK = "\ufeff"  # what Windows editors put before UTF-8
LARGEST, DEEPEST = 100_000, 50  # values of a YAML file, and how deep they are
UTF16 = (b"\xff\xfe", b"\xfe\xff")


def read(file: Path) -> str:
    """The text of `file`, without a byte order mark.

    Raises:
        UserError: it is not UTF-8; an OSError passes through.
    """
    return decoded(file.read_bytes(), str(file)).removeprefix(MARK)


def decoded(data: bytes, where: str) -> str:
    """UTF-8 `data` as text; `where` begins the error.

    Raises:
        UserError: it is not UTF-8.
    """
    if looks_like_utf16(data):
        raise UserError(not_utf8(where, data, 0))
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(not_utf8(where, data, error.start)) from None


def check_yaml(text: str, file: Path) -> None:
    """The `text` of a YAML file, before a library makes values of it.

    Raises:
        UserError: where it is not YAML; nested too deeply; or with aliases that refer to each other, by which a
            few lines become billions of values.
    """
    named = io.StringIO(text)
    named.name = str(file)  # what PyYAML's errors begin with
    try:
        documents = list(yaml.compose_all(named, Loader=yaml.SafeLoader))
        size = sum(_size(document, {}) for document in documents if document)
    except yaml.YAMLError as error:
        said = not_yaml(error)
        raise UserError(said if str(file) in said else f"{file}: not YAML: {said}") from None
    except RecursionError:
        raise UserError(f"{file}: nested too deeply; is a bracket typed too often?") from None
    if len(documents) > 1:
        raise UserError(f"{file}: {len(documents)} documents, with --- between them; leave one")
    if size > LARGEST:
        raise UserError(f"{file}: its aliases (*name) stand for over {LARGEST:,} values; write them out")


def _size(node: yaml.Node, known: dict[int, int], within: tuple[int, ...] = ()) -> int:
    """How many values `node` comes to, each alias counted again."""
    if id(node) in within:  # an alias of what it stands in
        return LARGEST + 1
    if len(within) > DEEPEST:
        raise RecursionError
    if id(node) not in known:
        inner = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = [part for one in inner for part in (one if isinstance(one, tuple) else (one,))]
        known[id(node)] = 1 + sum(_size(part, known, (*within, id(node))) for part in parts)
    return known[id(node)]


def check_options(folder: Path) -> None:
    """The YAML files below a --config-dir, before Hydra reads them.

    Raises:
        UserError: one is no file, not UTF-8 or not YAML, or has a byte order mark before `# @package`, which Hydra
            then does not see; or it includes itself.
    """
    included: dict[str, list[str]] = {}
    for file in sorted(folder.rglob("*.yaml")):
        if not file.is_file():
            raise UserError(f"{file}: no regular file; take it out of --config-dir")
        text = decoded(file.read_bytes(), str(file))
        if text.startswith(MARK) and "@package" in text.partition("\n")[0]:
            raise UserError(
                f"{file}: a byte order mark stands before its `# @package` line; save the file as UTF-8"
                " without one (BOM)"
            )
        check_yaml(text.removeprefix(MARK), file)
        name = file.relative_to(folder).with_suffix("")
        included[str(name)] = list(_included(text, str(name.parent)))
    for option in included:
        _refuse_circle(option, included, folder, ())


def _included(text: str, group: str) -> Iterator[str]:
    """The options, as `group/option`, that the defaults list of a file in `group` brings in; those that it overrides
    in other groups are brought in by another.
    """
    values: Any = None
    with contextlib.suppress(yaml.YAMLError):  # Hydra says what is wrong with it
        values = yaml.safe_load(text)
    given = values.get("defaults") if isinstance(values, dict) else None
    for entry in given if isinstance(given, list) else []:
        for key, options in entry.items() if isinstance(entry, dict) else [("", entry)]:
            within = str(key).removeprefix("optional ").partition("@")[0]
            within = f"/{group}" if within.removeprefix("override ") == f"/{group}" else within
            for option in options if isinstance(options, list) else [options]:
                if isinstance(option, str) and not within.startswith("override "):
                    place = f"{within}/{option.partition('@')[0]}" if within else option.partition("@")[0]
                    yield place[1:] if place.startswith("/") else str(Path(group, place))


def _refuse_circle(
    option: str, included: Mapping[str, Sequence[str]], folder: Path, above: tuple[str, ...]
) -> None:
    if option in above:
        way = " → ".join([*above[above.index(option) :], option])
        raise UserError(
            f"{folder / option}.yaml: its defaults list includes itself ({way}); take one of these names out"
        )
    for other in included.get(option, ()):
        _refuse_circle(other, included, folder, (*above, option))


def looks_like_utf16(start: bytes) -> bool:
    """By its mark; without one, plain letters have a zero byte each, which would pass for UTF-8."""
    return start.startswith(UTF16) or b"\0" in start[:4]


def not_utf8(where: str, start: bytes, byte: int) -> str:
    """The text for a file that begins with `start` and is no UTF-8 from `byte` on."""
    hint = "; it looks like UTF-16" if looks_like_utf16(start) else ""
    return f"{where}: not UTF-8 text (byte {byte}){hint}; save the file as UTF-8"
