"""From a mapping to a `Config`: keys, types, and what an unknown key most likely meant."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from chatbot_sft.config import aliases, sft_arguments
from chatbot_sft.config.checks import check_values
from chatbot_sft.config.containers import as_dict
from chatbot_sft.config.precedence import all_brought, ended_by
from chatbot_sft.config.schema import (
    BRINGS,
    OUR_PACKAGE,
    OVERLAYS,
    PATH_KEYS,
    SECTIONS,
    TOP,
    Config,
    SourceConfig,
    kind_of,
    names,
    objective_target,
)
from chatbot_sft.errors import UserError, did_you_mean, misspelled, near, question


def read(config: Mapping[str, Any] | DictConfig) -> Config:
    """What `Config.from_mapping` says."""
    plain = (
        as_dict(config, resolve=True)
        if isinstance(config, DictConfig)
        else {str(key): value for key, value in config.items()}
    )
    for key in plain:
        if key not in SECTIONS and key not in TOP:
            raise UserError(no_such_key("", str(key), plain[key], [*SECTIONS, *TOP]))
    brings = _brought(plain)
    sections: dict[str, Any] = {}
    passed: dict[str, Any] = {}
    for name, section in SECTIONS.items():
        given = _given(name, plain.get(name) or {}, brings)
        known = names(section)
        values = _typed(name, section, {key: value for key, value in given.items() if key in known})
        unknown = {key: value for key, value in given.items() if key not in known}
        if name == "objective" and "name" in values:
            values.setdefault("_target_", objective_target(values["name"]))
        if name == "training":
            passed = {key: value for key, value in unknown.items() if key in sft_arguments.known()}
            unknown = {key: value for key, value in unknown.items() if key not in passed}
        if name == "dataset" and values.get("sources") is not None:
            values["sources"] = [_source(number, source) for number, source in enumerate(values["sources"])]
        if unknown:
            _check_unknown(name, values.get("_target_", OUR_PACKAGE), unknown)
            values["extra"] = unknown
        sections[name] = section(**values)
    sft_arguments.check(passed)
    top = _typed("", Config, {key: plain[key] for key in TOP if key in plain})
    built = Config(**top, **sections, sft_arguments=passed)
    for name, key in PATH_KEYS:
        holder = getattr(built, name)
        if getattr(holder, key).startswith("~/"):  # inside of key=value no shell expands it
            setattr(holder, key, str(Path(getattr(holder, key)).expanduser()))
    check_values(built)
    return built


def _given(name: str, section: Any, brings: Mapping[str, Any]) -> dict[str, Any]:
    """What is given for a section, with what the model brings where nothing is."""
    if not isinstance(section, Mapping):
        raise UserError(no_keys(name, section))
    if name == "training":
        section = {**dict.fromkeys(ended_by(section)), **section}
    known = names(SECTIONS[name])
    return {**{key: value for key, value in brings.items() if key in known}, **section}


def no_keys(where: str, value: Any) -> str:
    """The text for a section, or a group of keys in it, that is given one `value`."""
    chosen = f"; an option of it is chosen by {where}=OPTION, or in a defaults list by `- override /{where}: OPTION`"
    how = chosen if where in SECTIONS else "; write them below it"
    return f"{where}: expected keys and values, got {value!r}{how}"


def _check_unknown(section: str, target: str, unknown: Mapping[str, Any]) -> None:
    """Refuse keys that the schema does not have, but those of a user's own class that mean none of ours."""
    ours = [
        *(key for key in names(SECTIONS[section]) if key != "_target_"),
        *(sft_arguments.known() if section == "training" else ()),
    ]
    for key, value in unknown.items():
        if target.startswith(OUR_PACKAGE):
            raise UserError(no_such_key(section, str(key), value, ours))
        if _for_another(section, str(key), value, ours):
            force = f"a key of your own class that is called so goes into a mapping: {section}.mine.{key}"
            raise UserError(f"{no_such_key(section, str(key), value, ours)} ({force})")


def _brought(plain: Mapping[str, Any]) -> dict[str, Any]:
    """What the options of this configuration bring, checked."""
    checked = dict(plain)
    for name, what in BRINGS.items():
        section = plain.get(name)
        if not isinstance(section, Mapping) or not section.get("brings"):
            continue
        if not isinstance(section["brings"], Mapping):
            raise UserError(no_keys(f"{name}.brings", section["brings"]))
        known = {f.name for f in fields(what)}
        for key in section["brings"]:
            if key not in known:
                choices = ", ".join(sorted(known))
                raise UserError(
                    f"{name}.brings.{key}: a {name}'s option may bring {choices}{did_you_mean(key, known)}"
                )
        checked[name] = {**section, "brings": _typed(f"{name}.brings", what, dict(section["brings"]))}
    return all_brought(checked)


def known_override(key: str) -> bool:
    """Whether `key` of an override is in the schema, or Hydra's own: then Hydra accepts it as it stands."""
    section, _, name = key.partition(".")
    if section in SECTIONS:
        # Hydra takes a mapping such as dataset.columns={…} only as an addition.
        return not name or (name in names(SECTIONS[section]) and not kind_of(key).startswith("dict"))
    return section in TOP or section in (*OVERLAYS, "hydra") or "/" in key


def added(key: str) -> str:
    """`key` of an override, with the plus signs that Hydra asks for where no YAML file names it.

    Hydra itself would refuse such a key with a text about struct mode. So the schema decides: it knows
    SFTConfig's keys, and names the nearest one to a typo.
    """
    return key if key.startswith(("+", "~")) or known_override(key) else f"++{key}"


def meant(section: str, key: str, value: Any = None) -> aliases.Meant | None:
    """What an unknown `key` certainly means: a word of another tool, or a key that stands elsewhere."""
    if isinstance(value, Mapping) and value:  # optimizer.lr, train.epochs: the word is at the end
        inner, inner_value = next(iter(value.items()))
        home = aliases.SECTIONS.get(key, section)
        setting = f"{home}.{inner}"
        return aliases.Meant(setting) if known_override(setting) else meant(home, str(inner), inner_value)
    alias = aliases.look_up(section, key, value)
    if alias and alias.setting:
        return alias
    elsewhere = [
        f"{name}.{key}"
        for name, dataclass_ in SECTIONS.items()
        if key in names(dataclass_) and key != "_target_"
    ]
    if elsewhere:
        return aliases.Meant(elsewhere[0])
    if key in sft_arguments.known():
        return aliases.Meant(sft_arguments.MANAGED.get(key, f"training.{key}"))
    return alias


def no_such_topic(word: str) -> str:
    """The text for a `word` that `--help` is asked about, and that is no section, group or key."""
    section, _, name = word.rpartition(".")
    if section not in SECTIONS:
        return no_such_key("", word, None, [*SECTIONS, *OVERLAYS, *TOP])
    passed = sft_arguments.known() if section == "training" else ()
    return no_such_key(section, name, None, [*names(SECTIONS[section]), *passed])


def no_such_key(section: str, key: str, value: Any, known: list[str]) -> str:
    """The text for a key that is not there; `section` is empty at the top, `known` what stands beside it."""
    where = f"{section}.{key}" if section else key
    if key in OVERLAYS and not section:
        if value is not None and not isinstance(value, Mapping):
            return f"{key}: an overlay is chosen on the command line; write {key}=OPTION"
        return (
            f"{key}: an overlay has to begin with the line `# @package _global_`,"
            " so that its keys go to the top"
        )
    if key == section:
        return (
            f"{where}: no such key; a file in {section}/ holds the keys of {section} themselves,"
            f" without `{section}:` above them"
        )
    alias = None if isinstance(value, Mapping) and misspelled(key, known) else meant(section, key, value)
    if alias is None and not misspelled(key, known):
        # A typo in a key of another section, or in another tool's word.
        ours = [name for dataclass_ in SECTIONS.values() for name in names(dataclass_)]
        other = misspelled(key, [*ours, *aliases.WORDS])
        alias = meant(section, other[0], value) if other else None
    if alias:
        return f"{where}: no such key" + (question([alias.setting]) if alias.setting else f"; {alias.note}")
    nearest = near(key, [name for name in known if not name.startswith("_")])
    hint = question([f"{section}.{name}" if section else name for name in nearest])
    topic = section or "alone"
    return f"{where}: no such key{hint or f'; --help {topic} lists them'}"


def _for_another(section: str, key: str, value: Any, known: list[str]) -> bool:
    """Whether `key` of a user's own class meant one of ours: by its spelling, or as another tool's word."""
    alias = aliases.look_up(section, key, value)
    return bool(misspelled(key, known)) or (alias is not None and alias.setting.startswith(f"{section}."))


def _source(number: int, given: Any) -> dict[str, Any]:
    """One entry of `dataset.sources`, checked."""
    where = f"dataset.sources[{number}]"
    if not isinstance(given, Mapping) or "data_path" not in given:
        raise UserError(
            f"{where}={given!r}: expected {{data_path: …}}, with format, columns,"
            " roles, weight or count where they are needed"
        )
    known = [f.name for f in fields(SourceConfig)]
    for key, value in given.items():
        if key not in known:
            alias = aliases.look_up("dataset", str(key), value)
            ours = alias.setting.removeprefix("dataset.") if alias else ""
            hint = question([ours]) if ours in known else did_you_mean(str(key), known)
            raise UserError(f"{where}.{key}: no such key{hint}")
    return asdict(SourceConfig(**_typed(where, SourceConfig, dict(given))))


def _typed(section: str, schema: type, values: dict[str, Any]) -> dict[str, Any]:
    """`values` converted to the types of the dataclass `schema`, as OmegaConf does it ("1e-4" is a float).

    Text is not converted: YAML has read `0123456`, `12e4567` and `no` as something else before we see them.
    """
    typed = copy.deepcopy(_form(schema))
    kinds = {f.name: str(f.type) for f in fields(schema)}
    for key, value in values.items():
        where = f"{section}.{key}" if section else key
        if value == MISSING:
            raise UserError(f"{where}: not set; give it a value, for instance {where}=…")
        _check_kind(where, kinds[key], value)
        try:
            typed[key] = value
        except OmegaConfBaseException as error:
            hint = f"; write {where}=[{value}]" if "ListConfig" in str(error) else ""
            if key in ("data_path", "eval_data_path") and isinstance(value, list):
                files = ", ".join(f"{{data_path: {file}}}" for file in value[:3])
                raise UserError(
                    f"{where}: a list is not read; name a folder or a glob,"
                    f" or write dataset.sources=[{files}]"
                ) from None
            kind = kinds[key].partition(" ")[0]
            if kind.startswith("list["):
                raise UserError(f"{where}={value!r}: expected a list{hint or '; write [A,B]'}") from None
            if kind in _EXPECTED:
                or_null = ", or null" if kinds[key].endswith("| None") else ""
                raise UserError(f"{where}={value!r}: expected {_EXPECTED[kind]}{or_null}") from None
            raise UserError(f"{where}={value!r}: expected {kinds[key]}{hint}") from None
    plain = as_dict(typed, resolve=False)
    return {key: plain[key] for key in values}


@functools.cache
def _form(schema: type) -> DictConfig:
    """What takes values of the dataclass `schema`; to make one takes five times as long as to copy it."""
    form: DictConfig = OmegaConf.structured(schema)
    return form


def _check_kind(where: str, kind: str, value: Any) -> None:
    """What OmegaConf would convert in silence, or say in its own words; `kind` is the schema's annotation."""
    optional = kind.endswith("| None")
    if value is None and not optional and kind != "Any":
        raise UserError(
            f"{where}: null (or nothing after the colon in a file); give it a value, or leave the key out"
        )
    if kind.startswith("str") and isinstance(value, str) and not value.strip():
        raise UserError(f"{where}: is empty; give it a value{', or null' if optional else ''}")
    if kind.startswith("str") and isinstance(value, (bool, int, float)):
        raise UserError(
            f"{where}={aliases.plain(value)}: read as {_READ_AS[type(value)]}, and this is text;"
            " put it in quotes in the file"
        )
    if kind.startswith("dict") and isinstance(value, str):
        pairs = re.findall(r"([\w.-]+)\s*[:=]\s*([^,{}]+)", value.strip("{}"))
        inner = ", ".join(f"{name}: {text.strip()}" for name, text in pairs)
        inner = inner or ("customer: user" if where.endswith(".roles") else "instruction: question")
        example = "for instance " if not pairs else ""
        raise UserError(f"{where}={value}: expected names and values; write {example}'{where}={{{inner}}}'")


_EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "dict[str,": "names and values",
}
_READ_AS = {bool: "yes or no", int: "a number", float: "a number"}
