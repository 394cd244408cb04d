"""OmegaConf's containers as plain ones, each of one type: `OmegaConf.to_container` may return either."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf


def as_dict(config: DictConfig | ListConfig, *, resolve: bool) -> dict[str, Any]:
    """A mapping as a plain dictionary; `${…}` in it stays as written unless `resolve` is set."""
    plain = OmegaConf.to_container(config, resolve=resolve)
    if not isinstance(plain, Mapping):
        raise TypeError(f"expected a mapping, got {type(plain).__name__}")
    return {str(key): value for key, value in plain.items()}


def as_strings(config: Sequence[str]) -> list[str]:
    """A list of strings as they are written, `${…}` among them; Hydra's types call its ListConfig a list."""
    plain = OmegaConf.to_container(config, resolve=False)
    if not isinstance(plain, list):
        raise TypeError(f"expected a list, got {type(plain).__name__}")
    return [str(item) for item in plain]
