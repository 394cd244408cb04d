"""The winner, taken out of its sweep: its model, its lock, its report, and the table that it won."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from chatbot_sft.errors import UserError, listed
from chatbot_sft.places import MARK as EXPORT
from chatbot_sft.places import read_mark, write_mark
from chatbot_sft.report.ending import write_reports
from chatbot_sft.report.leaderboard import files
from chatbot_sft.report.leaderboard.board import Board
from chatbot_sft.report.leaderboard.job import Job
from chatbot_sft.report.words import amount
from chatbot_sft.run.directory import Run
from chatbot_sft.run.report import Report, SaveResult, now, write_json

PROMOTED = Path("outputs") / "promoted"
MARK = "promotion.json"  # in every promotion: what it is
NAME = re.compile(r"\w[\w.+=-]*")


def chosen(board: Board, which: str) -> Job:
    """The job of that number, or the best job of the best row.

    Raises:
        UserError: there is none, or it has not completed.
    """
    if which == "best":
        if not board.rows or not board.rows[0].completed or board.rows[0].mean is None:
            raise UserError(
                f"--promote best: no job has completed with a {board.metric}; name a job by its number"
            )
        return board.rows[0].best
    job = next((job for job in board.jobs if str(job.number) == which), None)
    if job is None:
        numbers = listed((job.number for job in board.jobs), most=20)
        raise UserError(f"--promote {which}: no such job; there is best, or one of {numbers}")
    if not job.completed:
        raise UserError(
            f"--promote {which}: that job is {job.status}, and has no finished model; choose another"
        )
    return job


def promote(board: Board, sweep: Path, job: Job, name: str | None, overwrite: bool, method: str) -> Path:
    """The directory outputs/promoted/<name>, whole or not at all. `method` is how a model that was not exported
    yet is saved.

    Raises:
        UserError: the name is taken, or the export failed; nothing has changed then.
    """
    name = name or f"{'_'.join(sweep.resolve().parts[-2:])}_job{job.number}"
    if not NAME.fullmatch(name):
        raise UserError(f"--name {name}: not a name for a folder; letters, digits and . _ - make one")
    target = (PROMOTED / name).absolute()
    _refuse_taken(target, overwrite)
    report = Run(job.folder).finished_report()
    staged = target.with_name(f".{name}.{os.getpid()}")
    try:
        staged.mkdir(parents=True)
        save = _copied(report, job.folder, staged) or _exported(job.folder, staged, target, method)
        _write(replace(report, save=_moved(save, staged, target)), board, job, staged)
        _put(staged, target, overwrite)
    except OSError as error:
        raise UserError(f"{target}: {error.strerror or error}; nothing was promoted") from None
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return target


def _refuse_taken(target: Path, overwrite: bool) -> None:
    if not os.path.lexists(target):
        return
    if not (target / MARK).is_file():
        raise UserError(f"{target}: something else is there; choose another --name")
    if not overwrite:
        raise UserError(f"{target}: an earlier promotion is there; choose another --name, or add --overwrite")


def _copied(report: Report, folder: Path, staged: Path) -> SaveResult | None:
    """The exports that the run has, copied; None where one of them is gone, or there are none."""
    save = report.save
    kept = save.kept if save else []
    if save is None or not kept:
        return None
    places = [_place(Path(export.path), folder) for export in kept]
    if any(place is None for place in places):
        return None
    exports = []
    for export, place in zip(kept, places, strict=True):
        assert place is not None
        copy = staged / "model" / (export.method if len(kept) > 1 else "")
        if place.is_file():
            copy.mkdir(parents=True, exist_ok=True)
            for file in place.parent.glob(f"{place.stem}.*"):  # with the Modelfile and the card beside it
                shutil.copy2(file, copy / file.name)
            copy = copy / place.name
        else:
            _refuse_links_out(place)
            shutil.copytree(place, copy)
        exports.append(replace(export, path=str(copy)))
    whole = exports[0].path if len(exports) == 1 else str(staged / "model")
    return replace(save, path=whole, exports=exports, pushed=None)


def _place(path: Path, folder: Path) -> Path | None:
    """Where an export is now: in the run, which may have moved or be a copy, or elsewhere, where it was written. The
    report may be a stranger's, and name anything: outside of its run only what is a model.
    """
    here = [
        *([folder / "model"] if path.name == "model" else []),
        folder / "model" / path.name,
        path,
        folder / "model",
    ]
    there = [place for place in here if place.is_file() or (place.is_dir() and any(place.iterdir()))]
    return next((p for p in there if p.resolve().is_relative_to(folder.resolve()) or _is_model(p)), None)


def _is_model(place: Path) -> bool:
    names = ("config.json", "adapter_config.json", EXPORT)
    return place.suffix == ".gguf" or any((place / name).is_file() for name in names)


def _refuse_links_out(place: Path) -> None:
    """A copy would hold what they lead to."""
    for path in place.rglob("*"):
        if path.is_symlink() and not path.resolve().is_relative_to(place.resolve()):
            raise UserError(f"{path}: a link out of the export; nothing was promoted")


def _exported(folder: Path, staged: Path, target: Path, method: str) -> SaveResult:
    """By `task=export`, in a process of its own: it is the one that knows how to load what was trained. Its log
    names the places where a person finds the model and its report in the end.

    Raises:
        UserError: it came to nothing.
    """
    work = staged / ".export"
    command = [
        *(sys.executable, "-m", "chatbot_sft", "task=export"),
        *(f"run={_quoted(folder.absolute())}", f"hydra.run.dir={_quoted(work)}"),
        *(f"save={method}", f"save.save_path={_quoted(staged / 'model')}"),
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as export:
        for line in export.stdout or ():
            shown = line.replace(f"{staged.name}/{work.name}", target.name).replace(staged.name, target.name)
            print(shown, end="", file=sys.stderr, flush=True)
    if export.returncode:
        raise UserError(f"{folder}: its export failed, as said above; nothing was promoted")
    save = Run(work).finished_report().save
    shutil.rmtree(work)
    if save is None or not save.kept:
        raise UserError(f"{folder}: its export saved nothing (save={method}); nothing was promoted")
    return save


def _quoted(path: Path) -> str:
    """As Hydra's overrides take a text with any characters."""
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"


def _moved(save: SaveResult, staged: Path, target: Path) -> SaveResult:
    """With the paths that the exports will have, in what lies in them too."""

    def there(path: str) -> str:
        return str(target / Path(path).relative_to(staged))

    exports = [replace(export, path=there(export.path)) for export in save.exports]
    for export in save.exports:
        if mark := read_mark(Path(export.path)):
            said = {**mark["export"], "path": there(export.path)}
            write_mark(Path(export.path), {**mark, "export": said})
    return replace(save, path=there(save.path) if save.path else None, exports=exports)


def _write(report: Report, board: Board, job: Job, staged: Path) -> None:
    """All but the model."""
    run = Run(job.folder)
    kept = (run.lock_file, run.steps_file, run.config_file, run.evidence_file, run.data_report_file)
    for file in (*kept, run.preview_file):
        if file.is_file():
            shutil.copy2(file, staged / file.name)
    write_reports(report, Run(staged))
    files.write(board, staged)
    mark = {
        "job": job.number,
        "run": str(job.folder.absolute()),
        "metric": board.metric,
        "value": job.value,
        "settings": dict(job.settings),
        "jobs": len(board.jobs),
        "jobs_not_ended": len(board.not_ended),
        "promoted": now(),
    }
    write_json(mark, staged / MARK)


def _put(staged: Path, target: Path, overwrite: bool) -> None:
    """In place of an earlier one where that is asked for; it comes back where this fails."""
    before = target.with_name(f".{target.name}.before.{os.getpid()}")
    if overwrite and target.exists():
        target.rename(before)
    try:
        staged.rename(target)
    except OSError:
        if before.exists():
            before.rename(target)
        raise
    shutil.rmtree(before, ignore_errors=True)


def told(target: Path, job: Job, board: Board) -> str:
    """The last line for a person."""
    value = "" if job.value is None else f", {board.metric_name} {job.value:.4f}"
    of = amount(len(board.jobs), "job")
    left = f" ({len(board.not_ended)} of {of} not ended)" if board.not_ended else ""
    return f"promoted {job.name}{value}{left}: {target}"
