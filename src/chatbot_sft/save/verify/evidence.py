"""What an export is held against: some of the conversations, and what the training data say of answers: how
they end, how long they get, behind which system prompt.

It stays in the run directory as evidence.json, for later exports.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatbot_sft.data.labels import IGNORED
from chatbot_sft.data.messages import Message
from chatbot_sft.data.template import today
from chatbot_sft.data.usual import answers, openings, usual_system_prompt
from chatbot_sft.report.masking import by_name

if TYPE_CHECKING:
    from datasets import Dataset

ROWS, ROW_TOKENS, POSITIONS = 8, 512, 40  # conversations, tokens of each, trained positions of each
PROMPTS = 8  # whose token ids are compared
ANSWERS = 2  # of them, that are answered
LONGEST_ANSWER = 256  # tokens generated at most
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


def gather(
    dataset: Dataset,
    eval_dataset: Dataset | None,
    tokenizer: Any,
    clean: Callable[[list[Message]], list[Message]] = list,
) -> Evidence:
    """From the rows that were trained on; the conversations are held-out ones where there are any. `clean` makes of
    a prompt what may stand in a file.

    Both have input_ids and labels, and opening (JSON: the messages before the first answer) where
    `DatasetLoader` made them. In the prompts a secret of the environment stands by its variable's name: the
    trained model and the export are asked the same.
    """
    shown = dataset if eval_dataset is None else eval_dataset
    longest, ends = answers(dataset, tokenizer)
    prompts = [clean(opening) for opening in openings(shown) if opening][:PROMPTS] or [ANY_PROMPT]
    return Evidence(_rows(shown), by_name(prompts), longest, ends, by_name(usual_system_prompt(dataset)))


def _rows(dataset: Dataset) -> list[Row]:
    """The beginning and the end of what is trained in each conversation; of a pair, in the better one."""
    rows = []
    for row in dataset.select(range(min(ROWS, len(dataset)))):
        end = min([ROW_TOKENS, *row.get("parts", [])[:1]])
        ids, labels = row["input_ids"][:end], row["labels"][:end]
        positions = [place for place, label in enumerate(labels[1:]) if label != IGNORED]
        if positions:
            rows.append(Row(ids, [*positions[: POSITIONS - 1], *positions[POSITIONS - 1 :][-1:]]))
    return rows
