"""The data stage: what a configuration and a tokenizer make of the files is one value, `PreparedData`, judged
by the gate. Imports no torch, transformers or datasets.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import logging
import time
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from chatbot_sft.config import Config
from chatbot_sft.data import content, gate, store
from chatbot_sft.data.accounts import accounts
from chatbot_sft.data.corpus import Corpus
from chatbot_sft.data.excerpt import excerpt
from chatbot_sft.data.gate import Findings
from chatbot_sft.data.judgement import judgement
from chatbot_sft.data.messages import Message
from chatbot_sft.data.personal.detector import Detector
from chatbot_sft.data.personal.nested import placeholders, texts, without_values
from chatbot_sft.data.personal.rows import refusal as personal_refusal
from chatbot_sft.data.preferences import CONVERSATIONS, UNITS
from chatbot_sft.data.preview import PreviewRow
from chatbot_sft.data.split import Split, split
from chatbot_sft.data.template import ChatTokenizer
from chatbot_sft.data.tokenise import tokenised
from chatbot_sft.data.user_text import UserText
from chatbot_sft.data.usual import usual_system_prompt
from chatbot_sft.report.words import amount
from chatbot_sft.run.report import DatasetStatistics

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset

log = logging.getLogger(__name__)

SAMPLES = 3
LOOKED_AT = 64  # rows from which those are taken that files show
COLUMNS = ["text", "input_ids", "labels", "file", "row", "opening"]
PARTS = ["parts", "kinds"]  # of rows in which sequences stand end to end


@dataclass(frozen=True, eq=False)
class PreparedData:
    """The tokenised rows of `settings`, made with `tokenizer`: which of them are trained on and which held
    out, what they count, and all that the gate found (`findings`, as data_report.json has it).

    `rows` are the training rows and the held-out ones that a user's loader made of them, where it did.
    """

    settings: Config
    tokenizer: ChatTokenizer
    entry: store.Entry
    split: Split
    statistics: DatasetStatistics
    findings: dict[str, Any]
    rows: tuple[Dataset, Dataset | None] | None = None

    @property
    def refusal(self) -> str | None:
        """Why nothing may be trained on it; None where it may."""
        return self.findings["error"]

    def refuse_bad(self) -> PreparedData:
        """Itself.

        Raises:
            gate.BadData: the gate refused it.
        """
        if self.refusal:
            raise gate.BadData(self.refusal)
        return self

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the tokenizer and of the training rows' texts and labels, in their order."""
        return self.statistics.fingerprint

    @property
    def counted(self) -> str:
        """How many rows of which files became how many to train."""
        read = ", ".join(f"{source['rows']:,} of {source['path']}" for source in self.findings["sources"])
        return f"{self.statistics.rows_used:,} trained ({read})"

    @functools.cached_property
    def training(self) -> Dataset:
        """The rows to train, as often as the mixture uses them: text, input_ids and labels (lists of ints,
        one conversation a row), file, row and opening (JSON: the messages before the first answer).

        Where the objective takes judged answers, a row is a pair or an answer: `parts` are the lengths of the
        sequences that stand in it end to end, `kinds` what each is: chosen, rejected, desirable, undesirable.
        """
        return self.rows[0] if self.rows else self._dataset(self.split.training)

    @functools.cached_property
    def held_out(self) -> Dataset | None:
        """The rows to evaluate on; None without any."""
        if self.rows:
            return self.rows[1]
        return self._dataset(self.split.held_out) if len(self.split.held_out) else None

    def with_rows(self, training: Dataset, held_out: Dataset | None) -> PreparedData:
        """The same with rows that a user's loader made of these."""
        return replace(self, rows=(training, held_out))

    @functools.cached_property
    def system_prompt(self) -> str | None:
        """What most training conversations begin with."""
        return usual_system_prompt(self.training) or self.settings.dataset.system_prompt

    def sample_prompts(self) -> list[list[Message]]:
        """What the model is asked before and after training: `training.sample_prompts`, else the first
        questions of three held-out conversations, if it can be without personal data.
        """
        prompts = self.settings.training.sample_prompts
        if prompts is not None:
            return [[{"role": "user", "content": prompt}] for prompt in prompts]
        column = self.entry.table().column("opening")
        openings = (json.loads(column[int(row)].as_py()) for row in self.split.held_out)
        asked = [
            (opening, self.shown(opening)) for opening in itertools.islice(filter(None, openings), LOOKED_AT)
        ]
        asked.sort(key=lambda one: one[0] != one[1])  # those with placeholders last
        return [shown for _, shown in asked[:SAMPLES]]

    def shown(self, opening: list[Message]) -> list[Message]:
        """The messages before an answer as they may stand in files: with placeholders for personal data. The
        system prompt that most conversations have is as it is: the model is asked behind it.
        """
        detector = Detector.of(self.settings.dataset)
        if detector is None:
            return opening
        written = "\n".join(texts(opening))
        return [
            message
            if message["role"] == "system" and message["content"] == self.system_prompt
            else placeholders(detector, message, written)[0]
            for message in opening
        ]

    def to_show(self) -> Dataset:
        """Rows whose tokens may stand in files: of the first held-out ones, of those that are trained on where
        there are none, all without personal data or, where each has some, all.
        """
        if self.rows:
            return self.rows[0] if self.rows[1] is None else self.rows[1]
        rows = self.split.held_out if len(self.split.held_out) else self.split.training
        rows, column = rows[:LOOKED_AT], self.entry.table().column("text")
        detector = Detector.of(self.settings.dataset)
        clean = [row for row in rows if not (detector and detector.find(column[int(row)].as_py()))]
        return self._dataset(clean or rows)

    def questions(self) -> list[list[Message]]:
        """`sample_prompts` as the model is trained to be asked, behind its system prompt; none where
        `training.sample_max_new_tokens` is 0.
        """
        training = self.settings.training
        if not training.sample_max_new_tokens:
            return []
        prompts = self.sample_prompts()
        if self.system_prompt and training.sample_prompts is not None:
            prompts = [[{"role": "system", "content": self.system_prompt}, *prompt] for prompt in prompts]
        return prompts

    def preview_rows(self) -> list[PreviewRow]:
        """Some dozens of the rows, token by token, for `preview.write_preview`."""
        limit, problems = self.settings.model.max_seq_length, self.entry.about["problems"]
        used, held_out, seed = self.split.once, self.split.held_out, self.settings.seed
        detector = Detector.of(self.settings.dataset)
        return excerpt(self.entry.table(), used, held_out, problems, self.tokenizer, limit, seed, detector)

    def __str__(self) -> str:
        """In one line."""
        s, limit = self.statistics, self.settings.model.max_seq_length
        formats = ", ".join(dict.fromkeys(source["format"] for source in self.findings["sources"]))
        kinds = Findings(self.findings["problems"]).counts()
        return (
            f"{s.path} ({formats}): {s.size}, {s.rows_held_out:,} held out; {s.tokens:,}"
            f" tokens, {round(100 * s.trainable_tokens / s.tokens)}% of them trained, longest {s.max_length:,}"
            + (f"; {amount(s.bad_rows, 'bad row')} ({kinds})" if s.bad_rows else "")
            + (f"; {s.truncated_rows:,} cut at {limit} tokens" if s.truncated_rows else "")
            + (f"; {s.dropped_rows:,} left out for their length" if s.dropped_rows else "")
        )

    def _dataset(self, rows: np.ndarray | list[int]) -> Dataset:
        from datasets import Dataset

        parted = UNITS[self.settings.objective.name] != CONVERSATIONS
        columns = COLUMNS + PARTS if parted else COLUMNS
        return Dataset.from_file(str(self.entry.file)).select_columns(columns).select(rows)


def not_prepared(settings: Config) -> DatasetStatistics:
    """Of data that nothing is known of but where they are."""
    return DatasetStatistics(path=", ".join(source.data_path for source in settings.dataset.mixture))


def prepare(
    settings: Config,
    tokenizer: ChatTokenizer,
    user_text: UserText | None = None,
    before: PreparedData | None = None,
) -> PreparedData:
    """Read, render, tokenise and label every row, or map what an earlier run made; choose, count and judge.

    What was prepared `before` stays where it was made with the same tokenizer.

    Raises:
        UserError: a file that cannot be read. Bad rows are no error here: `refuse_bad` says whether to go on.
    """
    import numpy as np

    if before and before.tokenizer.fingerprint == tokenizer.fingerprint:
        return before
    started = time.perf_counter()
    corpus = Corpus.of(settings)
    if before:
        log.warning(
            "data: transformers loads this tokenizer otherwise than its tokenizer.json says; tokenising"
            " again, with what will be trained"
        )
    else:
        corpus.note_files()
    entry = tokenised(settings, corpus, tokenizer, user_text)
    chosen = _split(settings, corpus, entry)
    detector = Detector.of(settings.dataset)
    found = content.look(settings, entry, chosen)
    chosen = _as_told(settings, entry, chosen, found)
    statistics = replace(
        _counted(settings, tokenizer, entry, chosen), found=without_values(detector, found.summary())
    )
    bad = np.flatnonzero(store.numbers(entry.table(), "bad"))
    judged = judgement(settings.objective.name, entry.table(), chosen.once)
    about, policy = entry.about, settings.dataset.personal_data
    error = (
        personal_refusal(policy, statistics, about["personal_data"])
        or judged.refusal(statistics.path, about["notes"], statistics.bad_rows, about["problems"])
        or found.refusal(len(chosen.once))
        or gate.verdict(settings, statistics, about["problems"], len(bad))
    )
    if error and detector:
        error = detector.clean(error)
    seconds = round(time.perf_counter() - started, 3)
    findings = {
        "status": "refused" if error else "passed",
        "error": error,
        "objective": settings.objective.name,
        "judgement": {**asdict(judged), "remark": judged.remark} if judged.kinds else None,
        "sources": about["sources"],
        "accounts": accounts(entry.table(), about, chosen, found, bad),
        **asdict(statistics),
        "trainable_share": (
            round(statistics.trainable_tokens / statistics.tokens, 4) if statistics.tokens else 0
        ),
        "problems": about["problems"],
        "notes": without_values(detector, {**about["notes"], **chosen.notes.kinds, **found.kinds}),
        "not_looked_for": found.not_looked_for,
        "personal_data": about["personal_data"] and {"policy": policy, **about["personal_data"]},
        "lengths": about["lengths"],
        "template": about["template"],
        "system_prompts_given": about["system_prompts_given"],
        "training": gate.schedule(settings, statistics.rows_used),
        "none_held_out": gate.none_held_out(settings, statistics, bool(corpus.held_out)),
        "cached": entry.reused,
        "seconds": seconds,
        "bad_rows_used": _used(entry, chosen, bad),
    }
    return PreparedData(settings, tokenizer, entry, chosen, statistics, findings)


def _split(settings: Config, corpus: Corpus, entry: store.Entry) -> Split:
    dataset, given = settings.dataset, bool(corpus.held_out)
    keep_bad, keep_leaks = dataset.on_bad_row == "warn", dataset.on_contamination == "drop"
    return split(entry.table(), dataset.eval_fraction, given, keep_bad, settings.rows_seed, keep_leaks)


def _as_told(settings: Config, entry: store.Entry, chosen: Split, found: content.Found) -> Split:
    """`chosen` without what the configuration leaves out for what was `found`."""
    if len(dropped := found.dropped()):
        chosen = chosen.without(entry.table(), dropped)
    return replace(chosen, held_out=chosen.once) if settings.dataset.eval_on_training else chosen


def _counted(
    settings: Config, tokenizer: ChatTokenizer, entry: store.Entry, chosen: Split
) -> DatasetStatistics:
    """The figures of the rows that were read and of those that were chosen."""
    import numpy as np

    table, about, training = entry.table(), entry.about, chosen.training
    trained, truncated, identity = (
        store.numbers(table, name) for name in ("trained", "truncated", "identity")
    )
    tokens = store.sequences(table, settings.model.max_seq_length)
    text = tokenizer.fingerprint.encode() + identity[training].tobytes()
    return replace(
        not_prepared(settings),
        rows=about["rows"],
        bad_rows=about["bad_rows"],
        dropped_rows=about["dropped_rows"],
        not_read=about["not_read"],
        personal_rows=(about["personal_data"] or {"rows": 0})["rows"],
        personal_data=(about["personal_data"] or {"values": {}})["values"],
        rows_used=len(training),
        rows_held_out=len(chosen.held_out),
        unit=UNITS[settings.objective.name],
        duplicates=chosen.duplicates,
        leaked_rows=chosen.leaked,
        tokens=int(tokens[training].sum()),
        trainable_tokens=int(trained[training].sum()),
        max_length=int(tokens[training].max(initial=0)),
        truncated_rows=int(truncated[chosen.once].sum()),
        fingerprint=hashlib.sha256(text).hexdigest(),
        held_out_fingerprint=hashlib.sha256(np.sort(identity[chosen.held_out]).tobytes()).hexdigest(),
    )


def _used(entry: store.Entry, chosen: Split, bad: np.ndarray) -> dict[str, Any]:
    """How many of the `bad` rows are among those that are trained on or held out, and the first of them."""
    import numpy as np

    table, used = entry.table(), bad[np.isin(bad, np.concatenate([chosen.once, chosen.held_out]))]
    places = [
        {name: table.column(name)[int(row)].as_py() for name in ("file", "row")}
        for row in used[: gate.LISTED]
    ]
    return {"count": len(used), "rows": places}
