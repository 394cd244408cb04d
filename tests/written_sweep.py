"""Sweeps that were never run: sweep.json and the reports of jobs, written with plausible figures."""

import json
import math
import os
import random
from pathlib import Path

from conftest import TRAINING, a_report, write_json

PROMPTS = {
    "Gold với Lager khác gì nhau?": "Gold 5,0% làm toàn từ mạch nha; Lager nhẹ hơn, {strength}%, hợp {food}.",
    "Which beer goes with a barbecue?": "Lager, well chilled. It is light ({strength}%) and suits {food}.",
    "Can I return an open case?": "No, only closed cases within {food} days.",
}


def written(
    folder: Path, jobs: list[dict], metric: str = "training.eval_loss", direction: str = "minimise"
) -> Path:
    """A sweep in `folder`. Of each job: `overrides`, and what else `job` takes."""
    points = []
    for number, given in enumerate(jobs):
        points.append({"number": number, "overrides": given["overrides"], "folder": str(number)})
        job(folder / str(number), **{key: value for key, value in given.items() if key != "overrides"})
    study = {
        "command": "python -m chatbot_sft -m lora.r=8,16 training.learning_rate=1e-4,3e-4",
        "started": "2026-11-29T12:00:00+00:00",
        "metric": metric,
        "direction": direction,
        "overrides": [],
        "space": [],
        "points": points,
        "errors": {},
        "schema": 1,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "sweep.json", study)
    return folder


def job(
    folder: Path, status="completed", loss=1.5, losses=None, error=None, samples=None, training=None, **parts
) -> Path:
    """A job's directory. `status` waiting: there is none yet; running: it has made the evaluations `losses`."""
    if status == "waiting":
        return folder
    losses = losses or [3.0, 2.0, loss]
    other = {"perplexity": 4.5, "token_accuracy": 0.6, "seconds": 1.0, "samples": []}
    records = [{"step": 10 * at, "loss": value, **other} for at, value in enumerate(losses)]
    folder.mkdir(parents=True)
    if status == "running":
        (folder / "checkpoints").mkdir()
        text = "".join(json.dumps(record) + "\n" for record in records)
        (folder / "checkpoints" / "evaluations.jsonl").write_text(text + '{"step": 99, "lo')
        write_json(folder / ".lock.json", {"pid": os.getpid(), "host": os.uname().nodename})
        return folder
    trained = {} if status == "failed" else {**TRAINING, "eval_loss": losses[-1], **(training or {})}
    report = a_report(
        status=status,
        error=error,
        training=trained,
        evaluations=[] if status == "failed" else records,
        samples=samples or [],
        memory={"device": "GPU", "start_gb": 1.0, "peak_gb": 7.2, "training_gb": 6.2},
        **parts,
    )
    write_json(folder / "report.json", report)
    return folder


def plausible(folder: Path, rates=(1e-4, 3e-4, 1e-3), ranks=(8, 16), seeds=(), steps=20) -> Path:
    """A grid with a failed and a pruned job among its last ones, drawn by chance that is always the same."""
    chance = random.Random(0)
    jobs = []
    for rate in rates:
        for rank in ranks:
            for seed in seeds or (None,):
                jobs.append(_drawn(chance, rate, rank, seed, steps))
    jobs[-2] |= {"status": "pruned", "error": "pruned at step 60: median of the others 1.912"}
    jobs[-2]["losses"] = jobs[-2]["losses"][: max(2, steps // 3)]
    jobs[-1] |= {
        "status": "failed",
        "error": "CUDA out of memory: 2.31 GB asked for, 1.02 GB free of 79.1 GB; set"
        " training.per_device_train_batch_size=1 or model.max_seq_length lower",
    }
    return written(folder, jobs)


def _drawn(chance, rate, rank, seed, steps):
    away = math.log10(rate / 3e-4)
    end = 1.62 + 0.25 * away**2 - 0.02 * math.log2(rank) + chance.gauss(0, 0.008)
    losses = [
        end + (2.9 - end) * math.exp(-5 * at / steps * (1 + 0.4 * away)) + chance.gauss(0, 0.004)
        for at in range(steps)
    ]
    losses.append(end)
    words = {
        "strength": "4,5" if rank > 8 else "5",
        "food": ["grilled food", "fish", "14", "món nướng"][int(rate * 1e4) % 4],
    }
    samples = [
        {"prompt": prompt, "before": "I am a helpful assistant.", "after": answer.format(**words)}
        for prompt, answer in PROMPTS.items()
    ]
    overrides = [
        f"training.learning_rate={rate:g}",
        f"lora.r={rank}",
        *([f"seed={seed}"] if seed is not None else []),
    ]
    training = {
        "steps": 10 * steps,
        "tokens_per_second": 29000 - 20 * rank + chance.gauss(0, 300),
        "seconds": 40 + chance.gauss(0, 2),
    }
    return {"overrides": overrides, "losses": losses, "samples": samples, "training": training}
