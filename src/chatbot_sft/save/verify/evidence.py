"""What an export is held against: some of the conversations, and what the training data say of answers: how
they end, how long they get, behind which system prompt.

It stays in the run directory as evidence.json, for later exports.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatbot_sft.data.labels import IGNORED
from chatbot_sft.data.template import today
from chatbot_sft.report.masking import by_name

if TYPE_CHECKING:
    from datasets import Dataset

ROWS, ROW_TOKENS, POSITIONS = 8, 512, 40  # conversations, tokens of each, trained positions of each
PROMPTS = 8  # whose token ids are compared
ANSWERS = 2  # of them, that are answered
LONGEST_ANSWER = 256  # tokens generated at most
LOOKED_AT = 2000  # rows from which the length and end of answers and the usual system prompt are told
FEW = 100  # rows from which alone their ends are told, where that has to be at once
ANY_PROMPT = [{"role": "user", "content": "Xin chào!"}]  # for ready-made text, which has no messages


@dataclass(frozen=True)
class Row:
    """The beginning of a tokenised conversation; the tokens after `positions` are trained ones."""

    ids: list[int]
    positions: list[int]


@dataclass(frozen=True)
class Evidence:
    """`prompts` are lists of messages that end with a question. `longest_answer` is in tokens, `ends` the
    tokens with which trained answers end.

    `system_prompt` is the one that most training conversations have, `date` (ISO 8601) what templates wrote
    for today in training.
    """

    rows: list[Row]
    prompts: list[list[dict[str, Any]]]
    longest_answer: int
    ends: list[int]
    system_prompt: str | None = None
    date: str = field(default_factory=lambda: today().isoformat())

    @property
    def max_new_tokens(self) -> int:
        """How long an answer may get: as long as the longest trained one, and its end."""
        return min(self.longest_answer + 1, LONGEST_ANSWER)

    def write(self, file: Path) -> None:
        file.write_text(json.dumps(asdict(self), ensure_ascii=False), encoding="utf-8")

    @classmethod
    def read(cls, file: Path) -> Evidence:
        kept = json.loads(file.read_text(encoding="utf-8"))
        return cls(**{**kept, "rows": [Row(**row) for row in kept["rows"]]})


def gather(dataset: Dataset, eval_dataset: Dataset | None, tokenizer: Any) -> Evidence:
    """From the rows that were trained on; the conversations are held-out ones where there are any.

    Both have input_ids and labels, and opening (JSON: the messages before the first answer) where
    `DatasetLoader` made them. In the prompts a secret of the environment stands by its variable's name: the
    trained model and the export are asked the same.
    """
    shown = dataset if eval_dataset is None else eval_dataset
    longest, ends = _answers(dataset)
    prompts = [opening for opening in _openings(shown) if opening][:PROMPTS] or [ANY_PROMPT]
    return Evidence(
        _rows(shown),
        by_name(prompts),
        longest,
        _control(ends, tokenizer),
        by_name(usual_system_prompt(dataset)),
    )


def usual_ends(dataset: Dataset, tokenizer: Any) -> list[int]:
    """The control tokens with which the trained answers of the first rows end."""
    return _control(_answers(dataset.select(range(min(FEW, len(dataset)))))[1], tokenizer)


def _control(tokens: list[int], tokenizer: Any) -> list[int]:
    return [
        token
        for token in tokens
        if tokenizer.added_tokens_decoder.get(token) and tokenizer.added_tokens_decoder[token].special
    ]


def _rows(dataset: Dataset) -> list[Row]:
    """The beginning and the end of what is trained in each conversation."""
    rows = []
    for row in dataset.select(range(min(ROWS, len(dataset)))):
        ids, labels = row["input_ids"][:ROW_TOKENS], row["labels"][:ROW_TOKENS]
        positions = [place for place, label in enumerate(labels[1:]) if label != IGNORED]
        if positions:
            rows.append(Row(ids, [*positions[: POSITIONS - 1], *positions[POSITIONS - 1 :][-1:]]))
    return rows


def _openings(dataset: Dataset) -> list[list[dict[str, Any]]]:
    return (
        [json.loads(text) for text in dataset[:LOOKED_AT]["opening"]]
        if "opening" in dataset.column_names
        else []
    )


def usual_system_prompt(dataset: Dataset) -> str | None:
    """What over half of the conversations begin with."""
    openings = _openings(dataset)
    found = Counter(
        opening[0]["content"] for opening in openings if opening and opening[0]["role"] == "system"
    )
    prompt, count = max(found.items(), key=lambda item: item[1], default=(None, 0))
    return prompt if count > len(openings) / 2 else None


def _answers(dataset: Dataset) -> tuple[int, list[int]]:
    """(tokens of the longest trained run, the tokens that end a tenth of the runs or more) of the first rows."""
    longest, ends = 0, Counter()
    for labels in dataset[:LOOKED_AT]["labels"]:
        for trained, run in itertools.groupby(labels, lambda label: label != IGNORED):
            if trained:
                answer = list(run)
                longest = max(longest, len(answer))
                ends[answer[-1]] += 1
    return longest, [token for token, count in ends.most_common() if count >= ends.total() / 10]
