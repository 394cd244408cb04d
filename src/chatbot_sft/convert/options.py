"""What our own config tree says where an overlay is silent."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

from chatbot_sft.config.containers import as_dict
from chatbot_sft.resources import conf_dir

# Group → the option that an overlay begins with. Of model and dataset: those that name nothing themselves.
BEGIN = {
    "model": "local",
    "lora": "default",
    "dataset": "default",
    "objective": "sft",
    "training": "default",
    "save": "merged_16bit",
}
# What conf/config.yaml has for them: an overlay names the others.
USUAL = {**BEGIN, "model": "smollm2", "dataset": "white_crane"}


@functools.cache
def option(group: str, name: str) -> dict[str, Any]:
    """The keys of `conf/<group>/<name>.yaml`, those of the options that it builds on among them."""
    written = as_dict(OmegaConf.load(conf_dir() / group / f"{name}.yaml"), resolve=False)
    keys: dict[str, Any] = {}
    for other in written.pop("defaults", []):
        keys |= option(group, other)
    return keys | written


def chosen(settings: Mapping[str, Any]) -> dict[str, str]:
    """Group → option: BEGIN, and what `settings` choose ("/lora": "none")."""
    own = {path.removeprefix("/"): str(name) for path, name in settings.items() if path.startswith("/")}
    return BEGIN | own


def plain_keys(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Section → key → value of the options that `settings` choose; without what is only known in a run."""
    return {
        group: {key: value for key, value in option(group, name).items() if not _open(value)}
        for group, name in chosen(settings).items()
    }


def _open(value: Any) -> bool:
    """`${default:…}` gives way to what else is chosen, `???` has to be given."""
    return isinstance(value, str) and ("${" in value or value == "???")
