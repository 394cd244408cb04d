"""What a run came to and what its replay came to, held against each other number by number."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from chatbot_sft.replay import adapters
from chatbot_sft.replay.compared import Compared
from chatbot_sft.replay.noise import Noise
from chatbot_sft.run import steps
from chatbot_sft.run.directory import EVALUATIONS, Run
from chatbot_sft.run.report import Report, finite

BESIDE = ("step", "seconds", "samples", "learning_rate")  # of a record: no figure of what was learned
Records = Sequence[Mapping[str, Any]]


def compared(before: Run, after: Run, report: Report | None, now: Report, noise: Noise) -> list[Compared]:
    """Every kind of figure that both have; `report` and `now` are what the run and its replay reported."""
    whole = report is not None and report.training is not None
    evaluated, again = _evaluations(before, report), finite(now.evaluations)
    found = [
        *_curves(*_steps(before, after, report, now), "", noise, whole),
        *_curves(evaluated, again, "held-out ", noise, whole),
    ]
    if answers := _answers(evaluated, again, noise):
        found.append(answers)
    return [*found, *adapters.compared(before, after, report, now, noise)]


def _steps(before: Run, after: Run, report: Report | None, now: Report) -> tuple[Records, Records]:
    """By steps.jsonl; of a run of the version before by the losses that its report has."""
    if was := steps.read(before.steps_file):
        return was, steps.read(after.steps_file)
    return (report.history or [] if report else []), finite(now.history or [])


def _curves(before: Records, after: Records, of: str, noise: Noise, whole: bool) -> list[Compared]:
    """Each figure of the records by their steps. What comes before the first of the run is not looked at; what
    comes behind its last where it is `whole`, and was not killed.
    """
    was, is_now = ({record["step"]: record for record in records} for records in (before, after))
    is_now = {
        step: record for step, record in is_now.items() if was and step >= min(was) and (whole or step in was)
    }
    names = dict.fromkeys(name for record in before for name in record if name not in BESIDE)
    found = []
    for name in names:
        curve = {step: record[name] for step, record in was.items() if _is_number(record.get(name))}
        again = {step: record[name] for step, record in is_now.items() if _is_number(record.get(name))}
        if curve:
            found.append(_curve(f"{of}{name}", curve, again, noise.of(name)))
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


def _answers(before: Records, after: Records, noise: Noise) -> Compared | None:
    """The sample answers of all evaluations."""
    was, now = _by_question(before), _by_question(after)
    both = [key for key in was if key in now]
    if not both:
        return None
    other = [key for key in both if was[key] != now[key]]
    if not other:
        return Compared("answers", len(both))
    step, question = other[0]
    first = f"step {step}, “{question[:40]}”"
    said = was[other[0]][:40], now[other[0]][:40]
    return Compared("answers", len(both), first, *said, len(other) / len(both), noise.answers)


def _by_question(records: Records) -> dict[tuple[int, str], str]:
    samples = ((record["step"], sample) for record in records for sample in record.get("samples") or [])
    return {(step, sample["prompt"]): sample["answer"] for step, sample in samples}


def _evaluations(run: Run, report: Report | None) -> Records:
    """Of its report; where its process was killed, those that it had written down."""
    if report is not None and report.evaluations:
        return report.evaluations
    return list(_written(run.checkpoints / EVALUATIONS))


def _written(file: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue  # cut off as the process died
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            yield record


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(value: float | None) -> str:
    """All digits of a float32 that was computed, or of a mean of them."""
    return "(none)" if value is None else repr(value)
