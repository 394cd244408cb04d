"""What the data gate found, put where people look for it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from chatbot_sft.data.gate import write_report
from chatbot_sft.data.prepare import PreparedData
from chatbot_sft.data.preview import write_preview
from chatbot_sft.report.data_summary import facts, show
from chatbot_sft.report.masking import masked
from chatbot_sft.run.directory import Run


def show_findings(prepared: PreparedData, named: Collection[str]) -> None:
    """data_report.json and data_preview.html in the run directory, and on the terminal what was asked for or
    stops the run. `named` are the keys that the user wrote on the command line.
    """
    settings, findings = prepared.settings, prepared.findings
    run = Run.of(settings)
    write_report(masked(findings), run.data_report_file)
    names = ", ".join(Path(source["path"]).name for source in findings["sources"])
    title, head = f"{settings.model.name} on {names}", facts(findings, named)[1:]
    write_preview(run.preview_file, title, head, prepared.preview_rows())
    if settings.task == "check" or prepared.refusal:
        show(findings, [run.data_report_file, run.preview_file], named)
