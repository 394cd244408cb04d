"""Answers held against what is expected of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from chatbot_sft.errors import UserError
from chatbot_sft.evaluation.answer import Answer
from chatbot_sft.evaluation.cases import Case
from chatbot_sft.evaluation.checks import CannotTell, Check, Judge
from chatbot_sft.evaluation.judge import Verdict

Judging = Callable[[str, Case, Answer], Verdict]  # by this rubric


@dataclass(frozen=True)
class Graded:
    """One answer. `faults` are the checks that do not hold and why, `untold` those of which that is not known."""

    answer: Answer
    faults: dict[str, str] = field(default_factory=dict)
    untold: dict[str, str] = field(default_factory=dict)
    verdict: Verdict | None = None  # the judge's, where one was asked

    @property
    def passed(self) -> bool | None:
        """None where no check fails, and not of all it is known whether they hold."""
        return False if self.faults else None if self.untold else True


@dataclass(frozen=True)
class Column:
    """A model under its `title` (before, earlier, after) and its `name`, with an answer to each case."""

    title: str
    name: str
    graded: Sequence[Graded]
    system_prompt: str | None = None
    seconds: float = 0.0

    @property
    def passed(self) -> list[bool | None]:
        return [graded.passed for graded in self.graded]


def graded(case: Case, answer: Answer, judging: Judging | None = None) -> Graded:
    """All checks of `case`. `judging` is asked last, and only where nothing else fails: it costs.

    Raises:
        UserError: the judge cannot be asked, or a schema refers to what it does not have.
    """
    return judged(case, checked(case, answer, judging is not None), judging)


def checked(case: Case, answer: Answer, to_judge: bool) -> Graded:
    """All checks but a judge's, where one is `to_judge`. For the main thread, in which alone their time is bounded.

    Raises:
        UserError: a schema refers to what it does not have.
    """
    faults: dict[str, str] = {}
    untold: dict[str, str] = {}
    for name, check in case.checks.items():
        if to_judge and isinstance(check, Judge):
            continue
        try:
            fault = _fault(case, check, answer)
        except CannotTell as error:
            untold[name] = str(error)
            continue
        if fault:
            faults[name] = fault
    return Graded(answer, faults, untold)


def judged(case: Case, so_far: Graded, judging: Judging | None) -> Graded:
    """`so_far` with what the judge says, where it is asked and nothing else failed.

    Raises:
        UserError: the judge cannot be asked.
    """
    for name, check in case.checks.items():
        if judging is None or so_far.faults or not isinstance(check, Judge):
            continue
        verdict = judging(check.rubric, case, so_far.answer)
        try:
            fault = _of_verdict(verdict)
        except CannotTell as error:
            return replace(so_far, untold={**so_far.untold, name: str(error)}, verdict=verdict)
        return replace(so_far, faults={name: fault} if fault else {}, verdict=verdict)
    return so_far


def _fault(case: Case, check: Check, answer: Answer) -> str:
    try:
        return check.fault(answer)
    except UserError as error:
        raise UserError(f"row {case.row}: {error}") from None


def _of_verdict(verdict: Verdict) -> str:
    if verdict.passed is None:
        raise CannotTell(f"the judge's reply is neither pass nor fail: {verdict.reason[:120] or 'nothing'}")
    return "" if verdict.passed else verdict.reason or "fails"
