"""Where the files of an earlier run are now: where they were, or where they went with the run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from chatbot_sft.data_names import is_hub_id
from chatbot_sft.model import embedded
from chatbot_sft.resources import examples_dir
from chatbot_sft.run.fingerprint import FileMark, data_mark, weights_mark

# The keys that name files; a command may name them anew.
DATA = ("dataset.data_path", "dataset.eval_data_path", "evaluation.golden")
MODELS = ("model.name", "model.adapter", "model.chat_template", "objective.reference")
NAMED = (*DATA, *MODELS, "dataset.sources")


@dataclass(frozen=True)
class Places:
    """The command of the run was given in `folder`; its directory was `then` and is `now`; it read files of these
    `marks`.
    """

    folder: Path
    then: Path
    now: Path
    marks: Sequence[FileMark] = ()

    def config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """`config` with every file written as where it is from here; one that is gone as where it was."""
        placed = {name: dict(part) if isinstance(part, Mapping) else part for name, part in config.items()}
        for key in (*DATA, *MODELS):
            section, _, name = key.partition(".")
            holder = placed.get(section, {})
            if isinstance(written := holder.get(name), str) and not self._of_the_hub(key, written):
                holder[name] = str(self.place(written))
        sources = placed.get("dataset", {}).get("sources")
        if sources:
            placed["dataset"]["sources"] = [
                {**source, "data_path": str(self.place(source["data_path"]))}
                if not self._of_the_hub("dataset.data_path", source["data_path"])
                else source
                for source in sources
            ]
        return placed

    def place(self, written: str) -> Path:
        """Where what was `written` is, a glob among it: of the places that have it, the first at which it is as the
        run read it, else the first; where it was, if that is nowhere.
        """
        before = _normal(self.folder / Path(written).expanduser())
        marks = [mark for mark in self.marks if among(_normal(Path(mark.path)), before)]
        candidates = self._candidates(before)
        there = [number for number, place in enumerate(candidates) if _there(place)]
        as_read = (number for number in there if all(self._is_as_read(mark, number) for mark in marks))
        return candidates[next(as_read, there[0])] if there else before

    def _candidates(self, before: Path) -> Sequence[Path]:
        """In the order of docs/replay.md: where it was, where it went along with the run's directory, the examples of
        this installation.
        """
        return (
            before,
            _normal(self.now / os.path.relpath(before, self.then)),
            examples_dir() / before.name,
        )

    def _is_as_read(self, mark: FileMark, number: int) -> bool:
        """Whether the file of that mark has the same content at the place of that number."""
        file = self._candidates(_normal(Path(mark.path)))[number]
        if not file.is_file():
            return False
        now = weights_mark(file) if mark.sampled else data_mark(file)
        return now.sha256 == mark.sha256

    def _of_the_hub(self, key: str, written: str) -> bool:
        """Whether it names nothing on this disk."""
        if written == embedded.NAME:
            return key == "model.name"
        if key in DATA:
            return is_hub_id(written) and not _there(self.folder / written)
        return (
            written.count("/") == 1
            and not written.startswith((".", "/", "~"))
            and not _there(self.folder / written)
        )


def _normal(place: Path) -> Path:
    return Path(os.path.normpath(place))


def among(file: Path, named: Path) -> bool:
    """Whether the file is what is named, or in a folder that is, or matches a glob."""
    return file.is_relative_to(named) or fnmatchcase(str(file), str(named))


def _there(place: Path) -> bool:
    if any(letter in str(place) for letter in "*?[") and not place.exists():
        return any(Path(place.anchor).glob(str(place.relative_to(place.anchor))))
    return place.exists()
