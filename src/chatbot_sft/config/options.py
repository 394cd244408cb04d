"""What the option of a group says, read from its file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from chatbot_sft.config.containers import as_dict
from chatbot_sft.resources import conf_dir


def says(group: str, option: str, folders: Sequence[Path]) -> dict[str, Any]:
    """Key → value of an option and of those it builds on; of these not the file of ours that all of a group
    build on: it says what the defaults are, and means it where it is named itself.
    """
    files = _files(group, option, folders)
    if len(files) > 1 and files[0][0].is_relative_to(conf_dir()):
        del files[0]
    return _merged(files)


def overlay(group: str, option: str, folders: Sequence[Path]) -> dict[str, Any]:
    """Key with its section → value of an overlay and of those it builds on."""
    return _merged(_files(group, option, folders))


def leaves(section: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Each key, as `brings.max_steps`, with its value, but for those that are yet to be given."""
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{above}{key}.")
        elif value != "???":
            yield f"{above}{key}", value


def _merged(files: Sequence[tuple[Path, dict[str, Any]]]) -> dict[str, Any]:
    return {key: value for _, keys in files for key, value in keys.items()}


def _files(group: str, option: str, folders: Sequence[Path]) -> list[tuple[Path, dict[str, Any]]]:
    """The files that an option is made of, each with its keys, the one that it builds on before it."""
    places = (folder / group / f"{option}.yaml" for folder in folders)
    file = next((place for place in places if place.is_file()), None)
    if file is None:  # `_self_`; an option in a package
        return []
    written = as_dict(OmegaConf.load(file), resolve=False)
    bases = [base for base in written.pop("defaults", []) if isinstance(base, str)]
    below = [one for base in bases for one in _files(group, base, folders)]
    return [*below, (file, dict(leaves(written)))]
