"""Preference training on one GPU, side by side in one run: TRL's DPOTrainer with Unsloth and with plain PEFT, and
`python -m chatbot_sft objective=dpo`.

    python benchmarks/preference.py OUT --model NAME=FOLDER [--bits 4,16] [--contenders abcd] [--steps N]

(QUICK=1 takes two steps each, to try the script itself; on a CPU too, but for (c): TRL's kernel is for a GPU.)

(a) TRL's DPOTrainer with Unsloth as its notebooks write it: 2 × 4, checkpointing "unsloth"
(b) the same hand-tuned: 8 × 1, no checkpointing, the reference computed before
(c) TRL's DPOTrainer with PEFT, 2 × 4, checkpointing
(d) python -m chatbot_sft objective=dpo with its defaults

Each contender is a process of its own and trains on the same pairs: one question, two answers, each conversation
about 220 tokens. Speed is that of the later half of the steps: compilation is not in it, nor what (b) and (d) compute
of the reference before, which is told apart.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from peers import CHECKPOINTING, LONGEST, adapted, conversations, synchronize

PAIRS = 8  # of a step
STEPS = {"a": 14, "b": 24, "c": 8, "d": 240}


def pairs(tokenizer, count: int) -> list[dict]:
    """`count` questions, each with the answers of two conversations."""
    rows = [row["messages"] for row in conversations("short", tokenizer, 2 * count)]
    return [
        {"prompt": [first[0]], "chosen": [first[1]], "rejected": [second[1]]}
        for first, second in zip(rows[::2], rows[1::2], strict=True)
    ]


def theirs(contender: str, model_folder: str, bits: int, data: Path, out: Path, steps: int) -> None:
    """Contenders a, b and c."""
    checkpointing = CHECKPOINTING[contender]
    model, tokenizer = adapted(contender, model_folder, bits)  # imports Unsloth, which comes first
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer

    gpu = torch.cuda.is_available()
    ends = [time.perf_counter()]

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            synchronize()
            ends.append(time.perf_counter())

    micro = PAIRS if contender == "b" else 2
    arguments = DPOConfig(
        max_length=LONGEST, per_device_train_batch_size=micro, gradient_accumulation_steps=PAIRS // micro,
        max_steps=steps, warmup_steps=5, learning_rate=2e-5, logging_steps=1, weight_decay=0.01, seed=3407,
        optim="adamw_8bit" if gpu else "adamw_torch", report_to="none", output_dir=str(out / "checkpoints"),
        save_strategy="no", disable_tqdm=True, gradient_checkpointing=bool(checkpointing),
        gradient_checkpointing_kwargs={"use_reentrant": False}, bf16=gpu, use_cpu=not gpu,
        precompute_ref_log_probs=contender == "b",
    )  # fmt: skip
    rows = Dataset.from_list(json.loads(data.read_text(encoding="utf-8")))
    began = time.perf_counter()
    trainer = DPOTrainer(
        model=model, args=arguments, train_dataset=rows, processing_class=tokenizer, callbacks=[Clock()]
    )
    before = time.perf_counter() - began
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    ends[:] = [time.perf_counter()]
    trainer.train()
    half = len(ends) // 2
    milliseconds = 1000 * (ends[-1] - ends[half]) / (len(ends) - 1 - half)
    result = {
        "milliseconds_per_step": milliseconds,
        "peak_gb": torch.cuda.max_memory_reserved() / 1e9 if gpu else 0.0,
        "seconds_before": before if contender == "b" else None,
    }
    (out / "result.json").write_text(json.dumps(result))


def ours(model_folder: str, bits: int, data: Path, out: Path, steps: int) -> None:
    """Contender d, the command line."""
    command = [
        sys.executable, "-m", "chatbot_sft", "objective=dpo", "model=local", f"model.name={model_folder}",
        f"model.load_in_4bit={str(bits == 4).lower()}", f"dataset.data_path={data}", "dataset.eval_fraction=0",
        f"training.max_steps={steps}", "training.learning_rate=2e-5", "training.sample_max_new_tokens=0", "save=none",
        f"hydra.run.dir={out / 'run'}",
    ]  # fmt: skip
    done = subprocess.run(command, stdout=sys.stdout, stderr=subprocess.PIPE, text=True, check=False)
    sys.stderr.write(done.stderr)
    done.check_returncode()
    report = json.loads((out / "run" / "report.json").read_text(encoding="utf-8"))
    found = re.search(r"reference: .* rows in ([\d.]+) s", done.stderr)
    result = {
        "milliseconds_per_step": report["training"]["milliseconds_per_step"],
        "peak_gb": report["memory"]["peak_gb"],
        "seconds_before": float(found[1]) if found else None,
        "batch_layout": report["training"]["batch_layout"],
    }
    (out / "result.json").write_text(json.dumps(result))


def table(results: list[dict]) -> str:
    """Markdown: a row each, ratios to (a) and (b) of the same model and bits."""
    lines = ["| model | contender | pairs/s | × (a) | × (b) | ms a step | peak GB | reference before (s) |"]
    lines.append("|---" * 8 + "|")
    for row in results:
        same = {
            other["contender"]: other["milliseconds_per_step"]
            for other in results
            if (other["model"], other["bits"]) == (row["model"], row["bits"])
        }
        ratios = [
            f"{same[name] / row['milliseconds_per_step']:.2f}" if name in same else "" for name in ("a", "b")
        ]
        cells = [
            f"{row['model']} {'4-bit' if row['bits'] == 4 else 'bf16'}",
            f"({row['contender']})",
            f"{1000 * PAIRS / row['milliseconds_per_step']:,.1f}",
            *ratios,
            f"{row['milliseconds_per_step']:,.0f}",
            f"{row['peak_gb']:.1f}",
            f"{row['seconds_before']:.0f}" if row["seconds_before"] is not None else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--bits", default="4,16")
    parser.add_argument("--contenders", default="abcd")
    parser.add_argument("--steps", type=int, help="of every contender, in place of STEPS")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)  # contender, bits
    options = parser.parse_args()
    name, folder = options.model.split("=")
    out: Path = options.out.resolve()
    data = out / "pairs.json"
    if options.child:
        contender, bits = options.child
        steps = options.steps or (2 if os.environ.get("QUICK") else STEPS[contender])
        place = out / f"{name}-{bits}-{contender}"
        place.mkdir(parents=True, exist_ok=True)
        if contender == "d":
            ours(folder, int(bits), data, place, steps)
        else:
            theirs(contender, folder, int(bits), data, place, steps)
        return
    from transformers import AutoTokenizer

    out.mkdir(parents=True, exist_ok=True)
    count = 2 * PAIRS if os.environ.get("QUICK") else 600
    rows = pairs(AutoTokenizer.from_pretrained(folder), count)
    data.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    results = []
    for bits in map(int, options.bits.split(",")):
        for contender in options.contenders:
            started = time.time()
            command = [sys.executable, __file__, str(out), "--model", options.model]
            command += ["--child", contender, str(bits)]
            command += ["--steps", str(options.steps)] if options.steps else []
            log = out / f"{name}-{bits}-{contender}.log"
            with log.open("w") as stream:
                done = subprocess.run(command, stdout=stream, stderr=stream, check=False)
            said = f"{name} {bits} ({contender}): exit {done.returncode}, {time.time() - started:.0f} s"
            print(said, flush=True)
            file = out / f"{name}-{bits}-{contender}" / "result.json"
            if done.returncode == 0:
                known = {"model": name, "bits": bits, "contender": contender}
                results.append({**known, **json.loads(file.read_text())})
    (out / "results.json").write_text(json.dumps(results, indent=1))
    print(table(results), flush=True)


if __name__ == "__main__":
    main()
