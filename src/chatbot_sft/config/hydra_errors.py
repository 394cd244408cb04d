"""What Hydra and the libraries below it raise, in our own words: one line for a person."""

from __future__ import annotations

import sys

from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
    SearchPathException,
)
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from chatbot_sft import command_line
from chatbot_sft.config import OVERLAYS, aliases
from chatbot_sft.errors import UserError, did_you_mean, listed, not_yaml, question

# Options of Hydra that are packages of their own.
PLUGINS = {
    "optuna": "hydra-optuna-sweeper", "ax": "hydra-ax-sweeper", "nevergrad": "hydra-nevergrad-sweeper",
    "joblib": "'chatbot-sft[joblib]'",
    "submitit_slurm": "'chatbot-sft[submitit]'", "submitit_local": "'chatbot-sft[submitit]'",
    "rq": "hydra-rq-launcher",
    "colorlog": "hydra-colorlog",
}  # fmt: skip


def no_such_option(error: MissingConfigException) -> UserError:
    """A group option that is no file; a model or a file given for an option is said to be a value."""
    missing = error.missing_cfg_file or ""
    group, _, option = missing.partition("/") if not missing.startswith("hydra/") else missing.rpartition("/")
    options = error.options or []
    if group.startswith("hydra/") and option in PLUGINS:
        return UserError(f"{group}={option}: not installed; `pip install {PLUGINS[option]}`")
    if not group or not options:
        return UserError(
            f"--config-name {missing}: there is no {missing}.yaml in conf/ or in --config-dir;"
            " options of your own are overlays: --config-dir DIR experiment=NAME"
        )
    if group == "hydra/launcher" and option.startswith("ray"):
        return UserError(
            f"{group}={option}: hydra-ray-launcher needs an older cloudpickle; have Ray start"
            " `… -m … sweep.worker=true hydra.sweep.dir=DIR` as often as there are to be workers (docs/cluster.md)"
        )
    choices = f"there are {listed(options)}"
    if group in OVERLAYS and option.endswith(command_line.YAML):
        return UserError(f"{group}={option}: no such option ({choices}); {command_line.overlay(option)}")
    if not option:
        return UserError(f"{group}=: names no option ({choices})")
    values = {"model": "model=local model.name", "dataset": "dataset.data_path", "save": "save.save_path"}
    if group in values and ("/" in option or "." in option):
        return UserError(
            f"{group}={option}: no such option ({choices}); did you mean {values[group]}={option}?"
        )
    alias = {
        ("lora", "qlora"): "default model.load_in_4bit=true",
        ("lora", "full"): "none",
        ("lora", "lora"): "default",
    }.get((group, option))
    alias = alias or aliases.value_of({"save": "save.method"}.get(group, group), option)
    hint = question([f"{group}={alias}"]) if alias else did_you_mean(option, options)
    return UserError(f"{group}={option}: no such option{hint} ({choices})")


def said(error: BaseException, in_run: bool = False) -> str:
    """Our own texts, Hydra's and YAML's as they are, anything else with its type and where the traceback is."""
    text = " ".join(str(error).split())
    if isinstance(error, UserError):
        return text
    if isinstance(error, MissingConfigException):
        return str(no_such_option(error))
    if isinstance(error, ConfigCompositionException) and (swept := command_line.swept(sys.argv[1:], text)):
        return command_line.several_values(swept)
    if isinstance(error, OverrideParseException):
        return command_line.not_understood(error.override, [error.override])
    if isinstance(error, SearchPathException):
        return (
            f"--config-dir: {text.removeprefix('Additional config directory ')};"
            " it names the folder above your groups: mine, of mine/experiment/"
        )
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        cause = error.__cause__
        of_omegaconf = isinstance(cause, OmegaConfBaseException)
        return f"{text}: {' '.join(str(cause).split())}" if of_omegaconf else text
    if isinstance(error, YAMLError):
        return f"not YAML: {not_yaml(error)}"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    log_hint = "the traceback is in the run's run.log; " if in_run else ""
    return f"{type(error).__name__}: {text} ({log_hint}HYDRA_FULL_ERROR=1 shows the traceback here)"
