"""What `--help` prints, made from the schema and the files of conf/; `--help lora`: that alone."""

from __future__ import annotations

import functools
import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from chatbot_sft.config import aliases
from chatbot_sft.config.containers import as_dict
from chatbot_sft.config.key import Key
from chatbot_sft.config.schema import OVERLAYS, SECTIONS, find, keys
from chatbot_sft.resources import conf_dir

WIDTH, COLUMN = 118, 44
HEAD = """\
chatbot_sft: fine-tune a chat model on your conversations. One command trains, saves and reports one run; -m sweeps.

python -m chatbot_sft [group=option …] [section.key=value …]

Examples
  python -m chatbot_sft                                                     the embedded model on the example data
  python -m chatbot_sft model=llama3b training.max_steps=100                a hub model, 4-bit
  python -m chatbot_sft model=local model.name=DIR dataset.data_path=my.json
  python -m chatbot_sft lora=dora save=lora training.neftune_noise_alpha=5
  python -m chatbot_sft -m lora.r=8,16 training.learning_rate=1e-4,2e-4     four runs
  python -m chatbot_sft -m hparams_search=rate_rank sweep.dry_run=true      which runs that would be
  python -m chatbot_sft.convert qlora.yml                                   a file of Axolotl or LLaMA-Factory
"""
FLAGS = """\
Flags
  --help NAME …        the keys of a group (model, lora, dataset, training, save, sweep …), one key, or keys by a word
  --cfg job            print the configuration and stop        -m, --multirun   run every combination of a,b,c values
  --json               one JSON object on standard output: report.json, of task=check data_report.json too
  --config-dir DIR     add your own group options              --hydra-help     Hydra's own flags

A run writes outputs/<date>/<time>/: report.md, report.json, loss.png, run.log, checkpoints/, model/
"""


def help_text(topics: Sequence[str], config_dir: str | None) -> str:
    """All of it, or `topics` alone: sections, groups, keys, and words of these."""
    if topics:
        return "\n\n".join("\n".join(topic_lines(topic, config_dir)) for topic in topics)
    listed = "\n\n".join("\n".join(section_lines(section)) for section in ("", *SECTIONS))
    return "\n".join([HEAD, "Groups (group=option)", *groups(config_dir), "", listed, "", FLAGS]).rstrip()


def topic_lines(topic: str, config_dir: str | None) -> Iterator[str]:
    """The keys of a section, one key, the options of a group that reaches into every section, or keys by a word."""
    if topic in SECTIONS:
        yield from section_lines(topic)
    elif key := find(topic):
        yield from key_lines(key)
    elif topic.startswith("training."):
        yield f"  {topic}: of TRL's SFTConfig, taken as it is"
    elif topic in OVERLAYS:
        yield from (line for line in groups(config_dir) if line.startswith(f"  {topic}:"))
    else:
        yield f"Keys with “{topic}” in their name or help"
        for key in with_word(topic):
            yield from key_lines(key)


def with_word(word: str) -> list[Key]:
    """The keys that have a word which begins so in their name or their help, those first that have it in their name,
    and before them the one that other tools call so. None for what is written as a path.
    """
    if "." in word:
        return []
    alias = aliases.look_up("", word, None)
    called = find(alias.setting.partition("=")[0]) if alias else None
    begins = re.compile(rf"(?<![^\W_]){re.escape(word)}", re.IGNORECASE)
    known = [key for key in keys() if key.name != "_target_"]
    by_name = [key for key in known if begins.search(key.name)]
    by_help = [key for key in known if begins.search(key.about.help)]
    return list({key.path: key for key in (*([called] if called else []), *by_name, *by_help)}.values())


def groups(config_dir: str | None) -> Iterator[str]:
    """A line for each group of conf/, with its options and those that `config_dir` adds."""
    folders = [conf_dir(), *([Path(config_dir)] if config_dir else [])]
    options: dict[str, set[str]] = {}
    for folder in folders:
        for file in folder.glob("*/*.yaml"):
            options.setdefault(file.parent.name, set()).add(file.stem)
    for group in sorted(options.keys() - {"hydra", "paths"}):
        yield f"  {group}: {', '.join(sorted(options[group]))}"


def section_lines(section: str) -> Iterator[str]:
    """The keys of one section with their defaults, choices and help; those at the top for an empty name."""
    yield section or "Keys"
    for key in keys():
        if key.section == section and key.name != "_target_":
            yield from key_lines(key)
    if section == "training":
        yield "  Keys of TRL's SFTConfig too: training.neftune_noise_alpha=5"


@functools.cache
def brought() -> dict[str, tuple[Any, str]]:
    """Key → the value that a command without arguments takes in place of the key's default, and the option that
    brings it.
    """
    defaults = OmegaConf.load(conf_dir() / "config.yaml").defaults
    found: dict[str, tuple[Any, str]] = {}
    for section in ("model", "objective", "dataset"):  # a later one wins, as in `precedence.all_brought`
        option = next(entry[section] for entry in defaults if section in entry)
        file = OmegaConf.load(conf_dir() / section / f"{option}.yaml")
        brings = as_dict(file, resolve=False).get("brings") or {}
        found |= {key: (value, f"{section}={option}") for key, value in brings.items() if key != "only_for"}
    return found


def key_lines(key: Key) -> Iterator[str]:
    """`  lora.bias=none    none | all | lora_only; biases that are trained`, wrapped."""
    start = f"  {key.path}={key.about.elsewhere or aliases.plain(key.default)}"
    choices = " | ".join(aliases.plain(choice) for choice in key.about.choices)
    text = f"{choices}; {key.about.help}" if choices else key.about.help
    if key.name in brought() and key.section in ("model", "training", "lora"):
        value, option = brought()[key.name]
        text = f"{aliases.plain(value)} in the quick start, as {option} brings it; {text}"
    wrapped = textwrap.wrap(text, WIDTH - COLUMN, break_long_words=False, break_on_hyphens=False)
    if len(start) > COLUMN - 2:
        yield start
        start = ""
    for line in wrapped:
        yield f"{start:<{COLUMN}}{line}"
        start = ""
