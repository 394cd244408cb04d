"""Which of two settings counts: what the user names; then what the option of the data brings; then that of the
objective; then that of the model; then the default.

In `conf/`, a default that gives way is written `${default:…}`: any plain value put in its place wins, by
Hydra's own rules. By these an experiment comes after every option, one that is named on the command line too;
`prefer` turns that round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, Node, OmegaConf

from chatbot_sft.config import options
from chatbot_sft.config.containers import as_dict

# Of `training`: two keys that say one thing. The first has a default, which ends where the second is given.
RIVALS = {"max_steps": "num_train_epochs", "warmup_steps": "warmup_ratio"}
# What a model brings for an adapter says nothing about training every weight.
OF_LORA = ("learning_rate", "target_modules")
GIVES_WAY = "${default:"
# The sections whose options may bring something, each with its key that `only_for` is a value of.
BRINGING = {"model": "name", "dataset": "data_path", "objective": "name"}
# Overlays that go on top of whatever a command line says, to try it or to search with it.
ON_TOP = ("hparams_search", "debug")


def default(value: Any, *, _node_: Node, _parent_: DictConfig, _root_: DictConfig) -> Any:
    """The resolver: `value`, or what takes its place."""
    key = _node_._key()
    if key in RIVALS and _parent_.get(RIVALS[key]) is not None:
        return None
    return all_brought(_root_).get(key, value)


def brought_by(section: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Key → value of what the option of a `section` (of BRINGING) sets in place of defaults, as
    `config.BRINGS` has them; nothing where it is meant for another name than this `config` has.
    """
    given = _mapping(config, section)
    brings = dict(given.get("brings") or {})
    only_for = brings.pop("only_for", None)
    name = None if given.get("sources") else given.get(BRINGING[section])  # a mixture has no data_path
    if only_for not in (None, name):
        return {}
    full = _mapping(config, "lora").get("r") == 0
    return {
        key: value for key, value in brings.items() if value is not None and not (full and key in OF_LORA)
    }


def all_brought(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the options of model, objective and data bring: what an amount of data needs counts over what a method
    does, and that over what a model does.
    """
    model, objective, data = (brought_by(name, config) for name in ("model", "objective", "dataset"))
    return {**model, **objective, **data}


def _mapping(config: Mapping[str, Any], section: str) -> Mapping[str, Any]:
    """A section as it is given; empty where it is no section."""
    given = config.get(section)
    return given if isinstance(given, Mapping) else {}


def ended_by(training: Mapping[str, Any]) -> list[str]:
    """The rivals of what is set in `training`, where they are not set there themselves."""
    pairs = [pair for first, second in RIVALS.items() for pair in ((first, second), (second, first))]
    return [other for one, other in pairs if training.get(one) is not None and training.get(other) is None]


def settle(config: DictConfig) -> None:
    """Replace every `${default:…}` by what it comes to, and what an option `brings` by what of it counts."""
    for name, key in BRINGING.items():
        OmegaConf.select(config, f"{name}.{key}")  # what is wrong with it is said of this key
    for section in config.values():
        if isinstance(section, DictConfig):
            for key, written in as_dict(section, resolve=False).items():
                if str(written).startswith(GIVES_WAY):
                    section[key] = section[key]
    for name in BRINGING:
        if OmegaConf.select(config, f"{name}.brings"):
            config[name].brings = brought_by(name, config)


def prefer(
    config: DictConfig, named: Mapping[str, Any], choices: Mapping[str, Any], folders: Sequence[Path]
) -> dict[str, dict[str, Any]]:
    """Set what the options among `named`, the command line's words, say, where a file of the user's says otherwise.

    `choices` are the options of all groups, `folders` those that hold their files. Returns which option counts →
    key → value that does not.
    """
    on_top = {
        key: f"{group}={choices.get(group)}"
        for group in ON_TOP
        for key in options.overlay(group, str(choices.get(group)), folders)
    }
    lost: dict[str, dict[str, Any]] = {}
    for section, option in named.items():
        if "." in section or not isinstance(option, str) or not _mapping(config, section):
            continue
        said = options.says(section, option, folders)
        if "data_path" in said:
            said = {"sources": None, **said}  # a mixture would count over it
        there = dict(options.leaves(as_dict(config[section], resolve=False)))
        for key, value in said.items():
            path = f"{section}.{key}"
            mine = any(f"{path}.".startswith(f"{word}.") for word in named if "." in word)
            if mine or there.get(key, value) == value:
                continue
            if path in on_top:
                lost.setdefault(on_top[path], {})[path] = value
            else:
                OmegaConf.update(config, path, value, merge=False)
                lost.setdefault(f"{section}={option}", {})[path] = there[key]
    return lost
