"""All that decides a run's result: lock.json, held against a checkpoint's when a run goes on.

Pure: whoever makes a `Lock` brings the fingerprints of data, tokenizer and weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from chatbot_sft.config import Config, deciding
from chatbot_sft.config.schema import ADAPTER, BATCH, REFERENCE, ROWS, WEIGHTS
from chatbot_sft.config.schema import keys as known_keys
from chatbot_sft.report.masking import referring, resolved

SCHEMA = 1  # of lock.json

# `decides` has them once the model is loaded: as they turned out.
MACHINE = ("model.engine", "model.dtype", "training.optim", "training.loop")


@dataclass(frozen=True)
class Lock:
    """`decides` is what a run that goes on may not change: flat "section.key" → JSON value. The rest decides
    the last digits: what computed it, where, and in which layout a step was cut. `date` (ISO 8601) is what
    templates write for today.
    """

    decides: dict[str, Any]
    tokenizer: str  # SHA-256 of tokenizer and chat template
    date: str
    versions: dict[str, str]
    device: str
    processes: int = 1
    batch_layout: dict[str, Any] = field(default_factory=dict)  # {} until it is chosen
    schema: int = SCHEMA

    def on_machine(self, engine: str, dtype: str, optim: str, loop: str) -> Lock:
        """With what only an imported engine knows, and the loop that was chosen."""
        values = dict(zip(MACHINE, (engine, dtype, optim, loop), strict=True))
        return replace(self, decides={**self.decides, **values})

    def in_layout(self, layout: Mapping[str, Any]) -> Lock:
        """With the batch layout that was chosen."""
        return replace(self, batch_layout=dict(layout))

    @classmethod
    def from_json(cls, values: Any) -> Lock:
        """What `dataclasses.asdict` made of one.

        Raises:
            ValueError: it is no lock, or one of another version.
        """
        if not isinstance(values, dict) or values.get("schema") != SCHEMA:
            raise ValueError("not a lock of this version")
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"not a lock: {error}") from None


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
    return referring(json.loads(json.dumps(values | deciding(settings), default=str)))


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
    """All in which the two differ."""
    first, second = _flat(asdict(before)), _flat(asdict(after))
    return changed(first, second, dict.fromkeys([*first, *second]))


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


def _flat(lock: Mapping[str, Any]) -> dict[str, Any]:
    """`decides` as it is, versions and layout with their own name before the key."""
    flat = dict(lock["decides"])
    for name, value in lock.items():
        if name != "decides":
            named = isinstance(value, dict)
            flat |= {f"{name}.{key}": item for key, item in value.items()} if named else {name: value}
    return flat
