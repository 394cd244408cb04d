"""The commands that the documents tell people to type, each with what it says there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from conftest import REPO

DOCUMENTS = [
    REPO / "README.md",
    *sorted((REPO / "docs").rglob("*.md")),
    *(file for name in ("CONTRIBUTING.md", "SECURITY.md") if (file := REPO / name).exists()),
]
TYPED = re.compile(
    r"(?:[A-Z_]+=\S+ )*(?:(?:\.venv/bin/)?python -m |chatbot-sft |make |pip install|uv |torchrun |accelerate |eval |source |ollama |vllm |llama-server |transformers |git )"
)
FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<body>.*?)^(?P=indent)```", re.MULTILINE | re.DOTALL
)
PLACEHOLDERS = {"<date>/<time>": "2026-11-30/12-00-00", "<run directory>": "outputs/my_run"}


@dataclass(frozen=True)
class Command:
    """One program and its words; `before` are the words that a leading … stands for."""

    document: str
    text: str  # as it is written
    words: list[str]
    before: list[str] = field(default_factory=list)
    said: tuple[str, ...] = ()  # the lines behind `$ …`

    @property
    def error(self) -> str | None:
        """What it says that it ends with."""
        return next((line.removeprefix("error: ") for line in self.said if line.startswith("error: ")), None)

    @property
    def kind(self) -> str:
        """launcher | program (of this package, beside the launcher) | make | pip | script | other"""
        first, *rest = self.words
        if first == "make":
            return "make"
        if first in ("pip", "uv") and "install" in rest[:2]:
            return "pip"
        if first == "chatbot-sft" or "chatbot_sft" in self.words:
            return "launcher"
        if first.endswith("python") and rest[:1] == ["-m"] and rest[1].startswith("chatbot_sft."):
            return "program"
        if first.endswith("python"):
            return "script"
        return "other"

    @property
    def arguments(self) -> list[str]:
        """What the launcher, or the program, is given."""
        own = next(
            (n for n, word in enumerate(self.words) if re.fullmatch(r"chatbot[-_]sft(\.[\w.]+)?", word))
        )
        return [*self.before, *(word for word in self.words[own + 1 :] if word != "…")]

    def __str__(self) -> str:
        return f"{self.document}: {self.text}"


def commands() -> list[Command]:
    return [command for document in DOCUMENTS for command in of_document(document)]


def of_document(document: Path) -> Iterator[Command]:
    """Those in blocks, in `$ …` lines, in what a file says it is used by, and in code within a sentence."""
    name, text = str(document.relative_to(REPO)), document.read_text(encoding="utf-8")
    last: list[str] = []
    for line, said in [*of_blocks(text), *((code, ()) for code in of_sentences(text))]:
        for words in simple(line):
            goes_on = words[0] == "…"
            command = Command(
                name, line, ["chatbot-sft", *words] if goes_on else words, last if goes_on else [], said
            )
            if command.kind == "launcher" and not goes_on:
                last = command.arguments
            yield command


def of_blocks(text: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(command, what it says): every line of a bash block, and `$ …` elsewhere. A block with a #! is a file."""
    for fence in FENCE.finditer(text):
        lines = re.sub(r"\\\n\s*", "", fence["body"]).splitlines()
        if fence["language"] in ("bash", "sh", "shell") and not lines[0].startswith("#!"):
            yield from (
                (line.strip(), ())
                for line in lines
                if line.strip() and not line.strip().startswith(("#", "$ "))
            )
        for number, line in enumerate(lines):
            if line.startswith("$ "):
                end = next(
                    (n for n in range(number + 1, len(lines)) if lines[n].startswith("$ ")), len(lines)
                )
                yield line.removeprefix("$ "), tuple(lines[number + 1 : end])
            elif used := re.search(r"^# \S+, used by: (.*)", line):
                yield used[1], ()


def of_sentences(text: str) -> Iterator[str]:
    for code in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", FENCE.sub("", text)):
        if TYPED.match(code) and not code.endswith(("=", "-m chatbot_sft")):
            yield code.replace("\\|", "|")


def files(folder: Path) -> None:
    """Write what the documents show as a file: a block whose first comment lines name it (`# mine/my_loader.py`)."""
    for document in DOCUMENTS:
        for fence in FENCE.finditer(document.read_text(encoding="utf-8")):
            if named := re.search(r"\A(?:# @package \S+\n)?# ([\w./-]+\.(?:ya?ml|py))\b", fence["body"]):
                place = folder / named[1]
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_text(fence["body"], encoding="utf-8")


def simple(line: str) -> Iterator[list[str]]:
    """The words of each program of a line, without comment, variables and placeholders."""
    for written, stands_for in PLACEHOLDERS.items():
        line = line.replace(written, stands_for)
    part: list[str] = []
    for word in shlex.split(uncommented(line)):
        if word in ("&&", "|", ";", "||"):
            yield part
            part = []
        elif part or not re.fullmatch(r"[A-Z_]+=\S*", word):
            part.append(word)
    if part:
        yield part


def uncommented(line: str) -> str:
    """Without what stands behind a # that no quotes are open around."""
    for place in re.finditer(r"(?:^|\s)#\s", line):
        head = line[: place.start()]
        if head.count("'") % 2 == 0 and head.count('"') % 2 == 0:
            return head
    return line
