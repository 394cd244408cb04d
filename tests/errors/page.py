"""docs/errors.md: every error, by the subject that a person meets it under, in two columns: what it says, and what to do."""

from __future__ import annotations

import re
from pathlib import Path

from catalogue import HINT, PASSES_ON, SYSTEM, Site

FILE = Path(__file__).resolve().parents[2] / "docs" / "errors.md"
# Subject → (a sentence, the beginnings of its files). A new file belongs to the first whose beginning fits.
SUBJECTS = {
    "The command line and the configuration": (
        "Before anything is loaded, and before a folder is made.",
        ("command_line", "refused_overrides", "cli", "arguments", "bounds", "optimization", "targets", "config/", "text_files", "errors", "seed_api", "convert"),
    ),
    "The data": (
        "Before a model is loaded: `task=check` finds each of them. What is wrong with single rows is counted and shown by row, in"
        " report.md: [faults.md](faults.md) has those.",
        ("data/", "data_names"),
    ),
    "The model, its tokenizer and its adapter": ("The files are looked at before weights are read.", ("model", "objective/", "inference/")),
    "The run directory": ("A directory is one run's alone.", ("run", "start", "places", "cache", "distributed", "jobs", "hydra_job", "preemption", "process")),
    "The training": ("What was trained until then is kept: the same command goes on.", ("train/", "warm", "pipeline")),
    "Exports": ("The last checkpoint stays; `task=export run=DIR` saves it again.", ("save/", "export")),
    "Sweeps": ("Refused before the first job, or told when all jobs have ended.", ("sweep/", "report/leaderboard", "compare", "hydra_plugins")),
    "Evaluations and servers": ("Answers that were given are kept.", ("evaluat", "served/", "chat", "judge")),
    "Reports and logs": ("", ("report/", "logs", "network", "installed", "doctor", "completion", "resources")),
}  # fmt: skip
ELSEWHERE = "Elsewhere"
HEAD = """\
# Errors

Every error that a person can mend, in one form: **where** it is (a key, a file, a row), **what** is wrong; **what to do**. One
line, no traceback, and an exit code that is not 0. What was computed before is kept.

    error: model=lama3b: no such option; did you mean llama3b? (there are gemma3_4b, llama1b, llama3b, …)
    error: training.optim=adamw8bit: not one of 46 that there are; did you mean adamw_8bit?
    error: my.json: row 7 is not JSON: Expecting ',' delimiter (line 12 of the file); mend it there

`…`, and words in capitals, stand for what is known only then. A word that is spelled like one that there is gets `; did you mean
…?`: keys, groups, options, values, flags, columns, modules of the model, metrics and checks. What another tool calls it is known,
too: `training.lr: no such key; did you mean training.learning_rate?`

An error that is none of these is a fault of this program: its line ends with how the traceback is shown (`HYDRA_FULL_ERROR=1`).

This page is made from the sources: `python tests/errors/renew.py`.
"""


def page(sites: list[Site]) -> str:
    """The page for the errors of `sites`."""
    by_subject: dict[str, dict[tuple[str, str], None]] = {}
    for site in sites:
        for text in site.texts:
            if PASSES_ON not in text:
                by_subject.setdefault(subject(site.file), {})[parted(text)] = None
    parts = [HEAD]
    for title in [*SUBJECTS, ELSEWHERE]:
        if rows := by_subject.get(title):
            sentence = SUBJECTS.get(title, ("",))[0]
            lines = [f"| {_cell(says)} | {_cell(do)} |" for says, do in sorted(rows)]
            parts.append(
                "\n".join(
                    [
                        f"## {title}",
                        "",
                        *([sentence, ""] if sentence else []),
                        "| says | do |",
                        "|---|---|",
                        *lines,
                        "",
                    ]
                )
            )
    return "\n".join(parts)


def subject(file: str) -> str:
    """The subject that the errors of a source file belong to."""
    fitting = [
        (len(start), title)
        for title, (_, starts) in SUBJECTS.items()
        for start in starts
        if file.startswith(start)
    ]
    return max(fitting)[1] if fitting else ELSEWHERE


def parted(text: str) -> tuple[str, str]:
    """What is said, and what to do: behind the first semicolon that stands in no brackets."""
    text = text.removeprefix("error: ").replace(SYSTEM, "the system's own words")
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter in "([") - (letter in ")]")
        if text[place : place + 2] == "; " and depth <= 0:
            return text[:place], text[place + 2 :]
    return text, ""


def _cell(text: str) -> str:
    """Text of a message in a table of Markdown."""
    text = (
        text.replace(HINT, "")
        .replace("|", "\\|")
        .replace("<", "&lt;")
        .replace("*", "\\*")
        .replace("_", "\\_")
        .replace("`", "")
    )
    return re.sub(r"\s+", " ", text).strip()
