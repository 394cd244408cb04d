"""The page of an evaluation: the table by tag, and every case with its answers side by side.

One HTML file without any reference to another: it opens from the disk, and nothing that a golden file or an
answer holds can run in it. What it is made of lies beside this module: page.html (a `string.Template`),
page.css and page.js.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
from collections.abc import Iterator
from pathlib import Path
from string import Template

from chatbot_sft.data.messages import Message
from chatbot_sft.evaluation.cases import Case
from chatbot_sft.evaluation.grade import Column, Graded
from chatbot_sft.evaluation.report import ALL, UNTAGGED, Evaluation, Line
from chatbot_sft.evaluation.table import chance
from chatbot_sft.report.hypertext import hash_of, said
from chatbot_sft.report.words import amount

FILTERS = {"failed": "failed", "right": "turned right", "wrong": "turned wrong", "unjudged": "not judged"}
WORDS = {True: "passed", False: "failed", None: "not judged"}


def write_page(path: Path, evaluation: Evaluation) -> None:
    # Half of a surrogate pair has no UTF-8; for a reference a browser shows the replacement character.
    path.write_text(page(evaluation), encoding="utf-8", errors="xmlcharrefreplace", newline="\n")


def page(evaluation: Evaluation) -> str:
    """The whole page."""
    kinds = [_kinds(evaluation, place) for place in range(len(evaluation.cases))]
    filters = "".join(
        f"<label><input type=checkbox value={kind}>{name} <b>{count}</b></label>"
        for kind, name in FILTERS.items()
        if (count := sum(kind in one for one in kinds))
    )
    script = "\n" + _part("js")
    return Template(_part("html")).substitute(
        # Only this very script may run: not one from an answer, were it ever to get past the escaping.
        script_hash=hash_of(script),
        style=_part("css"),
        script=script,
        title=said(
            f"{evaluation.golden.name}: {evaluation.share:.0%} of {amount(len(evaluation.cases), 'case')} passed"
        ),
        facts="".join(
            f"<div><dt>{said(name)}</dt><dd>{said(value)}</dd></div>" for name, value in _facts(evaluation)
        ),
        table=_table(evaluation),
        said="".join(f"<li>{said(sentence)}</li>" for sentence in _sentences(evaluation)),
        filters=f"<fieldset><legend>only</legend>{filters}</fieldset>" if filters else "",
        count=len(evaluation.cases),
        cases="\n".join(
            _case(evaluation, place, case, kinds[place]) for place, case in enumerate(evaluation.cases)
        ),
    )


@functools.cache
def _part(kind: str) -> str:
    """The package's file page.`kind`."""
    return importlib.resources.files(__package__).joinpath(f"page.{kind}").read_text(encoding="utf-8")


def _facts(evaluation: Evaluation) -> Iterator[tuple[str, str]]:
    for column in evaluation.columns:
        yield column.title, column.name
    if system := evaluation.subject.system_prompt:
        yield "system prompt", system
    yield "answers", f"greedy, at most {amount(evaluation.max_new_tokens, 'token')}"


def _sentences(evaluation: Evaluation) -> Iterator[str]:
    for title, one in evaluation.comparisons.items():
        yield (
            f"{title} → {evaluation.subject.title}: {one.turned_right} turned right, {one.turned_wrong} turned wrong"
            f" of {one.pairs}; {chance(one.p)}"
        )
    yield from evaluation.untold()


def _table(evaluation: Evaluation) -> str:
    lines = list(evaluation.lines())
    heads = ["tag", "cases", *(column.title for column in evaluation.columns)]
    heads += ["turned right", "turned wrong"] if lines[-1].turned else []
    head = "".join(f"<th>{said(name)}</th>" for name in heads)
    return f"<table><tr>{head}</tr>{''.join(map(_row, lines))}</table>"


def _row(line: Line) -> str:
    tag = (
        f"<td>{said(line.tag)}</td>"
        if line.tag in (ALL, UNTAGGED)
        else f'<td><a data-tag="{said(line.tag)}">{said(line.tag)}</a></td>'
    )
    shares = "".join(
        f"<td>{passed} <s>{passed / line.cases:.0%}</s><b><u style=width:{passed / line.cases:.1%}></u></b></td>"
        for passed in line.passed
    )
    turned = f"<td>{line.turned.turned_right}</td><td>{line.turned.turned_wrong}</td>" if line.turned else ""
    return f"<tr>{tag}<td>{line.cases}</td>{shares}{turned}</tr>"


def _kinds(evaluation: Evaluation, place: int) -> list[str]:
    """Which of `FILTERS` a case belongs to; turned is said from the first column to the last."""
    first, last = evaluation.columns[0].passed[place], evaluation.subject.passed[place]
    several = len(evaluation.columns) > 1
    found = {
        "failed": last is False,
        "right": several and first is False and last is True,
        "wrong": several and first is True and last is False,
        "unjudged": last is None,
    }
    return [kind for kind, so in found.items() if so]


def _case(evaluation: Evaluation, place: int, case: Case, kinds: list[str]) -> str:
    tags = "".join(f"<b>{said(tag)}</b>" for tag in case.tags)
    passed = evaluation.subject.passed[place]
    expected = "".join(
        f"<li><b>{name}</b> {said(_expected(value))}</li>" for name, value in case.expected.items()
    )
    return "".join((
        f'<article data-is="{" ".join(kinds)}" data-tags="{said(json.dumps(case.tags))}">',
        f"<header><h2>{said(case.id)} <i class={_class(passed)}>{WORDS[passed]}</i></h2>",
        f"<div>row {case.row}{tags}</div></header>",
        *map(_turn, case.messages),
        f"<ul class=expected>{expected}</ul>",
        f"<div class=answers>{''.join(_answer(column, column.graded[place]) for column in evaluation.columns)}</div>",
        "</article>",
    ))  # fmt: skip


def _turn(message: Message) -> str:
    return f"<p class=turn><b>{said(message['role'])}</b>{said(message['content'])}</p>"


def _answer(column: Column, graded: Graded) -> str:
    faults = "".join(
        f"<li class=no><b>{name}</b> {said(fault)}</li>" for name, fault in graded.faults.items()
    )
    untold = "".join(f"<li><b>{name}</b> {said(reason)}</li>" for name, reason in graded.untold.items())
    judge = graded.verdict.reason if graded.verdict and graded.verdict.passed else ""
    judge = f"<li class=yes><b>judge</b> {said(judge)}</li>" if judge else ""
    said_of = f"<ul>{faults}{untold}{judge}</ul>" if faults or untold or judge else ""
    head = f"{said(column.title)}: {WORDS[graded.passed]}<s>{_length(graded)}</s>"
    return (
        f"<section class={_class(graded.passed)}><h3>{head}</h3>"
        f"<p>{said(graded.answer.text) or '<s>nothing</s>'}</p>{said_of}</section>"
    )


def _class(passed: bool | None) -> str:
    return {True: "yes", False: "no", None: "open"}[passed]


def _length(graded: Graded) -> str:
    if graded.answer.tokens is None:
        return ""
    cut = ", cut off" if graded.answer.ended is False else ""
    return amount(graded.answer.tokens, "token") + cut


def _expected(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
