"""What an evaluation came to: by tag, by model, against each other; evaluation.json."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from chatbot_sft.evaluation.cases import Case
from chatbot_sft.evaluation.compare import Comparison, compared
from chatbot_sft.evaluation.grade import Column, Graded
from chatbot_sft.report.masking import masked
from chatbot_sft.report.words import amount
from chatbot_sft.run import report as run_report

SCHEMA = 1
ALL, UNTAGGED = "all", "(no tag)"


@dataclass(frozen=True)
class Line:
    """The cases of one tag, or all: how many each column passed, and what turned from the first to the last."""

    tag: str
    cases: int
    passed: list[int]
    turned: Comparison | None


@dataclass(frozen=True)
class Evaluation:
    """The `cases` of the file `golden` and the models that answered them, the one that it is about at the end."""

    golden: Path
    cases: Sequence[Case]
    columns: Sequence[Column]
    max_new_tokens: int
    batch_size: int

    @property
    def subject(self) -> Column:
        return self.columns[-1]

    @property
    def share(self) -> float:
        """Of all cases; one of which nothing is known has not passed."""
        return self.share_of(self.subject)

    def share_of(self, column: Column) -> float:
        return column.passed.count(True) / len(self.cases)

    @property
    def comparisons(self) -> dict[str, Comparison]:
        """By the title of what the subject is compared with."""
        return {column.title: compared(column.passed, self.subject.passed) for column in self.columns[:-1]}

    def lines(self) -> Iterator[Line]:
        """One for each tag, the most frequent first, and one for all."""
        tags = [tag for case in self.cases for tag in case.tags]
        for tag in sorted(dict.fromkeys(tags), key=lambda tag: (-tags.count(tag), tag)):
            yield self._line(tag, [place for place, case in enumerate(self.cases) if tag in case.tags])
        untagged = [place for place, case in enumerate(self.cases) if not case.tags]
        if tags and untagged:
            yield self._line(UNTAGGED, untagged)
        yield self._line(ALL, range(len(self.cases)))

    def _line(self, tag: str, places: Sequence[int]) -> Line:
        passed = [[column.passed[place] for place in places] for column in self.columns]
        turned = compared(passed[0], passed[-1]) if len(passed) > 1 else None
        return Line(tag, len(places), [one.count(True) for one in passed], turned)

    def untold(self) -> list[str]:
        """A sentence for each reason for which cases of the subject were not judged."""
        reasons: dict[str, list[Case]] = {}
        for case, graded in zip(self.cases, self.subject.graded, strict=True):
            if graded.passed is None:
                for name, reason in graded.untold.items():
                    reasons.setdefault(f"{name}: {reason.partition(': ')[0]}", []).append(case)
        return [
            f"{amount(len(cases), 'case')} not judged, counted as not passed ({reason})"
            for reason, cases in reasons.items()
        ]

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "golden": str(self.golden),
            "golden_sha256": hashlib.sha256(self.golden.expanduser().read_bytes()).hexdigest(),
            "max_new_tokens": self.max_new_tokens,
            "batch_size": self.batch_size,
            "models": [
                {
                    "title": column.title,
                    "name": column.name,
                    "system_prompt": column.system_prompt,
                    "passed": column.passed.count(True),
                    "failed": column.passed.count(False),
                    "unjudged": column.passed.count(None),
                    "share": self.share_of(column),
                    "seconds": round(column.seconds, 1),
                }
                for column in self.columns
            ],
            "comparisons": {title: asdict(one) for title, one in self.comparisons.items()},
            "tags": [asdict(line) for line in self.lines()],
            "cases": [
                {
                    "id": case.id,
                    "row": case.row,
                    "tags": case.tags,
                    "messages": case.messages,
                    "expected": case.expected,
                    "answers": {column.title: _answer(column.graded[place]) for column in self.columns},
                }
                for place, case in enumerate(self.cases)
            ],
        }

    def write(self, file: Path) -> None:
        run_report.write_json(masked(self.to_json()), file)

    def summary(self, page: Path) -> run_report.Evaluation:
        """For the report of the run."""
        shares = {column.title: self.share_of(column) for column in self.columns[:-1]}
        return run_report.Evaluation(
            golden=str(self.golden),
            model=self.subject.name,
            cases=len(self.cases),
            passed=self.share,
            unjudged=self.subject.passed.count(None),
            page=page.name,
            before=shares.get("before"),
            earlier=shares.get("earlier"),
            comparisons={title: asdict(one) for title, one in self.comparisons.items()},
        )


def _answer(graded: Graded) -> dict[str, Any]:
    verdict = asdict(graded.verdict) if graded.verdict else None
    return {
        **asdict(graded.answer),
        "passed": graded.passed,
        "faults": graded.faults,
        "unjudged": graded.untold,
        "judge": verdict,
    }
