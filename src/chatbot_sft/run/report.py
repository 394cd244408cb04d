"""report.json as a type: what a run was, what it found and what it made.

Sizes are in GB, times in seconds, losses in nats per token.
Each stage returns its part (`DatasetStatistics`, `Model`, `Training`, `SaveResult` …) and the pipeline puts
it into the `Report`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from chatbot_sft.report.words import amount
from chatbot_sft.run.git import commit
from chatbot_sft.run.versions import versions

SCHEMA = 1  # of report.json; a report without the number is one of these, too


class Status(StrEnum):
    """How far a run came."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    PRUNED = "pruned"  # a sweep ended it early: others were better


@dataclass
class Model:
    """The model that is trained.

    `base` says where it is found (`model.base.description`), `adapter` what adapter is gone on from.
    """

    name: str
    engine: str
    parameters: int
    trainable_parameters: int
    dtype: str
    base: dict[str, Any] = field(default_factory=dict)
    adapter: str | None = None


@dataclass
class Training:
    """What training came to; `weights_of_step` are the weights that were evaluated last and are saved."""

    steps: int
    effective_batch_size: int
    batch_layout: str
    tokens: int
    seconds: float
    # Real tokens, over the later half of the steps: the first ones warm up. None where a start had nothing left to
    # train, and none before it said.
    tokens_per_second: float | None
    loss_first: float | None
    loss_last: float | None
    train_loss: float | None
    weights_of_step: int
    processes: int = 1
    # What was measured: layout, milliseconds, peak_gb, why_not.
    batch_layouts: list[dict[str, Any]] = field(default_factory=list)
    resumed_from: int | None = None
    resumes: list[dict[str, Any]] = field(default_factory=list)  # step, time, checkpoint
    milliseconds_per_step: float | None = None
    seconds_to_first_step: float | None = None
    # start, data, imports, weights, setup, evaluation, layout, first_step: those that this start went through.
    seconds_to_first_step_by_part: dict[str, float] = field(default_factory=dict)
    eval_loss_before: float | None = None
    eval_loss: float | None = None
    eval_perplexity_before: float | None = None
    eval_perplexity: float | None = None
    eval_token_accuracy_before: float | None = None
    eval_token_accuracy: float | None = None
    # What an objective reports beside its loss, "rewards/margins" and so on: of the held-out rows, else of the last
    # logged steps.
    figures: dict[str, float] = field(default_factory=dict)
    figures_before: dict[str, float] = field(default_factory=dict)
    rows_loss_before: float | None = None  # of some trained conversations, where none is held out
    rows_loss: float | None = None
    stopped_early: bool = False
    best_step: int | None = None
    best_eval_loss: float | None = None
    rounding: Rounding | None = None
    weights_sha256: str | None = None  # of what was trained, see model/fingerprint.py
    warnings: list[str] = field(default_factory=list)  # what a person has to know before they use the model


@dataclass
class Rounding:
    """What a base lost as it was rounded (model.load_in_fp8), before training: nats per trained token of some
    conversations, held-out ones where there are any.
    """

    layers: int
    conversations: int
    loss_exact: float
    loss: float
    kl_divergence: float  # of the rounded base's tokens from the exact one's


@dataclass
class Memory:
    """`training_gb` is what training added to `start_gb`; `estimate_gb` an estimate before it, by part."""

    device: str
    start_gb: float
    peak_gb: float
    training_gb: float
    estimate_gb: dict[str, float] | None = None
    peak_since: str = "run"  # "process" where a peak of the run's own cannot be had


@dataclass
class Plan:
    """What `task=plan` found: the layout to train in, those that were measured, the memory by part, how long the
    steps may take; None in the report of an earlier version.
    """

    layout: str
    layouts: list[dict[str, Any]]
    memory_gb: dict[str, float]
    device: str
    device_gb: float
    steps: int | None = None
    milliseconds_per_step: float | None = None
    training_seconds: float | None = None


@dataclass
class Evaluation:
    """What `task=evaluate` or training.golden_steps found: how many of the `cases` of a golden file passed.

    `passed` is a share of all cases, as evaluation.minimum has it, `before` that of the base model, `earlier` that
    of evaluation.against. `unjudged` are cases whose answer nothing says right or wrong of. `page` is for people.
    """

    golden: str
    model: str
    cases: int
    passed: float
    unjudged: int
    page: str | None = None
    before: float | None = None
    earlier: float | None = None
    comparisons: dict[str, dict[str, Any]] = field(default_factory=dict)  # of `before` and `earlier`
    steps: list[dict[str, Any]] = field(default_factory=list)  # of a training: step and passed


@dataclass
class Replay:
    """What `task=replay` found of `run`. `changes` are what is different here (replay/changes.py), `compared` each
    kind of figure (replay/compared.py) with what is `said` of it.
    """

    run: str
    verdict: str  # identical to the bit | reproduced within the noise | not reproduced
    reproduced: bool
    changes: list[dict[str, Any]] = field(default_factory=list)
    compared: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Sample:
    """One question of the data, answered before and after training."""

    prompt: str
    before: str
    after: str


@dataclass
class DatasetStatistics:
    """Counts of what was read and chosen.

    `tokens` and `trainable_tokens` are sums over the training rows, `max_length` is their longest in tokens.
    """

    path: str
    rows: int = 0  # read
    rows_used: int = 0  # trained on in one epoch
    rows_held_out: int = 0
    unit: str = "conversations"  # what a row is that is trained on: of judged answers, pairs or answers
    bad_rows: int = 0
    duplicates: int = 0  # rows whose text another row has too
    leaked_rows: int = 0  # held-out rows that are in the training data as well, and so were taken out
    tokens: int = 0
    trainable_tokens: int = 0
    max_length: int = 0
    truncated_rows: int = 0
    dropped_rows: int = 0  # left out for their length, as dataset.overflow=drop says
    personal_rows: int = 0  # in which dataset.personal_data found something
    personal_data: dict[str, int] = field(default_factory=dict)  # values of each kind
    # Columns and keys that nothing was made of: in how many rows.
    not_read: dict[str, int] = field(default_factory=dict)
    # Near-duplicates and the like (data/content.py): how many "of" how many, the first rows, what became of them.
    found: dict[str, dict[str, Any]] = field(default_factory=dict)
    # SHA-256 of the tokenizer and of the training rows' texts and labels, in their order.
    fingerprint: str = ""
    held_out_fingerprint: str = ""  # SHA-256 of those that are held out, in any order
    system_prompt: str | None = None  # what most conversations begin with, where the model was loaded

    @property
    def size(self) -> str:
        """How many there are. A row of a file may have any number of judged answers."""
        if self.unit == "conversations":
            return amount(self.rows, "conversation")
        used = amount(self.rows_used + self.rows_held_out, self.unit.removesuffix("s"))
        return f"{used} of {amount(self.rows, 'row')}"


WEIGHTS = (".gguf", ".safetensors")  # how the names of files end that hold some


@dataclass
class Export:
    """One export.

    `files` maps names to sizes in bytes, `checks` a quantisation (for other methods: the method) to its
    `Verification`, `seconds` the method and each quantisation to what writing it took.
    `base` says what an adapter was merged into. `verified` is None where it was not asked for.
    """

    method: str
    path: str
    files: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    base: str | None = None
    verified: bool | None = None
    checks: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def weights(self) -> dict[str, int]:
        """Those of the files that hold weights. The size of an export is theirs, wherever it is told: tokenizer and
        card lie beside them.
        """
        return {name: size for name, size in self.files.items() if name.endswith(WEIGHTS)}


@dataclass
class SaveResult:
    """All exports of one `save`, as they are finished; the last may be a refused one (`verified` is False).

    `path`, `files` and `verified` are of all that are there; `pushed` is where they were uploaded to.
    """

    method: str
    path: str | None = None
    files: dict[str, int] = field(default_factory=dict)
    verified: bool | None = None
    exports: list[Export] = field(default_factory=list)
    pushed: str | None = None

    @property
    def kept(self) -> list[Export]:
        """Those that are there: without one that was refused."""
        return [export for export in self.exports if export.verified is not False]

    def add(self, export: Export, folder: str, several: bool) -> None:
        """One more is there, in or at `folder`, with those of other methods where there are `several`."""
        self.exports.append(export)
        self.path = folder
        prefix = f"{export.method}/" if several else ""
        self.files |= {f"{prefix}{name}": size for name, size in export.files.items()}
        self.verified = True if all(export.verified for export in self.exports) else None


class DamagedReport(Exception):
    """A report.json that is not as one was written; the message says what of it."""


@dataclass
class Report:
    """One run. Parts that it did not reach are None or empty."""

    command: str
    task: str
    seed: int
    status: Status = Status.RUNNING
    error: str | None = None
    started: str = field(default_factory=lambda: now())
    finished: str | None = None
    # task=export, task=replay: the directory of the run that trained; task=evaluate, task=verify: what was asked
    run: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)  # what was set, as it ran
    model: Model | None = None
    dataset: DatasetStatistics | None = None
    # Step and loss of every logged step, whatever the run's end; None before the first step.
    history: list[dict[str, Any]] | None = None
    training: Training | None = None
    memory: Memory | None = None
    plan: Plan | None = None
    evaluation: Evaluation | None = None
    # Step, loss, perplexity, token_accuracy, seconds, samples.
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    save: SaveResult | None = None
    replay: Replay | None = None
    versions: dict[str, str] = field(default_factory=versions)
    git: str | None = field(default_factory=lambda: commit(Path.cwd()))
    schema: int = SCHEMA

    def record(self, **parts: Any) -> None:
        """Put in what a stage came to, by the report's names."""
        for name, part in parts.items():
            if name not in _fields(Report):
                raise TypeError(f"a report has no {name}")
            setattr(self, name, part)

    @property
    def nothing_done(self) -> bool:
        """Whether it ended before it had read any data, let alone trained, answered or exported anything."""
        read = self.dataset is not None and self.dataset.rows > 0
        begun = (self.model, self.history, self.training, self.plan, self.evaluation, self.save)
        return self.status == Status.FAILED and not read and not any(part is not None for part in begun)

    def to_json(self) -> dict[str, Any]:
        """As report.json has it: {} for a part that was not reached, and the history as a part of training.

        NaN and infinity are still in it.
        """
        values = dataclasses.asdict(self)
        history = values.pop("history")
        values |= {name: values[name] or {} for name in PARTS}
        if history is not None:
            values["training"] = {"history": history, **values["training"]}
        return {"schema": values.pop("schema"), **values, "status": str(self.status)}

    @classmethod
    def from_json(cls, values: Any) -> Report:
        """What `to_json` wrote. Keys that are not known here are passed by.

        Raises:
            DamagedReport: something is missing or of another kind.
        """
        if not isinstance(values, dict):
            raise DamagedReport("it is no object")
        if type(schema := values.get("schema", SCHEMA)) is not int or schema > SCHEMA:
            raise DamagedReport(
                f"a later version of chatbot_sft wrote it (schema {schema}, this one reads up to {SCHEMA})"
            )
        for name, kind in KINDS.items():
            if not isinstance(values.get(name), kind):
                fault = "missing" if values.get(name) is None else "of another kind"
                raise DamagedReport(f"{name} is {fault}")
        known = {name: values[name] for name in _fields(cls) if name in values}
        known["status"] = _status(values["status"])
        known["history"] = values["training"].get("history")
        training = {key: value for key, value in values["training"].items() if key != "history"}
        parts = {**values, "training": training}
        known |= {name: _part(name, part, parts.get(name, {})) for name, part in PARTS.items()}
        known["samples"] = [_part("samples", Sample, sample) for sample in values["samples"]]
        if known["training"] is not None and known["training"].rounding is not None:
            known["training"].rounding = _part("training.rounding", Rounding, known["training"].rounding)
        if known["save"] is not None:
            known["save"].exports = [
                _part("save.exports", Export, export) for export in known["save"].exports
            ]
        return cls(**known)


PARTS: dict[str, type] = {
    "model": Model,
    "dataset": DatasetStatistics,
    "training": Training,
    "memory": Memory,
    "plan": Plan,
    "evaluation": Evaluation,
    "save": SaveResult,
    "replay": Replay,
}


def numbers_of_a_part(part: str) -> tuple[list[str], list[str]]:
    """The dotted names of the numbers that a `part` of report.json may have;"
    " and of its mappings, whose names are found
    in training: any number may stand in one.
    """
    hints = get_type_hints(PARTS[part])
    kinds = {name: {kind, *get_args(kind)} for name, kind in hints.items()}
    numbers = [f"{part}.{name}" for name, kind in kinds.items() if {int, float} & kind]
    mappings = [
        f"{part}.{name}"
        for name, kind in kinds.items()
        if any(get_origin(one) is dict or dataclasses.is_dataclass(one) for one in kind)
    ]
    return numbers, mappings


KINDS: dict[str, type] = {
    "task": str, "status": str, "model": dict, "dataset": dict, "training": dict, "memory": dict,
    "plan": dict, "evaluations": list,
    "samples": list, "save": dict, "versions": dict,
}  # fmt: skip


def dotted(metric: str) -> str:
    """The dotted name of a number of report.json: "rewards/margins" alone is one of training.figures."""
    return f"training.figures.{metric}" if "/" in metric and "." not in metric else metric


def _fields(kind: type) -> set[str]:
    return {item.name for item in dataclasses.fields(kind)}


def _status(name: str) -> Status:
    try:
        return Status(name)
    except ValueError:
        raise DamagedReport(f"status {name} is none of {', '.join(Status)}") from None


def _part(where: str, kind: type, values: Any) -> Any:
    """An object of `kind` from its JSON object; None from {}.

    Raises:
        DamagedReport: a key is missing.
    """
    if not isinstance(values, Mapping):
        raise DamagedReport(f"{where} is of another kind")
    if not values:
        return None
    needed = [
        item.name
        for item in dataclasses.fields(kind)
        if item.default is item.default_factory is dataclasses.MISSING
    ]
    missing = [name for name in needed if name not in values]
    if missing:
        raise DamagedReport(f"{where}.{missing[0]} is missing")
    return kind(**{name: value for name, value in values.items() if name in _fields(kind)})


def now() -> str:
    """ISO 8601 with the offset from UTC, to the second."""
    return datetime.now(UTC).astimezone().isoformat(timespec="seconds")


def write_json(report: Mapping[str, Any], target: Path) -> None:
    """Write it in one step: a reader sees the old file or the new one, never half of it."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    text = json.dumps(finite(report), indent=2, ensure_ascii=False, allow_nan=False)
    try:
        temporary.write_text(text.encode(errors="backslashreplace").decode() + "\n", encoding="utf-8")
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def finite(value: Any) -> Any:
    """A copy with null for NaN and infinity, which JSON does not know."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
