"""loss.png: how the loss went, and the rewards where an objective has some."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TRAINING, HELD_OUT, TEXT = "#2a6fbb", "#c2410c", "#333333"
MARGIN = "rewards/margins"
SMOOTHED_FROM = 120  # logged steps


def write_loss_figure(
    history: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]], target: Path
) -> bool:
    """Draw the training and the held-out loss over optimizer steps; False where no step was logged.

    `history` and `evaluations` are the report's. The held-out loss has its value at both ends and where it is
    lowest. Below stand the rewards of the better and the worse answers, and what lies between them.
    """
    if not history:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    steps = [point["step"] for point in history]
    losses = [math.nan if point["loss"] is None else point["loss"] for point in history]
    weighed = any(MARGIN in point for point in history)
    figure = Figure(figsize=(7.2, 6.4 if weighed else 4.0), layout="constrained")
    axes, *below = figure.subplots(2 if weighed else 1, squeeze=False)[:, 0]
    _draw_training(axes, steps, losses)
    held_out = [
        (record["step"], record["loss"])
        for record in evaluations
        if record["loss"] is not None and math.isfinite(record["loss"])
    ]
    if held_out:
        _draw_held_out(axes, held_out)
    axes.set_ylabel("loss" if weighed else "loss (nats per token)", color=TEXT)
    for rewards in below:
        _draw_rewards(rewards, history, evaluations)
    for one in (axes, *below):
        one.xaxis.set_major_locator(MaxNLocator(integer=True))
        one.margins(x=0.06, y=0.12)
        one.grid(axis="y", color="#dddddd", linewidth=0.6)
        one.spines[["top", "right"]].set_visible(False)
        one.legend(frameon=False)
    one.set_xlabel("optimizer step", color=TEXT)
    FigureCanvasAgg(figure).print_png(target)
    return True


def _draw_training(axes: Any, steps: list[int], losses: list[float]) -> None:
    """The training loss; a long run's is drawn pale, with its running mean on top."""
    if len(steps) <= SMOOTHED_FROM:
        marker = "o" if len(steps) < 3 else None
        axes.plot(steps, losses, color=TRAINING, linewidth=1.8, marker=marker, label="training")
        return
    window = len(steps) // 20 | 1
    edge = window // 2
    means = [
        statistics.fmean(losses[index - edge : index + edge + 1]) for index in range(edge, len(steps) - edge)
    ]
    axes.plot(steps, losses, color=TRAINING, linewidth=0.8, alpha=0.35)
    axes.plot(steps[edge:-edge], means, color=TRAINING, linewidth=1.8, label=f"training, mean of {window}")


def _draw_rewards(
    axes: Any, history: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]]
) -> None:
    """Those of training as lines, the held-out margin as points."""
    for name, label, color in (
        ("rewards/chosen", "of the better answers", TRAINING),
        ("rewards/rejected", "of the others", "#8a8f98"),
        (MARGIN, "margin", TEXT),
    ):
        points = [(point["step"], point[name]) for point in history if point.get(name) is not None]
        if points:
            axes.plot(
                *zip(*points, strict=True), color=color, linewidth=1.8 if name == MARGIN else 1.0, label=label
            )
    held_out = [(record["step"], record[MARGIN]) for record in evaluations if record.get(MARGIN) is not None]
    if held_out:
        axes.plot(
            *zip(*held_out, strict=True), color=HELD_OUT, marker="o", linewidth=1.2, label="margin, held out"
        )
    axes.set_ylabel("reward", color=TEXT)


def _draw_held_out(axes: Any, points: list[tuple[int, float]]) -> None:
    """The held-out loss as a curve of (step, loss).

    With more than a start and an end, a ring marks the lowest after the start.
    """
    curve = len(points) > 2
    many = len(points) > 40
    axes.plot(
        *zip(*points, strict=True), color=HELD_OUT, linewidth=1.6 if curve else 0, marker="o",
        markersize=0 if many else 5 if curve else 7,
        label="held out" if curve else "held out, before and after", zorder=3,
    )  # fmt: skip
    labelled = {points[0], points[-1]}
    if curve:
        best = min(points[1:], key=lambda point: point[1])
        axes.plot(
            *best, color=HELD_OUT, marker="o", markersize=11, markerfacecolor="white", markeredgewidth=2,
            linestyle="none",
            label=f"lowest held out, step {best[0]:,}", zorder=4,
        )  # fmt: skip
        labelled = {points[0], best} if best[0] > 0.85 * points[-1][0] else {points[0], best, points[-1]}
    for step, loss in labelled:
        label = axes.annotate(
            f"{loss:.2f}",
            (step, loss),
            (0, 10),
            textcoords="offset points",
            color=HELD_OUT,
            ha="center",
            fontweight="bold",
            zorder=5,
        )
        label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1.0, "alpha": 0.85})
