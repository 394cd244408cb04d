"""`task=verify`: what a run's trained model said, held against what a running server says."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from chatbot_sft import distributed
from chatbot_sft.config import Config
from chatbot_sft.errors import UserError, reason
from chatbot_sft.evaluation.server import Server, check_variable
from chatbot_sft.report.masking import masked
from chatbot_sft.report.plain import shown, shown_line
from chatbot_sft.run.directory import Run, no_such_run, trains_nothing
from chatbot_sft.run.report import Report, write_json
from chatbot_sft.save.verify.kept import TrainedAnswers
from chatbot_sft.served.ask import Observed, observe
from chatbot_sft.served.finding import Judgement, format_of
from chatbot_sft.served.judge import judge

log = logging.getLogger(__name__)

OF_VERIFY = ("task", "run", "evaluation", "paths", "hydra")  # what a task=verify command may set


def refuse(settings: Config, overrides: Sequence[str] = ()) -> None:
    """Raises UserError where the command, the run or the environment is none to begin with."""
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        if key.partition(".")[0].partition("/")[0] not in OF_VERIFY:
            raise UserError(
                f"{key}: task=verify trains nothing and takes the rest from the run; leave it out"
            )
    if distributed.processes() > 1:
        raise UserError("task=verify runs in one process; start it without torchrun")
    check_variable("evaluation.api_key_variable", settings.evaluation.api_key_variable)
    find(str(settings.run))


def verify(settings: Config, report: Report) -> None:
    """Ask, judge, write and print.

    Raises:
        UserError: the server cannot be asked; or, when all is written, it does not say what was trained.
    """
    run, asked = find(str(settings.run)), settings.evaluation
    kept = _kept(run)
    report.run = str(run.folder)
    server = Server(str(asked.url), asked.model, asked.api_key_variable, asked.timeout, asked.retries)
    name = server.choose()
    others = [other for other in server.models() if other not in (name, f"{name}:latest")]
    log.info("asking %s at %s what %s was asked", name, server.url, run.folder)
    with tqdm(
        total=len(kept.prompts), desc="verify", unit="prompt", file=sys.__stderr__, disable=None, leave=False
    ) as bar:
        observed = observe(server, kept, bar.update)
    served = format_of(asked.format, [name, *server.paths()], _checks(run), kept.over_4_bits)
    found = judge(kept, observed, served, others)
    file = Run.of(settings).verify_file
    write_json(masked(_as_json(settings, server.url, name, found, observed)), file)
    for line in table(name, server.url, found):
        print(shown(line))
    if found.deciding:
        raise UserError(
            f"{name} at {server.url} does not say what {run.folder} was trained to say:"
            f" {'; '.join(finding.cause for finding in found.deciding)}; all of it is in {file}"
        )


def find(named: str) -> Run:
    """The run that `named` is, or one of whose exports it is, with what its trained model said.

    Raises:
        UserError: there is none, or it kept nothing of that.
    """
    where, folder = f"run={named}", Path(named).expanduser()
    if not folder.exists():
        raise UserError(f"{where}: {no_such_run(folder)}")
    places = [folder, *list(folder.resolve().parents)[:2]]  # an export is in its run, or in a folder there
    for place in places:
        if Run(place).trained_answers_file.is_file():
            return Run(place)
    run = Run(folder)
    if run.peek() is None:
        run.finished_report()  # says what it is instead
    report = run.finished_report()
    if nothing := trains_nothing(report):
        raise UserError(f"{where}: {nothing}")
    if report.training is None:
        raise UserError(
            f"{where}: nothing was trained there (task={report.task}, {report.status}); name a run that was"
        )
    raise UserError(
        f"{where}: it kept no answers of the trained model ({run.trained_answers_file.name}), as no export of it was"
        f" verified; make one with task=export run={named} save=lora, and name that run here"
    )


def table(name: str, url: str, found: Judgement) -> list[str]:
    """What was found, check by check, and a line for each finding."""
    marks = dict.fromkeys(found.open, "–") | {finding.check: "✗" for finding in found.deciding}
    width = max(map(len, found.rows), default=0)
    lines = [f"{shown_line(name)} at {url}, judged as {found.served.kind}"]
    lines += [
        f"  {marks.get(check, '✓')} {check:<{width}}  {shown_line(said)}"
        for check, said in found.rows.items()
    ]
    lines += [
        shown_line(f"{'error' if finding.decides else 'note'}: {finding.line}") for finding in found.findings
    ]
    return lines


def _kept(run: Run) -> TrainedAnswers:
    try:
        return TrainedAnswers.read(run.trained_answers_file)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{run.trained_answers_file}: cannot be read ({reason(error)}); task=export"
            f" run={run.folder} save=lora makes another, in the directory of its own"
        ) from None


def _checks(run: Run) -> dict[str, Mapping[str, Any]]:
    """What was measured of each format that the run exported."""
    report = run.peek()
    exports = report.save.exports if report and report.save else []
    return {kind: check for export in exports for kind, check in export.checks.items()}


def _as_json(settings: Config, url: str, name: str, found: Judgement, observed: Observed) -> dict[str, Any]:
    return {
        "run": settings.run,
        "url": url,
        "model": name,
        "served_as": found.served.kind,
        "passed": not found.deciding,
        "checks": found.rows,
        "numbers": found.numbers,
        "findings": [asdict(finding) for finding in found.findings],
        "replies": [
            {key: value for key, value in asdict(reply).items() if key != "likely"}
            for reply in observed.replies
        ],
    }
