"""The record of what was trained or exported in a run directory: a start that comes to nothing leaves it as it was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatbot_sft.data.gate import PREVIEW, REPORT

OF_THE_GATE = (REPORT, PREVIEW)  # written before it is known whether a start comes to anything


@dataclass(frozen=True)
class Standing:
    """What stood in `folder` when a run began there: `report`, {} without one, and the data gate's `files` with their content."""

    folder: Path
    report: Mapping[str, Any]
    files: Mapping[str, bytes]

    @classmethod
    def of(cls, folder: Path, report: Mapping[str, Any]) -> Standing:
        return cls(folder, report, {name: (folder / name).read_bytes() for name in OF_THE_GATE if (folder / name).is_file()})

    def outlives(self, task: str, training: Mapping[str, Any], exports: Any) -> bool:
        """Whether it stays in place of the report of a run of `task` with these results: it has some, and that run has none.

        What an export's report says of training is the earlier run's.
        """
        save = self.report.get("save")
        results = self.report.get("training") or (isinstance(save, Mapping) and save.get("exports"))
        return bool(results) and not (exports if task == "export" else training)

    def restore(self) -> None:
        """Put the data gate's files back; what it wrote where there was none goes."""
        for name in OF_THE_GATE:
            if name in self.files:
                (self.folder / name).write_bytes(self.files[name])
            else:
                (self.folder / name).unlink(missing_ok=True)
