"""What jobs were asked to be: their swept overrides, or where their configurations differ."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from chatbot_sft.config.schema import OUR_PACKAGE
from chatbot_sft.errors import UserError
from chatbot_sft.report.leaderboard.rows import differing
from chatbot_sft.report.masking import masked, read_yaml
from chatbot_sft.run.directory import Run
from chatbot_sft.run.lock import MACHINE, Lock

# They say where a run is, not what it was.
PLACES = ("paths.", "hydra.", "sweep.", "run", "training.output_dir", "save.save_path")

# What Hydra reads as something else than text where no quotes are around it.
NO_TEXT = re.compile(r"(null|true|false|[+-]?(inf|nan|\.?\d[\d_.]*(e[+-]?\d+)?))$|[\[{]", re.IGNORECASE)


def of_overrides(overrides: Iterable[str]) -> dict[str, str]:
    """`++lora.r=8` → {"lora.r": "8"}; without secrets."""
    found = {}
    for override in overrides:
        key, _, value = str(override).partition("=")
        name = key.lstrip("+~")
        found[name] = str(masked({name: _unquoted(value)})[name])
    return found


def of_runs(folders: Sequence[Path], overrides_first: bool) -> list[dict[str, str]]:
    """The settings in which the runs differ, by what all of them kept: overrides, or configurations."""
    ways = (_typed, _configured) if overrides_first else (_configured, _typed)
    for way in ways:
        settings = [way(folder) for folder in folders]
        known = [one for one in settings if one is not None]
        if len(known) == len(folders) and (keys := differing(known)):
            return [{key: one[key] for key in keys if key in one} for one in known]
    return [{} for _ in folders]


def _typed(folder: Path) -> dict[str, str] | None:
    """By .hydra/overrides.yaml: what was on the command line."""
    given = _yaml(folder / ".hydra" / "overrides.yaml")
    if not isinstance(given, list):
        return None
    return _without_places(of_overrides(map(str, given)))


def _configured(folder: Path) -> dict[str, str] | None:
    """By config.yaml: all that it was composed of."""
    settings = configured(folder)
    return _without_places(settings) if settings else None


def configured(folder: Path) -> dict[str, str]:
    """config.yaml, flat and without secrets, what it leaves to the machine as the lock says that it turned out: a
    replay is given that. {} where there is none.
    """
    given = _yaml(Run(folder).config_file)
    settings = flat(masked(given)) if isinstance(given, dict) else {}
    known = lock(folder)
    turned_out = flat(masked(known.decides)) if known else {}
    return settings | {key: turned_out[key] for key in MACHINE if key in settings and key in turned_out}


def lock(folder: Path) -> Lock | None:
    """The run's; None where it kept none that can be read."""
    try:
        return Run(folder).lock()
    except UserError:
        return None


def _without_places(settings: Mapping[str, str]) -> dict[str, str]:
    return {
        key: value
        for key, value in settings.items()
        if not is_place(key) and not says_nothing_more(key, value)
    }


def is_place(key: str) -> bool:
    """Whether the key says where a run is."""
    return any(key == place or (place.endswith(".") and key.startswith(place)) for place in PLACES)


def says_nothing_more(key: str, value: Any) -> bool:
    """Whether it names a class of ours, which objective.name or the like has named already."""
    return key.endswith("._target_") and str(value).startswith(OUR_PACKAGE)


def _yaml(file: Path) -> Any:
    try:
        return read_yaml(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None


def flat(values: Mapping[str, Any], before: str = "") -> dict[str, str]:
    """Nested keys as dotted ones, values as they are written on a command line."""
    found: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{before}{key}.")
        else:
            written = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
            found[f"{before}{key}"] = written
    return found


def _unquoted(value: str) -> str:
    """Without quotes, where it is the same text without: `'null'` is not `null`, nor `'8'` a number."""
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    return value[1:-1] if quoted and not NO_TEXT.match(value[1:-1]) else value


def as_number(text: str | None) -> float | None:
    """The number that a setting is; None for a word."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if abs(value) < float("inf") else None
