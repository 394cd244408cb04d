"""Where the jobs of a sweep write: each in places of its own. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from chatbot_sft.errors import UserError
from chatbot_sft.hydra_job import Job
from chatbot_sft.places import targets

LONGEST = 255  # bytes of a name, on the usual file systems
NUMBERED = "hydra.sweep.subdir='${hydra.job.num}' is a folder that always can be"


def refuse_shared(jobs: Iterable[Job]) -> None:
    """Raises UserError where two of the `jobs` of a sweep would write in one place: the later one fails there, or
    writes over the other; or where one cannot have its directory in the sweep's.
    """
    taken: dict[Path, int] = {}
    for number, job in enumerate(jobs):
        _refuse_no_place(job)
        for named, place in outputs(job):
            first = taken.setdefault(place.resolve(), number)
            if first != number:
                raise UserError(
                    f"{named}: job {first} and job {number} would both write there;"
                    " write it with ${hydra.job.num} in it, in single quotes"
                )


def _refuse_no_place(job: Job) -> None:
    sweep, place = Path(job.hydra.sweep.dir), Path(job.hydra.runtime.output_dir)
    where = f"hydra.sweep.subdir of job {job.hydra.job.num}"
    if not place.resolve().is_relative_to(sweep.resolve()):
        raise UserError(f"{where}: {place.resolve()} is not in the sweep's directory; {NUMBERED}")
    if any(len(os.fsencode(name)) > LONGEST for name in place.parts):
        raise UserError(f"{where}: a name of over {LONGEST} bytes; {NUMBERED}")


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
