"""Exports and runs, reloaded from disk by the library that their user would take: transformers and PEFT for
folders, llama.cpp for GGUF files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from chatbot_sft.data.messages import Message
from chatbot_sft.errors import UserError

if TYPE_CHECKING:
    import numpy as np


class ChatModel(Protocol):
    """A model that answers: `hf_model.HFModel` and `gguf_model.GGUFModel` are the two."""

    name: str  # what a person calls it
    context: int  # tokens that a prompt and its answer may have together
    system_prompt: str | None  # of most of its training data, where its own file says so
    stop_ids: frozenset[int]  # what its library stops at

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """`messages` and the beginning of an answer, through the model's own chat template and tokenizer."""

    def answer(
        self,
        prompt_ids: Sequence[int],
        max_new_tokens: int,
        temperature: float = 0.0,
        on_token: Callable[[int], Any] | None = None,
    ) -> list[int]:
        """The ids of an answer, its stop token included where it ended by itself; `on_token` is told each as
        it comes. Temperature 0 is greedy.
        """

    def answers(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        """The greedy answers to several prompts, as `answer` has each; at a time where the library can do that."""

    def text(self, ids: Sequence[int]) -> str:
        """What a person reads: without special tokens, and without the letter that a cut left half."""

    def logits(self, ids: Sequence[int], positions: Sequence[int]) -> np.ndarray:
        """float32 logits of the tokens after `positions` of `ids`, shape (positions, vocabulary)."""


def room_for_answer(name: str, context: int, prompt_ids: Sequence[int]) -> int:
    """How many tokens of the `context` of the model `name` a prompt leaves for its answer.

    Raises:
        UserError: none.
    """
    room = context - len(prompt_ids)
    if room < 1:
        raise UserError(
            f"{name}: {len(prompt_ids):,} tokens leave no room for an answer; prompt and answer together may"
            f" have {context:,}"
        )
    return room
