"""The words of a command line, before Hydra reads them: what is no key=value is answered with what to write."""

from __future__ import annotations

import functools
import importlib.metadata
import itertools
import os
import platform
import re
import shlex
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import NoReturn

from hydra import __version__ as hydra_version
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from chatbot_sft import config as schema
from chatbot_sft import refused_overrides
from chatbot_sft.config import sft_arguments
from chatbot_sft.config.help import with_word
from chatbot_sft.errors import UserError, did_you_mean
from chatbot_sft.json_output import FLAG

PROGRAM = "python -m chatbot_sft"
# Of Hydra's flags those that take the next word. (--info may: all, config, defaults, …; written --info=config
# it is one word.)
FLAGS_WITH_VALUE = (
    "--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd",
    "--experimental-rerun",
)  # fmt: skip
TASKS = ("train", "check", "plan", "export", "evaluate", "verify", "replay")
OF_A_RUN = ("task=export", "task=evaluate", "task=verify", "task=replay")  # these take run=
PROGRAMS = ("chat", "doctor")  # of this package, beside the launcher
YAML = (".yaml", ".yml")
DATA = (".json", ".jsonl", ".csv", ".parquet", ".arrow")
SWEEPS = {"-m", "--multirun"}
OF_A_FILE = ("config", "config_file", "yaml")  # flags of other tools that name a file of settings
NOTHING = {"lora": "lora=none trains every weight", "save": "save=none trains without saving"}
SECRET = re.compile(r"token|secret|password|api_?key|auth", re.IGNORECASE)


def version() -> str:
    """`chatbot_sft 0.1.0 (Python 3.11.7, Hydra 1.3.8)`; `python -m chatbot_sft.doctor` says the rest."""
    own = importlib.metadata.version("chatbot-sft")
    return f"chatbot_sft {own} (Python {platform.python_version()}, Hydra {hydra_version})"


def of_a_server(words: Sequence[str]) -> list[str]:
    """`url=` and `model=` written out, where the task puts questions to a server: there is no other model."""
    if not {"task=evaluate", "task=verify"} & set(words):
        return list(words)
    return [re.sub(r"^(url|model)=", r"evaluation.\1=", word) for word in words]


def check(words: Sequence[str]) -> Namespace:
    """Hydra's flags among `words`; a word that is neither a flag nor key=value is refused.

    Raises:
        UserError: the word, and how to write what it most likely meant.
    """
    for flag, value in _values(words):
        if PurePath(value).suffix in YAML:
            raise UserError(f"{flag} {value}: {overlay(value)}")
    for word in words:
        if (
            re.match(r"-[^\W\d_]", word)
            and word.partition("=")[0] not in _flags()
            and word not in ("-cjob", "-chydra", "-call")
        ):
            raise UserError(_no_such_flag(word, words))  # argparse would take its first letter for a flag
    given, others = _parser().parse_known_intermixed_args(list(words))
    for flag in others:
        is_number = re.fullmatch(r"-[\d.].*", flag)
        raise UserError(not_understood(flag, words) if is_number else _no_such_flag(flag, words))
    # Hydra's own key for the same may say so too, on the command line or in a file; then Hydra judges.
    keys = {word.partition("=")[0] for word in given.overrides}
    in_files = given.config_dir or given.config_name or keys & {*schema.OVERLAYS}
    several = given.multirun or "hydra.mode" in keys or in_files
    for word in given.overrides:
        if given.help and _is_key(word) and PurePath(word).suffix not in YAML:
            continue  # a topic
        parsed = _parsed(word)
        if parsed is None:
            raise UserError(not_understood(word, given.overrides))
        refused_overrides.refuse(parsed)
        if parsed.is_sweep_override() and not several:
            raise UserError(several_values(parsed))
        if given.multirun:
            _refuse_of_one_run(parsed)
        if parsed.key_or_group in OF_A_FILE and (value := word.partition("=")[2]):
            raise UserError(f"{parsed.key_or_group}: no such key; {overlay(value)}")
    if given.help and not topics(given):  # else `cli` says first what there is to say of the others
        refuse_no_topic(given)
    if (given.package or given.resolve) and not given.cfg:
        raise UserError("--package and --resolve: are of --cfg; write --cfg job before them")
    if given.experimental_rerun:
        raise UserError(
            "--experimental-rerun: reads a pickle, which may run code; report.md has the command that repeats a run"
        )
    if given.cfg and (given.multirun or given.info):
        raise UserError("--cfg shows the configuration of one run; leave out -m and --info")
    return given


def refuse_json(given: Namespace, sweeps: bool) -> None:
    """Raises UserError where --json stands beside what ends in no report."""
    if sweeps:
        raise UserError(
            "--json: a sweep is many runs; leave it out, and then python -m chatbot_sft.compare DIR --json"
        )
    flags = {"--help": given.help, "--cfg": given.cfg, "--info": given.info, "-sc": given.shell_completion}
    if flag := next((name for name, value in flags.items() if value), None):
        raise UserError(f"--json: {flag} runs nothing that reports; leave one of them out")


def topics(given: Namespace) -> list[str]:
    """The sections, groups, keys and words of keys that `--help lora save.method experiment rank` asks for."""
    return [word for word in given.overrides if _is_key(word) and _is_topic(word)]


def refuse_no_topic(given: Namespace) -> None:
    """Raises UserError where `--help` is asked for something that there is nothing to say of."""
    for word in given.overrides:
        if _is_key(word) and not _is_topic(word):
            raise UserError(f"--help {schema.no_such_topic(word)}")


def _is_topic(word: str) -> bool:
    passed = word in {f"training.{key}" for key in sft_arguments.PASSED}
    named = word in schema.SECTIONS or word in schema.OVERLAYS or schema.find(word) is not None
    return passed or named or bool(with_word(word))


def for_hydra(words: Sequence[str], given: Namespace) -> list[str]:
    """The same command line as Hydra takes it: flags first, and each override as `opened` writes it."""
    flags, overrides = parted(words)
    if given.shell_completion:  # of a command line that is not finished
        return [*flags, *overrides]
    own = given.config_name is not None
    # --info takes a word.
    return [*flags, *(opened(word, own) if word in given.overrides else word for word in overrides)]


def all_opened(overrides: Sequence[str], given: Namespace) -> list[str]:
    """Each of `overrides` as `opened` writes it."""
    return [opened(word, own_config=given.config_name is not None) for word in overrides]


def parted(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Hydra's flags, and the overrides: its parser takes no override behind a flag that stands behind one."""
    flags, overrides = [], []
    rest = iter(words)
    for word in rest:
        if not word.startswith("-"):
            overrides.append(word)
            continue
        flags.append(word)
        if word in FLAGS_WITH_VALUE:
            flags += itertools.islice(rest, 1)
    return flags, overrides


def opened(word: str, own_config: bool = False) -> str:
    """An override as Hydra takes it.

    `training.max_grad_norm=1` gets the plus signs that Hydra asks for where the YAML files do not name the
    key: the schema decides. `+model=NAME`, `+experiment=NAME` and `+lora.r=8` mean what they say without the
    plus: the key is there. Where the user has a configuration of their own (`--config-name`), its defaults
    list may be without `experiment` and `debug`.

    Raises:
        UserError: a section or a key that is taken away.
    """
    parsed = _read(word)
    key = parsed.key_or_group
    ours = key.partition(".")[0] != "hydra" and "/" not in key and schema.known_override(key)
    if parsed.is_delete() and (ours or refused_overrides.is_ours(key)):
        raise UserError(deleted(key))
    if key in schema.SECTIONS and not parsed.is_sweep_override() and parsed.value() is None:
        raise UserError(left_out(key, "config"))
    if key in schema.OVERLAYS and not parsed.is_sweep_override() and parsed.value() is None:
        raise UserError(f"{word}: names no option; leave it out")
    if parsed.is_add() and not parsed.is_force_add() and ours and not (own_config and key in schema.OVERLAYS):
        return opened(word[1:], own_config)
    if parsed.is_add() or parsed.is_force_add() or parsed.is_delete():
        return word
    text = as_text(word, parsed)
    return text if schema.known_override(key) else f"++{text}"


class _Parser(ArgumentParser):
    """Says what is wrong as a UserError."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists the flags")


def _values(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(flag, value) of those flags among `words` that have a value, ours and those of other tools."""
    bare = _flags()
    for word, following in itertools.pairwise([*words, ""]):
        flag, equals, value = word.partition("=")
        if flag.startswith("-") and (equals or flag in FLAGS_WITH_VALUE or flag not in bare):
            yield flag, value if equals else following


@functools.cache
def _flags() -> list[str]:
    """All of Hydra's, long and short."""
    return [option for action in get_args_parser()._actions for option in action.option_strings]


@functools.cache
def _parser() -> _Parser:
    return _Parser(parents=[get_args_parser()], add_help=False, allow_abbrev=False)


def overlay(file: str) -> str:
    """How the settings of a YAML file are given."""
    name = PurePath(file).stem
    return (
        f"a file of settings is an overlay: put it into a folder, as mine/experiment/{name}.yaml,"
        f" begin it with the line `# @package _global_`, and write --config-dir mine experiment={name}"
    )


def _no_such_flag(flag: str, words: Sequence[str]) -> str:
    name, equals, value = flag.partition("=")
    key = name.lstrip("-").replace("-", "_")
    following = [*words, ""][list(words).index(flag) + 1]
    if not equals:
        is_value = following and "=" not in following and not re.match(r"-\D", following)
        value = following if is_value else "true"
        flag = f"{flag} {following}" if value == following else flag
    if key in OF_A_FILE:
        return f"{name}: no such flag; {overlay('my_run')}"
    setting = _setting(f"sweep.{key}" if key == "dry_run" and SWEEPS & {*words} else key, value)
    if SECRET.search(key):
        flag, setting = name, ""
    if setting:
        return f"{flag}: settings are written without dashes, as key=value: {shlex.quote(setting)}"
    alias = schema.meant("", key, value)
    if alias and alias.note:
        return f"{flag}: no such flag; {alias.note}"
    flags = [option for option in _flags() if option.startswith("--")]
    example = "; settings are written without dashes, as key=value, for instance training.max_steps=100"
    return f"{flag}: no such flag{did_you_mean(name, [*flags, FLAG]) or example}"


def _setting(key: str, value: str) -> str:
    """`key=value` as it has to be written for the flag `--key value`, or an empty string."""
    section, _, name = key.rpartition(".")
    if schema.known_override(key):
        return written_out(key, value)
    if section in schema.SECTIONS and name in sft_arguments.known():
        return written_out(key, value)
    alias = schema.meant(section, name, value)
    if alias is None or not alias.setting:
        return ""
    return alias.setting if "=" in alias.setting else written_out(alias.setting, value)


def not_understood(word: str, words: Sequence[str]) -> str:
    """The text for `word`, which Hydra cannot parse; `words` are all that stand on the command line."""
    place = list(words).index(word)
    before = words[place - 1] if place else ""
    start = f"{shown(word)}: not understood as key=value"
    if not word.strip():
        return "'': an empty word on the command line; leave it out, or put what it belongs to in quotes"
    key, equals, _ = word.partition("=")
    first = place if equals and _is_key(key) else place - 1  # of the words that may be one value
    if first >= 0 and (together := _with_commas(words, first)):
        return f"{start}; no space stands beside a comma: {shlex.quote(together)}"
    if equals and _is_key(key):
        whole = _joined(words, place)
        return f"{start}; quote it: {shlex.quote(whole)}" if whole else f"{start}; {_in_a_file(key)}"
    following = [*words, ""][place + 1]
    if following == "=" or not word.strip("="):
        around = words[place : place + 3] if following == "=" else words[max(place - 1, 0) : place + 2]
        return f"{start}; no space stands beside the equals sign: {shlex.quote(''.join(around))}"
    if before.endswith("="):
        written = re.sub(r"\s*=\s*", "=", " ".join(words[max(place - 1, 0) : place + 1]), count=1)
        return f"{start}; no space stands beside the equals sign: {shlex.quote(written)}"
    if _is_run(word, before, words):
        return f"{start}; a run is named with {shlex.quote(written_out('run', word))}"
    if "=" in before and _is_key(before.partition("=")[0]):
        whole = _joined(words, place - 1)
        hint = f"; if it belongs to {shown(before)}, quote both: {shlex.quote(whole)}"
        return f"{start}{hint}" if whole else start
    if word.endswith(":") and _is_key(word[:-1]):
        return f"{start}; settings are written with an equals sign: {_with_sections(word[:-1])}=…"
    if word in TASKS:
        return f"{start}; write task={word}"
    if word in PROGRAMS:
        return f"{start}; that is a program of its own: {PROGRAM}.{word}"
    if PurePath(word).suffix in YAML:
        return f"{start}; {overlay(word)}"
    if PurePath(word).suffix in DATA:
        return f"{start}; data is named with {shlex.quote(written_out('dataset.data_path', word))}"
    if _is_key(word):
        return f"{start}; give it a value: {_with_sections(word)}=…"
    return f"{start}, for instance training.max_steps=100"


def _with_commas(words: Sequence[str], first: int) -> str:
    """Values of a sweep that the shell cut at the spaces beside their commas, without these; or an empty string."""
    parts = words[first : _end(words, first)]
    at_commas = all(one.endswith(",") or two.startswith(",") for one, two in itertools.pairwise(parts))
    together = "".join(parts)
    parsed = _parsed(together) if at_commas and not SECRET.search(together.partition("=")[0]) else None
    if parsed is None or not parsed.is_sweep_override():
        return ""
    entry = schema.find(parsed.key_or_group)
    is_text = entry and entry.kind.startswith("str") and not entry.about.choices and "(" not in together
    return "" if is_text else together


def _is_run(word: str, before: str, words: Sequence[str]) -> bool:
    """Whether `word` names the run of a task that takes one, which the words do not name otherwise."""
    if not {*OF_A_RUN} & {*words} or any(other.startswith("run=") for other in words):
        return False
    is_path = "/" in word and PurePath(word).suffix not in (*DATA, *YAML)
    is_folder = os.path.isdir(word)  # noqa: PTH112 - Path's raises where a name is too long for one
    return is_folder or (is_path and (before in OF_A_RUN or "=" not in before))


def _refuse_of_one_run(override: Override) -> None:
    """Raises UserError for what one run has by that name, or in that form, and a sweep by another."""
    key, word = override.key_or_group, shown(override.input_line or "")
    value = None if override.is_sweep_override() else override.value()
    if key == "dry_run":
        raise UserError(f"{key}: no such key; did you mean sweep.{word}?")
    kind = schema.kind_of(key) or sft_arguments.known().get(key.removeprefix("training."), "")
    values = word.partition("=")[2].strip()[1:-1]
    if isinstance(value, list) and len(value) > 1 and key in schema.SECTIONS:
        raise UserError(f"{word}: is one job of all of these; write {key}={values} for a job each")
    if isinstance(value, list) and value and kind and not re.search("list|dict|Any", kind):
        raise UserError(
            f"{word}: takes no list; write values behind commas, without brackets: {shlex.quote(f'{key}={values}')}"
        )


def several_values(override: Override) -> str:
    """The text for a value with commas, or a function such as range(1,4), where one run was asked for."""
    written = override.input_line or ""
    line, value = shown(written), written.partition("=")[2]
    key = override.get_key_element().lstrip("+")
    if not schema.known_override(key) and "." not in key:
        return f"{line}: several values are several runs; add -m for them"
    kind = schema.kind_of(key)
    if kind.startswith(("list", "Any")):
        return (
            f"{line}: several values are several runs; add -m for them, or write a list:"
            f" {shlex.quote(f'{key}=[{value}]')}"
        )
    if kind.startswith("str") and override.is_choice_sweep() and not value.startswith("choice("):
        return (
            f"{line}: several values are several runs; add -m for them, or quote it as one text:"
            f" {shlex.quote(written_out(key, value))}"
        )
    return f"{line}: several values are several runs; add -m for them"


def written_out(key: str, value: str) -> str:
    """`key=value` so that Hydra reads just `value`: in double quotes where needed, without the shell's own."""
    plain = f"{key}={value}"
    parsed = _parsed(plain if key else f"key{plain}")
    if (
        parsed
        and not parsed.is_sweep_override()
        and (parsed.value() == value or not schema.kind_of(key).startswith("str"))
    ):
        return plain
    escaped = re.sub(r'(\\*)("|$)', lambda match: match[1] * 2 + ('\\"' if match[2] else ""), value)
    return f'{key}="{escaped}"'


def deleted(key: str) -> str:
    """The text for `~lora` or `~training.max_steps`."""
    if key in schema.SECTIONS:
        nothing = f"; {NOTHING[key]}" if key in NOTHING else "; choose an option"
        return f"~{key}: a section cannot be left out, its defaults would come back{nothing}"
    or_null = f", or {key}=null" if "None" in schema.kind_of(key) else ""
    return f"~{key}: a key cannot be left out, its default would come back; give it a value{or_null}"


def left_out(section: str, config_name: str | None) -> str:
    """The text for a section that nothing was composed for: other defaults than those of conf/ would hold."""
    if config_name != "config":
        return (
            f"{section}: not in {config_name}.yaml; a configuration of your own begins with `defaults:"
            " [config, _self_]` and holds what differs"
        )
    nothing = f"; {NOTHING[section]}" if section in NOTHING else ""
    return (
        f"{section}: null, or nothing under `{section}:` in a file;"
        f" name one of its options, or leave it out{nothing}"
    )


def as_text(override: str, parsed: Override) -> str:
    """`model.revision=12e4567` as `model.revision="12e4567"`: what a text key is given is text."""
    if not schema.kind_of(parsed.key_or_group).startswith("str"):
        return override
    if not parsed.is_sweep_override():
        is_text = not isinstance(parsed.value(), (bool, int, float))
        return override if is_text else written_out(parsed.key_or_group, override.partition("=")[2])
    if not parsed.is_choice_sweep():
        return override
    key = parsed.key_or_group
    values = [f"{key}={value}" for value in parsed.sweep_string_iterator()]
    texts = [as_text(value, _read(value)) for value in values]
    return override if texts == values else f"{key}=" + ",".join(text.partition("=")[2] for text in texts)


def shown(word: str) -> str:
    """`word` as a message may repeat it: not where it holds a secret."""
    key, equals, _ = word.partition("=")
    return f"{key}=…" if equals and SECRET.search(key) else word


def _end(words: Sequence[str], place: int) -> int:
    """Where the next key=value behind `place` stands."""
    return next((n for n, word in enumerate(words) if n > place and "=" in word), len(words))


def _joined(words: Sequence[str], place: int) -> str:
    """The value from `place` on that the shell cut at its spaces, quoted for Hydra; or an empty string."""
    whole = " ".join(words[place : _end(words, place)])
    key, _, value = whole.partition("=")
    if SECRET.search(key):
        return f'{key}="…"'
    for candidate in (whole if value.startswith(("[", "{")) else "", _quoted_inside(key, value)):
        if candidate and _parsed(candidate):
            return candidate
    text = written_out(key, value)
    parsed = _parsed(text)
    return text if parsed and parsed.value() == value else ""


def _quoted_inside(key: str, value: str) -> str:
    """A list, a mapping, a glob() or choice() whose parts are quoted each, empty where `value` is none of them."""
    if call := re.fullmatch(r"glob\((.*)\)", value):
        return f"{key}=glob({written_out('', call[1])[1:]})"
    if call := re.fullmatch(r"choice\((.*)\)", value):
        parts = ",".join(written_out("", part.strip())[1:] for part in call[1].split(","))
        return f"{key}=choice({parts})"
    if re.fullmatch(r"\[.*\]", value):
        parts = ",".join(written_out("", part.strip())[1:] for part in value[1:-1].split(","))
        return f"{key}=[{parts}]"
    if re.fullmatch(r"\{.*:.*\}", value):
        pairs = [pair.partition(":") for pair in value[1:-1].split(",")]
        parts = ", ".join(f"{name.strip()}: {written_out('', inner.strip())[1:]}" for name, _, inner in pairs)
        return f"{key}={{{parts}}}"
    return ""


def _with_sections(key: str) -> str:
    """`key` with the section it belongs to."""
    if schema.known_override(key):
        return key
    section, _, name = key.rpartition(".")
    alias = schema.meant(section, name, None)
    return alias.setting if alias and "=" not in alias.setting and alias.setting else key


def _in_a_file(key: str) -> str:
    return f"{key} with such a value is best written in a file, an overlay in --config-dir"


def _is_key(text: str) -> bool:
    return re.fullmatch(r"(\+\+?|~)?[A-Za-z_][\w/@-]*(\.[\w-]+)*", text, re.ASCII) is not None


def _parsed(word: str) -> Override | None:
    try:
        parsed = _read(word)
    except HydraException:
        return None
    return parsed if parsed.key_or_group else None


@functools.lru_cache(maxsize=256)
def _read(word: str) -> Override:
    """As Hydra's grammar reads it, which takes milliseconds; asked for more than once."""
    return _grammar().parse_override(word)


@functools.cache
def _grammar() -> OverridesParser:
    return OverridesParser.create()
