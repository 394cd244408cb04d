"""What one override of a command line may be, before Hydra reads it: what Hydra would take in silence, or fail at."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.conf import HydraConf
from hydra.core.override_parser.types import Override, ValueType
from omegaconf import DictConfig, ListConfig, OmegaConf

from chatbot_sft import config as schema
from chatbot_sft.config import aliases, sft_arguments
from chatbot_sft.errors import UserError, near, question

DEEPEST = 30  # lists and mappings within each other: OmegaConf recurses over them


def refuse(override: Override) -> None:
    """Raises UserError for an override that asks for nothing that there is."""
    key, word = override.key_or_group, override.input_line
    if override.package is not None and "/" not in key:
        raise UserError(
            f"{word}: an @ places the options of a group, and they have their place; write {key}=…"
        )
    if override.is_delete():
        _refuse_deleting(key)
        return
    if key.startswith("hydra."):
        _refuse_none_of_hydra(key)
    if override.value_type == ValueType.GLOB_CHOICE_SWEEP and not is_group(key):
        raise UserError(f"{word}: glob() is for the options of a group; write the values, as {key}=A,B")
    value = None if override.is_sweep_override() else override.value()
    if not within(value):
        raise UserError(
            f"{key}: lists or mappings within each other, over {DEEPEST} deep; is a bracket typed too often?"
        )
    _refuse_within_a_value(key)
    if key == "hydra.searchpath":
        _refuse_no_folder(value)
    if is_group(key):
        _refuse_no_name(key, value)


def is_group(key: str) -> bool:
    """Whether an override of `key` chooses an option."""
    return key in (*schema.SECTIONS, *schema.OVERLAYS, "hydra") or "/" in key


def is_ours(key: str) -> bool:
    """Whether `key` is one of the schema, or one that SFTConfig takes."""
    section, _, name = key.partition(".")
    passed = section == "training" and name in sft_arguments.known()
    return passed or (section != "hydra" and schema.known_override(key))


def within(value: Any, depth: int = DEEPEST) -> bool:
    """Whether `value` is no deeper than `depth`."""
    if not isinstance(value, (list, dict)):
        return True
    inner = value.values() if isinstance(value, dict) else value
    return depth > 0 and all(within(one, depth - 1) for one in inner)


def _refuse_none_of_hydra(key: str) -> None:
    """Hydra takes any key behind a plus sign, and does nothing with one that it does not know."""
    node: Any = OmegaConf.structured(HydraConf)
    names = key.split(".")
    for place, name in enumerate(names[1:], 1):
        if isinstance(node, ListConfig) and not name.isdecimal():
            raise UserError(
                f"{key}: {'.'.join(names[:place])} is a list; write {'.'.join(names[:place])}=[A,B]"
            )
        if not isinstance(node, DictConfig) or not dataclasses.is_dataclass(OmegaConf.get_type(node)):
            return  # a mapping of names that are the user's, or whatever a plugin has
        there = [str(one) for one in node]  # those without a value too
        if name not in there:
            hint = question([".".join([*names[:place], one]) for one in near(name, there)])
            raise UserError(
                f"{key}: no such key of Hydra's{hint or '; --cfg hydra shows those that there are'}"
            )
        node = None if OmegaConf.is_missing(node, name) else node[name]


def _refuse_within_a_value(key: str) -> None:
    """A key of the schema that holds one value, and is written as though it held keys."""
    parent = ".".join(key.split(".")[:2])
    if key == parent or not is_ours(parent):
        return
    kind = schema.kind_of(parent) or sft_arguments.known().get(parent.removeprefix("training."), "")
    in_a_list = kind.startswith("list") and key.split(".")[2].isdecimal()
    if kind and not in_a_list and not re.search("dict|Any", kind):
        raise UserError(f"{key}: {parent} holds no keys; write {parent}=VALUE")


def _refuse_no_folder(folders: Any) -> None:
    """Hydra warns of a folder that is not there, and goes on without it."""
    if not (isinstance(folders, list) and all(isinstance(folder, str) for folder in folders)):
        raise UserError("hydra.searchpath: expected a list of folders, for instance [file://DIR]")
    for folder in folders:
        if not folder.startswith("pkg://") and not Path(folder.removeprefix("file://")).is_dir():
            raise UserError(f"hydra.searchpath=[{folder}]: no such folder; name the one above your groups")


def _refuse_no_name(group: str, value: Any) -> None:
    for name in value if isinstance(value, list) else [value]:
        if isinstance(name, Mapping):
            one = next(iter(name), "KEY")
            raise UserError(
                f"{group}: keys and values in place of an option; write each by itself, as {group}.{one}=VALUE"
            )
        if name is None and not isinstance(value, list):
            continue
        if not isinstance(name, str) or name == "???" or "${" in name:
            raise UserError(
                f"{group}={aliases.plain(name)}: names no option; --help lists those that there are"
            )


def _refuse_deleting(key: str) -> None:
    """Hydra drops its own group `hydra` where it is told to, and with it what checks a run."""
    if key == "hydra" or key.startswith("hydra/"):
        raise UserError(
            f"~{key}: Hydra's own settings cannot be left out; set single ones, as hydra.run.dir=DIR"
        )
    if not key.startswith("hydra.") and not is_ours(key):
        raise UserError(f"~{schema.no_such_topic(key)}")
