"""DatasetLoader: from files of conversations to rows of (text, input_ids, labels), and the conversations held
out of training.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import itertools
import json
import logging
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatbot_sft.config import Config, SourceConfig
from chatbot_sft.data import gate, store, unread
from chatbot_sft.data.encode import EncodedRow, Encoder, Refused, in_batches
from chatbot_sft.data.excerpt import excerpt
from chatbot_sft.data.files import TRAIN, data_files, find, remarks
from chatbot_sft.data.formats import Reading, check_columns, check_used, detect, to_conversation
from chatbot_sft.data.gate import Findings
from chatbot_sft.data.messages import ROLES, BadRow, Conversation, Message
from chatbot_sft.data.mixture import chosen_rows, wanted_rows
from chatbot_sft.data.preview import PreviewRow
from chatbot_sft.data.sources import Row, read_hub, read_rows
from chatbot_sft.data.split import Split, split
from chatbot_sft.data.template import ChatTokenizer
from chatbot_sft.data.unread import Asked
from chatbot_sft.data_names import is_hub_id
from chatbot_sft.errors import UserError
from chatbot_sft.report.masking import by_name
from chatbot_sft.run.report import DatasetStatistics

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

SAMPLES = 3
LOOKED_AT = 100  # rows of a source from which its format and columns are told


@dataclass(frozen=True)
class Limits:
    """What a mixture or `dataset.max_rows` takes of each source: of how many rows, and {row index: how
    often}.
    """

    available: list[int]
    uses: list[dict[int, int]]


class DatasetLoader:
    """Prepares the dataset that `config` names for `tokenizer`.

    Override `formatting_prompts_func` to write the text yourself; labels are then found from the messages
    where the text is the template's own rendering of them, else by the chat template's turn markers. After
    `prepare_dataset`, `eval_dataset` holds the held-out rows (None without any), `statistics` the counts and
    `report` all that the gate found.
    """

    def __init__(self, config: Mapping[str, Any] | Config, tokenizer: Any = None) -> None:
        self.settings = Config.from_mapping(config)
        self.config = self.settings.to_dict()
        self.tokenizer = tokenizer
        self.eval_dataset: Dataset | None = None
        paths = [source.data_path for source in self.settings.dataset.mixture]
        self.statistics = DatasetStatistics(path=", ".join(paths))
        self.report: dict[str, Any] = {}
        self._chat: ChatTokenizer | None = None
        self._entry: store.Entry | None = None
        self._scratch: tempfile.TemporaryDirectory | None = None  # for rows that live as long as this loader
        self._entry_of: ChatTokenizer | None = None
        self._split: Split | None = None

    @property
    def writes_its_own_text(self) -> bool:
        """Whether a subclass has its own `formatting_prompts_func`; it then needs the transformers tokenizer."""
        return type(self).formatting_prompts_func is not DatasetLoader.formatting_prompts_func

    def formatting_prompts_func(self, examples: Mapping[str, Sequence[Any]]) -> dict[str, list[str]]:
        """`{"text": [...]}` for a batch of columns; here the chat template over the message column."""
        template = self._chat_tokenizer().template
        return {
            "text": [template.render(messages) for messages in examples[self.settings.dataset.message_field]]
        }

    def find_files(self) -> None:
        """Raises UserError where a file of the configuration is not there; reads nothing."""
        for source in self._sources():
            if not is_hub_id(source.data_path):
                data_files(source.data_path, source.split)

    def check(self, tokenizer: ChatTokenizer | None = None) -> dict[str, Any]:
        """Read, render, tokenise and label every row (or map what an earlier run made) and return what the
        gate found; `report` keeps it.

        `tokenizer` serves where no transformers tokenizer has been given yet.

        Raises:
            UserError: a file that cannot be read, or `gate.BadData` where `dataset.on_bad_row` does not allow
                to go on.
        """
        import numpy as np

        tokenizer = tokenizer or self._chat_tokenizer()
        started = time.perf_counter()
        entry = self._opened(tokenizer)
        self._split = self._select(entry, tokenizer)
        s = self.statistics
        about = entry.about
        self.report = {
            "status": "passed",
            "error": None,
            "sources": about["sources"],
            **asdict(s),
            "trainable_share": round(s.trainable_tokens / s.tokens, 4) if s.tokens else 0,
            "problems": about["problems"],
            "notes": {**about["notes"], **self._split.notes.kinds},
            "lengths": about["lengths"],
            "template": about["template"],
            "system_prompts_given": about["system_prompts_given"],
            "training": gate.schedule(self.settings, s.rows_used),
            "cached": entry.reused,
            "seconds": round(time.perf_counter() - started, 3),
        }
        bad = np.flatnonzero(store.numbers(entry.table(), "bad"))
        used = bad[np.isin(bad, np.concatenate([self._split.once, self._split.held_out]))]
        self.report["bad_rows_used"] = {
            "count": len(used),
            "rows": [self._place(row) for row in used[: gate.LISTED]],
        }
        error = gate.refusal(
            s.path,
            s.rows,
            s.bad_rows,
            about["problems"],
            self.settings.dataset.on_bad_row,
            s.rows_used,
            len(bad),
        )
        if error is None and s.rows_held_out and not s.rows_used:
            error = (
                f"{s.path}: {s.rows_held_out} conversation(s) leave none to train on with"
                f" dataset.eval_fraction={self.settings.dataset.eval_fraction}; add conversations or set"
                " dataset.eval_fraction=0"
            )
        if error is None and not s.rows_used:
            error = (
                f"{s.path}: no row has a trainable token within"
                f" model.max_seq_length={self.settings.model.max_seq_length}"
            )
        if error:
            self.report |= {"status": "refused", "error": error}
            raise gate.BadData(error)
        return self.report

    def _place(self, index: int) -> dict[str, Any]:
        table = self._entry.table()
        return {name: table.column(name)[int(index)].as_py() for name in ("file", "row")}

    def prepare_dataset(self) -> Dataset:
        """The training rows as a `datasets.Dataset` with columns text, input_ids and labels (lists of ints,
        one conversation a row), file, row and opening (JSON: the messages before the first answer).

        Raises:
            UserError: see `check`.
        """
        self.check(self._chat_tokenizer())
        s = self.statistics
        formats = ", ".join(dict.fromkeys(source["format"] for source in self.report["sources"]))
        log.info(
            "data: %s (%s): %s conversations, %s held out; %s tokens, %d%% of them trained, longest %s%s%s%s",
            s.path, formats, f"{s.rows:,}", f"{s.rows_held_out:,}", f"{s.tokens:,}",
            round(100 * s.trainable_tokens / s.tokens), f"{s.max_length:,}",
            f"; {s.bad_rows:,} bad rows ({Findings(self.report['problems']).counts()})" if s.bad_rows else "",
            f"; {s.truncated_rows:,} cut at {self.settings.model.max_seq_length} tokens" if s.truncated_rows else "",
            f"; {s.dropped_rows:,} left out for their length" if s.dropped_rows else "",
        )  # fmt: skip
        from datasets import Dataset

        rows = Dataset.from_file(str(self._entry.file)).select_columns(
            ["text", "input_ids", "labels", "file", "row", "opening"]
        )
        self.eval_dataset = rows.select(self._split.held_out) if len(self._split.held_out) else None
        return rows.select(self._split.training)

    def sample_prompts(self) -> list[list[Message]]:
        """What the model is asked before and after training: `training.sample_prompts`, else the first
        questions of three held-out conversations.
        """
        prompts = self.settings.training.sample_prompts
        if prompts is not None:
            return [[{"role": "user", "content": prompt}] for prompt in prompts]
        column = self._entry.table().column("opening")
        openings = (json.loads(column[int(row)].as_py()) for row in self._split.held_out)
        return list(itertools.islice((opening for opening in openings if opening), SAMPLES))

    def preview_rows(self) -> list[PreviewRow]:
        """Some dozens of the checked rows, token by token, for `preview.write_preview`."""
        limit, problems = self.settings.model.max_seq_length, self._entry.about["problems"]
        used, held_out = self._split.once, self._split.held_out
        return excerpt(
            self._entry.table(), used, held_out, problems, self._entry_of, limit, self.settings.seed
        )

    def _chat_tokenizer(self) -> ChatTokenizer:
        if self.tokenizer is None:
            raise UserError(
                "DatasetLoader needs a tokenizer to prepare the dataset: DatasetLoader(config, tokenizer)"
            )
        if self._chat is None:
            model, kwargs = self.settings.model, self.settings.dataset.chat_template_kwargs
            self._chat = ChatTokenizer.from_transformers(
                self.tokenizer, model.name, kwargs, model.new_tokens or ()
            )
        return self._chat

    @property
    def tokenizer_fingerprint(self) -> str:
        """SHA-256 of the tokenizer and chat template that the rows were checked or made with."""
        return self._entry_of.fingerprint

    def _opened(self, tokenizer: ChatTokenizer) -> store.Entry:
        """The tokenised rows: those of this loader, of the cache, or made now.

        A formatting function of the user's is not known to the cache, and rows with a secret of the
        environment in them do not belong there.
        """
        if self._entry is not None and self._entry_of.fingerprint == tokenizer.fingerprint:
            return self._entry
        if self._entry is None:
            self._note_files()
        else:
            log.warning(
                "data: transformers loads this tokenizer otherwise than its tokenizer.json says; tokenising"
                " again, with what will be trained"
            )
        dataset = asdict(self.settings.dataset)
        if self.writes_its_own_text or by_name(dataset) != dataset:
            self._scratch = tempfile.TemporaryDirectory(prefix="chatbot_sft_rows_")
            file = Path(self._scratch.name, store.ROWS)
            self._entry = store.Entry(file, self._build(tokenizer, file), reused=False)
        else:
            self._entry = store.open_or_build(self._key(tokenizer), lambda file: self._build(tokenizer, file))
        self._entry_of = tokenizer
        for source in self._entry.about["sources"]:
            if "available" in source:
                log.info(
                    "data: %s: %s of %s rows",
                    source["path"],
                    f"{source['taken']:,}",
                    f"{source['available']:,}",
                )
        return self._entry

    def _key(self, tokenizer: ChatTokenizer) -> str:
        """Everything that decides what the rows are: the data's content, the tokenizer, the options,
        `store.VERSION`.
        """
        dataset = self.settings.dataset
        options = {"train_on": trained_part(self.settings)}
        options |= {
            name: getattr(dataset, name)
            for name in ("thinking", "overflow", "system_prompt", "max_rows", "shuffle")
        }
        options |= {name: getattr(dataset, name) for name in ("message_field", "text_field")}
        chosen = (
            self.settings.seed
            if dataset.max_rows or any(source.weight or source.count for source in dataset.mixture)
            else None
        )
        parts = [
            *(
                json.dumps([asdict(source), self._content(source)], sort_keys=True, default=str)
                for source in self._sources()
            ),
            tokenizer.fingerprint,
            json.dumps(
                [
                    options,
                    self.settings.model.max_seq_length,
                    len(self._held_out_sources()),
                    dataset.max_row_mb,
                    chosen,
                ],
                sort_keys=True,
            ),
            f"version {store.VERSION}",
        ]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]

    @staticmethod
    def _content(source: SourceConfig) -> list[str]:
        if is_hub_id(source.data_path):
            return [read_hub(source.data_path, source.config_name, source.split, source.revision)[1]]
        hashes = []
        for file in data_files(source.data_path, source.split):
            with file.open("rb") as stream:
                hashes.append(f"{file}:{hashlib.file_digest(stream, 'sha256').hexdigest()}")
        return hashes

    def _sources(self) -> list[SourceConfig]:
        """The training sources, then those that are held out."""
        return [*self._training_sources(), *self._held_out_sources()]

    def _training_sources(self) -> list[SourceConfig]:
        """The mixture. Beside hub ids, `dataset.split` is theirs: the files and folders that have no such
        split are read as they are without it.
        """
        mixture = self.settings.dataset.mixture
        local = [source for source in mixture if not is_hub_id(source.data_path)]
        if len(local) == len(mixture):
            return mixture
        return [
            (
                replace(source, split=TRAIN)
                if source in local and source.split not in find(source.data_path).splits
                else source
            )
            for source in mixture
        ]

    def _held_out_sources(self) -> list[SourceConfig]:
        """`eval_data_path` or, without it, what the training folders have under the name of a held-out split."""
        dataset = self.settings.dataset
        if dataset.eval_data_path is None:
            return [
                replace(source, split=split)
                for source in self._training_sources()
                if source.split == TRAIN and (split := _held_out(source))
            ]
        given = dataset.source(SourceConfig(dataset.eval_data_path))
        return [
            given if is_hub_id(given.data_path) else replace(given, split=find(given.data_path).to_evaluate)
        ]

    def _note_files(self) -> None:
        """Say which files of the folders are not trained on."""
        held_out = self._held_out_sources()
        for source in self._training_sources():
            if not is_hub_id(source.data_path):
                evaluated = any(other.data_path == source.data_path for other in held_out)
                for remark in remarks(source.data_path, find(source.data_path), source.split, evaluated):
                    log.info("data: %s", remark)

    def _build(self, tokenizer: ChatTokenizer, file: Path) -> dict[str, Any]:
        """Stream every source through the encoder into `file`; returns what was found on the way."""
        dataset = self.settings.dataset
        not_read: dict[str, int] = {}
        texts = functools.partial(self._user_texts, not_read) if self.writes_its_own_text else None
        encoder = Encoder(
            tokenizer,
            self.settings.model.max_seq_length,
            trained_part(self.settings),
            dataset.overflow,
            texts,
        )
        problems, notes = Findings(), Findings()
        sources: list[dict[str, Any]] = []
        counts = {"rows": 0, "bad_rows": 0, "dropped_rows": 0}
        given = 0  # rows that dataset.system_prompt stands in
        token_counts: list[int] = []

        def watched(made: Iterator[Conversation | Refused]) -> Iterator[Conversation | Refused]:
            nonlocal given
            for item in made:
                first = item.messages[0] if isinstance(item, Conversation) and item.messages else {}
                given += first.get("role") == "system" and first["content"] == dataset.system_prompt
                yield item

        def written() -> Iterator[tuple[EncodedRow, bool]]:
            limits = self._limits()
            for number, source in enumerate(self._sources()):
                held_out = number >= len(dataset.mixture)
                uses = limits.uses[number] if limits and not held_out else None
                by_name = held_out and source.split != TRAIN and not is_hub_id(source.data_path)
                sources.append(
                    {
                        "path": f"{source.data_path} [{source.split}]" if by_name else source.data_path,
                        "held_out": held_out,
                    }
                )
                if uses is not None:
                    sources[-1] |= {"taken": sum(uses.values()), "available": limits.available[number]}
                last = None
                made = self._conversations(source, tokenizer, uses, sources[-1], not_read)
                for row in encoder.rows(watched(made) if dataset.system_prompt else made):
                    here = (row.file, row.row)
                    counts["rows"] += here != last
                    refused = isinstance(row, Refused)
                    found = [(row.kind, row.detail)] if refused else row.problems
                    counts["bad_rows"] += bool(found) and here != last
                    last = here
                    for kind, detail in found:
                        problems.add(kind, row.file, row.row, detail)
                    if refused:
                        continue
                    for kind in row.notes:
                        notes.add(kind, row.file, row.row)
                    token_counts.append(row.length)
                    if not row.kept:
                        counts["dropped_rows"] += 1
                    elif row.trained:
                        yield row, held_out

        with _no_garbage_collection():
            store.write_rows(file, written())
        import numpy as np

        return {
            **counts,
            "not_read": unread.ordered(not_read),
            "sources": sources,
            "problems": problems.kinds,
            "notes": notes.kinds,
            "lengths": gate.lengths(np.array(token_counts), self.settings.model.max_seq_length),
            "template": gate.template_facts(tokenizer, encoder, dataset.system_prompt),
            "system_prompts_given": given if dataset.system_prompt else None,
        }

    def _limits(self) -> Limits | None:
        """Which rows of each source, where weights, counts or max_rows choose; this takes a first pass over
        the files.
        """
        dataset, mixture = self.settings.dataset, self._training_sources()
        if dataset.max_rows is None and all(
            source.weight is None and source.count is None for source in mixture
        ):
            return None
        available = [sum(1 for _ in self._source_rows(source)) for source in mixture]
        wanted = wanted_rows(available, mixture, dataset.max_rows)
        seed = self.settings.seed
        uses = [
            chosen_rows(rows, number, dataset.shuffle, seed + i)
            for i, (rows, number) in enumerate(zip(available, wanted, strict=True))
        ]
        return Limits(available, uses)

    def _source_rows(self, source: SourceConfig) -> Iterator[Row]:
        most = self.settings.dataset.max_row_mb
        if is_hub_id(source.data_path):
            return read_hub(source.data_path, source.config_name, source.split, source.revision, most)[0]
        return read_rows(source.data_path, source.split, most)

    def _conversations(
        self,
        source: SourceConfig,
        tokenizer: ChatTokenizer,
        uses: dict[int, int] | None,
        about: dict[str, Any],
        not_read: dict[str, int],
    ) -> Iterator[Conversation | Refused]:
        """The rows of `source` as conversations. `uses` says which and how often (None: all, once). Fills in
        `about`, counts in `not_read`.
        """
        dataset = self.settings.dataset
        columns = {"messages": dataset.message_field, "text": dataset.text_field, **source.columns}
        template = tokenizer.template
        names_of = (
            frozenset(ROLES) if self.writes_its_own_text else template.names_of
        )  # a function of the user's own gets the messages whole
        reading = Reading(columns, dataset.thinking, template.thinking_field, dataset.system_prompt, names_of)
        rows = self._source_rows(source)
        begin = next(in_batches(rows, LOOKED_AT, lambda row: len(repr(row.values))), [])
        named = {ours: theirs for ours, theirs in columns.items() if ours != theirs or ours in source.columns}
        check_columns(source.data_path, begin, named)
        name = source.format
        if name in ("auto", "json"):
            if self.writes_its_own_text:
                name = _format_or_none(begin, reading)
            else:
                name, found = detect(begin, reading)
                reading = replace(reading, columns=found)
        if name and not self.writes_its_own_text:
            check_used(source.data_path, name, named, reading)
        about |= {"format": name or "the formatting function's own", "rows": 0}
        if told := {ours: theirs for ours, theirs in reading.columns.items() if columns.get(ours) != theirs}:
            about["columns"] = told
        for index, row in enumerate(itertools.chain(begin, rows)):
            if uses is not None and index not in uses:
                continue
            about["rows"] += 1
            if row.fault:
                yield Refused(row.file, row.number, *row.fault)
                continue
            try:
                text_only = Conversation(row.file, row.number, None, text="", values=row.values)
                made = to_conversation(row, name, reading) if name else text_only
                made.uses = 1 if uses is None else uses[index]
                # What a function of the user's own makes of the columns is seen when it is called; the
                # messages it gets are checked ones.
                unread.count(
                    (
                        [name for name in made.unread if "[]" in name]
                        if self.writes_its_own_text
                        else made.unread
                    ),
                    not_read,
                )
                yield made
            except BadRow as bad:
                yield Refused(row.file, row.number, bad.kind, bad.detail)

    def _user_texts(self, not_read: dict[str, int], batch: list[Conversation]) -> list[str]:
        """One text per conversation from the user's function: it gets the file's columns, and checked
        messages where the rows have them.

        Columns that it does not ask for, and that no messages it asks for were made of, are counted in
        `not_read`.
        """
        names = list(dict.fromkeys(name for item in batch for name in item.values))
        columns = Asked({name: [item.values.get(name) for item in batch] for name in names})
        if any(item.messages is not None for item in batch):
            columns[self.settings.dataset.message_field] = [item.messages for item in batch]
        returned = self.formatting_prompts_func(columns)
        if not isinstance(returned, Mapping) or "text" not in returned:
            raise UserError(
                f'{type(self).__name__}.formatting_prompts_func: expected {{"text": [...]}}, got'
                f" {type(returned).__name__}"
            )
        for item in batch:
            made = set(item.values) - {name for name in item.values if unread.named(name) in item.unread}
            read = columns.asked | (
                made
                if item.messages is not None and self.settings.dataset.message_field in columns.asked
                else set()
            )
            unread.count(unread.unread_columns(item.values, read), not_read)
        texts = returned["text"]
        if len(texts) != len(batch) or not all(isinstance(text, str) for text in texts):
            raise UserError(
                f"{type(self).__name__}.formatting_prompts_func: expected one text for each of {len(batch)}"
                " conversations"
            )
        return texts

    def _select(self, entry: store.Entry, tokenizer: ChatTokenizer) -> Split:
        """The split of the rows; fills in the counts of both parts."""
        import numpy as np

        dataset, table = self.settings.dataset, entry.table()
        chosen = split(
            table,
            dataset.eval_fraction,
            bool(self._held_out_sources()),
            dataset.on_bad_row == "warn",
            self.settings.seed,
        )
        if dataset.eval_on_training:
            chosen = replace(chosen, held_out=chosen.once)
        length, trained, truncated, identity = (
            store.numbers(table, name) for name in ("length", "trained", "truncated", "identity")
        )
        tokens = np.minimum(length, self.settings.model.max_seq_length)
        s, about = self.statistics, entry.about
        s.rows, s.bad_rows, s.dropped_rows, s.not_read = (
            about["rows"],
            about["bad_rows"],
            about["dropped_rows"],
            about["not_read"],
        )
        s.rows_used, s.rows_held_out = len(chosen.training), len(chosen.held_out)
        s.duplicates, s.leaked_rows = chosen.duplicates, chosen.leaked
        s.tokens, s.trainable_tokens = int(tokens[chosen.training].sum()), int(trained[chosen.training].sum())
        s.max_length = int(tokens[chosen.training].max(initial=0))
        s.truncated_rows = int(truncated[chosen.once].sum())
        s.fingerprint = hashlib.sha256(
            tokenizer.fingerprint.encode() + identity[chosen.training].tobytes()
        ).hexdigest()
        return chosen


def trained_part(settings: Config) -> str:
    """`dataset.train_on`; `training.response_only=false`, as Unsloth's scripts have it, is `all`."""
    return settings.dataset.train_on if settings.training.response_only else "all"


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Rows make millions of small objects and no cycles: looking for some took a tenth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _held_out(source: SourceConfig) -> str | None:
    """The split of its folder that is evaluated on, where there is one."""
    return None if is_hub_id(source.data_path) else find(source.data_path).held_out


def _format_or_none(rows: Sequence[Row], reading: Reading) -> str | None:
    """The format of rows that a user's own function will write out; None where they have one of its own."""
    try:
        return detect(rows, reading)[0]
    except UserError:
        return None
