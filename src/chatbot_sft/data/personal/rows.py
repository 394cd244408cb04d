"""What dataset.personal_data does with conversations as they go by, and what it found in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from chatbot_sft.data.encode import Refused
from chatbot_sft.data.gate import Findings
from chatbot_sft.data.messages import Conversation
from chatbot_sft.data.personal.detector import KINDS, Detector
from chatbot_sft.data.personal.nested import placeholders, texts
from chatbot_sft.data.preferences import CHOSEN
from chatbot_sft.report.words import amount
from chatbot_sft.run.report import DatasetStatistics

WAYS = (
    "dataset.personal_data=redact trains on placeholders, drop leaves these rows out, note goes on;"
    " dataset.personal_data_allowed=[…] names what is no personal data"
)


@dataclass
class Look:
    """With `policy` `drop` the rows in which something is found are left out, with `redact` they have
    placeholders. `columns`: a function of the user's own makes the text of a row's columns.
    """

    detector: Detector
    policy: str
    columns: bool
    rows: int = 0  # with a finding
    left_out: int = 0
    values: Counter[str] = field(default_factory=Counter)
    findings: Findings = field(default_factory=Findings)

    def at(self, made: Iterator[Conversation | Refused]) -> Iterator[Conversation | Refused]:
        """Pass them on; the two answers of a pair, which come one after the other, stay together."""
        for item in made:
            together = [item, next(made)] if item.part == CHOSEN else [item]
            looked = [self._of(one) for one in together]
            found: dict[str, Counter[str]] = {}
            for one, (_, places) in zip(together, looked, strict=True):
                found |= {_place(one, place, len(looked)): kinds for place, kinds in places.items()}
            if found:
                self._count(item, found)
            if found and self.policy == "drop":
                self.left_out += 1
            elif self.policy == "redact":
                yield from (clean for clean, _ in looked)
            else:
                yield from together

    def about(self) -> dict[str, Any]:
        """For data_report.json."""
        return {
            "looked_for": [KINDS[kind] for kind in self.detector.kinds],
            "rows": self.rows,
            "left_out": self.left_out,
            "values": {KINDS[kind]: self.values[kind] for kind in KINDS if self.values[kind]},
            "kinds": self.findings.kinds,
        }

    def _count(self, item: Conversation | Refused, found: Mapping[str, Counter[str]]) -> None:
        self.rows += 1
        for kind in KINDS:
            places = [place for place, kinds in found.items() if kinds[kind]]
            if places:
                self.findings.add(KINDS[kind], item.file, item.row, ", ".join(places))
                self.values[kind] += sum(kinds[kind] for kinds in found.values())

    def _of(self, item: Conversation | Refused) -> tuple[Conversation | Refused, dict[str, Counter[str]]]:
        """(`item` with placeholders, what was found: place → kinds)."""
        if isinstance(item, Refused):
            return item, {}
        parts: dict[str, Any] = {}
        if item.messages is None:
            parts["the text"] = item.text
        else:
            parts |= {
                f"message {number} ({message['role']})": message
                for number, message in enumerate(item.messages, 1)
            }
        parts["the tools"] = item.tools
        if self.columns:
            parts |= {f"column {name}": value for name, value in item.values.items()}
        written = "\n".join(texts(parts))
        if not self.detector.may_find(written):
            return item, {}
        found: dict[str, Counter[str]] = {}
        clean = {}
        for place, part in parts.items():
            clean[place], kinds = placeholders(self.detector, part, written)
            if kinds:
                found[place] = kinds
        if not found:
            return item, {}
        values = {name: clean.get(f"column {name}", value) for name, value in item.values.items()}
        messages = item.messages and [
            clean[f"message {number} ({message['role']})"] for number, message in enumerate(item.messages, 1)
        ]
        text = clean.get("the text", "")
        made = replace(item, messages=messages, tools=clean["the tools"], text=text, values=values)
        # Messages are made of columns: what is in both is one finding.
        columns = {place: kinds for place, kinds in found.items() if place.startswith("column ")}
        return made, columns or found


def _place(item: Conversation | Refused, place: str, answers: int) -> str:
    """`place` as it is told of `answers` to one prompt: what the prompt says is one finding."""
    own = isinstance(item, Conversation) and place.startswith(f"message {len(item.messages or ())} ")
    return f"{item.part}: {place}" if own and answers > 1 else place


def refusal(policy: str, statistics: DatasetStatistics, about: Mapping[str, Any] | None) -> str | None:
    """Why a run must not go on with what was found; None where it may."""
    path, rows = statistics.path, statistics.rows
    if not about or not about["rows"]:
        return None
    if policy == "drop" and about["left_out"] == rows:
        return f"{path}: each of {amount(rows, 'row')} holds personal data ({counted(about)}): none is left; {WAYS}"
    if policy != "error":
        return None
    kind, first = min(
        ((kind, found["rows"][0]) for kind, found in about["kinds"].items()),
        key=lambda item: (item[1]["file"], item[1]["row"]),
    )
    what = f"{first['file']}: row {first['row']}: {first['detail']}: {kind}"
    hold = "holds" if about["rows"] == 1 else "hold"
    return (
        f"{what}; {about['rows']:,} of {amount(rows, 'row')} {hold} personal data ({counted(about)}); {WAYS}"
    )


def counted(about: Mapping[str, Any]) -> str:
    """How many values of each kind."""
    return ", ".join(f"{kind} ({count:,})" for kind, count in about["values"].items())
