"""Where a run may write: never over the base, the data, another run or what is no export. Imports no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chatbot_sft.cache import cache_dir
from chatbot_sft.config import Config
from chatbot_sft.data_names import is_hub_id
from chatbot_sft.errors import UserError
from chatbot_sft.report.masking import by_name, resolved
from chatbot_sft.run.directory import FILES

MARK = "export.json"  # in every export: what it was made from, and what was found of it
NOWHERE = {"", ".", "..", "/", "~"}
GGUF_HEAD = 1 << 16  # bytes; metadata stand at the beginning, ours before the vocabulary


def check_run(settings: Config) -> None:
    """Before anything is written: are the run directory and the checkpoint folder places of their own?

    Raises:
        UserError: the base or the data are there, it is a folder that holds much else, or checkpoints that
            this program did not write.
    """
    run, checkpoints = Path(settings.paths.output_dir), Path(settings.training.output_dir)
    used = list(_read(settings))
    for label, place in used:
        if _same(run, place):
            raise UserError(f"hydra.run.dir={run}: {label} is there; name a folder of its own")
        if label.startswith("the data") and place.is_dir() and _holds(place, run):
            raise UserError(
                f"hydra.run.dir={run}: it is in a folder of data ({place}),"
                " and the run's own files would be read as data; name another one"
            )
        if place.is_file() and place.parent == run.resolve() and place.name in FILES:
            raise UserError(
                f"hydra.run.dir={run}: the run would write its own {place.name} over {label};"
                " name another folder"
            )
    where = f"training.output_dir={settings.training.output_dir}"
    _refuse_nowhere(where, settings.training.output_dir)
    for label, place in [*used, *_everybodys()]:
        if _same(checkpoints, place):
            raise UserError(f"{where}: that is {label}; name a folder of its own")
        if label.startswith("model.") and _holds(checkpoints, place):
            raise UserError(
                f"{where}: {label} is in it, and old checkpoints are moved out of the way there;"
                " name another folder"
            )
    foreign = _foreign_checkpoints(checkpoints, run)
    if foreign:
        raise UserError(
            f"{where}: {foreign[0].name} there is not of this program (no run.json in it);"
            " name another folder, or move it away"
        )


def targets(settings: Config) -> dict[str, Path]:
    """Method → place. One method has `save.save_path` to itself, several have a folder each in it.

    A link to a folder means that folder.
    """
    save, place = settings.save, Path(settings.save.save_path)
    place = place.resolve() if place.is_symlink() and place.suffix != ".gguf" else place
    return {method: place if len(save.methods) == 1 else place / method for method in save.methods}


def check_export(settings: Config, target: Path) -> None:
    """Is `target`, an export's folder or .gguf file, a place that may be written, or replaced?

    Raises:
        UserError: something else is or would be there.
    """
    save = settings.save
    where = f"save.save_path={save.save_path}"
    _refuse_nowhere(where, save.save_path)
    named = Path(save.save_path)
    used = [*_read(settings), ("the run directory", Path(settings.paths.output_dir).expanduser())]
    if settings.run:
        used.append((f"run={settings.run}", Path(settings.run).expanduser()))
    for place in dict.fromkeys((target, named)):
        for label, other in [*used, *_everybodys()]:
            if _holds(place, other):
                position = "there" if _same(place, other) else "in it"
                raise UserError(f"{where}: {label} is {position}; name a folder of its own")
        for label, cache in _caches():
            if place.resolve().is_relative_to(cache.resolve()):
                raise UserError(f"{where}: that is in {label}; name a folder of your own")
    _check_beside_checkpoints(settings, where, named)
    if target.suffix == ".gguf":
        _check_file(target, save.overwrite, where)
    elif target.is_dir():
        if any(target.iterdir()) and not left_by(settings, target):
            _check_folder(target, save.overwrite, where)
    elif target.exists():
        raise UserError(f"{where}: a file of that name is in the way")


def left_by(settings: Config, target: Path) -> bool:
    """Whether an earlier start of this very run had finished the export `target`."""
    run = Path(settings.paths.output_dir).resolve()
    return read_mark(target) is not None and target.resolve().is_relative_to(run)


def write_mark(folder: Path, mark: dict[str, Any]) -> None:
    """export.json, in which `read_mark` resolves the names of secrets."""
    (folder / MARK).write_text(json.dumps(by_name(mark), indent=2, ensure_ascii=False), encoding="utf-8")


def read_mark(folder: Path) -> dict[str, Any] | None:
    """The export.json that stands in the export `folder`; None where there is none, or none of ours."""
    try:
        mark = resolved(json.loads((folder / MARK).read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        return None
    whole = (
        isinstance(mark, dict)
        and isinstance(mark.get("made_from"), dict)
        and isinstance(mark.get("export"), dict)
    )
    return mark if whole and isinstance(mark["export"].get("files"), dict) else None


def _refuse_nowhere(where: str, path: str) -> None:
    if path.strip().rstrip("/") in NOWHERE or Path(path).name in ("", ".."):
        raise UserError(f"{where}: not a folder of its own; name one")


def _check_folder(target: Path, overwrite: bool, where: str) -> None:
    """A folder that is not empty is replaced when it is an export of ours, with nothing else in it."""
    mark = read_mark(target)
    if mark is None:
        raise UserError(
            f"{where}: not empty, and no export of this program ({MARK}),"
            " which alone save.overwrite=true replaces; name another folder"
        )
    if not overwrite:
        raise UserError(f"{where}: not empty; name another folder, remove it, or set save.overwrite=true")
    known = {MARK, *mark["export"]["files"]}
    others = sorted(
        str(path.relative_to(target)) for path in target.rglob("*") if _is_foreign(path, known, target)
    )
    if others:
        raise UserError(
            f"{where}: {others[0]} in it is not part of the export that is there; move it away,"
            " or name another folder"
        )


def _is_foreign(path: Path, known: set[str], target: Path) -> bool:
    return (path.is_symlink() or not path.is_dir()) and str(path.relative_to(target)) not in known


def _check_file(target: Path, overwrite: bool, where: str) -> None:
    """One GGUF file and the two that belong to it."""
    if target.is_dir():
        raise UserError(f"{where}: a folder of that name is in the way")
    if target.exists():
        if not _our_gguf(target):
            raise UserError(
                f"{where}: the file there was not made by this program; name another one, or move it away"
            )
        if not overwrite:
            raise UserError(f"{where}: a file of that name is in the way (save.overwrite=true replaces it)")
        return
    for beside in gguf_companions(target):
        if beside.exists():
            raise UserError(
                f"{where}: {beside.name} would be written beside it, and is there already;"
                " name another file, or move it away"
            )


def gguf_companions(target: Path) -> list[Path]:
    """The Modelfile and the card that are written beside the file `target`."""
    return [target.with_name(f"{target.stem}.Modelfile"), target.with_name(f"{target.stem}.md")]


def _our_gguf(file: Path) -> bool:
    with file.open("rb") as stream:
        head = stream.read(GGUF_HEAD)
    return head.startswith(b"GGUF") and b"chatbot_sft" in head


def _check_beside_checkpoints(settings: Config, where: str, named: Path) -> None:
    """Below the checkpoint folder an export is welcome, but not where checkpoints come and go."""
    folder = Path(settings.training.output_dir).resolve()
    if not named.resolve().is_relative_to(folder):
        return
    inside = named.resolve().relative_to(folder).parts
    if not inside or inside[0].startswith(("checkpoint-", ".")):
        raise UserError(
            f"{where}: checkpoints come and go there (training.output_dir={settings.training.output_dir});"
            " name another folder"
        )


def _foreign_checkpoints(folder: Path, run: Path) -> list[Path]:
    """checkpoint-N that another program wrote.

    In the run's own directory one without run.json is a damaged one of ours.
    """
    if not folder.is_dir() or folder.resolve().is_relative_to(run.resolve()):
        return []
    return [
        path
        for path in sorted(folder.glob("checkpoint-*"))
        if path.name[11:].isdigit() and not (path / "run.json").exists()
    ]


def _read(settings: Config) -> Iterator[tuple[str, Path]]:
    """(label, place) of everything that the run reads."""
    from chatbot_sft.model.hub import is_local  # model/base.py imports this file

    name = settings.model.name
    if is_local(name):
        yield f"model.name={name}", Path(name).expanduser().resolve()
    if settings.model.adapter:
        yield f"model.adapter={settings.model.adapter}", Path(settings.model.adapter).expanduser().resolve()
    if settings.task in ("evaluate", "verify"):
        evaluation = settings.evaluation
        named = {
            "run": settings.run,
            "evaluation.against": evaluation.against,
            "evaluation.golden": evaluation.golden,
        }
        for key, named_path in named.items():
            if named_path:
                yield f"{key}={named_path}", Path(named_path).expanduser().resolve()
        return
    dataset = settings.dataset
    for path in (dataset.eval_data_path, *(source.data_path for source in dataset.mixture)):
        if path and not is_hub_id(path):
            yield from ((f"the data ({path})", place.resolve()) for place in _matches(path))


def _matches(path: str) -> list[Path]:
    """The file or folder `path`, or what a glob matches."""
    place = Path(path).expanduser()
    if place.exists() or not any(letter in path for letter in "*?["):
        return [place]
    return list(Path(place.anchor).glob(str(place.relative_to(place.anchor))))


def _everybodys() -> Iterator[tuple[str, Path]]:
    yield "the current folder", Path.cwd()
    yield "your home folder", Path.home()
    yield from _caches()


def _caches() -> Iterator[tuple[str, Path]]:
    """The folders that this program, and huggingface_hub (told by the environment), keep things in."""
    yield "the cache of this program", cache_dir()
    home = Path(
        os.environ.get("HF_HOME")
        or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    ).expanduser()
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    yield "the cache of the Hugging Face hub", hub


def _same(place: Path, other: Path) -> bool:
    return place.resolve() == other.resolve()


def _holds(place: Path, other: Path) -> bool:
    """Whether `other` is the folder `place`, or in it."""
    return other.resolve().is_relative_to(place.resolve())
