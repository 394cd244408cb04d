"""The losses of one run in the layout that `auto` takes here and as configured to the letter, in one picture.

    python benchmarks/curve.py OUT --model FOLDER --data FILE [--steps 1000]
    python benchmarks/curve.py OUT --runs CHOSEN EAGER      # two run directories of before

Writes OUT/curve.png and OUT/curve.json. The two runs have the same seed, rows and batches of eight, so that on a GPU
the first is packed, compiled and captured, and the second padded and eager.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

EAGER = [
    "training.batch_layout=as_configured",
    "training.per_device_train_batch_size=8",
    "training.gradient_accumulation_steps=1",
]
NEAR = 50  # steps over which a curve is smoothed


def run(folder: Path, settings: list[str]) -> None:
    command = [sys.executable, "-m", "chatbot_sft", *settings, f"hydra.run.dir={folder}"]
    subprocess.run(command, check=True)


def losses(folder: Path) -> tuple[str, list[float]]:
    """(layout, loss of each step) of a run."""
    training = json.loads((folder / "report.json").read_text(encoding="utf-8"))["training"]
    return training["batch_layout"], [entry["loss"] for entry in training["history"]]


def smooth(values: list[float]) -> list[float]:
    """Means of `NEAR` neighbours."""
    return [sum(values[end - NEAR : end]) / NEAR for end in range(NEAR, len(values) + 1)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--data")
    parser.add_argument("--runs", type=Path, nargs=2)
    parser.add_argument("--steps", type=int, default=1000)
    options = parser.parse_args()
    if not options.runs and not (options.model and options.data):
        parser.error("name --model and --data, or --runs")
    options.out.mkdir(parents=True, exist_ok=True)
    folders = options.runs or [options.out / "chosen", options.out / "eager"]
    if not options.runs:
        settings = [
            "model=local", f"model.name={options.model}", "model.engine=transformers", "model.load_in_4bit=false",
            f"dataset.data_path={options.data}", "dataset.eval_fraction=0", f"training.max_steps={options.steps}",
            "training.logging_steps=1", "training.sample_max_new_tokens=0", "training.save_strategy=no", "save=none",
        ]  # fmt: skip
        run(folders[0], settings)
        run(folders[1], [*settings, *EAGER])
    (chosen, one), (eager, other) = map(losses, folders)
    apart = [abs(a - b) for a, b in zip(one, other, strict=True)]
    found = {
        "layouts": [chosen, eager],
        "losses": [one, other],
        "apart": max(apart),
        "mean_apart": sum(apart) / len(apart),
    }
    (options.out / "curve.json").write_text(json.dumps(found))
    print(
        f"{chosen} against {eager}: {found['mean_apart']:.4f} apart in the mean, {found['apart']:.4f} at most"
    )

    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(2, 1, sharex=True, figsize=(8, 6), height_ratios=(3, 1))
    for label, values, style in ((eager, other, "-"), (chosen, one, "--")):
        above.plot(range(NEAR, len(values) + 1), smooth(values), style, label=label)
    above.set_ylabel(f"loss, mean of {NEAR} steps")
    above.legend()
    below.plot(range(1, len(apart) + 1), apart, linewidth=0.6)
    below.set_ylabel("difference")
    below.set_xlabel("step")
    figure.savefig(options.out / "curve.png", dpi=120, bbox_inches="tight")


if __name__ == "__main__":
    main()
