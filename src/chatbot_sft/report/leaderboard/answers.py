"""The same prompts answered by each job: equal answers together, and what is said otherwise marked."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from chatbot_sft.report.leaderboard.job import Job

LONGEST = 4000  # characters of an answer that are compared and shown
Kind = Literal["same", "added", "missing"]


@dataclass(frozen=True)
class Answer:
    """`jobs` gave it; `pieces` are its text, and what of the first answer it lacks, by kind."""

    jobs: tuple[Job, ...]
    pieces: tuple[tuple[Kind, str], ...]


@dataclass(frozen=True)
class Question:
    """One prompt, what the model said before training, and the answers, that of the best job first."""

    prompt: str
    before: str
    answers: tuple[Answer, ...]


def questions(jobs: Sequence[Job]) -> list[Question]:
    """By the `jobs`, the best first. A prompt that not all were asked has the answers of those that were."""
    prompts: dict[str, str] = {}
    said: dict[str, dict[str, list[Job]]] = {}
    for job in jobs:
        for sample in job.samples:
            prompts.setdefault(sample.prompt, sample.before)
            said.setdefault(sample.prompt, {}).setdefault(sample.after, []).append(job)
    return [Question(prompt, before, tuple(_answers(said[prompt]))) for prompt, before in prompts.items()]


def _answers(said: dict[str, list[Job]]) -> Iterator[Answer]:
    first = next(iter(said))
    for text, jobs in said.items():
        yield Answer(tuple(jobs), compared(first[:LONGEST], text[:LONGEST]))


@functools.lru_cache(4096)
def compared(first: str, text: str) -> tuple[tuple[Kind, str], ...]:
    """`text` word by word against `first`: without the missing pieces it is `text`, without the added ones
    `first`.
    """
    before, after = _words(first), _words(text)
    pieces: list[tuple[Kind, str]] = []
    for what, a, b, c, d in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if what == "equal":
            pieces.append(("same", "".join(after[c:d])))
            continue
        if a < b:
            pieces.append(("missing", "".join(before[a:b])))
        if c < d:
            pieces.append(("added", "".join(after[c:d])))
    return tuple(pieces)


def _words(text: str) -> list[str]:
    return re.findall(r"\s+|\w+|[^\w\s]", text)
