"""What a process holds after each of many jobs: 200 of one sweep, on a model of two small layers. No GPU.

    python benchmarks/long_use.py OUT [--jobs 200] [--pruner halving]

Each job trains a few steps on short conversations, evaluates, saves a checkpoint and exports its adapter; ranks,
learning rates and seeds differ. tests/census.py counts after each: resident memory, tensors and other objects,
threads, open files, what lies in the folder of temporary files, loggers, handlers. memory.png in OUT draws the
memory, counts.csv has all of it. What is said at the end: by how much each grows a job, from a fifth of the jobs on.

QUICK=1 takes twelve jobs, to try the script.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path.insert(0, str(TESTS))

RANKS = "2,4,8,16"
FIGURES = (
    "tensors", "objects", "threads", "system_threads", "descriptors", "temporary", "loggers", "handlers", "atexit",
    "modules",
)  # fmt: skip


def sweep(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The counts of `options.jobs` jobs, in their order."""
    from conftest import conversations, random_llama, write_json

    from chatbot_sft.model import embedded

    out = options.out
    if not (out / "model").exists():
        random_llama(out / "model", embedded.folder(), 32)
    data = write_json(out / "chats.json", conversations(40))
    seeds, census, temporary = max(1, options.jobs // 8), out / "census.jsonl", out / "temporary"
    census.unlink(missing_ok=True)
    temporary.mkdir(exist_ok=True)
    words = [
        "model=local", f"model.name={out / 'model'}", "model.load_in_4bit=false", "model.engine=transformers",
        f"dataset.data_path={data}", "dataset.eval_fraction=0.1", "training.max_steps=3", "training.warmup_steps=0",
        "training.eval_steps=3", "training.save_steps=3", "training.batch_layout=as_configured",
        "training.sample_max_new_tokens=2", "save=lora", "save.verify=false",
        f"lora.r={RANKS}", "training.learning_rate=1e-3,1e-4", f"seed=range(1,{1 + seeds})",
        f"hydra.sweep.dir={out / 'sweep'}",
        "+hydra.callbacks.census._target_=census.Census", f"+hydra.callbacks.census.file={census}",
        *([f"sweep.pruner={options.pruner}"] if options.pruner else []),
    ]  # fmt: skip
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]),
    }
    environment |= {"TMPDIR": str(temporary), "HF_HUB_OFFLINE": "1"}
    with (out / "sweep.log").open("w") as log:
        command = [sys.executable, "-m", "chatbot_sft", "-m", *words]
        subprocess.run(command, stdout=log, stderr=log, env=environment, check=True)
    return [json.loads(line) for line in census.read_text(encoding="utf-8").splitlines()]


def slope(values: Sequence[float]) -> float:
    """By how much they grow from one to the next, by least squares."""
    middle, mean = (len(values) - 1) / 2, sum(values) / len(values)
    spread = sum((place - middle) ** 2 for place in range(len(values)))
    return sum((place - middle) * (value - mean) for place, value in enumerate(values)) / spread


def grown(counts: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Type → how many more of its objects there are at the end."""
    first, last = counts[0]["types"], counts[-1]["types"]
    more = {name: number - first.get(name, 0) for name, number in last.items()}
    return dict(
        sorted(((name, number) for name, number in more.items() if number > 0), key=lambda one: -one[1])
    )


def draw(counts: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Resident memory and what tensors store, job by job."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    jobs = range(1, 1 + len(counts))
    axes.plot(jobs, [one["rss"] / 1e6 for one in counts], color="#1f5fa8")
    axes.set(
        xlabel="jobs that have ended in this process", ylabel="resident memory, MB", xlim=(0, len(counts) + 1)
    )
    axes.set_ylim(0, 1.25 * max(one["rss"] for one in counts) / 1e6)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    last = counts[-1]["rss"] / 1e6
    axes.annotate(f"{last:,.0f} MB", (len(counts), last), (0, 6), textcoords="offset points", ha="right")
    figure.savefig(file, dpi=140)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--pruner", default=None)
    parser.add_argument("--draw", action="store_true", help="what an earlier start has counted")
    options = parser.parse_args()
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    if os.environ.get("QUICK"):
        options.jobs = 16
    census = options.out / "census.jsonl"
    counts = (
        [json.loads(line) for line in census.read_text().splitlines()] if options.draw else sweep(options)
    )
    with (options.out / "counts.csv").open("w", newline="", encoding="utf-8") as stream:
        rows = csv.writer(stream)
        rows.writerow(["job", "rss", *FIGURES])
        rows.writerows([one["job"], one["rss"], *(one[name] for name in FIGURES)] for one in counts)
    draw(counts, options.out / "memory.png")
    later = counts[len(counts) // 5 :]
    print(
        f"{len(counts)} jobs, {counts[-1]['seconds'] - counts[0]['seconds']:.0f} s from the first's end to the last's"
    )
    print("| | first | after a fifth | last | a job |\n|---|--:|--:|--:|--:|")
    for name in ("rss", "tensor_bytes", *FIGURES):
        values = [one[name] for one in later]
        row = f"| {name} | {counts[0][name]:,} | {values[0]:,} | {values[-1]:,} | {slope(values):,.2f} |"
        print(row)
    for name, number in list(grown(later).items())[:20]:
        print(f"  {number / len(later):+.2f} a job: {name}")


if __name__ == "__main__":
    main()
