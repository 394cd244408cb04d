"""What most of the training rows have in common: how answers end, how long they get, behind which system
prompt.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from chatbot_sft.data.labels import IGNORED

if TYPE_CHECKING:
    from datasets import Dataset

LOOKED_AT = 2000  # rows from which the length and end of answers and the usual system prompt are told
FEW = 100  # rows from which alone their ends are told, where that has to be at once


def openings(dataset: Dataset) -> list[list[dict[str, Any]]]:
    """The messages before the first answer of each row; none where the rows do not have them."""
    if "opening" not in dataset.column_names:
        return []
    return [json.loads(text) for text in dataset[:LOOKED_AT]["opening"]]


def usual_system_prompt(dataset: Dataset) -> str | None:
    """What over half of the conversations begin with."""
    begun = openings(dataset)
    prompts = Counter(
        opening[0]["content"] for opening in begun if opening and opening[0]["role"] == "system"
    )
    prompt, count = max(prompts.items(), key=lambda item: item[1], default=(None, 0))
    return prompt if count > len(begun) / 2 else None


def usual_ends(dataset: Dataset, tokenizer: Any) -> list[int]:
    """The control tokens with which the trained answers of the first rows end."""
    return answers(dataset.select(range(min(FEW, len(dataset)))), tokenizer)[1]


def answers(dataset: Dataset, tokenizer: Any) -> tuple[int, list[int]]:
    """(tokens of the longest trained run, the control tokens that end a tenth of the runs or more) of the
    first rows.
    """
    longest, ends = 0, Counter[int]()
    for labels in dataset[:LOOKED_AT]["labels"]:
        for trained, run in itertools.groupby(labels, lambda label: label != IGNORED):
            if trained:
                answer = list(run)
                longest = max(longest, len(answer))
                ends[answer[-1]] += 1
    usual = [token for token, count in ends.most_common() if count >= ends.total() / 10]
    known = tokenizer.added_tokens_decoder
    return longest, [token for token in usual if token in known and known[token].special]
