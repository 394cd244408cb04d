"""What Hydra itself would import and call because a configuration says so: callbacks, a launcher, a sweeper and
loggers, judged before Hydra composes for the run and makes them.
"""

from __future__ import annotations

import importlib
from argparse import Namespace
from collections.abc import Iterator, Sequence
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from chatbot_sft.config.hydra_glue import compose_for
from chatbot_sft.errors import UserError
from chatbot_sft.trust import refuse_foreign, searched

# What Hydra may make without being allowed to: our callbacks, its own plugins and those that are installed, which it
# imports anyway, and what log files and samplers are made of. Not the rest of these packages: hydra.utils and
# logging.config import by name.
KNOWN = (
    "chatbot_sft.config.hydra_glue.CheckConfiguration",
    "chatbot_sft.run_directory.ClaimDirectory",
    "hydra._internal.core_plugins",
    "hydra.experimental.callbacks",
    "hydra_plugins",
    *(
        f"logging.{name}"
        for name in ("StreamHandler", "FileHandler", "NullHandler", "Formatter", "Filter", "handlers")
    ),
    "colorlog.ColoredFormatter",
    "colorlog.formatter",
    "colorlog.StreamHandler",
    "optuna.samplers",
)
NAMES_CODE = ("_target_", "()", "class")  # the last two in the dictionaries that logging.config reads
EXTERNAL = "ext://"  # before a name that logging.config imports
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
# Overrides that bring no code.
HARMLESS = (
    "hydra.run.",
    "hydra.sweep.",
    "hydra.output_subdir",
    "hydra.mode",
    "hydra.verbose",
    "hydra.job.chdir",
)


def refuse(given: Namespace, overrides: Sequence[str]) -> None:
    """Refuse a command line, or files in --config-dir, by which Hydra would run a stranger's package. `overrides`
    are those of `given` as Hydra takes them.

    `allow_targets` counts here where it stands on the command line alone: a file could allow itself.

    Raises:
        UserError: names the key and the package.
        HydraException: it cannot be composed.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    if not (given.config_dir or given.config_name or given.config_path or any(map(_of_hydra, parsed))):
        return
    single = [one.input_line for one in parsed if one.input_line and not one.is_sweep_override()]
    config = compose_for(single, given.config_name or "config", given.config_dir, given.config_path or "")
    HydraConfig.instance().set_config(config)  # ${hydra:…} is read from there
    allowed = [str(name) for one in parsed if one.key_or_group == "allow_targets" for name in _listed(one)]
    for key, target in _named(config.hydra, "hydra"):
        _refuse(target, f"{key}={target}", [*KNOWN, *allowed])


def _refuse(target: str, where: str, allowed: Sequence[str]) -> None:
    """Of what may be imported only what is made there: Hydra follows my_loader.os.system, too."""
    refuse_foreign(target, where, allowed, own=())
    module, _, name = target.rpartition(".")
    try:
        made_in = getattr(getattr(importlib.import_module(module), name), "__module__", "")
    except (ImportError, AttributeError, ValueError):
        raise UserError(
            f"{where}: there is no {name or 'name'} in a module {module or target}; Python has looked in"
            f" {searched()}, and among what is installed"
        ) from None
    refuse_foreign(f"{made_in}.{name}", where, allowed, own=())


def _of_hydra(override: Override) -> bool:
    key = override.key_or_group
    return key.startswith("hydra") and not key.startswith(HARMLESS)


def _listed(override: Override) -> list[Any]:
    value = override.value()
    return value if isinstance(value, list) else []


def _named(node: Any, where: str) -> Iterator[tuple[str, str]]:
    """(key, dotted name) of all that would be imported for what stands in `node`, whatever it refers to."""
    inner: list[tuple[str, Any]]
    if isinstance(node, ListConfig):
        inner = [(f"{where}[{number}]", number) for number in range(len(node))]
    elif isinstance(node, DictConfig):
        inner = [(f"{where}.{key!s}", key) for key in node]
    else:
        return
    for place, key in inner:
        if OmegaConf.is_missing(node, key):
            continue
        try:
            value = node[key]
        except OmegaConfBaseException:  # the run directory, which is not known yet
            value = "" if key not in NAMES_CODE else "(what cannot be told)"
        if isinstance(value, str) and (key in NAMES_CODE or value.startswith(EXTERNAL)):
            if value not in STREAMS:
                yield place, value.removeprefix(EXTERNAL)
        else:
            yield from _named(value, place)
