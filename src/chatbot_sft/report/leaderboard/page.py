"""leaderboard.html: one file without any reference to another, that opens from the disk.

What it is made of lies beside this module: page.html (a `string.Template`), page.css and page.js; the charts
are drawn by Plotly's script, which is embedded. Nothing that a run says
can run in it.
"""

from __future__ import annotations

import functools
import importlib
import importlib.resources
import importlib.util
import json
from collections.abc import Callable, Sequence
from string import Template

from chatbot_sft.report.hypertext import hash_of, said
from chatbot_sft.report.leaderboard import columns
from chatbot_sft.report.leaderboard.answers import Answer, Question, questions
from chatbot_sft.report.leaderboard.board import Board
from chatbot_sft.report.leaderboard.charts import Chart, charts
from chatbot_sft.report.leaderboard.job import Job
from chatbot_sft.report.leaderboard.rows import Row, undecided
from chatbot_sft.report.leaderboard.settings import as_number

SHOWN = 12  # answers to a question that are there without a click


def page(board: Board) -> str:
    """The whole page. It is masked already: whatever is read from a run is, as it is read."""
    drawn = charts(board)
    ours = f"\n{_part('js')}"
    scripts = [plotly(), ours] if drawn else [ours]
    ordered = [job for row in board.rows for job in row.jobs]
    folded = any(len(row.jobs) > 1 for row in board.rows)
    return Template(_part("html")).substitute(
        # Only these very scripts may run: not one from the data, were it ever to get past the escaping.
        hashes=" ".join(map(_hash, scripts)),
        style=_part("css"),
        title=said(board.title),
        counts=said(board.counts),
        command=f"<p class=command>{said(board.command)}</p>" if board.command else "",
        notes=_notes(board),
        count=len(board.rows),
        unfold='<button id=unfold type=button title="of every configuration">all seeds</button>'
        if folded
        else "",
        watch="<label><input id=watch type=checkbox checked>reload every 30 s</label>"
        if any(job.under_way for job in ordered)
        else "",
        head=_head(board),
        rows="\n".join(_rows(board)),
        empty="There are no jobs yet." if not board.rows else "No row matches.",
        hidden="" if not board.rows else " hidden",
        charts=_charts(drawn),
        answers=_answers(questions(ordered)),
        scripts=_scripts(scripts, drawn),
    )


@functools.cache
def plotly() -> str:
    """Plotly's script."""
    from plotly.offline import get_plotlyjs

    return f"\n{get_plotlyjs()}\n"


@functools.cache
def _part(kind: str) -> str:
    """The package's file page.`kind`."""
    return importlib.resources.files(__package__).joinpath(f"page.{kind}").read_text(encoding="utf-8")


@functools.lru_cache(4)
def _hash(script: str) -> str:
    """Remembered: Plotly's has millions of characters."""
    return f"'sha256-{hash_of(script)}'"


def _scripts(scripts: Sequence[str], drawn: Sequence[Chart]) -> str:
    """The charts as data, which no browser runs, then the scripts."""
    values = json.dumps([chart.to_json() for chart in drawn if chart.data], allow_nan=False)
    data = _tag("script", values.replace("<", "\\u003c"), "type=application/json id=charts")
    return "\n".join([data, *(_tag("script", script) for script in scripts)])


def _tag(name: str, content: str, attributes: str = "") -> str:
    return f"<{name}{' ' if attributes else ''}{attributes}>{content}</{name}>"


def _notes(board: Board) -> str:
    listed = "".join(_tag("li", said(note)) for note in board.notes)
    return f"<ul class=notes>{listed}</ul>" if listed else ""


# The table


def _head(board: Board) -> str:
    keys = [_key_head(key) for key in board.keys]
    metric = _column(said(board.metric_name), "n", "down" if board.maximise else "")
    figures = [_column(said(figure.title), "n") for figure in columns.figures(board)]
    return "".join([_column("job"), *keys, metric, _column("curve"), *figures, _column("status")])


def _key_head(key: str) -> str:
    section, dot, name = key.rpartition(".")
    small = f"<small>{said(section)}.</small>" if dot else ""
    return _column(f"{small}{said(name)}")


def _column(title: str, kind: str = "", first: str = "") -> str:
    attributes = f"{f' class={kind}' if kind else ''}{f' data-first={first}' if first else ''}"
    return f"<th scope=col aria-sort=none{attributes}><button type=button>{title}</button></th>"


def _rows(board: Board) -> list[str]:
    """A tbody for each row, with its jobs below it where they are several."""
    bodies = []
    for rank, row in enumerate(board.rows):
        close = rank > 0 and undecided(board.rows[rank - 1], row)
        several = len(row.jobs) > 1
        parts = [_row(board, row, close)]
        parts += [_row(board, Row((job,), job.value, None), part=True) for job in row.jobs if several]
        first = " class=first" if rank == 0 and row.completed else ""
        numbers = " ".join(str(job.number) for job in row.jobs)
        bodies.append(f'<tbody{first} data-jobs="{numbers}">{"".join(parts)}</tbody>')
    return bodies


def _row(board: Board, row: Row, close: bool = False, part: bool = False) -> str:
    cells = [_name(row)]
    for key in board.keys:
        text = columns.setting(row, key)
        number = as_number(text)
        sort = text if number is None else repr(number)
        cells.append(f'<td class=set data-v="{said(sort)}" title="{said(text)}">{said(text)}</td>')
    near = (
        '<abbr title="not told from the row above: they differ by less than the spread over seeds">≈</abbr>'
    )
    spread = f" <small>{columns.spread(row.spread)}</small>" if row.spread is not None else ""
    value = "" if row.mean is None else f"{near if close else ''}{columns.metric(row.mean)}{spread}"
    cells += [_number(row.mean, value), _curve(row.best)]
    for figure in columns.figures(board):
        mean = figure.mean(row)
        cells.append(_number(mean, "" if mean is None else figure.form(mean)))
    cells.append(_status(row))
    kind = " class=part hidden" if part else ""
    return f"<tr{kind} data-job={row.best.number}>{''.join(cells)}</tr>"


def _name(row: Row) -> str:
    name = said(row.best.name)
    if len(row.jobs) > 1:
        more = f"<small>+{len(row.jobs) - 1}</small>"
        name = f"<button type=button class=fold aria-expanded=false>{name} {more}</button>"
    return f"<th scope=row data-v={row.best.number}>{name}</th>"


def _number(value: float | None, text: str) -> str:
    return f'<td class=n data-v="{"" if value is None else repr(float(value))}">{text}</td>'


def _status(row: Row) -> str:
    """A failed job's reason is one click away; of several jobs each has its own below."""
    errors = [job for job in row.jobs if job.error]
    kind = str(row.best.status)
    if not errors:
        return f'<td data-v="{said(row.status)}"><span class="status {kind}">{said(row.status)}</span></td>'
    reasons = "".join(
        f"<p>{said(f'{job.name}: ' if len(row.jobs) > 1 else '')}{said(job.error)}</p>" for job in errors
    )
    summary = f'<summary class="status {kind}">{said(row.status)}</summary>'
    return f'<td data-v="{said(row.status)}"><details>{summary}{reasons}</details></td>'


def _curve(job: Job) -> str:
    """The held-out loss as a small line, with a dot at its end."""
    if len(job.curve) < 2:
        return '<td data-v=""></td>'
    steps, losses = zip(*job.curve, strict=True)
    across, up = _scale(steps, 100), _scale(losses, 20)
    points = " ".join(f"{across(step):.0f},{20 - up(loss):.1f}" for step, loss in job.curve)
    change = losses[-1] - losses[0]
    line = f'<polyline points="{points}"/>'
    title = f"{columns.metric(losses[0])} → {columns.metric(losses[-1])}"
    box = 'viewBox="0 0 100 20" preserveAspectRatio=none'
    picture = f'<svg class=spark {box} role=img aria-label="{title}">{line}</svg>'
    return f'<td data-v="{change!r}" title="{title}">{picture}</td>'


def _scale(values: Sequence[float], to: int) -> Callable[[float], float]:
    low, high = min(values), max(values)
    return lambda value: to * (value - low) / (high - low) if high > low else to / 2


# Charts and answers


def _charts(drawn: Sequence[Chart]) -> str:
    """A section for each chart; those of the keys share one."""
    alone = [_section(chart) for chart in drawn if not chart.group]
    keys = [chart for chart in drawn if chart.group]
    grid = "".join(f"<div><h3>{said(chart.title)}</h3>{_place(chart)}</div>" for chart in keys)
    together = f"<section><h2>Each key against the metric</h2><div class=keys>{grid}</div></section>"
    return "\n".join([*alone, *([together] if keys else [])])


def _section(chart: Chart) -> str:
    remark = f"<p class=remark>{said(chart.remark)}</p>"
    place = _place(chart) if chart.data else ""
    return f"<section><h2>{said(chart.title)}</h2>{remark}{place}</section>"


def _place(chart: Chart) -> str:
    height = chart.layout["height"]
    return f'<div class=chart><div id={chart.id} style="height:{height}px"></div></div>'


def _answers(asked: Sequence[Question]) -> str:
    if not asked:
        return ""
    remark = (
        "The best job's answer stands first; in the others <ins>what it does not say</ins> and"
        " <del>what it says and they do not</del> are marked. Jobs that answered alike share one."
    )
    items = "".join(_question(question, at == 0) for at, question in enumerate(asked))
    return (
        f"<section><h2>The same questions, answered by each</h2><p class=remark>{remark}</p>{items}</section>"
    )


def _question(question: Question, opened: bool) -> str:
    count = len(question.answers)
    cards = [_card(answer) for answer in question.answers]
    before = f"<div class=card><header>before training</header><p>{said(question.before)}</p></div>"
    shown = "".join([*cards[:SHOWN], before])
    more = cards[SHOWN:]
    rest = f"<details class=more><summary>{len(more)} more</summary><div class=cards>{''.join(more)}</div></details>"
    different = "all answered alike" if count == 1 else f"{count} different answers"
    return (
        f"<details class=question{' open' if opened else ''}>"
        f"<summary>{said(question.prompt)} <small>{different}</small></summary>"
        f"<div class=cards>{shown}</div>{rest if more else ''}</details>"
    )


def _card(answer: Answer) -> str:
    tags = {"added": "ins", "missing": "del"}
    text = "".join(
        said(piece) if kind == "same" else _tag(tags[kind], said(piece)) for kind, piece in answer.pieces
    )
    names = ", ".join(f"<b>{said(job.name)}</b>" for job in answer.jobs[:8])
    more = f" and {len(answer.jobs) - 8} more" if len(answer.jobs) > 8 else ""
    settings = " · ".join(f"{key}={value}" for key, value in answer.jobs[0].settings.items())
    alone = f" {said(settings)}" if len(answer.jobs) == 1 else ""
    numbers = " ".join(str(job.number) for job in answer.jobs)
    return f'<div class=card data-jobs="{numbers}"><header>{names}{more}{alone}</header><p>{text}</p></div>'
