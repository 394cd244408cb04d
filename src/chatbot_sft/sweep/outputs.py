"""Where the jobs of a sweep write: each in places of its own. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from chatbot_sft.errors import UserError
from chatbot_sft.hydra_job import Job
from chatbot_sft.places import targets


def refuse_shared(jobs: Iterable[Job]) -> None:
    """Raises UserError where two of them would write in one place: the later one fails there, or writes over the
    other.
    """
    taken: dict[Path, int] = {}
    for job in jobs:
        number = job.hydra.job.num
        for named, place in outputs(job):
            first = taken.setdefault(place.resolve(), number)
            if first != number:
                raise UserError(
                    f"{named}: job {first} and job {number} would both write there;"
                    " write it with ${hydra.job.num} in it, in single quotes"
                )


def outputs(job: Job) -> Iterator[tuple[str, Path]]:
    """What names each place that `job` writes in, and the place."""
    hydra, settings = job.hydra, job.settings
    yield f"hydra.sweep.subdir={hydra.sweep.subdir}", Path(hydra.runtime.output_dir)
    yield f"paths.output_dir={settings.paths.output_dir}", Path(settings.paths.output_dir)
    if settings.task == "train":
        yield f"training.output_dir={settings.training.output_dir}", Path(settings.training.output_dir)
    if settings.task in ("train", "export"):
        for place in targets(settings).values():
            yield f"save.save_path={settings.save.save_path}", place
