"""Steps that pruning saves, and whether the winner is still the winner: a sweep of eight, over five seeds. No GPU.

    python benchmarks/pruning.py OUT [--seeds 5] [--steps 24] [--layers 6] [--rates 1e-3,3e-3,1e-2,3e-2]

Each seed's sweep, learning rate × rank on the first layers of the embedded model and short conversations, is trained
whole. What a pruner would have ended is then read off the whole curves: a job that takes turns is to the bit the same
as one that does not (tests/train/test_turns.py). The first seed's sweep is run with each pruner as well, and has to
end alike.

A second start goes on where the first was stopped. QUICK=1 takes one seed and four jobs, to try the script.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chatbot_sft.sweep import pruning

Curve = Mapping[int, float]  # step → held-out loss

RANKS = "8,32"
EVALUATIONS = 8  # of a run
SETTINGS = [
    "model=local", "model.load_in_4bit=false", "model.engine=transformers", "dataset=white_crane",
    "dataset.eval_fraction=0.05", "training.per_device_train_batch_size=4",
    "training.gradient_accumulation_steps=1", "training.per_device_eval_batch_size=15",
    "training.batch_layout=as_configured", "training.sample_max_new_tokens=0", "save=none",
]  # fmt: skip


def sweep(options: argparse.Namespace, seed: int, pruner: str | None = None) -> dict[int, dict[str, Any]]:
    """Job → its report.json, of the sweep of `seed`; one may have failed, its loss off the rails."""
    folder = options.out / "-".join(filter(None, (str(seed), pruner)))
    rates = options.rates.split(",", 2)[0] if os.environ.get("QUICK") else options.rates
    every = options.steps // EVALUATIONS
    words = [
        f"model.name={options.out / 'model'}", f"seed={seed}", f"training.max_steps={options.steps}",
        f"training.eval_steps={every}", f"training.learning_rate={rates}", f"lora.r={RANKS}",
        f"hydra.sweep.dir={folder}",
        *([f"sweep.pruner={pruner}"] if pruner else []),
    ]  # fmt: skip
    with folder.with_suffix(".log").open("a") as log:
        command = [sys.executable, "-m", "chatbot_sft", "-m", *SETTINGS, *words]
        subprocess.run(command, stdout=log, stderr=log)
    reports = {
        int(file.parent.name): json.loads(file.read_text(encoding="utf-8"))
        for file in sorted(folder.glob("*/report.json"), key=lambda file: int(file.parent.name))
    }
    if len(reports) < 8 and not os.environ.get("QUICK"):
        sys.exit(f"{folder}: {len(reports)} of 8 jobs; what was said is in {log.name}")
    return reports


def write_model(folder: Path, layers: int) -> None:
    """The embedded model's first layers, with its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from chatbot_sft.model import embedded

    source = embedded.folder()
    AutoModelForCausalLM.from_pretrained(source, num_hidden_layers=layers).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)


def curve(report: Mapping[str, Any]) -> dict[int, float]:
    """The held-out losses from the first turn on."""
    return {one["step"]: one["loss"] for one in report["evaluations"] if one["step"]}


def pruned(pruner: str, curves: Mapping[int, Curve]) -> dict[int, int]:
    """Job → the step at which it ends, where all of them take turns and are judged after each evaluation."""
    last = max(max(one) for one in curves.values())
    ends = {job: max(one) for job, one in curves.items()}
    for step in sorted({step for one in curves.values() for step in one if step < last}):
        seen = {
            job: {at: loss for at, loss in one.items() if at <= min(step, ends[job])}
            for job, one in curves.items()
        }
        live = [job for job in curves if ends[job] > step]
        ends.update(dict.fromkeys(pruning.worst(pruner, seen, live, last), step))
    return ends


def winner(curves: Mapping[int, Curve], ends: Mapping[int, int]) -> int:
    """The best of those that went to the end."""
    last = max(max(one) for one in curves.values())
    return min((job for job in curves if ends[job] == last), key=lambda job: curves[job][last])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--layers", type=int, default=6, help="of the embedded model's thirty")
    parser.add_argument("--rates", default="1e-3,3e-3,1e-2,3e-2")
    parser.add_argument("--pruners", default="halving,hyperband,median")
    options = parser.parse_args()
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    seeds = range(1, 2 if os.environ.get("QUICK") else 1 + options.seeds)
    pruners = options.pruners.split(",")

    if not (options.out / "model").exists():
        write_model(options.out / "model", options.layers)
    whole = {}
    for seed in seeds:
        whole[seed] = {job: curve(report) for job, report in sweep(options, seed).items()}
        losses = {job: round(one[max(one)], 3) for job, one in whole[seed].items()}
        print(f"seed {seed}: held out at the end, by job: {losses}", flush=True)
    print("\n".join(table(whole, pruners)), flush=True)
    for pruner in pruners:
        really = {job: max(curve(report)) for job, report in sweep(options, seeds[0], pruner).items()}
        alike = really == pruned(pruner, whole[seeds[0]])
        print(
            f"seed {seeds[0]} with sweep.pruner={pruner}: {'as read off' if alike else f'ended at {really}'}"
        )


def table(whole: Mapping[int, Mapping[int, Curve]], pruners: Sequence[str]) -> list[str]:
    """A row for each pruner: over all seeds, and what the winner's loss was where it was another job."""
    lines = ["| sweep.pruner | steps | saved | winner kept | otherwise worse by |", "|---|--:|--:|--:|---|"]
    for pruner in pruners:
        steps, most, kept, worse = 0, 0, 0, []
        for curves in whole.values():
            all_of_it = {job: max(one) for job, one in curves.items()}
            ends = pruned(pruner, curves)
            steps, most = steps + sum(ends.values()), most + sum(all_of_it.values())
            best, found = winner(curves, all_of_it), winner(curves, ends)
            kept += best == found
            if best != found:
                last = all_of_it[best]
                worse.append(f"{curves[found][last] - curves[best][last]:.3f}")
        lines.append(
            f"| {pruner} | {steps:,} of {most:,} | {1 - steps / most:.0%} | {kept} of {len(whole)}"
            f" | {', '.join(worse)} |"
        )
    return lines


if __name__ == "__main__":
    main()
