"""Two runs held against each other: what was asked, on what, with what, by which code, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from chatbot_sft.report.leaderboard.columns import metric, share, short, whole
from chatbot_sft.report.leaderboard.job import Job
from chatbot_sft.report.leaderboard.settings import configured, is_place, lock, says_nothing_more
from chatbot_sft.report.masking import masked
from chatbot_sft.report.plain import shown_line
from chatbot_sft.report.words import moved
from chatbot_sft.run.directory import LOCK
from chatbot_sft.run.lock import NOT_SET, Difference, Lock, changed
from chatbot_sft.run.lock import differences as in_locks

ABSENT = "(not set)"
DATA = ("dataset", "training rows", "tokenizer", "template", "data file ", "evaluation.golden file ")
CODE = ("code", "git.")
DEVICE = ("device", "driver", "processes", "threads", "batch_layout")
LONGEST = 60  # characters of a value


def values(first: Job, second: Job) -> dict[str, list[dict[str, str]]]:
    """What `lines` says, for programs: of each part what differs, and how it is in A and in B."""
    parts = _parts(first.folder, second.folder)
    parts["results"] = list(_results(first, second))
    return {
        title: [{"what": what, "a": before, "b": after} for what, before, after in changes]
        for title, changes in parts.items()
    }


def lines(first: Job, second: Job) -> list[str]:
    """A part each for the configuration, the data, versions, the code, the device and the results."""
    named = [f"A  {first.name}  {first.folder}", f"B  {second.name}  {second.folder}", ""]
    parts = _parts(first.folder, second.folder)
    parts["results"] = list(_results(first, second))
    found = [
        line
        for title, changes in parts.items()
        for line in (title, *(_row(change) for change in changes or [("the same", "", "")]), "")
    ]
    return [shown_line(line) for line in [*named, *found][:-1]]


def _parts(first: Path, second: Path) -> dict[str, list[tuple[str, str, str]]]:
    """By the locks, which hold all that decides a result; of a run without one by its configuration alone."""
    locks = lock(first), lock(second)
    composed = configured(first), configured(second)
    known = [_worded(change) for change in _changes(*locks) if not _of_name(change)]
    keys = dict.fromkeys(key for one in composed for key in one)
    settings = changed(*composed, keys) if all(composed) else []
    in_lock = {key for key, *_ in known}
    known += [
        _worded(change)
        for change in settings
        if change.key not in in_lock and not is_place(change.key) and not _of_name(change)
    ]
    parts: dict[str, list[tuple[str, str, str]]] = {
        name: [] for name in ("configuration", "data", "versions", "code", "device")
    }
    for change in known:
        parts[_part_of(change[0])].append(change)
    missing = [name for name, lock in zip("AB", locks, strict=True) if lock is None]
    if missing:
        parts["versions"].insert(0, (f"{' and '.join(missing)} kept no {LOCK}", "", ""))
    older = [name for name, lock in zip("AB", locks, strict=True) if lock and lock.provenance is None]
    if older:
        of = f"not known of {' and '.join(older)}, whose lock is of an earlier version"
        parts["code"].insert(0, (of, "", ""))
    return parts


def _changes(first: Lock | None, second: Lock | None) -> list[Difference]:
    """Templates write the day, so the time of it says nothing."""
    if not (first and second):
        return []
    days = (replace(lock, date=lock.date[:10]) for lock in (first, second))
    return in_locks(*days)


def _of_name(change: Difference) -> bool:
    """Whether another key says it already."""
    return all(says_nothing_more(change.key, value) for value in (change.before, change.after))


def _part_of(key: str) -> str:
    if key.startswith(DATA) or key == "date":
        return "data"
    if key.startswith("versions."):
        return "versions"
    if key.startswith(CODE):
        return "code"
    return "device" if key.startswith(DEVICE) else "configuration"


def _results(first: Job, second: Job) -> Iterator[tuple[str, str, str]]:
    """Every figure, whether or not it differs; the change behind it in words."""
    yield ("status", str(first.status), str(second.status))
    for job, name in ((first, "A"), (second, "B")):
        if job.error:
            yield (f"{name} ended", job.error, "")
    figures = (
        ("held-out loss", first.held_out, second.held_out, metric),
        ("reward margin", first.margin, second.margin, metric),
        ("reward accuracy", first.accuracy, second.accuracy, share),
        ("steps", first.steps, second.steps, whole),
        ("tokens/s", first.tokens_per_second, second.tokens_per_second, whole),
        ("peak GB", first.peak_gb, second.peak_gb, short),
        ("seconds", first.seconds, second.seconds, short),
    )
    for name, before, after, form in figures:
        if before is not None or after is not None:
            change = moved(before, after)
            said = [ABSENT if value is None else form(value) for value in (before, after)]
            yield (name, said[0], f"{said[1]}{f'  ({change})' if change else ''}")
    asked = {sample.prompt: sample.after for sample in first.samples}
    both = [sample for sample in second.samples if sample.prompt in asked]
    if both:
        alike = sum(sample.after == asked[sample.prompt] for sample in both)
        yield ("answers alike", f"{alike} of {len(both)}", "")


def _worded(change: Difference) -> tuple[str, str, str]:
    return change.key, _said(change.before), _said(change.after)


def _said(value: Any) -> str:
    text = ABSENT if value is NOT_SET else str(masked(value))
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _row(change: tuple[str, str, str]) -> str:
    key, before, after = change
    if not before:
        return f"  {key}"
    return f"  {key:<34} {before}" + (f" → {after}" if after else "")
