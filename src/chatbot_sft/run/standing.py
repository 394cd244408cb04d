"""The record of what was trained or exported in a run directory, which a start that fails leaves as it was."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from chatbot_sft.run.directory import Run
from chatbot_sft.run.report import Report, Status

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Standing:
    """What stood in a run's directory when a run began there.

    Its `report`, and the content of the data gate's `files`, None where there was none.
    """

    report: Report | None
    files: Mapping[Path, bytes | None]

    @classmethod
    def of(cls, run: Run) -> Standing:
        """The gate writes its files before it is known whether a start comes to anything."""
        files = (run.data_report_file, run.preview_file)
        return cls(run.report(), {file: file.read_bytes() if file.is_file() else None for file in files})

    def outlives(self, report: Report) -> bool:
        """Whether it stays in place of `report`: it has results, and that has none.

        What an export says of training is the earlier run's.
        """
        before = self.report
        if before is None or not (
            before.training or before.history is not None or (before.save and before.save.exports)
        ):
            return False
        return (
            not (report.save and report.save.exports)
            if report.task == "export"
            else report.training is None and report.history is None
        )

    def left_by(self, report: Report) -> bool:
        """Whether a run that came to nothing leaves what was trained here on record, in place of `report`;
        says so.
        """
        if report.status == Status.COMPLETED or self.report is None or not self.outlives(report):
            return False
        self.restore()
        folder = next(iter(self.files)).parent
        log.info("report: nothing was trained; the reports in %s stay those of the training there", folder)
        return True

    def restore(self) -> None:
        """Put the data gate's files back; what it wrote where there was none goes."""
        for file, content in self.files.items():
            if content is None:
                file.unlink(missing_ok=True)
            else:
                file.write_bytes(content)
