"""What Hydra and the libraries below it raise, in our own words: one line for a person."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from hydra.conf import HydraConf
from hydra.errors import (
    HydraException,
    MissingConfigException,
    OverrideParseException,
    SearchPathException,
)
from omegaconf.errors import GrammarParseError, OmegaConfBaseException
from yaml import YAMLError

from chatbot_sft import command_line
from chatbot_sft.config import OVERLAYS, SECTIONS, aliases
from chatbot_sft.config.reading import known_override
from chatbot_sft.errors import ALL, UserError, did_you_mean, listed, near, not_yaml, question
from chatbot_sft.extras import install
from chatbot_sft.resources import conf_dir

# Options of Hydra that are packages of their own, and those that an extra of ours brings.
PLUGINS = {
    "optuna": "hydra-optuna-sweeper", "ax": "hydra-ax-sweeper", "nevergrad": "hydra-nevergrad-sweeper",
    "rq": "hydra-rq-launcher",
    "colorlog": "hydra-colorlog",
}  # fmt: skip
EXTRAS = {"joblib": "joblib", "submitit_slurm": "submitit", "submitit_local": "submitit"}
# Why a file that was opened cannot be written on, of which the system names none: what to do.
FULL = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there",
    errno.EFBIG: "raise `ulimit -f`",
}
HYDRAS_GROUPS = [
    f"hydra/{name}"
    for name in ("launcher", "sweeper", "job_logging", "hydra_logging", "output", "help", "env")
]


def no_such_option(error: MissingConfigException) -> UserError:
    """A group option that is no file; a model or a file given for an option is said to be a value."""
    missing = error.missing_cfg_file or ""
    group, _, option = missing.partition("/") if not missing.startswith("hydra/") else missing.rpartition("/")
    options = error.options or []
    if group.startswith("hydra/") and option in EXTRAS:
        return UserError(f"{group}={option}: not installed; `{install(EXTRAS[option])}`")
    if group.startswith("hydra/") and option in PLUGINS:
        return UserError(f"{group}={option}: not installed; `pip install {PLUGINS[option]}`")
    if not options and (named := re.match(r"In '(.+?)': Could not load", str(error))):
        return UserError(_no_such_default(named[1], missing))
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
    choices = f"there are {listed(options, ALL)}"
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
    installable = [*PLUGINS, *EXTRAS] if group == "hydra/launcher" else []
    hint = question([f"{group}={alias}"]) if alias else did_you_mean(option, [*options, *installable])
    return UserError(f"{group}={option}: no such option{hint} ({choices})")


def _no_such_default(file: str, missing: str) -> str:
    """A slip in the defaults list of a file of one's own."""
    known = [path.relative_to(conf_dir()).with_suffix("").as_posix() for path in conf_dir().rglob("*.yaml")]
    hint = did_you_mean(missing, sorted(known)) or "; name one that is there"
    return f"{file}.yaml: defaults: there is no {missing}.yaml in conf/ or in --config-dir{hint}"


def _nothing_to_override(file: str, group: str) -> str:
    """The same, where an entry of it overrides a choice."""
    meant = near(group.rpartition("/")[2], [*SECTIONS, *OVERLAYS])
    hint = question([f"override /{name}" for name in meant]) or f"; {LIST}"
    return f"{file}.yaml: defaults: no group {group} was chosen{hint}"


def _of_hydra(error: HydraException | OmegaConfBaseException) -> str:
    """What Hydra or OmegaConf says, in the form of ours: the place first, nothing of their classes."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    text, *rest = str(error).splitlines() or [""]
    for pattern, ours in HYDRA_SAYS:
        if found := re.match(pattern, text):
            return ours(*found.groups())
    if isinstance(cause, OmegaConfBaseException):
        why = _of_omegaconf(cause)
        if found := re.match(r"Error merging override (.+)", text):
            gone = "support deletion" in why
            return f"{found[1]}: {'cannot be left out; give it a value' if gone else why}"
        place = f"{cause.full_key}: " if cause.full_key else ""
        return f"{place}{why}"
    if found := re.match(r"In '(.+?)': \w+ raised while composing config:", text):
        return f"{found[1]}.yaml: {_no_keys(rest[0] if rest else text)}"
    return plainly(" ".join([text, *rest]))


def _no_keys(text: str) -> str:
    """What OmegaConf says of a value where keys and values belong; any other text as it is."""
    if text.startswith("Cannot merge DictConfig with ListConfig"):
        return "a list stands where a group has keys and values; write KEY: VALUE in its place"
    if found := re.match(r"Merge error: \w+ is not a subclass of (\w+)\. value: (.*)", text):
        parts = [one.name for one in fields(HydraConf) if getattr(one.type, "__name__", "") == found[1]]
        place = ".".join(["hydra", *parts])
        return f"{place}: expected keys and values, got {found[2]}; write them below it"
    return plainly(text)


def _of_omegaconf(error: OmegaConfBaseException) -> str:
    """Its first line; what stands in `${…}` is named, and what may stand there."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    if found := re.match(r"Interpolation key '(.*)' not found", text):
        return f"${{{found[1]}}} is no key; write the whole name of one, as ${{training.max_steps}}"
    if found := re.match(r"Unsupported interpolation type (.*)", text):
        return f"${{{found[1]}:…}} is no function; there are ${{oc.env:NAME}} and ${{now:%Y-%m-%d}}"
    if found := re.match(r"\w+ raised while resolving interpolation: (.*)", text):
        why = (
            "" if "positional argument" in found[1] or "mismatched" in found[1] else f" ({plainly(found[1])})"
        )
        return f"what stands in ${{…}} comes to nothing{why}; write the value itself"
    if "Invalid type assigned" in text:
        return "keys and values stand there; name one of them, as hydra.run.dir=DIR"
    if "is not Optional" in text:
        return "null is no value of it; give it one, or leave it out"
    if "Interpolation to parent node" in text:
        return "what stands in ${…} holds the key itself; name another key"
    if isinstance(error, GrammarParseError):
        return (
            "${ begins a reference that is not closed or not understood; put text with it in a file, as \\${"
        )
    return plainly(text)


def _no_such_key(key: str) -> str:
    """One of ours is missing where the chosen option is a file of the user's that builds on none of ours."""
    section = key.partition(".")[0]
    if section in SECTIONS and known_override(key):
        base = {"model": "local", "objective": "sft"}.get(section, "default")
        return (
            f"{key}: the chosen {section}=OPTION has no such key, as its file builds on no other;"
            f" begin it with `defaults: [{base}]`"
        )
    topic = section if section in SECTIONS else "alone"
    return f"{key}: no such key; --help {topic} lists them"


def plainly(text: str) -> str:
    """A library's sentence in one line, without the full stop."""
    return " ".join(text.split()).removesuffix(".")


# How Hydra begins, and what we say. What an override of ours may be is told before Hydra sees it.
LIST = "--help lists those that there are"
HYDRA_SAYS: list[tuple[str, Callable[..., str]]] = [
    (r"In '(.+?)': Could not override '([^'@]+)", _nothing_to_override),
    (
        r"Could not override '(hydra/[^']+|[^'.]+/[^']+)'",
        lambda group: f"{group}: no such group{did_you_mean(group, HYDRAS_GROUPS) or f'; {LIST}'}",
    ),
    (r"Could not override '([^']+)'", _no_such_key),
    (
        r"Could not delete from config. '([^']+)' does not exist",
        "~{}: there is nothing of that name; leave it out".format,
    ),
    (
        r"Could not delete from config. The value of '([^']+)' is (.*) and not (.*)\.",
        "~{0}={2}: it is {1}; write ~{0}".format,
    ),
    (r"Could not delete '([^']+)'\. No match", "~{}: no option of it was chosen; leave it out".format),
    (
        r"Could not append to config. An item is already at '([^']+)'",
        "+{0}: it is there already; write {0}=…".format,
    ),
    (
        r"Sweeping over Hydra's configuration is not supported : '(.*)'",
        "{}: says how the sweep is run; give it one value".format,
    ),
    (
        r"Override (.+) looks like a config group override, but config group '(.*)' does not exist",
        ("{}: there is no group {}; " + LIST).format,
    ),
    (r"You must specify '([^']+)'", ("{}: names no option; " + LIST).format),
    (
        r"(?:Ambiguous value for argument|Sweep parameters) '(.*)'",
        "{}: several values are several runs; add -m for them".format,
    ),
]


def said(error: BaseException, log_file: Path | None = None) -> str:
    """Our own texts, Hydra's and YAML's as they are, anything else with its type and where the traceback is:
    in the `log_file` of a run.
    """
    text = " ".join(str(error).split())
    if isinstance(error, UserError):
        return text
    if isinstance(error, MissingConfigException):
        return str(no_such_option(error))
    if isinstance(error, OverrideParseException):
        return command_line.not_understood(error.override, [error.override])
    if isinstance(error, SearchPathException):
        return (
            f"--config-dir: {text.removeprefix('Additional config directory ')};"
            " it names the folder above your groups: mine, of mine/experiment/"
        )
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return _of_hydra(error)
    if found := re.match(r"Invalid defaults list in '(.+?)'", text):
        return f"{found[1]}.yaml: defaults: expected a list of options; write defaults: [NAME]"
    if found := re.match(r"Config (\S+) must be an OmegaConf config", text):
        return f"{found[1]}.yaml: expected keys and values; write KEY: VALUE"
    if isinstance(error, YAMLError):
        return f"not YAML: {not_yaml(error)}"
    if isinstance(error, OSError) and error.strerror:
        if log_file and not error.filename and error.errno in FULL:
            return (
                f"{log_file.parent}: a file there or in the cache cannot be written: {error.strerror};"
                f" {FULL[error.errno]}"
            )
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    log_hint = f"the traceback is in {log_file}; " if log_file else ""
    return f"{type(error).__name__}: {text} ({log_hint}HYDRA_FULL_ERROR=1 shows the traceback here)"
