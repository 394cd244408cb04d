"""loss.png: how the loss went."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TRAINING, HELD_OUT, TEXT = "#2a6fbb", "#c2410c", "#333333"


def write_loss_figure(training: dict[str, Any], folder: Path) -> Path | None:
    """Draw the training loss over optimizer steps, with the held-out loss before and after. None where nothing was logged."""
    if not training.get("history"):
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    steps = [point["step"] for point in training["history"]]
    losses = [point["loss"] for point in training["history"]]
    figure = Figure(figsize=(7.2, 4.0), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(steps, losses, color=TRAINING, linewidth=1.8, marker="o" if len(steps) < 3 else None, label="training")
    if training.get("eval_loss") is not None:
        ends = [(0, training["eval_loss_before"]), (training["steps"], training["eval_loss"])]
        axes.plot(*zip(*ends, strict=True), color=HELD_OUT, linestyle="none", marker="o", markersize=7, label="held out, before and after", zorder=3)
        for step, loss in ends:
            label = axes.annotate(f"{loss:.2f}", (step, loss), (0, 10), textcoords="offset points", color=HELD_OUT, ha="center", fontweight="bold")
            label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1.0})
    axes.set_xlabel("optimizer step", color=TEXT)
    axes.set_ylabel("loss (nats per token)", color=TEXT)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.06, y=0.12)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    target = folder / "loss.png"
    FigureCanvasAgg(figure).print_png(target)
    return target
