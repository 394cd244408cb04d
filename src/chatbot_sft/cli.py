"""The one entrypoint: `python -m chatbot_sft`. Hydra composes, the schema checks, `pipeline.run` works."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import hydra
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from chatbot_sft import (
    arguments,
    command_line,
    completion,
    distributed,
    json_output,
    run_directory,
    text_files,
)
from chatbot_sft.config import Config, hydra_glue, hydra_targets
from chatbot_sft.config.help import help_text
from chatbot_sft.config.hydra_errors import said
from chatbot_sft.errors import SHOW_TRACEBACK, UserError
from chatbot_sft.logs import MaskedStream
from chatbot_sft.report.plain import shown, shown_line
from chatbot_sft.report.words import amount
from chatbot_sft.resources import conf_dir
from chatbot_sft.run.directory import Run
from chatbot_sft.run.report import now

if TYPE_CHECKING:
    from chatbot_sft.jobs import Job

JOBS: list[Job] = []  # of the sweep that this process runs
RUNS: list[Path] = []  # directories of what it ran
MAIN: list[int] = []  # the process that runs `main`


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
def entrypoint(config: DictConfig) -> float | None:
    """One job. Returns the held-out loss after training for sweepers, None where nothing is held out."""
    from chatbot_sft import hydra_job

    job = HydraConfig.get()
    if job.mode == RunMode.MULTIRUN:
        settle_job(config, job)
    hydra_job.mask_files(job)
    sys.path[:0] = hydra_job.users_folders(job)
    if job.job.chdir:
        os.chdir(job.runtime.cwd)
        hydra_job.tell_chdir(job)
    if job.mode == RunMode.MULTIRUN:
        return _swept(config, job)
    try:
        return _run(Config.from_mapping(config), job)
    except Exception as error:
        if os.environ.get(SHOW_TRACEBACK):
            raise
        run_directory.withdraw(refused=isinstance(error, UserError))
        sys.exit(
            f"{distributed.error_prefix()}{one_line(error, Run(Path(config.paths.output_dir)).log_file)}"
        )


def _run(settings: Config, job: HydraConf) -> float | None:
    from chatbot_sft import hydra_job, pipeline
    from chatbot_sft.report.terminal import ending

    RUNS.append(Path(settings.paths.output_dir))
    named = hydra_glue.named_of(job)
    report = pipeline.run(settings, hydra_job.command(job), _began(), named)
    if not distributed.is_first():
        return None
    if text := ending(report, settings.paths.output_dir):
        print(shown(text))
    return report.training.eval_loss if report.training else None


def _began() -> float:
    """When the user began to wait for this job, in seconds since the epoch."""
    from chatbot_sft.jobs import waited_since

    return waited_since(first=not any(job.status in ("completed", "failed") for job in JOBS))


def _swept(config: DictConfig, of_hydra: HydraConf) -> float | None:
    """One job of a sweep. What an earlier start of it finished counts as done; an error is told at once."""
    from chatbot_sft.jobs import Job, finished

    job = Job(of_hydra.job.num, list(of_hydra.overrides.task), Path(config.paths.output_dir))
    JOBS.append(job)
    try:
        settings = Config.from_mapping(config)
        if report := finished(settings, hydra_glue.named_of(of_hydra)):
            job.status = "done before"
            job.eval_loss = report.training.eval_loss if report.training else None
            print(f"job {job.number}: done before, {job.folder}", file=sys.stderr)
            return job.eval_loss
        job.eval_loss = _run(settings, of_hydra)
    except Exception as error:
        job.status, job.error = "failed", one_line(error, Run(job.folder).log_file)
        print(f"{distributed.error_prefix()}job {job.number}: {job.error} ({job.folder})", file=sys.stderr)
        if os.environ.get(SHOW_TRACEBACK) or os.getpid() not in MAIN:
            # Where a launcher runs jobs in other processes, only the exception comes back.
            raise
        # Hydra would add "Error executing job …" to ours. `main` ends with an error for JOBS.
        return None
    job.status = "completed"
    return job.eval_loss


def settle_job(config: DictConfig, job: HydraConf) -> None:
    """Settle the values of a job, which the sweeper composed after every callback; in Hydra's file too."""
    hydra_glue.settle(config, hydra_glue.written(job.overrides.task), job)
    if job.output_subdir:
        OmegaConf.save(config, Path(job.runtime.output_dir, job.output_subdir, "config.yaml"))


def main() -> None:
    """`_main`; with --json its report is printed as one object, see `reported`."""
    asked = json_output.FLAG in sys.argv[1:]
    sys.argv[1:] = [word for word in sys.argv[1:] if word != json_output.FLAG]
    began = now()
    with json_output.answering(asked and distributed.is_first()) as values:
        try:
            _main(asked)
        finally:
            values |= reported(began)


def reported(began: str) -> dict[str, Any]:
    """report.json of the run that this process began, at `began` or later, with its directory; of task=check also
    data_report.json. Empty where no run came so far.
    """
    if not RUNS:
        return {}
    run = Run(RUNS[-1])
    try:
        report = json.loads(run.report_file.read_text(encoding="utf-8"))
        started = datetime.fromisoformat(report["started"])
        if started < datetime.fromisoformat(began):  # an earlier run's: this one was refused
            return {}
        values = {"run_directory": str(run.folder), **report}
        if report["task"] == "check" and report["dataset"].get("rows"):
            values["data_report"] = json.loads(run.data_report_file.read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return values


def _main(as_json: bool) -> None:
    """Run Hydra, and say what went wrong in one line; HYDRA_FULL_ERROR=1 shows the traceback instead."""
    if "--version" in sys.argv[1:]:
        print(command_line.version())
        return
    if script := completion.script(sys.argv[1:]):
        print(script)
        return
    MAIN.append(os.getpid())
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        os.environ[SHOW_TRACEBACK] = "1"
    # Makes Hydra hand its errors to us instead of printing them.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    if not distributed.is_first():
        sys.argv.append("hydra.output_subdir=null")  # the first process writes it
    sys.path.insert(0, os.getcwd())  # noqa: PTH109 (a _target_ may name a file beside the user)
    try:
        with contextlib.redirect_stderr(MaskedStream(sys.stderr)):
            start(sys.argv[1:], as_json)
            sys.stdout.flush()  # while a reader that has read enough is still no error
    except KeyboardInterrupt:
        _tell_jobs()
        run_directory.withdraw()
        print("interrupted; the run's report says how far it came", file=sys.stderr)
        sys.exit(130)
    except hydra_glue.Refused as refused:
        _fail(refused.error)
    except BrokenPipeError:
        arguments.read_enough()
    except SystemExit as error:
        _tell_jobs()
        if error.code:
            run_directory.withdraw()
        raise
    except Exception as error:
        _fail(error)
    _tell_jobs()
    if failed := [job for job in JOBS if job.status == "failed"]:
        sys.exit(_failed(failed))


def start(words: list[str], as_json: bool = False) -> None:
    """What the words of a command line ask for."""
    words = command_line.of_a_server(words)
    given = command_line.check(words)
    if as_json:
        command_line.refuse_json(given, given.multirun)
        command_line.refuse_json(given, hydra_glue.given(given).hydra.mode == RunMode.MULTIRUN)
    if given.config_dir:
        text_files.check_options(Path(given.config_dir))
    if given.help:
        print(help_text(command_line.topics(given), given.config_dir), flush=True)
        command_line.refuse_no_topic(given)
        return
    if given.cfg:
        config = hydra_glue.given(given)
        hydra_glue.show(config, given.cfg, given.package, given.resolve)
        return
    if given.shell_completion:
        completion.leave_out(json_output.FLAG)
    else:
        hydra_targets.refuse(given, command_line.all_opened(given.overrides, given))
    sys.argv[1:] = command_line.for_hydra(words, given)
    entrypoint()


def one_line(error: BaseException, log_file: Path | None = None) -> str:
    """What to tell a person, in one line that holds no secret and nothing a terminal would obey."""
    return shown_line(said(error, log_file))


def _fail(error: Exception) -> NoReturn:
    _tell_jobs()
    run_directory.withdraw()
    if os.environ.get(SHOW_TRACEBACK):
        sys.exit(shown("".join(traceback.format_exception(error))))
    failed = [job for job in JOBS if job.status == "failed"]
    sys.exit(_failed(failed) if failed else f"{distributed.error_prefix()}{one_line(error)}")


def _failed(jobs: Sequence[Job]) -> str:
    return f"error: {len(jobs)} of {amount(len(JOBS), 'job')} failed"


def _tell_jobs() -> None:
    """A line a job, after a sweep; the errors have been told when they happened."""
    if JOBS:
        from chatbot_sft.jobs import table

        for line in table(JOBS):
            print(shown_line(line))
