"""DatasetLoader: from a file of conversations to rows of (text, input_ids, labels), and the conversations held out of training."""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from chatbot_sft.config import Config
from chatbot_sft.data.labels import IGNORED, marker_spans, renderer, structural_spans, token_labels, turn_markers
from chatbot_sft.data.messages import Message, to_messages
from chatbot_sft.data.sources import read_rows
from chatbot_sft.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

SAMPLES = 3


@dataclass
class DatasetStatistics:
    """Counts of the training rows; `tokens` and `trainable_tokens` are sums over them, `max_length` their longest in tokens."""

    path: str
    rows: int = 0
    rows_used: int = 0
    rows_held_out: int = 0
    tokens: int = 0
    trainable_tokens: int = 0
    max_length: int = 0
    truncated_rows: int = 0
    dropped_rows: int = 0  # nothing left to train on after truncation
    fingerprint: str = ""  # SHA-256 of the training ids and labels


@dataclass
class Conversation:
    """One row of the file: its number there, and its messages or (where it has none) its ready-made text."""

    row: int
    messages: list[Message] | None
    text: str | None = None
    values: dict[str, Any] = field(default_factory=dict)


class DatasetLoader:
    """Prepares the dataset that `config` names for `tokenizer`.

    Override `formatting_prompts_func` to write the text yourself; labels are then found by the chat template's turn markers.
    After `prepare_dataset`, `eval_dataset` holds the held-out rows (None without any) and `statistics` the counts.
    """

    def __init__(self, config: Mapping[str, Any] | Config, tokenizer: Any = None) -> None:
        self.config = config
        self.settings = Config.from_mapping(config)
        self.tokenizer = tokenizer
        self.eval_dataset: Dataset | None = None
        self.statistics = DatasetStatistics(path=self.settings.dataset.data_path)
        self._conversations: list[Conversation] | None = None

    def load_conversations(self) -> list[Conversation]:
        """Read and check the file, once; needs no tokenizer.

        Raises:
            UserError: what is wrong, with file and row.
        """
        if self._conversations is None:
            dataset = self.settings.dataset
            self._conversations = [self._conversation(row) for row in read_rows(dataset.data_path)]
            self.statistics.rows = len(self._conversations)
        return self._conversations

    def _conversation(self, row: Any) -> Conversation:
        dataset = self.settings.dataset
        text = row.values.get(dataset.text_field)
        if dataset.message_field not in row.values and isinstance(text, str) and text.strip():
            return Conversation(row.number, None, text, row.values)
        return Conversation(row.number, to_messages(dataset.data_path, row, dataset.message_field, dataset.thinking), None, row.values)

    def split(self) -> tuple[list[Conversation], list[Conversation]]:
        """(training, held-out) conversations: `eval_fraction` of them drawn with the seed, at least one where the fraction is above 0."""
        conversations = self.load_conversations()
        share = self.settings.dataset.eval_fraction
        held_out = max(1, round(len(conversations) * share)) if share else 0
        if held_out >= len(conversations):
            raise UserError(
                f"{self.settings.dataset.data_path}: {len(conversations)} conversation(s) leave none to train on with "
                f"dataset.eval_fraction={share}; add conversations or set dataset.eval_fraction=0"
            )
        chosen = set(random.Random(self.settings.seed).sample(range(len(conversations)), held_out))
        return (
            [item for index, item in enumerate(conversations) if index not in chosen],
            [item for index, item in enumerate(conversations) if index in chosen],
        )

    def sample_prompts(self) -> list[list[Message]]:
        """What the model is asked before and after training: `training.sample_prompts`, else the first questions of three held-out conversations."""
        prompts = self.settings.training.sample_prompts
        if prompts is not None:
            return [[{"role": "user", "content": prompt}] for prompt in prompts]
        openings = []
        for conversation in self.split()[1]:
            turns = conversation.messages or []
            first = next((index for index, message in enumerate(turns) if message["role"] == "assistant"), 0)
            if first:
                openings.append(turns[:first])
        return openings[:SAMPLES]

    def formatting_prompts_func(self, examples: Mapping[str, Sequence[Any]]) -> dict[str, list[str]]:
        """`{"text": [...]}` for a batch of columns; here the chat template over the message column."""
        render = renderer(self.tokenizer)
        return {"text": [render(messages, False) for messages in examples[self.settings.dataset.message_field]]}

    def prepare_dataset(self) -> Dataset:
        """The training rows as a `datasets.Dataset` with columns text, input_ids and labels (lists of ints, one conversation a row).

        Raises:
            UserError: a bad file or row, a row without any assistant text, or nothing left to train on.
        """
        if self.tokenizer is None:
            raise UserError("DatasetLoader needs a tokenizer to prepare the dataset: DatasetLoader(config, tokenizer)")
        training, held_out = self.split()
        tokenized = self._tokenize(training)
        rows = [row for row in tokenized if _trainable_tokens(row)]
        if not rows:
            raise UserError(
                f"{self.settings.dataset.data_path}: no row has a trainable token within model.max_seq_length={self.settings.model.max_seq_length}"
            )
        s = self.statistics
        s.rows_held_out = len(held_out)
        s.rows_used = len(rows)
        s.truncated_rows = sum(row["truncated"] for row in tokenized)
        s.dropped_rows = len(tokenized) - len(rows)
        s.tokens = sum(len(row["input_ids"]) for row in rows)
        s.trainable_tokens = sum(map(_trainable_tokens, rows))
        s.max_length = max(len(row["input_ids"]) for row in rows)
        s.fingerprint = _fingerprint(rows)
        log.info(
            "data: %s: %d conversations, %d held out; %d tokens, %d%% of them trained, longest %d%s%s",
            s.path, s.rows, s.rows_held_out, s.tokens, round(100 * s.trainable_tokens / s.tokens), s.max_length,
            f"; {s.truncated_rows} cut at {self.settings.model.max_seq_length} tokens" if s.truncated_rows else "",
            f"; {s.dropped_rows} dropped, their answers lie beyond the cut" if s.dropped_rows else "",
        )  # fmt: skip
        evaluation = [row for row in self._tokenize(held_out) if _trainable_tokens(row)]
        self.eval_dataset = _to_dataset(evaluation) if evaluation else None
        return _to_dataset(rows)

    def _tokenize(self, conversations: list[Conversation]) -> list[dict[str, Any]]:
        """A row per conversation, cut at `max_seq_length` tokens."""
        if not conversations:
            return []
        render = renderer(self.tokenizer)
        markers = None
        texts = self._texts(conversations)
        encoded = self.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
        limit = self.settings.model.max_seq_length
        rows = []
        for index, conversation in enumerate(conversations):
            spans = structural_spans(texts[index], conversation.messages, render) if conversation.messages else None
            if spans is None:
                markers = markers or turn_markers(render)
                spans = marker_spans(texts[index], markers)
            ids = encoded["input_ids"][index]
            labels = token_labels(ids, encoded["offset_mapping"][index], spans)
            if all(label == IGNORED for label in labels):
                raise UserError(
                    f"{self.settings.dataset.data_path}: row {conversation.row}: no assistant text found in what the chat template made of it, "
                    "so nothing of it would be trained"
                )
            rows.append({"text": texts[index], "input_ids": ids[:limit], "labels": labels[:limit], "truncated": len(ids) > limit})
        return rows

    def _texts(self, conversations: list[Conversation]) -> list[str]:
        """One text per conversation, from `formatting_prompts_func` for those that have messages."""
        with_messages = [item for item in conversations if item.messages is not None]
        columns: dict[str, list[Any]] = {}
        if with_messages:
            for name in with_messages[0].values:
                columns[name] = [item.values.get(name) for item in with_messages]
            columns[self.settings.dataset.message_field] = [item.messages for item in with_messages]
        formatted = iter(self.formatting_prompts_func(columns)["text"] if with_messages else [])
        return [item.text if item.messages is None else next(formatted) for item in conversations]


def _trainable_tokens(row: Mapping[str, Any]) -> int:
    return sum(label != IGNORED for label in row["labels"])


def _fingerprint(rows: Sequence[Mapping[str, Any]]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(repr((row["input_ids"], row["labels"])).encode())
    return digest.hexdigest()


def _to_dataset(rows: Sequence[Mapping[str, Any]]) -> Dataset:
    from datasets import Dataset

    return Dataset.from_list([{key: row[key] for key in ("text", "input_ids", "labels")} for row in rows])
