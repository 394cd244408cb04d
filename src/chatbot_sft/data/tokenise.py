"""Every source through the encoder into rows on disk: made once, and mapped by every later run that means the
same.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from chatbot_sft.config import Config, SourceConfig
from chatbot_sft.data import gate, store, unread
from chatbot_sft.data.conversations import conversations
from chatbot_sft.data.corpus import Corpus, content
from chatbot_sft.data.encode import EncodedRow, Encoder, Refused
from chatbot_sft.data.files import TRAIN
from chatbot_sft.data.gate import Findings
from chatbot_sft.data.messages import Conversation
from chatbot_sft.data.mixture import chosen_rows, wanted_rows
from chatbot_sft.data.personal.detector import Detector
from chatbot_sft.data.personal.rows import Look
from chatbot_sft.data.preferences import CONVERSATIONS, UNITS
from chatbot_sft.data.sequences import joined
from chatbot_sft.data.template import ChatTokenizer
from chatbot_sft.data.user_text import UserText
from chatbot_sft.data_names import is_hub_id
from chatbot_sft.errors import UserError
from chatbot_sft.garbage import uncollected
from chatbot_sft.report.masking import by_name

log = logging.getLogger(__name__)


def tokenised(
    settings: Config, corpus: Corpus, tokenizer: ChatTokenizer, user_text: UserText | None = None
) -> store.Entry:
    """The rows of `corpus`, from the cache or made now.

    A formatting function of the user's is not known to the cache, and rows with a secret of the environment
    in them do not belong there: those live as long as what is returned.

    Raises:
        UserError: a source that cannot be read, or a row that is too long where that is an error.
    """
    _check_options(settings, user_text)
    detector = Detector.of(settings.dataset)
    build = functools.partial(_build, settings, corpus, tokenizer, user_text, detector)
    dataset = asdict(settings.dataset)
    if user_text or by_name(dataset) != dataset:
        scratch = tempfile.TemporaryDirectory(prefix="chatbot_sft_rows_")
        file = Path(scratch.name, store.ROWS)
        entry = store.Entry(file, build(file), reused=False, scratch=scratch)
    else:
        entry = store.open_or_build(_key(settings, corpus, tokenizer, detector), build)
    for source in entry.about["sources"]:
        if "available" in source:
            log.info(
                "data: %s: %s of %s rows", source["path"], f"{source['taken']:,}", f"{source['available']:,}"
            )
    return entry


def _check_options(settings: Config, user_text: UserText | None) -> None:
    """Raises UserError where an option is about conversations, and the rows are judged answers."""
    objective, dataset = settings.objective.name, settings.dataset
    if UNITS[objective] == CONVERSATIONS:
        return
    if user_text:
        raise UserError(
            f"{user_text.name} writes conversations: objective=sft; objective={objective} takes none"
        )
    if dataset.train_on == "all" or not settings.training.response_only:
        key = "dataset.train_on=all" if dataset.train_on == "all" else "training.response_only=false"
        raise UserError(f"{key}: objective={objective} compares answers; their prompts are not trained")
    if dataset.overflow == "split":
        raise UserError(
            f"dataset.overflow=split cuts conversations at turns; an answer has none (objective={objective}):"
            " truncate, drop or error"
        )


def trained_part(settings: Config) -> str:
    """`dataset.train_on`; `training.response_only=false`, as Unsloth's scripts have it, is `all`. Of judged answers
    it is always the answer.
    """
    if UNITS[settings.objective.name] != CONVERSATIONS:
        return "assistant"
    return settings.dataset.train_on if settings.training.response_only else "all"


def _key(settings: Config, corpus: Corpus, tokenizer: ChatTokenizer, detector: Detector | None) -> str:
    """Everything that decides what the rows are: the data's content, the tokenizer, the options,
    `store.VERSION`.
    """
    dataset = settings.dataset
    options = {"train_on": trained_part(settings)}
    options |= {
        name: getattr(dataset, name)
        for name in ("thinking", "overflow", "system_prompt", "max_rows", "shuffle")
    }
    options |= {name: getattr(dataset, name) for name in ("message_field", "text_field")}
    if detector:
        policy = dataset.personal_data if dataset.personal_data in ("drop", "redact") else "note"
        options["personal_data"] = f"{policy} {detector.signature}"
    chosen = (
        settings.rows_seed
        if dataset.max_rows or any(source.weight or source.count for source in dataset.mixture)
        else None
    )
    # Rows of conversations keep the keys that they had before there were others.
    if UNITS[settings.objective.name] != CONVERSATIONS:
        options["rows"] = UNITS[settings.objective.name]
    rest = [options, settings.model.max_seq_length, len(corpus.held_out), dataset.max_row_mb, chosen]
    parts = [
        *(
            json.dumps([asdict(source), content(source)], sort_keys=True, default=str)
            for source in corpus.sources
        ),
        tokenizer.fingerprint,
        json.dumps(rest, sort_keys=True),
        f"version {store.VERSION}",
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


@dataclass
class Tally:
    """What is counted while the rows go by."""

    sources: list[dict[str, Any]] = field(default_factory=list)
    bad_rows: int = 0
    dropped_rows: int = 0
    given: int = 0  # rows that dataset.system_prompt stands in
    lengths: list[int] = field(default_factory=list)  # in tokens, before any cut
    problems: Findings = field(default_factory=Findings)
    notes: Findings = field(default_factory=Findings)
    not_read: dict[str, int] = field(default_factory=dict)
    clean: Callable[[str], str] = str  # what is said of a row, without personal data

    def asked(self, made: Iterator[Conversation | Refused], prompt: str) -> Iterator[Conversation | Refused]:
        """Pass them on, and count those that have `prompt` for their system prompt."""
        for item in made:
            first = item.messages[0] if isinstance(item, Conversation) and item.messages else {}
            self.given += first.get("role") == "system" and first["content"] == prompt
            yield item

    def kept(self, encoded: Iterator[EncodedRow | Refused]) -> Iterator[EncodedRow]:
        """Count what is said of each row, of the pieces of one once; pass on those to train or to hold out."""
        last = None
        for row in encoded:
            here = (row.file, row.row)
            if isinstance(row, Refused) and not row.fault:
                self.notes.add(row.kind, row.file, row.row)
                continue
            faults = [(row.kind, row.detail)] if isinstance(row, Refused) else row.problems
            self.bad_rows += bool(faults) and here != last
            last = here
            for kind, detail in faults:
                self.problems.add(kind, row.file, row.row, self.clean(detail))
            if isinstance(row, Refused):
                continue
            for kind in row.notes:
                self.notes.add(kind, row.file, row.row)
            self.lengths += [part.length for part in row.parts] or [row.length]
            if not row.kept:
                self.dropped_rows += 1
            elif row.trained:
                yield row


def _build(
    settings: Config,
    corpus: Corpus,
    tokenizer: ChatTokenizer,
    user_text: UserText | None,
    detector: Detector | None,
    file: Path,
) -> dict[str, Any]:
    """Stream every source through the encoder into `file`; returns what was counted on the way."""
    dataset, limit = settings.dataset, settings.model.max_seq_length
    objective, tally = settings.objective.name, Tally()
    look = Look(detector, dataset.personal_data, user_text is not None) if detector else None
    if detector:
        tally.clean = detector.clean
    texts = None
    if user_text:
        columns = dataset.message_field
        texts = functools.partial(user_text.texts, message_field=columns, not_read=tally.not_read)
    encoder = Encoder(tokenizer, limit, trained_part(settings), dataset.overflow, texts)

    def rows() -> Iterator[tuple[EncodedRow, bool]]:
        limits = _limits(settings, corpus)
        for number, source in enumerate(corpus.sources):
            held_out = number >= len(corpus.training)
            about = {"path": _shown(source, held_out), "held_out": held_out}
            tally.sources.append(about)
            uses = None
            if limits and not held_out:
                uses, available = limits.uses[number], limits.available[number]
                about |= {"taken": sum(uses.values()), "available": available}
            read, own_text = corpus.rows(source), user_text is not None
            made = conversations(
                read, source, dataset, tokenizer.template, own_text, uses, objective, about, tally.not_read
            )
            if dataset.system_prompt:
                made = tally.asked(made, dataset.system_prompt)
            if look:
                made = look.at(made)
            for row in tally.kept(joined(encoder.rows(made))):
                yield row, held_out

    with uncollected():  # a tenth of the time
        store.write_rows(file, rows(), parted=UNITS[objective] != CONVERSATIONS)
    import numpy as np

    return {
        "rows": sum(source["rows"] for source in tally.sources),
        "bad_rows": tally.bad_rows,
        "dropped_rows": tally.dropped_rows,
        "not_read": unread.ordered(tally.not_read),
        "sources": tally.sources,
        "problems": tally.problems.kinds,
        "notes": tally.notes.kinds,
        "personal_data": look.about() if look else None,
        "lengths": gate.lengths(np.array(tally.lengths), limit),
        "template": gate.template_facts(tokenizer, encoder, dataset.system_prompt),
        "system_prompts_given": tally.given if dataset.system_prompt else None,
    }


def _shown(source: SourceConfig, held_out: bool) -> str:
    """Its path, with the split that a folder has beside the one to train on."""
    if held_out and source.split != TRAIN and not is_hub_id(source.data_path):
        return f"{source.data_path} [{source.split}]"
    return source.data_path


@dataclass(frozen=True)
class Limits:
    """What a mixture or `dataset.max_rows` takes of each source: of how many rows, and {row index: how
    often}.
    """

    available: list[int]
    uses: list[dict[int, int]]


def _limits(settings: Config, corpus: Corpus) -> Limits | None:
    """Which rows of each source, where weights, counts or max_rows choose; this takes a first pass over the
    files.
    """
    dataset, mixture = settings.dataset, corpus.training
    if dataset.max_rows is None and all(source.weight is None and source.count is None for source in mixture):
        return None
    available = [sum(1 for _ in corpus.rows(source)) for source in mixture]
    wanted = wanted_rows(available, mixture, dataset.max_rows)
    uses = [
        chosen_rows(rows, number, dataset.shuffle, settings.rows_seed + i)
        for i, (rows, number) in enumerate(zip(available, wanted, strict=True))
    ]
    return Limits(available, uses)
