"""Which files a path names (a file, a folder, a glob), and which of them are held out by their names."""

from __future__ import annotations

import fnmatch
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from chatbot_sft.data_names import KINDS, is_url, kind_by_name
from chatbot_sft.errors import UserError, beside, did_you_mean, from_here, listed

TRAIN, VALIDATION, TEST = "train", "validation", "test"
WORDS = {
    "train": TRAIN, "training": TRAIN, "test": TEST, "testing": TEST, "validation": VALIDATION,
    "valid": VALIDATION, "val": VALIDATION,
    "dev": VALIDATION, "eval": VALIDATION, "evaluation": VALIDATION, "heldout": VALIDATION, "holdout": VALIDATION,
}  # fmt: skip
# What stands beside data in folders of `datasets`, LLaMA-Factory and the hub, and is none; cache-*.arrow are
# the results of `Dataset.map`.
METADATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "cache-*.arrow")
SAVED = "state.json"  # in a folder that `datasets.save_to_disk` wrote: lists its files


@dataclass
class Selection:
    """The data files that a path names, by split, and what stands beside them and is not read."""

    splits: dict[str, list[Path]] = field(default_factory=dict)
    passed_by: list[str] = field(default_factory=list)

    @property
    def held_out(self) -> str | None:
        """The split to evaluate on beside the one to train on: no test set where there is a validation set."""
        return self.to_evaluate if TRAIN in self.splits and len(self.splits) > 1 else None

    @property
    def to_evaluate(self) -> str:
        """The split to evaluate on where the path was named for that."""
        return next(split for split in (VALIDATION, TEST, TRAIN) if split in self.splits)


def find(path: str) -> Selection:
    """What `path` names. Files are in the order of their names, so that a run can be repeated.

    Raises:
        UserError: there are none, or `path` is nothing that can be read.
    """
    if not path.strip():
        raise UserError("dataset.data_path is empty; name a file, a folder, a glob or a hub id (org/name)")
    if is_url(path):
        raise UserError(_no_url(path))
    expanded = Path(path).expanduser()
    try:
        if expanded.is_dir():
            return _in_folder(path, expanded)
        if expanded.exists() or expanded.is_symlink():
            return Selection({TRAIN: [_regular(expanded)]})
        if any(letter in path for letter in "*?["):
            return _matching(path, expanded)
        hint = did_you_mean(expanded.name, beside(expanded)) or from_here(expanded)
    except OSError as error:
        raise UserError(f"{error.filename or path}: {error.strerror or error}") from None
    raise UserError(f"{path}: no such data file{hint}")


def data_files(path: str, split: str = TRAIN) -> list[Path]:
    """The files of `split` that `path` names.

    Raises:
        UserError: there are none.
    """
    splits = find(path).splits
    if split in splits:
        return splits[split]
    if split == TRAIN:
        held_out = [file.name for files in splits.values() for file in files]
        raise UserError(
            f"{path}: all of it is held out by its name ({listed(held_out)});"
            " name the file itself to train on it"
        )
    hint = "; part of a file is dataset.max_rows" if "[" in split else ""
    raise UserError(f"dataset.split={split}: {path} has no such split (it has {listed(splits)}){hint}")


def is_data(file: Path) -> bool:
    """Whether a file in a folder is read: by its suffix, as others name theirs; a zip file is opened."""
    return bool(kind_by_name(file)) or file.suffix.lower() == ".zip"


def hidden(name: str) -> bool:
    """Whether a file or folder of that name is somebody's housekeeping: .ipynb_checkpoints, __MACOSX."""
    return name.startswith((".", "__")) or name == "_delta_log"  # the last is Delta Lake's


def split_of(file: Path) -> str:
    """The split that a file's path in the folder that was named says: `test/0.jsonl`, `squad-test-0.parquet`.

    A file says so where its name begins or ends with the word, a folder where it is the word. "train" wins:
    train_and_test.jsonl is for training.
    """
    words = [word for word in re.split(r"[^a-z]+", file.name.split(".")[0].lower()) if word not in ("", "of")]
    said = [_split_by_word(word) for word in words]
    if TRAIN in said:
        return TRAIN
    if named := next((split for split in (*said[:1], *said[-1:]) if split), None):
        return named
    folders = (re.sub(r"^split[=_-]|[^a-z]", "", folder.lower()) for folder in reversed(file.parts[:-1]))
    return next(filter(None, map(_split_by_word, folders)), TRAIN)


def _split_by_word(word: str) -> str | None:
    return WORDS.get(word) or WORDS.get(re.sub(r"(s|set|data|split)$", "", word))


def _in_folder(path: str, folder: Path) -> Selection:
    selection = Selection()
    for file in _walk(folder, set(), selection.passed_by):
        selection.splits.setdefault(split_of(file.relative_to(folder)), []).append(file)
    if not selection.splits:
        kinds = f"{', '.join(KINDS)}, or one of these with .gz"
        raise UserError(f"{path}: no data files in this folder; there may be {kinds}")
    return selection


def _walk(folder: Path, seen: set[str], passed_by: list[str]) -> Iterator[Path]:
    """The data files of a folder and those below it.

    What several links lead to is met once: rows would be trained twice, loops never end.
    """
    seen.add(os.path.realpath(folder))
    entries = sorted(folder.iterdir())
    if saved := _saved_files(folder):
        passed_by += [str(entry) for entry in entries if entry.suffix == ".arrow" and entry not in saved]
        yield from saved
        return
    for entry in entries:
        real = os.path.realpath(entry)
        if real in seen:
            continue
        if hidden(entry.name) or _is_metadata(entry):
            if entry.is_dir() or is_data(entry):
                passed_by.append(str(entry))
        elif entry.is_dir():
            yield from _walk(entry, seen, passed_by)
        elif is_data(entry):
            seen.add(real)
            yield _regular(entry)
        elif entry.suffix != ".md":
            passed_by.append(str(entry))


def _is_metadata(file: Path) -> bool:
    return any(fnmatch.fnmatch(file.name, pattern) for pattern in METADATA)


def _regular(file: Path) -> Path:
    """`file`, where it is one."""
    if file.is_file():
        return file
    if file.is_symlink() and not file.exists():
        raise UserError(f"{file}: a link to {file.readlink()}, which is not there; name the file itself")
    raise UserError(
        f"{file}: a pipe or device, no file; data is read more than once, so save it to a file first"
    )


def _saved_files(folder: Path) -> list[Path]:
    """The files of a folder that `datasets.save_to_disk` wrote, in their order; empty where it is none."""
    try:
        state = json.loads((folder / SAVED).read_text(encoding="utf-8"))
        names = [entry["filename"] for entry in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise UserError(
            f"{folder}: saved with an index over its rows, by an old version of datasets;"
            " save it again after flatten_indices()"
        )
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise UserError(f"{folder}: {SAVED} lists {name}, which is not there; is the copy whole?")
    return [folder / name for name in names]


def _matching(path: str, expanded: Path) -> Selection:
    """What a glob matches, a folder by its data files; hidden ones only where the pattern names them."""
    anchor = Path(expanded.anchor)
    pattern = str(expanded.relative_to(anchor))
    wild = [any(letter in part for letter in "*?[") for part in expanded.parts]
    fixed = wild.index(True)
    begin = Path(*expanded.parts[:fixed])
    wants_hidden = any(part.startswith(".") for part in expanded.parts[fixed:])
    selection, seen = Selection(), set[str]()
    for match in sorted((anchor if expanded.is_absolute() else Path()).glob(pattern)):
        real = os.path.realpath(match)
        is_hidden = any(hidden(part) for part in match.relative_to(begin).parts)
        if real in seen or (is_hidden and not wants_hidden):
            continue
        if match.is_dir():
            files = list(_walk(match, seen, selection.passed_by)) if "**" not in pattern else []
        elif _is_metadata(match):
            selection.passed_by.append(str(match))
            continue
        else:
            seen.add(real)
            files = [_regular(match)]
        for file in files:
            selection.splits.setdefault(split_of(file.relative_to(begin)), []).append(file)
    if not selection.splits:
        raise UserError(f"{path}: no file matches; put a pattern in quotes, or name the folder")
    if TRAIN not in selection.splits:  # a pattern such as test-*.jsonl names them
        selection.splits = {TRAIN: [file for files in selection.splits.values() for file in files]}
    return selection


def _no_url(path: str) -> str:
    """What to write in place of a URL. Whatever stands before an @ in it may be a password."""
    url = urlsplit(path)
    host = url.netloc.rpartition("@")[2]
    shown = f"{url.scheme}://{host}{url.path}"
    parts = [part for part in url.path.split("/") if part]
    hub_id = ""
    if url.scheme == "hf" and host == "datasets" and len(parts) >= 2:
        hub_id = f"{parts[0]}/{parts[1].partition('@')[0]}"
    if host in ("huggingface.co", "hf.co", "www.huggingface.co") and parts[:1] == ["datasets"] and parts[2:]:
        hub_id = f"{parts[1]}/{parts[2]}"
    if hub_id:
        return f"{shown}: a URL is not read; write the id of the dataset: dataset.data_path={hub_id}"
    name = Path(url.path).name or "data.jsonl"
    return f"{shown}: a URL is not read; download the file and name it: dataset.data_path={name}"


def remarks(path: str, selection: Selection, split: str, evaluated: bool) -> list[str]:
    """One line where files of `path` are not trained on: held out by their names, or no data.

    `evaluated`: on `held_out`.
    """
    said = []
    for name, files in selection.splits.items():
        if name != split:
            use = "held out" if evaluated and name == selection.held_out else "not used"
            said.append(f"{use}: {listed(str(file.relative_to(_base(path, file))) for file in files)}")
    if selection.passed_by:
        others = map(Path, selection.passed_by)
        said.append(f"not read: {listed(str(other.relative_to(_base(path, other))) for other in others)}")
    return [f"{path}: {'; '.join(said)}"] if said else []


def _base(path: str, file: Path) -> Path:
    folder = Path(path).expanduser()
    return folder if file.is_relative_to(folder) else file.parent
