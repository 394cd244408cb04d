"""What the trained model said, as a file: a server that runs is held against it, and no model is loaded.

It stays in the run directory as trained_answers.json, written when an export is verified.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatbot_sft.data.template import render_as_of
from chatbot_sft.errors import UserError
from chatbot_sft.save.verify.compare import log_probabilities
from chatbot_sft.save.verify.evidence import Evidence

if TYPE_CHECKING:
    import numpy as np

    from chatbot_sft.inference.hf_model import HFModel
    from chatbot_sft.save.verify.compare import Reference

TOP = 10  # likeliest tokens whose log probabilities are kept
ANOTHER_DAY = timedelta(days=400)
DATE = "%d %b %Y"  # as templates that write the date take it: date_string


@dataclass(frozen=True)
class Prompt:
    """A conversation, the ids that the trained model was asked it with, and those that faults make of it."""

    messages: list[dict[str, Any]]
    ids: list[int]
    without_system: list[int] | None = None  # where it has a system prompt
    without_opening: list[int] = field(default_factory=list)  # of the answer: add_generation_prompt=False


@dataclass(frozen=True)
class TrainedAnswer:
    """The greedy answer to a prompt. `pieces` are what each token adds to the text that a person reads.

    At each token: by how many logits the likeliest was above the second, the log probabilities of the likeliest
    (`logprobs` of `top`), and what the base says in the trained model's place; None without one beside it.
    """

    ids: list[int]
    pieces: list[str]
    ended: bool
    margins: list[float]
    top: list[list[int]]
    logprobs: list[list[float]]
    base_logprobs: list[list[float]] | None = None
    base_ids: list[int] | None = None

    @property
    def text(self) -> str:
        return "".join(self.pieces)


@dataclass(frozen=True)
class TrainedAnswers:
    """`tokens` is what a person calls each id that is in here, `ends` the tokens that end trained answers,
    `control` the special ones. `date_string` is the day that the template wrote; None where it writes none.
    """

    prompts: list[Prompt]
    answers: list[TrainedAnswer]  # to the first prompts
    max_new_tokens: int
    ends: list[int]
    control: list[int]
    bos: int | None
    system_prompt: str | None
    date_string: str | None
    over_4_bits: bool
    tokens: dict[int, str]

    def write(self, file: Path) -> None:
        file.write_text(json.dumps(asdict(self), ensure_ascii=False), encoding="utf-8")

    @classmethod
    def read(cls, file: Path) -> TrainedAnswers:
        """Raises OSError, ValueError, KeyError or TypeError where it is none."""
        kept = json.loads(file.read_text(encoding="utf-8"))
        return cls(
            **{
                **kept,
                "prompts": [Prompt(**prompt) for prompt in kept["prompts"]],
                "answers": [TrainedAnswer(**answer) for answer in kept["answers"]],
                "tokens": {int(number): text for number, text in kept["tokens"].items()},
            }
        )


def keep(
    model: HFModel, reference: Reference, base_said: np.ndarray | None, evidence: Evidence
) -> TrainedAnswers:
    """Of the trained `model`, already asked: its `reference`, and the base's logits at its answers."""
    tokenizer, trained = model.tokenizer, reference.trained
    begin, answers = reference.positions, []
    for said in trained.answers:
        part = slice(begin, begin + len(said))
        base = None if base_said is None else base_said[begin - reference.positions :][: len(said)]
        answers.append(_answer(model, said, trained.stop_ids, trained.logits[part], base))
        begin += len(said)
    prompts = [
        _prompt(model, messages, ids)
        for messages, ids in zip(evidence.prompts, trained.prompt_ids, strict=True)
    ]
    ids = {
        number
        for line in (
            *(prompt.ids for prompt in prompts),
            *(answer.ids for answer in answers),
            *(top for answer in answers for top in answer.top),
            *(answer.base_ids or [] for answer in answers),
            evidence.ends,
        )
        for number in line
    }
    return TrainedAnswers(
        prompts,
        answers,
        evidence.max_new_tokens,
        evidence.ends,
        sorted(set(tokenizer.all_special_ids) & ids),
        tokenizer.bos_token_id,
        evidence.system_prompt,
        _date_string(model, evidence),
        reference.over_4_bits,
        {number: tokenizer.decode([number]) for number in sorted(ids)},
    )


def _answer(
    model: HFModel,
    said: Sequence[int],
    stops: Sequence[int],
    logits: np.ndarray,
    base: np.ndarray | None,
) -> TrainedAnswer:
    import numpy as np

    order = np.argsort(-logits, axis=1, kind="stable")[:, :TOP]

    def at_top(values: np.ndarray) -> list[list[float]]:
        return [_rounded(row) for row in np.take_along_axis(values, order, axis=1)]

    likeliest = np.take_along_axis(logits, order, axis=1)
    return TrainedAnswer(
        list(said),
        _pieces(model, said),
        bool(said) and said[-1] in set(stops),
        _rounded(likeliest[:, 0] - likeliest[:, 1]),
        order.tolist(),
        at_top(log_probabilities(logits)),
        None if base is None else at_top(log_probabilities(base[:, : logits.shape[1]])),
        None if base is None else base.argmax(axis=1).tolist(),
    )


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 4) for value in values]


def _pieces(model: HFModel, said: Sequence[int]) -> list[str]:
    """What each token adds; a letter comes with its last byte."""
    pieces, before = [], ""
    for length in range(1, len(said) + 1):
        text = model.text(said[:length])
        pieces.append(text[len(before) :])
        before = text
    return pieces


def _prompt(model: HFModel, messages: list[dict[str, Any]], ids: list[int]) -> Prompt:
    from chatbot_sft.model.generate import rendered

    without = None
    if messages[0]["role"] == "system" and len(messages) > 1:
        try:
            without = model.prompt_ids(messages[1:])
        except UserError:  # the template wants one
            without = None
    closed = rendered(model.tokenizer, messages, {"add_generation_prompt": False})
    return Prompt(messages, ids, without, closed)


def _date_string(model: HFModel, evidence: Evidence) -> str | None:
    """The day that is in the prompts, told by rendering one as of another."""
    day = datetime.fromisoformat(evidence.date)
    there = model.prompt_ids(evidence.prompts[0])
    try:
        render_as_of(day + ANOTHER_DAY)
        other = model.prompt_ids(evidence.prompts[0])
    finally:
        render_as_of(day)
    return None if there == other else day.strftime(DATE)
