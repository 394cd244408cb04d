"""Eight configurations, learning rate × rank: one sweep beside eight runs of raw scripts, and eight cold runs.

    python benchmarks/sweep.py OUT --model FOLDER [--bits 4] [--steps 200] [--parts abcdp]

(a) a raw Unsloth notebook script, (b) the same hand-tuned: benchmarks/train.py, one whole run of each, times eight
(c) python -m chatbot_sft for one of the eight, from a process of its own, times eight
(d) python -m chatbot_sft -m over all eight
(p) the same with sweep.pruner=halving

All train on the same short conversations, for the same number of steps; times are those of whole commands, imports,
loading and compiling in them. --parts pdb,ac: a and c on the second card meanwhile. QUICK=1 takes a few steps, to
try the script itself, on a CPU too.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

RATES, RANKS = ("1e-4", "3e-4", "1e-3", "3e-3"), ("8", "16")
JOBS = len(RATES) * len(RANKS)
NAMES = {
    "a": "8 × Unsloth notebook",
    "b": "8 × hand-tuned",
    "c": "8 × chatbot_sft, cold",
    "d": "sweep",
    "p": "sweep, pruned",
}


def timed(command: list[str], log: Path, gpu: int) -> float:
    """Seconds that `command` took.

    Raises:
        subprocess.CalledProcessError: it failed; `log` has what it said.
    """
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": str(gpu)}
    started = time.perf_counter()
    with log.open("w") as stream:
        subprocess.run(command, stdout=stream, stderr=stream, env=environment, check=True)
    return time.perf_counter() - started


def raw(options: argparse.Namespace, contender: str, gpu: int) -> float:
    """Seconds of one whole run of a raw script."""
    out = options.out / contender
    out.mkdir(parents=True, exist_ok=True)
    (out / "short.json").write_bytes((options.out / "short.json").read_bytes())
    command = [
        sys.executable, str(Path(__file__).with_name("train.py")), str(out), "--model", f"raw={options.model}",
        "--lengths", "short", "--steps", str(options.steps),
        "--child", contender, str(options.bits), str(time.time()),
    ]  # fmt: skip
    return timed(command, options.out / f"{contender}.log", gpu)


def ours(options: argparse.Namespace, part: str, gpu: int) -> float:
    """Seconds of a command of ours."""
    every = max(1, options.steps // 8)
    settings = [
        "model=local", f"model.name={options.model}", f"model.load_in_4bit={str(options.bits == 4).lower()}",
        f"dataset.data_path={options.out / 'short.json'}", "dataset.eval_fraction=0.05",
        f"training.max_steps={options.steps}", "training.sample_max_new_tokens=0", "save=none",
    ]  # fmt: skip
    grid = ["-m", f"training.learning_rate={','.join(RATES)}", f"lora.r={','.join(RANKS)}"]
    more = {
        "c": [f"training.learning_rate={RATES[1]}", f"lora.r={RANKS[1]}", f"hydra.run.dir={options.out / part}"],
        "d": [*grid, f"hydra.sweep.dir={options.out / part}"],
        "p": [*grid, "sweep.pruner=halving", f"training.eval_steps={every}", f"hydra.sweep.dir={options.out / part}"],
    }[part]  # fmt: skip
    return timed([sys.executable, "-m", "chatbot_sft", *settings, *more], options.out / f"{part}.log", gpu)


def best(folder: Path) -> str:
    """The winner of a sweep, and the steps that all its jobs took together."""
    with (folder / "leaderboard.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return f"{json.dumps(rows[0])}, {sum(int(row['steps'] or 0) for row in rows)} steps in all"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--parts", default="abcdp")
    options = parser.parse_args()
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    if os.environ.get("QUICK"):
        options.steps = 4
    from peers import conversations
    from transformers import AutoTokenizer

    rows = conversations("short", AutoTokenizer.from_pretrained(options.model), 600)
    (options.out / "short.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")

    seconds: dict[str, float] = {}

    def run(parts: str, gpu: int) -> None:
        for part in parts:
            try:
                took = raw(options, part, gpu) if part in "ab" else ours(options, part, gpu)
            except subprocess.CalledProcessError as error:
                print(f"({part}) failed with {error.returncode}", flush=True)
                continue
            seconds[part] = took * (JOBS if part in "abc" else 1)
            print(f"({part}) {took:.0f} s", flush=True)
            if part in "dp":
                print(best(options.out / part), flush=True)

    cards = options.parts.split(",")
    with ThreadPoolExecutor(len(cards)) as pool:
        for running in [pool.submit(run, parts, gpu) for gpu, parts in enumerate(cards)]:
            running.result()
    print("| | s | × sweep | × sweep, pruned |\n|---|--:|--:|--:|")
    for part, name in NAMES.items():
        if part in seconds:
            ratios = [f"{seconds[part] / seconds[other]:.1f}" if other in seconds else "" for other in "dp"]
            print(f"| {name} | {seconds[part]:,.0f} | {' | '.join(ratios)} |")
    (options.out / "results.json").write_text(json.dumps(seconds))


if __name__ == "__main__":
    main()
