"""`task=evaluate`: the cases put to a model, to the base that it was trained on and to an earlier run."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from chatbot_sft import distributed
from chatbot_sft.config import Config
from chatbot_sft.errors import UserError
from chatbot_sft.evaluation import cases as golden
from chatbot_sft.evaluation import judge
from chatbot_sft.evaluation.answer import Answer, Kept, Prompt
from chatbot_sft.evaluation.at_once import all_of
from chatbot_sft.evaluation.cases import Case
from chatbot_sft.evaluation.checks import Judge
from chatbot_sft.evaluation.contestants import Contestant, contestants, free_memory
from chatbot_sft.evaluation.grade import Column, Graded, Judging, checked, graded, judged
from chatbot_sft.evaluation.page import write_page
from chatbot_sft.evaluation.report import Evaluation
from chatbot_sft.evaluation.server import Server, check_variable
from chatbot_sft.evaluation.table import table
from chatbot_sft.logs import quiet
from chatbot_sft.model.engine import prepare_environment
from chatbot_sft.report.plain import shown
from chatbot_sft.report.words import amount
from chatbot_sft.run.directory import Run
from chatbot_sft.run.report import Report

log = logging.getLogger(__name__)

OF_EVALUATION = ("task", "run", "evaluation", "paths", "hydra")  # what a task=evaluate command may set


def refuse(settings: Config, overrides: Sequence[str] = ()) -> None:
    """Raises UserError where the command, the golden file or the environment is none to begin with."""
    golden.read(_golden(settings))
    if settings.task != "evaluate":  # training.golden_steps
        return
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        if key.partition(".")[0].partition("/")[0] not in OF_EVALUATION:
            raise UserError(
                f"{key}: task=evaluate trains nothing and takes the rest from the run; leave it out"
            )
    if distributed.processes() > 1:
        raise UserError("task=evaluate runs in one process; start it without torchrun")
    check_variable("evaluation.api_key_variable", settings.evaluation.api_key_variable)
    check_variable("evaluation.judge_api_key_variable", settings.evaluation.judge_api_key_variable)


def evaluate(settings: Config, report: Report) -> None:
    """Ask, grade, compare, write and print. Every answer is kept as it comes.

    Raises:
        UserError: something cannot be asked; or, when all is written, fewer than evaluation.minimum passed.
    """
    run, asked = Run.of(settings), settings.evaluation
    report.run = settings.run or asked.url
    cases = golden.read(_golden(settings))
    if run.evaluation_file.exists():  # that one was finished: a new one asks again
        run.answers_file.unlink(missing_ok=True)
        run.evaluation_file.unlink()
    prepare_environment()
    judging = _judging(settings, cases)
    columns: list[Column] = []
    for contestant in contestants(settings):
        system = asked.system_prompt or (columns[0].system_prompt if columns else None)
        columns.append(_column(contestant, cases, system, settings, judging))
        free_memory()
    subject, *others = columns  # asked first, shown last
    evaluation = Evaluation(
        _golden(settings), cases, [*others, subject], asked.max_new_tokens, asked.batch_size
    )
    evaluation.write(run.evaluation_file)
    write_page(run.evaluation_page, evaluation)
    report.record(evaluation=evaluation.summary(run.evaluation_page))
    print(shown(table(evaluation)))
    print(shown(f"page    {run.evaluation_page}"))
    _refuse_below(asked.minimum, evaluation)


def _golden(settings: Config) -> Path:
    return Path(str(settings.evaluation.golden))  # given, as config/checks.py has seen to


def _column(
    contestant: Contestant,
    cases: Sequence[Case],
    system: str | None,
    settings: Config,
    judging: Judging | None,
) -> Column:
    """Its answers, graded. Without a `system` prompt from elsewhere it is told its own."""
    title, asked, run = contestant.title, contestant.open(), Run.of(settings)
    if settings.evaluation.system_prompt is None:
        system = contestant.trained_system(asked) or system
    prompts = [Prompt(case.row, golden.opened(case, system)) for case in cases]
    how = [contestant.identity, settings.evaluation.max_new_tokens, settings.evaluation.batch_size]
    begun = time.perf_counter()
    with tqdm(
        total=len(cases), desc=title, unit="case", file=sys.__stderr__, disable=None, leave=False
    ) as bar:
        try:
            with quiet():
                answers = asked.answers(prompts, Kept(run.answers_file, how), bar.update)
        except UserError as error:
            raise UserError(
                f"{title}: {error}; hydra.run.dir={run.folder} goes on from the answers there are"
            ) from None
    seconds = time.perf_counter() - begun
    log.info("%s: %d cases answered in %.1f s by %s", title, len(cases), seconds, contestant.name)
    return Column(
        title,
        contestant.name,
        _graded(cases, answers, judging, settings.evaluation.batch_size),
        system,
        seconds,
    )


def _graded(
    cases: Sequence[Case], answers: Sequence[Answer], judging: Judging | None, at_once: int
) -> list[Graded]:
    """With a judge so many at a time: that is a server, too."""
    pairs = list(zip(cases, answers, strict=True))
    if judging is None:
        return [graded(case, answer) for case, answer in pairs]
    first = [checked(*pair, to_judge=True) for pair in pairs]
    return all_of(lambda pair: judged(*pair, judging), list(zip(cases, first, strict=True)), at_once)


def _judging(settings: Config, cases: Sequence[Case]) -> Judging | None:
    """Who judges, where a case wants that and evaluation.judge_url says who."""
    asked = settings.evaluation
    wanted = any(isinstance(check, Judge) for case in cases for check in case.checks.values())
    if not wanted or asked.judge_url is None:
        return None
    server = Server(
        asked.judge_url,
        asked.judge_model,
        asked.judge_api_key_variable,
        asked.timeout,
        asked.retries,
        "evaluation.judge_url",
    )
    server.choose()
    return lambda rubric, case, answer: judge.judged(server, rubric, case.messages, answer.spoken)


def _refuse_below(minimum: float | None, evaluation: Evaluation) -> None:
    if minimum is not None and evaluation.share < minimum:
        passed = evaluation.subject.passed.count(True)
        raise UserError(
            f"evaluation.minimum={minimum:g}: {passed} of {amount(len(evaluation.cases), 'case')} passed"
            f" ({evaluation.share:.1%}); the page shows those that did not"
        )
