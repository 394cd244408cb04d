"""A sweep's directory: the one place that knows what lies where in it, and the type of its sweep.json.

Everything that reads a sweep, or writes into one, asks a `Sweep`. Each job is a `run.directory.Run` in a
folder of its own; what became of it is in that run's report. Imports no torch.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from chatbot_sft.errors import UserError, reason
from chatbot_sft.report.masking import masked
from chatbot_sft.run.directory import Run
from chatbot_sft.run.report import write_json

SCHEMA = 1  # of sweep.json


@dataclass(frozen=True)
class Point:
    """One job: `overrides` are the swept ones alone ("lora.r=8"), `folder` is relative to the sweep's."""

    number: int
    overrides: list[str]
    folder: str


@dataclass
class Study:
    """sweep.json: what the jobs have in common, and which there are.

    `overrides` are those of the command line that are the same in every job, `space` the swept ones as they were
    typed, `metric` a dotted name in report.json, `direction` "minimise" or "maximise". `errors` has, by number,
    the one line of a job that failed before it had a report.
    """

    command: str
    started: str  # ISO 8601
    metric: str
    direction: str
    overrides: list[str]
    space: list[str]
    points: list[Point] = field(default_factory=list)
    errors: dict[int, str] = field(default_factory=dict)
    schema: int = SCHEMA
    begun: str = (
        ""  # when the start began that its workers belong to; what failed since then is not tried again
    )
    sampler: str | None = None  # who chose the points; None: they are all combinations
    metrics: list[str] = field(default_factory=list)  # of two: both, and their directions
    directions: list[str] = field(default_factory=list)

    @classmethod
    def from_json(cls, values: Any) -> Study:
        """Raises ValueError where `asdict` made no study of this version of it."""
        if not isinstance(values, dict) or values.get("schema") != SCHEMA:
            raise ValueError("not a sweep of this version")
        try:
            points = [Point(**point) for point in values.pop("points")]
            errors = {int(number): line for number, line in values.pop("errors").items()}
            return cls(points=points, errors=errors, **values)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"not a sweep: {error}") from None


@dataclass(frozen=True)
class Sweep:
    """The sweep in `folder`, which may not be there yet."""

    folder: Path

    @property
    def study_file(self) -> Path:
        return self.folder / "sweep.json"

    @property
    def composed_file(self) -> Path:
        """What Hydra composed; each of its sweepers writes it."""
        return self.folder / "multirun.yaml"

    @property
    def begun(self) -> bool:
        """Whether a sweep is there, of any of Hydra's sweepers."""
        return self.study_file.exists() or self.composed_file.exists()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Within it no other worker reads sweep.json to write it again."""
        from filelock import FileLock  # every command imports this file

        with FileLock(self.folder / ".sweep.lock"):
            yield

    @property
    def journal_file(self) -> Path:
        """Optuna's journal, where one of its samplers or pruners is asked for."""
        return self.folder / "study.log"

    @property
    def leaderboard_file(self) -> Path:
        return self.folder / "leaderboard.html"

    @property
    def table_file(self) -> Path:
        return self.folder / "leaderboard.csv"

    def run(self, point: Point) -> Run:
        """The directory of a job."""
        return Run(self.folder / point.folder)

    def study(self) -> Study | None:
        """What sweep.json says; None where there is none.

        Raises:
            UserError: it cannot be read.
        """
        try:
            return Study.from_json(json.loads(self.study_file.read_text(encoding="utf-8")))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(
                f"{self.study_file}: cannot be read ({reason(error)});"
                " name another directory (hydra.sweep.dir=DIR)"
            ) from None

    def write_study(self, study: Study) -> None:
        """sweep.json, in one step and without secrets."""
        write_json(masked(asdict(study)), self.study_file)
