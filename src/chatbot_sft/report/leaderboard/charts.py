"""The charts as Plotly's JSON: data and layout, without colours of text and grid, which the page adds as the
reader has it light or dark.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from chatbot_sft.report.leaderboard import columns
from chatbot_sft.report.leaderboard.board import Board
from chatbot_sft.report.leaderboard.importance import importance, logarithmic
from chatbot_sft.report.leaderboard.job import Job
from chatbot_sft.report.leaderboard.rows import SEED
from chatbot_sft.report.leaderboard.settings import as_number
from chatbot_sft.report.plain import plain_line
from chatbot_sft.run.report import Status

# From the best row to the worst, readable on white and on black.
COLOURS = ((0x0C, 0x9F, 0x74), (0x3B, 0x8E, 0xD8), (0x9B, 0x7F, 0xC9), (0xA8, 0x9F, 0x98))
BAD = "#d9534f"
MOST_KEYS = 12  # that have a chart each
MOST_NAMES = 8  # values of an axis that are written out
ENDS = {Status.PRUNED: "x", Status.FAILED: "x", Status.INTERRUPTED: "x"}


@dataclass(frozen=True)
class Chart:
    """`jobs` has for each trace, or for each point where there is one trace, the number of its job."""

    id: str
    title: str
    remark: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    jobs: list[int]
    group: str = ""

    def to_json(self) -> dict[str, Any]:
        return {"id": self.id, "data": self.data, "layout": self.layout, "jobs": self.jobs}


def charts(board: Board) -> list[Chart]:
    """Those for which there is something to draw."""
    colours = _colours(board)
    keys = [key for key in board.keys if key != SEED][:MOST_KEYS]
    measured = [job for job in board.jobs if job.value is not None]
    made = [_curves(board, colours)]
    if measured and len(board.rows) > 1:
        made.append(_parallel(board, measured, keys, colours) if len(keys) > 1 else None)
        made.append(_importance(board))
        made += [_against(board, measured, key, at, colours) for at, key in enumerate(keys)]
    return [chart for chart in made if chart]


def _colours(board: Board) -> dict[int, str]:
    """Of each job, by the rank of its row."""
    ranked = [row for row in board.rows if row.mean is not None]
    found = {job.number: BAD for job in board.jobs}
    for rank, row in enumerate(ranked):
        colour = _between(rank / max(1, len(ranked) - 1))
        found |= {job.number: colour for job in row.jobs}
    return found


def _between(share: float) -> str:
    place = share * (len(COLOURS) - 1)
    at = min(int(place), len(COLOURS) - 2)
    mixed = [
        round(low + (high - low) * (place - at))
        for low, high in zip(COLOURS[at], COLOURS[at + 1], strict=True)
    ]
    return f"rgb({mixed[0]},{mixed[1]},{mixed[2]})"


def said(text: str) -> str:
    """Text as Plotly shows it: it reads some HTML, and `%{name}` in a template."""
    return html.escape(plain_line(text)).replace("%{", "%&#123;")


def _about(job: Job) -> str:
    """A job in some lines, for hovering."""
    settings = [f"{said(key)}={said(value[:60])}" for key, value in job.settings.items()]
    ending = [] if job.completed else [said(str(job.status))]
    return "<br>".join([f"<b>{said(job.name)}</b>", *settings, *ending])


def _curves(board: Board, colours: dict[int, str]) -> Chart | None:
    drawn = [
        job for row in reversed(board.rows) for job in reversed(row.jobs) if job.curve
    ]  # the best on top
    if not drawn:
        return None
    best = board.rows[0].best.number
    data = []
    for job in drawn:
        steps, losses = zip(*job.curve, strict=True)
        first = job.number == best
        end = ENDS.get(Status(job.status)) if job.status in list(Status) else None
        symbols = ["circle"] * (len(steps) - 1) + [end or "circle"]
        many = len(drawn) > 12 or len(steps) > 30
        sizes = [0 if many else 5] * (len(steps) - 1) + [9 if end else 6]
        data.append(
            {
                "type": "scatter", "mode": "lines+markers", "x": steps, "y": losses, "name": said(job.name),
                "line": {"color": colours[job.number], "width": 3.5 if first else 1.5},
                "opacity": 1 if first or len(drawn) <= 12 else 0.75,
                "marker": {"symbol": symbols, "size": sizes, "color": colours[job.number]},
                "hovertemplate": f"{_about(job)}<br>step %{{x:,}}: %{{y:.4f}}<extra></extra>",
            }
        )  # fmt: skip
    layout = {
        "xaxis": {"title": {"text": "optimizer step"}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": "held-out loss"}},
        "height": 440,
    }
    stopped = any(job.status in ENDS for job in drawn)
    remark = "Hover to see which job it is; the best is drawn thick." + (
        " A cross: ended there, pruned, failed or interrupted." if stopped else ""
    )
    return Chart("curves", "Held-out loss", remark, data, layout, [job.number for job in drawn])


@dataclass(frozen=True)
class Axis:
    """Where each text stands between 0 and 1, and which of them are written beside the axis."""

    title: str
    places: dict[str, float]
    written: list[str]


def _parallel(board: Board, jobs: Sequence[Job], keys: Sequence[str], colours: dict[int, str]) -> Chart:
    axes = [_axis(key, [job.settings.get(key, "") for job in jobs]) for key in keys]
    values = [columns.metric(job.value or 0.0) for job in jobs]
    measured = _axis(board.metric_name, values, flipped=not board.maximise)  # the better, the higher
    data = []
    for job in sorted(jobs, key=lambda job: -_rank(board, job)):
        texts = [*(job.settings.get(key, "") for key in keys), columns.metric(job.value or 0.0)]
        places = [axis.places[text] for axis, text in zip([*axes, measured], texts, strict=True)]
        first = job.number == board.rows[0].best.number
        data.append(
            {
                "type": "scatter", "mode": "lines+markers", "x": list(range(len(places))), "y": places,
                "name": said(job.name), "opacity": 1 if first else 0.7,
                "line": {"color": colours[job.number], "width": 3.5 if first else 1.5, "shape": "spline",
                         "smoothing": 0.6},
                "marker": {"size": 6, "color": colours[job.number]},
                "hovertemplate": f"{_about(job)}<br>{said(board.metric_name)}: {texts[-1]}<extra></extra>",
            }
        )  # fmt: skip
    titles = [axis.title for axis in (*axes, measured)]
    layout = {
        "xaxis": {
            "tickmode": "array", "tickvals": list(range(len(titles))), "ticktext": list(map(_broken, titles)),
            "range": [-0.3, len(titles) - 0.55], "zeroline": False, "fixedrange": True, "side": "top",
        },
        "yaxis": {"visible": False, "range": [-0.06, 1.06], "fixedrange": True},
        "annotations": [
            {"x": at, "y": axis.places[text], "text": said(_clipped(text)), "showarrow": False,
             "xanchor": "left", "xshift": 8, "font": {"size": 12}}
            for at, axis in enumerate((*axes, measured)) for text in axis.written
        ],
        "height": 420,
    }  # fmt: skip
    order = sorted(jobs, key=lambda job: -_rank(board, job))
    return Chart(
        "parallel",
        "What led where",
        "Every line is a job, from its settings to its result; the best results are at the top.",
        data,
        layout,
        [job.number for job in order],
    )


def _rank(board: Board, job: Job) -> int:
    return next(rank for rank, row in enumerate(board.rows) if job in row.jobs)


def _axis(title: str, texts: Sequence[str], flipped: bool = False) -> Axis:
    """Numbers by size, by their logarithm where they are steps of a factor; words in the alphabet's order."""
    different = list(dict.fromkeys(texts))
    numbers = [number for text in different if (number := as_number(text)) is not None]
    if len(numbers) < len(different):
        ordered = sorted(different)
        places = {text: at / max(1, len(ordered) - 1) for at, text in enumerate(ordered)}
    else:
        scaled = [math.log(number) for number in numbers] if logarithmic(numbers) else numbers
        low, high = min(scaled), max(scaled)
        places = {
            text: (number - low) / (high - low) if high > low else 0.5
            for text, number in zip(different, scaled, strict=True)
        }
        ordered = sorted(different, key=lambda text: places[text])
    if flipped:
        places = {text: 1 - place for text, place in places.items()}
    written: list[str] = []
    for text in [ordered[0], ordered[-1], *ordered[1:-1]]:  # both ends, and what fits between
        apart = all(abs(places[text] - places[other]) > 0.07 for other in written)
        if apart and (len(ordered) <= MOST_NAMES or text in (ordered[0], ordered[-1])):
            written.append(text)
    return Axis(title, places, written)


def _clipped(text: str) -> str:
    return text if len(text) <= 16 else f"{text[:15]}…"


def _broken(key: str) -> str:
    """A key with its section on a line of its own."""
    section, dot, name = key.rpartition(".")
    return f"{said(section)}.<br>{said(name)}" if dot else said(key)


def _against(board: Board, jobs: Sequence[Job], key: str, at: int, colours: dict[int, str]) -> Chart:
    """One key against the metric."""
    asked = [job for job in jobs if key in job.settings]
    texts = [job.settings[key] for job in asked]
    numbers = [number for text in texts if (number := as_number(text)) is not None]
    axis: dict[str, Any] = {"type": "category", "tickangle": 0}
    places: list[Any] = [said(_clipped(text)) for text in texts]
    if numbers and len(numbers) == len(texts):
        places = numbers
        axis = {"type": "log" if logarithmic(numbers) else "linear"}
        few = sorted(set(numbers))
        if len(few) <= MOST_NAMES:
            axis |= {"tickmode": "array", "tickvals": few, "ticktext": [f"{number:g}" for number in few]}
    data = [
        {
            "type": "scatter", "mode": "markers", "x": places, "y": [job.value for job in asked],
            "marker": {
                "size": 9, "opacity": [0.85] * len(asked), "color": [colours[job.number] for job in asked],
                "symbol": ["circle" if job.completed else "x" for job in asked],
            },
            "text": [_about(job) for job in asked],
            "hovertemplate": "%{text}<br>%{y:.4f}<extra></extra>",
        }
    ]  # fmt: skip
    layout = {"xaxis": axis, "yaxis": {"title": {"text": said(board.metric_name)}}, "height": 280}
    return Chart(f"key{at}", key, "", data, layout, [job.number for job in asked], group="keys")


def _importance(board: Board) -> Chart | None:
    shares, how = importance(board.jobs, board.keys, board.maximise)
    if not how:
        return None
    names = [said(key) for key in reversed(shares)]
    data = [
        {
            "type": "bar", "orientation": "h", "x": list(reversed(shares.values())), "y": names,
            "marker": {"color": _between(0.33)},
            "text": [f"{share:.0%}" for share in reversed(shares.values())], "textposition": "auto",
            "hovertemplate": "%{y}: %{x:.0%}<extra></extra>",
        }
    ]  # fmt: skip
    layout = {
        "xaxis": {"range": [0, 1], "tickformat": ".0%", "fixedrange": True},
        "yaxis": {"automargin": True, "fixedrange": True},
        "height": 90 + 34 * len(names),
    }
    title = f"What moves the {board.metric_name}"
    return Chart("importance", title, f"{how}.", data if shares else [], layout, [])
