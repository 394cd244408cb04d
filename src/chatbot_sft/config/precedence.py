"""Which of two settings counts: what the user names; then what the model's option brings; then the default.

In `conf/`, a default that gives way is written `${default:…}`: any plain value put in its place wins, by
Hydra's own rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, Node, OmegaConf

from chatbot_sft.config.containers import as_dict

# Of `training`: two keys that say one thing. The first has a default, which ends where the second is given.
RIVALS = {"max_steps": "num_train_epochs", "warmup_steps": "warmup_ratio"}
# What a model brings for an adapter says nothing about training every weight.
OF_LORA = ("learning_rate", "target_modules")
GIVES_WAY = "${default:"


def brought(name: Any, brings: Mapping[str, Any] | None, lora_rank: Any) -> dict[str, Any]:
    """Key → value of what the model's option sets in place of defaults, as `config.BringsConfig` has them."""
    given = dict(brings or {})
    if given.pop("only_for", None) not in (None, name):
        return {}
    return {
        key: value
        for key, value in given.items()
        if value is not None and not (lora_rank == 0 and key in OF_LORA)
    }


def default(value: Any, *, _node_: Node, _parent_: DictConfig, _root_: DictConfig) -> Any:
    """The resolver: `value`, or what takes its place."""
    key = _node_._key()
    if key in RIVALS and _parent_.get(RIVALS[key]) is not None:
        return None
    return _brought_in(_root_).get(key, value)


def _brought_in(config: DictConfig) -> dict[str, Any]:
    return brought(
        name=OmegaConf.select(config, "model.name"),
        brings=OmegaConf.select(config, "model.brings"),
        lora_rank=OmegaConf.select(config, "lora.r"),
    )


def ended_by(training: Mapping[str, Any]) -> list[str]:
    """The rivals of what is set in `training`, where they are not set there themselves."""
    pairs = [pair for first, second in RIVALS.items() for pair in ((first, second), (second, first))]
    return [other for one, other in pairs if training.get(one) is not None and training.get(other) is None]


def settle(config: DictConfig) -> None:
    """Replace every `${default:…}` by what it comes to, and `model.brings` by what of it counts."""
    for section in config.values():
        if isinstance(section, DictConfig):
            for key, written in as_dict(section, resolve=False).items():
                if str(written).startswith(GIVES_WAY):
                    section[key] = section[key]
    if OmegaConf.select(config, "model.brings"):
        config.model.brings = _brought_in(config)
