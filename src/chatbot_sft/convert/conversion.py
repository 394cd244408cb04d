"""A peer's file, key by key, as settings of ours that the schema takes."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chatbot_sft.config import Config, effects
from chatbot_sft.config.aliases import look_up, plain
from chatbot_sft.convert import options
from chatbot_sft.convert.peer import Peer
from chatbot_sft.convert.rules import LEFT_EMPTY, NOTHING, Given, Kind, Line, Rule, unknown
from chatbot_sft.data.files import find
from chatbot_sft.data_names import is_hub_id
from chatbot_sft.errors import UserError
from chatbot_sft.objective.base import objective_of

# Stand where the file names nothing: a run refuses them at once, by these names.
NO_MODEL, NO_DATA = "./NAME_YOUR_MODEL", "./NAME_YOUR_DATA.jsonl"
ASIDE = "hydra."  # where the run directory is: Hydra's own part


@dataclass
class Conversion:
    """What became of a file: a line for each of its keys, one for each default of the peer's that was written, and
    what is `missing`.
    """

    peer: Peer
    file: Path
    lines: list[Line]
    defaults: list[Line]
    missing: list[str] = field(default_factory=list)

    @property
    def settings(self) -> dict[str, Any]:
        """Path → value of all that is written."""
        return settings_of([*self.defaults, *self.lines]) | self._placeholders()

    @property
    def leftovers(self) -> list[Line]:
        return [line for line in self.lines if line.kind is Kind.NOT_CARRIED]

    @property
    def absent(self) -> list[str]:
        """Of the data that is named, what is not there: from the current folder, as a run looks for it."""
        settings = self.settings
        keys = ("dataset.data_path", "dataset.eval_data_path")
        named = [settings[key] for key in keys if key in settings]
        named += [source["data_path"] for source in settings.get("dataset.sources", [])]
        return [fault for path in named if path != NO_DATA and (fault := _not_there(path))]

    def differing(self) -> dict[str, Any]:
        """`settings` without those that our config tree says already."""
        usual = options.plain_keys(self.settings)
        return {
            path: value
            for path, value in self.settings.items()
            if path.startswith(("/", ASIDE)) or not _the_same(path, value, usual)
        }

    def _placeholders(self) -> dict[str, Any]:
        given = settings_of(self.lines)
        wanted = {"model.name": NO_MODEL}
        if "dataset.sources" not in given:
            wanted["dataset.data_path"] = NO_DATA
        return {path: name for path, name in wanted.items() if path not in given}


def convert(values: Mapping[str, Any], peer: Peer, file: Path) -> Conversion:
    """Every key of `values` by its rule in the table of `peer`, then the defaults of the peer's that differ.

    What the schema refuses is not carried, with its reason.
    """
    lines: list[Line] = []
    for name, value in values.items():
        rule = peer.rules.get(name)
        given = Given(name, value, values, file.parent)
        if rule is None:
            lines.append(unknown(name, list(peer.rules), peer.title, _called(name, peer)))
        elif _empty(value) and not rule.null:
            lines += given.not_needed(LEFT_EMPTY)
        else:
            lines += rule.becomes(given)
    defaults = [line for rule in peer.every() for line in _default(rule, values, file)]
    given_already = settings_of(lines)
    defaults = [line for line in defaults if not line.settings.keys() & given_already.keys()]
    fit([*defaults, *lines])
    say_what_stays(lines, peer, settings_of([*defaults, *lines]))
    made = Conversion(peer, file, lines, [line for line in defaults if line.settings])
    made.missing = [
        f"{path}: the file names none that is carried; {name} stands in its place"
        for path, name in made._placeholders().items()
    ]
    made.defaults = [line for line in made.defaults if line.settings.keys() & made.differing().keys()]
    return made


def _called(name: str, peer: Peer) -> str:
    """The peer's key for what another tool calls `name`; empty where it is nobody's word."""
    ours = look_up("", name)
    return next((key for key, rule in peer.rules.items() if ours and rule.here == f"`{ours.setting}`"), "")


def say_what_stays(lines: Sequence[Line], peer: Peer, settings: Mapping[str, Any]) -> None:
    """Adds to what is not carried our own value, which counts then, where the key stands for one of ours alone."""
    usual = options.plain_keys(settings)
    for line in lines:
        rule = peer.rules.get(line.key)
        paths = re.findall("`([^`]+)`", rule.here) if rule and line.kind is Kind.NOT_CARRIED else []
        section, _, name = paths[0].partition(".") if len(paths) == 1 else ("", "", "")
        value = usual.get(section, {}).get(name)
        if value is not None and paths[0] not in settings:
            line.note += f"; {paths[0]}={plain(value)} stays"


def settings_of(lines: Sequence[Line]) -> dict[str, Any]:
    return {path: value for line in lines for path, value in line.settings.items()}


def fit(lines: Sequence[Line]) -> None:
    """Takes out of `lines` what the schema refuses, until it refuses nothing."""
    while refusal := refused(settings_of(lines)):
        culprit = _named(refusal, lines) or _first_refused(lines)
        culprit.kind, culprit.settings, culprit.shown, culprit.note = Kind.NOT_CARRIED, {}, "", refusal


def refused(settings: Mapping[str, Any]) -> str:
    """Why a run would not begin with these settings; empty where it would. Looks at no file."""
    nested: dict[str, Any] = copy.deepcopy(options.plain_keys(settings))
    nested["model"]["name"] = NO_MODEL
    for path, value in settings.items():
        if path.startswith(("/", ASIDE)):
            continue
        put(nested, path, value)
    try:
        checked = Config.from_mapping(nested)
        effects.refuse(checked)
        objective_of(checked)
    except UserError as error:
        return str(error)
    return ""


def put(nested: dict[str, Any], path: str, value: Any) -> None:
    """`value` at "lora.r" of nested dictionaries."""
    *holders, name = path.split(".")
    for holder in holders:
        inner = nested.setdefault(holder, {})
        if not isinstance(inner, dict):
            inner = nested[holder] = {}
        nested = inner
    nested[name] = copy.deepcopy(value)


def _default(rule: Rule, values: Mapping[str, Any], file: Path) -> list[Line]:
    """What the peer takes where the file has none of the rule's keys."""
    given_empty = rule.null and any(name in values for name in rule.names)
    if rule.default is NOTHING or given_empty or any(not _empty(values.get(name)) for name in rule.names):
        return []
    return rule.becomes(Given(rule.names[0], rule.default, values, file.parent))


def _not_there(path: str) -> str:
    """Why a run would find no data by that name; empty where it does, or has to ask the hub."""
    if is_hub_id(path):
        return ""
    try:
        find(path)
    except UserError as error:
        return str(error)
    return ""


def _empty(value: Any) -> bool:
    return value is None or (isinstance(value, (str, list, dict)) and not value)


def _named(refusal: str, lines: Sequence[Line]) -> Line | None:
    """The line whose setting the refusal begins with."""
    settings = [(path, line) for line in lines for path in line.settings]
    found = [(path, line) for path, line in settings if _begins(refusal, path)]
    return max(found, key=lambda pair: len(pair[0]))[1] if found else None


def _begins(refusal: str, path: str) -> bool:
    return (
        refusal.startswith(path)
        and not refusal[len(path) : len(path) + 1].isalnum()
        and refusal[len(path) : len(path) + 1] != "_"
    )


def _first_refused(lines: Sequence[Line]) -> Line:
    """A line that cannot be taken beside those before it, of `lines` that are refused: found by halving, since each
    question costs a twentieth of a second.
    """
    taken, too_many = 0, len(lines)
    while too_many - taken > 1:
        middle = (taken + too_many) // 2
        if refused(settings_of(lines[:middle])):
            too_many = middle
        else:
            taken = middle
    return lines[too_many - 1]


def _the_same(path: str, value: Any, usual: Mapping[str, Mapping[str, Any]]) -> bool:
    section, _, name = path.partition(".")
    if name not in usual.get(section, {}):
        return False
    ours = usual[section][name]
    return ours == value and isinstance(ours, bool) == isinstance(value, bool)
