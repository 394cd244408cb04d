"""What a run came to and what its replay came to, held against each other number by number."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from chatbot_sft.replay import adapters
from chatbot_sft.replay.compared import Compared
from chatbot_sft.replay.noise import Noise
from chatbot_sft.run import steps
from chatbot_sft.run.directory import EVALUATIONS, Run
from chatbot_sft.run.report import Report, finite

BESIDE = ("step", "seconds", "samples")  # of a record: no figure of what was learned
Records = Sequence[Mapping[str, Any]]


def compared(
    before: Run, after: Run, report: Report | None, now: Report, noise: Noise, kept: bool = True
) -> list[Compared]:
    """Every kind of figure; `report` and `now` are what the run and its replay reported. What one of them lacks is a
    difference, but for a run whose version has not `kept` it.
    """
    whole = report is not None and report.training is not None
    resumed = not (report and report.training and not report.training.resumes)
    evaluated, again = _evaluations(before, report), finite(now.evaluations)
    parts = (steps.read(before.steps_file), steps.read(after.steps_file)) if kept else _history(report, now)
    found = []
    for (was, is_now), of in ((parts, ""), ((evaluated, again), "held-out ")):
        found += _curves(was, _asked(was, is_now, whole, resumed), of, noise, kept)
    if answers := _answers(evaluated, again, noise, whole):
        found.append(answers)
    return [*found, *adapters.compared(before, after, report, now, noise)]


def _history(report: Report | None, now: Report) -> tuple[Records, Records]:
    """Of a run of the version before: the losses that its report has."""
    return (report.history or [] if report else []), finite(now.history or [])


def _asked(before: Records, after: Records, whole: bool, resumed: bool) -> Records:
    """Of the replay's records those that the run has to have: what comes before its first one not where an earlier
    version may have begun it (`resumed`), what comes behind its last not where it was killed (not `whole`).
    """
    known = {record["step"] for record in before}
    first = min(known, default=0) if resumed else 0
    return [record for record in after if record["step"] >= first and (whole or record["step"] in known)]


def _curves(before: Records, after: Records, of: str, noise: Noise, kept: bool) -> list[Compared]:
    """Each figure of the records by their steps."""
    names = dict.fromkeys(
        name for record in (*before, *(after if kept else ())) for name in record if name not in BESIDE
    )
    found = []
    for name in names:
        was, is_now = (
            {record["step"]: record[name] for record in records if _is_number(record.get(name))}
            for records in (before, after)
        )
        if was or is_now:
            found.append(_curve(f"{of}{name}", was, is_now, noise.of(name)))
    return found


def _curve(what: str, before: Mapping[int, float], after: Mapping[int, float], noise: float) -> Compared:
    """A step that one of them lacks is a difference that no noise explains."""
    steps_of_both = sorted(before.keys() | after.keys())
    largest, first = 0.0, None
    for step in steps_of_both:
        was, now = before.get(step), after.get(step)
        if was == now:
            continue
        first = step if first is None else first
        apart = math.inf if was is None or now is None else abs(now - was) / max(abs(was), 1e-12)
        largest = max(largest, apart)
    if first is None:
        return Compared(what, len(before))
    return Compared(
        what,
        len(before),
        f"step {first}",
        _shown(before.get(first)),
        _shown(after.get(first)),
        largest,
        noise,
    )


def _answers(before: Records, after: Records, noise: Noise, whole: bool) -> Compared | None:
    """The sample answers of all evaluations; of a run that was killed, of those that it made."""
    was, now = _by_question(before), _by_question(after)
    asked = dict.fromkeys([*was, *(now if whole else ())])
    if not asked:
        return None
    other = [key for key in asked if was.get(key) != now.get(key)]
    if not other:
        return Compared("answers", len(asked))
    step, question = other[0]
    first = f"step {step}, “{question[:40]}”"
    said, says = (answers.get(other[0], "(not asked)")[:40] for answers in (was, now))
    lacking = any(key not in was or key not in now for key in other)
    apart = math.inf if lacking else len(other) / len(asked)
    return Compared("answers", len(asked), first, said, says, apart, noise.answers)


def _by_question(records: Records) -> dict[tuple[int, str], str]:
    samples = ((record["step"], sample) for record in records for sample in record.get("samples") or [])
    return {(step, sample["prompt"]): sample["answer"] for step, sample in samples}


def _evaluations(run: Run, report: Report | None) -> Records:
    """Of its report; where its process was killed, those that it had written down."""
    if report is not None and report.evaluations:
        return [record for record in report.evaluations if isinstance(record.get("step"), int)]
    return steps.read(run.checkpoints / EVALUATIONS)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(value: float | None) -> str:
    """All digits of a float32 that was computed, or of a mean of them."""
    return "(none)" if value is None else repr(value)
