"""Rows of preferences for tests: pairs and single answers, of random tokens."""

from __future__ import annotations

import random
from typing import Any

from chatbot_sft.data.labels import IGNORED

STEPS, BATCH = 10, 4  # of a session of tests/objective


def sequence(prompt: list[int], answer: list[int]) -> tuple[list[int], list[int]]:
    """input_ids and labels."""
    return prompt + answer, [IGNORED] * len(prompt) + answer


def paired(prompt: list[int], chosen: list[int], rejected: list[int]) -> dict[str, Any]:
    """A row of dpo and orpo."""
    (ids, labels), (other_ids, other_labels) = sequence(prompt, chosen), sequence(prompt, rejected)
    return {
        "input_ids": ids + other_ids, "labels": labels + other_labels, "parts": [len(ids), len(other_ids)],
        "kinds": ["chosen", "rejected"],
    }  # fmt: skip


def single(prompt: list[int], answer: list[int], liked: bool) -> dict[str, Any]:
    """A row of kto."""
    ids, labels = sequence(prompt, answer)
    return {
        "input_ids": ids, "labels": labels, "parts": [len(ids)],
        "kinds": ["desirable" if liked else "undesirable"],
    }  # fmt: skip


def some_pairs(count: int, seed: int = 0, prompt: int = 9, vocabulary: int = 300) -> list[dict[str, Any]]:
    draw = random.Random(seed)

    def tokens(most: int) -> list[int]:
        return [draw.randrange(3, vocabulary) for _ in range(draw.randrange(1, most))]

    return [paired(tokens(prompt), tokens(12), tokens(12)) for _ in range(count)]


def some_singles(count: int, seed: int = 0) -> list[dict[str, Any]]:
    draw = random.Random(seed)

    def tokens(most: int) -> list[int]:
        return [draw.randrange(3, 300) for _ in range(draw.randrange(1, most))]

    return [single(tokens(9), tokens(12), draw.random() < 0.6) for _ in range(count)]


def as_dataset(rows: list[dict[str, Any]]) -> Any:
    from datasets import Dataset

    return Dataset.from_list(rows)
