"""What the gate finds by reading the rows beside each other: near-duplicates, held-out rows and golden questions
that are nearly trained on, contradictions, answers in another language, refusals.

None of it is a fault of a row alone, so each has a key of its own: off, note, error or drop.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatbot_sft.cache import cached
from chatbot_sft.config import Config
from chatbot_sft.data import languages, near, store
from chatbot_sft.data.contradictions import Answers
from chatbot_sft.data.encode import all_said
from chatbot_sft.data.gate import Findings
from chatbot_sft.data.messages import Message
from chatbot_sft.data.near import Said
from chatbot_sft.data.opposites import BOTH, SAYS, SWAPPED, opposites
from chatbot_sft.data.plain import spoken
from chatbot_sft.data.preferences import ANSWERS, CONVERSATIONS, PAIRS, UNITS
from chatbot_sft.data.split import Split
from chatbot_sft.errors import UserError
from chatbot_sft.evaluation import cases
from chatbot_sft.evaluation.checks import quoted, refusal_in
from chatbot_sft.extras import install

if TYPE_CHECKING:
    import numpy as np

NEAR = "near-duplicate"
HELD_OUT = "held-out row nearly trained on"
GOLDEN = "golden question trained on"
CONTRADICTION = "contradiction"
LANGUAGE = "answer in another language"
REFUSAL = "refusal"
# Each with the key that says what becomes of it, and what it is counted among.
KINDS = {
    NEAR: ("on_near_duplicate", "training rows"),
    HELD_OUT: ("on_contamination", "held-out rows"),
    GOLDEN: ("on_contamination", "golden questions"),
    CONTRADICTION: ("on_contradiction", "training rows"),
    SWAPPED: ("on_contradiction", "rows"),
    BOTH: ("on_contradiction", "rows"),
    LANGUAGE: ("on_language_mismatch", "training rows"),
    REFUSAL: ("on_refusal", "training rows"),
}
# Those of rows of one kind alone. Judged answers are alike and differ: that is what is learned from them.
OF_UNIT = {NEAR: CONVERSATIONS, CONTRADICTION: CONVERSATIONS, SWAPPED: PAIRS, BOTH: ANSWERS}
SUMMARY = 5  # rows of a kind in report.json
FILE, VERSION = "found.json", 4  # raise it with every change by which the same rows are found otherwise


@dataclass
class Found:
    """`kinds` as data_report.json has them; `drops`: the training rows that each kind would leave out;
    `policies`: what the configuration says of each kind; `not_looked_for`: what is missing for others.
    """

    kinds: dict[str, dict[str, Any]]
    drops: dict[str, list[int]]
    policies: dict[str, str] = field(default_factory=dict)
    not_looked_for: list[str] = field(default_factory=list)

    def dropped(self) -> np.ndarray:
        """The training rows that are left out, in order."""
        import numpy as np

        # Of kinds without a finding too: an exact duplicate is no near one, and is left out with those.
        told = [row for kind, rows in self.drops.items() if self.policies[kind] == "drop" for row in rows]
        return np.unique(np.array(told, np.int64))

    def refusal(self, left: int) -> str | None:
        """Why the run must not go on, in one line, with so many training rows left; None where it may."""
        for kind, tally in self.kinds.items():
            if self.policies[kind] != "error":
                continue
            first, key = tally["rows"][0], f"dataset.{KINDS[kind][0]}"
            many = f"{kind}: {tally['count']:,} of {tally['of']:,} {KINDS[kind][1]}"
            return (
                f"{first['file']}: row {first['row']}: {first['detail']}; {many}; mend them, leave them out"
                f" with {key}=drop, or train all the same with {key}=note"
            )
        if not left and len(self.dropped()):
            keys = dict.fromkeys(
                f"dataset.{KINDS[kind][0]}=drop" for kind in self.kinds if self.policies[kind] == "drop"
            )
            return f"{' and '.join(keys)} leave{'s' if len(keys) == 1 else ''} no row to train on"
        return None

    def summary(self) -> dict[str, dict[str, Any]]:
        """For report.json."""
        return {
            kind: {
                **tally,
                "rows": [{name: row[name] for name in ("file", "row")} for row in tally["rows"][:SUMMARY]],
            }
            for kind, tally in self.kinds.items()
        }


def look(settings: Config, entry: store.Entry, chosen: Split) -> Found:
    """Look for what the configuration does not turn off, or read what an earlier run with the same rows found.

    Raises:
        UserError: an extra is needed that is not installed, where the key says error or drop;
            evaluation.golden cannot be read.
    """
    dataset = settings.dataset
    policies = {kind: getattr(dataset, name) for kind, (name, _) in KINDS.items()}
    golden, unit = settings.evaluation.golden, UNITS[settings.objective.name]
    wanted = [
        kind
        for kind, policy in policies.items()
        if policy != "off"
        and (kind != GOLDEN or golden)
        and (kind != HELD_OUT or len(chosen.held_out))
        and OF_UNIT.get(kind, unit) == unit
    ]
    without = _cannot_look(policies, wanted, len(chosen.once) + len(chosen.held_out))
    wanted = [kind for kind in wanted if kind not in without]
    search = Search(entry, chosen, dataset.near_duplicate_threshold, golden)
    found = search.look(wanted) if entry.scratch else _cached(search, wanted)
    for kind, tally in found.kinds.items():
        if policies[kind] == "drop":
            tally["left_out"] = len(set(found.drops[kind]).intersection(chosen.once.tolist()))
    return Found(found.kinds, found.drops, policies, list(dict.fromkeys(without.values())))


def _cannot_look(policies: Mapping[str, str], wanted: Sequence[str], rows: int) -> dict[str, str]:
    """Kind → why it is not looked for, of those that are noted where it can be had.

    Raises:
        UserError: one of them decides whether or what is trained.
    """
    without: dict[str, str] = {}
    if not near.enough(rows):
        why = f"near-duplicates among over {near.FEW:,} rows need datasketch"
        without |= {kind: why for kind in (NEAR, HELD_OUT) if kind in wanted}
    if not languages.available() and LANGUAGE in wanted:
        without[LANGUAGE] = "the languages of answers need py3langid"
    for kind, why in without.items():
        if policies[kind] != "note":
            raise UserError(f"dataset.{KINDS[kind][0]}={policies[kind]}: {why}: {install('data')}")
    return without


def _cached(search: Search, wanted: Sequence[str]) -> Found:
    def fill(folder: Path) -> None:
        found = search.look(wanted)
        (folder / FILE).write_text(
            json.dumps([found.kinds, found.drops], ensure_ascii=False), encoding="utf-8"
        )

    folder, _ = cached("findings", search.identity(wanted), fill, "data: what was found in the rows")
    return Found(*json.loads((folder / FILE).read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Search:
    """The training rows that are `chosen` of an entry, beside those held out and the golden questions."""

    entry: store.Entry
    chosen: Split
    threshold: float
    golden: str | None

    def identity(self, wanted: Sequence[str]) -> str:
        """Everything that decides what is found."""
        made = hashlib.sha256()
        golden = Path(self.golden).expanduser() if self.golden and GOLDEN in wanted else None
        parts = [VERSION, *wanted, self.threshold, str(golden), self.entry.file.parent.name]
        made.update(json.dumps(parts).encode("utf-8", "surrogateescape"))
        if golden and golden.is_file():
            made.update(hashlib.sha256(golden.read_bytes()).digest())
        for rows in (self.chosen.once, self.chosen.held_out):
            made.update(rows.tobytes() + b"|")
        return made.hexdigest()[:32]

    def look(self, wanted: Sequence[str]) -> Found:
        """Look for the `wanted` kinds."""
        rows = Rows(self.entry)
        found = Collected(rows)
        if NEAR in wanted or HELD_OUT in wanted:
            self._near(rows, found, wanted)
        if GOLDEN in wanted:
            self._golden(rows, found)
        answers = Answers()
        for row in self._once:
            messages = rows.messages(row)
            if CONTRADICTION in wanted:
                answers.see(row, messages)
            if LANGUAGE in wanted and (differing := languages.other_language(messages)):
                found.add(LANGUAGE, row, "asked in {}, answered in {}".format(*differing))
            if REFUSAL in wanted and (sentence := _refusal(messages)):
                found.add(REFUSAL, row, quoted(sentence))
        if CONTRADICTION in wanted:
            self._contradictions(answers, rows, found)
        for kind in (SWAPPED, BOTH):
            if kind in wanted:
                self._opposites(kind, rows, found)
        trained, held_out = len(self._once), len(self.chosen.held_out)
        of = {"training rows": trained, "held-out rows": held_out, "rows": trained + held_out}
        for kind, tally in found.findings.kinds.items():
            tally.setdefault("of", of.get(KINDS[kind][1]))
            tally["rows"].sort(key=lambda place: (place["file"], place["row"]))
        return Found(found.findings.kinds, found.drops)

    @functools.cached_property
    def _once(self) -> list[int]:
        return self.chosen.once.tolist()

    def _near(self, rows: Rows, found: Collected, wanted: Sequence[str]) -> None:
        held_out = self.chosen.held_out.tolist() if HELD_OUT in wanted else []
        alike = near.find(self._once, held_out, rows.said, self.threshold)
        exact = store.numbers(self.entry.table(), "identity")
        for row, first in sorted(alike.inside.items()) if NEAR in wanted else ():
            found.drop(NEAR, row)
            if exact[row] != exact[first]:  # those have a note of their own
                found.add(NEAR, row, f"nearly the same as {rows.shown(first)}")
        for row, other in alike.across:
            found.drop(HELD_OUT, row)
            found.add(HELD_OUT, other, f"nearly the same as {rows.shown(row)}")

    def _contradictions(self, answers: Answers, rows: Rows, found: Collected) -> None:
        """Of the training rows whose `answers` were seen, among each other and with held-out ones."""
        held_out = self.chosen.held_out.tolist()
        for row in held_out:
            answers.see(row, rows.messages(row))
        apart = set(held_out)
        for one in answers.contradictions(rows.messages):
            sides = ((one.one, one.says, one.other, one.instead), (one.other, one.instead, one.one, one.says))
            for row, says, other, instead in sides:
                if row not in apart:
                    there = f"{rows.shown(other)}, held out," if other in apart else rows.shown(other)
                    found.add(CONTRADICTION, row, f"says {says}, where {there} says {instead}")

    def _opposites(self, kind: str, rows: Rows, found: Collected) -> None:
        import numpy as np

        both = np.union1d(self.chosen.once, self.chosen.held_out).astype(np.int64)
        for row, other in opposites(self.entry.table(), both):
            found.add(kind, row, f"{SAYS[kind]} in {rows.shown(other)}")

    def _golden(self, rows: Rows, found: Collected) -> None:
        asked = {
            number: _asked(messages) for number, messages in cases.questions(Path(str(self.golden))).items()
        }
        for number, others in near.asked(asked, self._once, rows.asked, self.threshold).items():
            for row in others:
                found.drop(GOLDEN, row)
            found.findings.add(GOLDEN, str(self.golden), number, f"asked in {rows.shown(others[0])}")
        if tally := found.findings.kinds.get(GOLDEN):
            tally["of"] = len(asked)


class Rows:
    """What the rows of an entry say, read from disk as it is asked for."""

    def __init__(self, entry: store.Entry) -> None:
        table = entry.table()
        self._messages, self._text = table.column("messages"), table.column("text")
        self._file, self._row = table.column("file"), table.column("row")

    def messages(self, row: int) -> list[Message]:
        """None where the row is ready-made text."""
        messages: list[Message] = json.loads(self._messages[row].as_py())
        return messages

    def said(self, row: int) -> Said:
        """What is compared with other rows."""
        messages = self.messages(row)
        if not messages:
            return Said(self._text[row].as_py(), "")
        return Said(
            "\n".join(all_said(message) for message in messages if message["role"] != "system"),
            "\n".join(all_said(message) for message in messages if message["role"] == "assistant"),
        )

    def asked(self, row: int) -> Iterator[str]:
        """What stands before each answer."""
        messages = self.messages(row)
        for number, message in enumerate(messages):
            if message["role"] == "assistant":
                yield _asked(messages[:number])

    def place(self, row: int) -> tuple[str, int]:
        return self._file[row].as_py(), self._row[row].as_py()

    def shown(self, row: int) -> str:
        """As a detail names it."""
        file, number = self.place(row)
        return f"row {number} of {Path(file).name}"


def _asked(messages: Sequence[Message]) -> str:
    return "\n".join(message["content"] for message in messages if message["role"] != "system")


def _refusal(messages: Sequence[Message]) -> str:
    """The sentence of the first answer that declines."""
    answers = (spoken(message) for message in messages if message["role"] == "assistant")
    return next(filter(None, map(refusal_in, answers)), "")


class Collected:
    """What is found, each row of a kind once."""

    def __init__(self, rows: Rows) -> None:
        self.findings = Findings()
        self.drops: dict[str, list[int]] = {kind: [] for kind in KINDS}
        self._rows = rows
        self._seen: set[tuple[str, int]] = set()
        self._dropped: set[tuple[str, int]] = set()

    def add(self, kind: str, row: int, detail: str) -> None:
        if (kind, row) not in self._seen:
            self._seen.add((kind, row))
            self.findings.add(kind, *self._rows.place(row), detail)
            if kind != HELD_OUT:
                self.drop(kind, row)

    def drop(self, kind: str, row: int) -> None:
        """The training row to leave out."""
        if (kind, row) not in self._dropped:
            self._dropped.add((kind, row))
            self.drops[kind].append(row)
