"""Where the files of an earlier run are now: where they were, or where they went with the run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatbot_sft.data_names import is_hub_id
from chatbot_sft.model import embedded
from chatbot_sft.resources import examples_dir

# The keys that name files; a command may name them anew.
DATA = ("dataset.data_path", "dataset.eval_data_path", "evaluation.golden")
MODELS = ("model.name", "model.adapter", "model.chat_template", "objective.reference")
NAMED = (*DATA, *MODELS, "dataset.sources")


@dataclass(frozen=True)
class Places:
    """The command of the run was given in `folder`; its directory was `then` and is `now`."""

    folder: Path
    then: Path
    now: Path

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
        """Where what was `written` is, a glob among it; where it was, if that is nowhere."""
        before = Path(os.path.normpath(self.folder / Path(written).expanduser()))
        return next((place for place in self._candidates(before) if _there(place)), before)

    def _candidates(self, before: Path) -> Iterator[Path]:
        yield before
        yield Path(os.path.normpath(self.now / os.path.relpath(before, self.then)))
        yield examples_dir() / before.name  # of another installation

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


def _there(place: Path) -> bool:
    if any(letter in str(place) for letter in "*?[") and not place.exists():
        return any(Path(place.anchor).glob(str(place.relative_to(place.anchor))))
    return place.exists()
