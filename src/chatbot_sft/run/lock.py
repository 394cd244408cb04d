"""All that decides a run's result, and what explains it: run.lock.json, held against a checkpoint's when a run goes
on, and against what is here when it is replayed.

Pure: whoever makes a `Lock` brings the fingerprints of data, tokenizer and weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from chatbot_sft.config import Config, deciding
from chatbot_sft.config.schema import ADAPTER, BATCH, REFERENCE, ROWS, WEIGHTS
from chatbot_sft.config.schema import keys as known_keys
from chatbot_sft.report.masking import referring, resolved
from chatbot_sft.run.kinds import fault
from chatbot_sft.run.provenance import Provenance

SCHEMA = 2  # of run.lock.json; 1, lock.json, had neither `threads` nor `config` nor `provenance`

# `decides` has them once the model is loaded: as they turned out.
MACHINE = ("model.engine", "model.dtype", "training.optim", "training.loop")


@dataclass(frozen=True)
class Lock:
    """`decides` is what a run that goes on may not change: flat "section.key" → JSON value. What follows decides
    the last digits: what computed it, where, and in which layout a step was cut. `date` (ISO 8601) is what
    templates write for today. `config` are all settings, by which it can be run again, and `provenance` decides
    nothing.
    """

    decides: dict[str, Any]
    tokenizer: str  # SHA-256 of tokenizer and chat template
    date: str
    versions: dict[str, str]
    device: str
    processes: int = 1
    batch_layout: dict[str, Any] = field(default_factory=dict)  # {} until it is chosen
    threads: int | None = None  # of torch on the CPU; None until it is imported
    config: dict[str, Any] = field(default_factory=dict)
    provenance: Provenance | None = None
    schema: int = SCHEMA

    def on_machine(self, engine: str, dtype: str, optim: str, loop: str, threads: int) -> Lock:
        """With what only an imported engine knows, and the loop that was chosen."""
        values = dict(zip(MACHINE, (engine, dtype, optim, loop), strict=True))
        return replace(self, decides={**self.decides, **values}, threads=threads)

    def in_layout(self, layout: Mapping[str, Any]) -> Lock:
        """With the batch layout that was chosen."""
        return replace(self, batch_layout=dict(layout))

    @classmethod
    def from_json(cls, values: Any) -> Lock:
        """What `dataclasses.asdict` made of one, of this version or the one before; its `schema` says which.

        Raises:
            ValueError: it is no lock, or one of a later version.
        """
        if not isinstance(values, dict) or type(schema := values.get("schema")) is not int or schema < 1:
            raise ValueError("not a lock")
        if schema > SCHEMA:
            raise ValueError(
                f"a later version of chatbot_sft wrote it (schema {schema}, this one reads up to {SCHEMA})"
            )
        try:
            explained = values.get("provenance")
            known = None if explained is None else Provenance.from_json(explained)
            lock = cls(**{**values, "provenance": known})
            datetime.fromisoformat(lock.date)
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise ValueError(f"not a lock: {error}") from None
        if found := fault(lock, cls):
            raise ValueError(f"not a lock: {found}")
        for name in ("processes", "threads"):
            if (number := getattr(lock, name)) is not None and number < 1:
                raise ValueError(f"not a lock: {name} is {number}")
        return lock


def decides(
    settings: Config,
    weights: str,
    rows: str,
    processes: int,
    adapter: str | None = None,
    reference: str | None = None,
) -> dict[str, Any]:
    """What a run that goes on may not change, but for what the machine adds (`Lock.on_machine`).

    A secret of the environment stands in it by its variable's name: renewing one makes no other run.
    `weights`, `rows`, `adapter` and `reference` are fingerprints of the base, the training rows, the adapter that
    is gone on from and the one that is the reference. The effective batch size stands for its factors.
    """
    values = {
        "seed": settings.seed,
        WEIGHTS: weights,
        ROWS: rows[:16],
        BATCH: settings.effective_batch_size * processes,
    }
    if adapter:
        values[ADAPTER] = adapter
    if reference:
        values[REFERENCE] = reference
    return referring(values) | decided(settings)


def decided(settings: Config) -> dict[str, Any]:
    """Of that what the settings say by themselves."""
    return referring(json.loads(json.dumps(deciding(settings), default=str)))


@dataclass(frozen=True)
class Difference:
    """One key in which two locks differ; `NOT_SET` where one of them lacks it."""

    key: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.key} {_shown(self.before)} → {_shown(self.after)}"


NOT_SET = object()


def _shown(value: Any) -> str:
    return "(not set)" if value is NOT_SET else json.dumps(value, ensure_ascii=False).strip('"')


def differences(before: Lock, after: Lock) -> list[Difference]:
    """All in which the two differ; what an older one does not have says nothing."""
    first, second = _flat(before), _flat(after)
    known = {*before.decides, *after.decides, *(first.keys() & second.keys())}
    same = before.schema == after.schema
    keys = [key for key in dict.fromkeys([*first, *second]) if same or key in known]
    return changed(first, second, keys)


def changed(before: Mapping[str, Any], after: Mapping[str, Any], keys: Iterable[str]) -> list[Difference]:
    """The `keys` in which two flat mappings differ. One that is missing counts as its default: an earlier version
    did not have it; null where it has none.

    Secrets are compared as the environment has them now: a variable that was set meanwhile may hold what a
    setting says ("none").
    """
    default = {key.path: key.default for key in known_keys()}

    def value(of: Mapping[str, Any], key: str) -> Any:
        return resolved(of.get(key, default.get(key)))

    differing = [key for key in keys if value(before, key) != value(after, key)]
    return [Difference(key, before.get(key, NOT_SET), after.get(key, NOT_SET)) for key in differing]


def _flat(lock: Lock) -> dict[str, Any]:
    """`decides` as it is, versions and layout with their own name before the key, and what explains it."""
    values = {
        "tokenizer": lock.tokenizer,
        "date": lock.date,
        **{f"versions.{name}": version for name, version in lock.versions.items()},
        "device": lock.device,
        "processes": lock.processes,
        **{f"batch_layout.{name}": value for name, value in lock.batch_layout.items()},
    }
    if lock.threads is not None:
        values["threads"] = lock.threads
    return {**lock.decides, **values, **(lock.provenance.flat() if lock.provenance else {})}
