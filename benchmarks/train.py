"""Training speed on one GPU, side by side in one run: raw Unsloth scripts, TRL + PEFT, and `python -m
chatbot_sft`.

    python benchmarks/train.py OUT --model NAME=FOLDER[,NAME=FOLDER…] [--bits 4,16] [--lengths short,long]
    [--contenders abcdefgh] [--gpus 1] [--steps N]

(QUICK=1 takes two steps each, to try the script itself, on a CPU too.)

(a) Unsloth as its notebooks write it: 2 × 4, checkpointing "unsloth"
(b) Unsloth hand-tuned: 8 × 1, padding-free, no checkpointing
(c) TRL + PEFT, 2 × 4, checkpointing
(d) python -m chatbot_sft with its defaults
(e) the same with training.batch_layout=as_configured
(f) the same as (d) with model.engine=unsloth
(g) the same as (d) with model.load_in_fp8=true, in 16 bits alone
(h) the same as (d) within 11 of an H200's 150 GB: training.memory_margin=0.927

Each contender is a process of its own and trains on the same conversations, cut to lengths of which short has
a mean of about 220 tokens and long of about 1,500. Speed is that of the later half of the steps, so
compilation is not in it; "first step" is from the start of the process to its first step's end, compilation
and imports in it. The floor is what the matrix products alone would take at the rate measured here: 4 FLOP a
token and parameter with a frozen base. With --gpus N the models and bits are dealt out to N GPUs; what is
compared always runs on one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from peers import CHECKPOINTING, LONGEST, adapted, conversations, synchronize

# short, long
STEPS = {
    "a": (14, 6),
    "b": (24, 12),
    "c": (8, 4),
    "d": (240, 120),
    "e": (14, 6),
    "f": (240, 40),
    "g": (240, 120),
    "h": (240, 120),
}


def steps(contender: str, kind: str) -> int:
    return 2 if os.environ.get("QUICK") else STEPS[contender][kind == "long"]


def raw(contender: str, model_folder: str, bits: int, data: dict[str, str], out: Path, began: float) -> None:
    """Contenders a, b and c, one process for all lengths."""
    if contender != "c":
        from unsloth.chat_templates import train_on_responses_only
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    checkpointing = CHECKPOINTING[contender]
    model, tokenizer = adapted(contender, model_folder, bits)

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.ends, self.tokens, self.sums = [time.perf_counter()], [], []

        def on_step_end(self, args, state, control, **kwargs):
            synchronize()
            self.ends.append(time.perf_counter())
            self.tokens.append(sum(int(count) for count in self.sums))
            self.sums.clear()
            if len(self.ends) == 2:
                self.first = time.time() - began

    for index, (kind, file) in enumerate(data.items()):
        rows = json.loads(Path(file).read_text(encoding="utf-8"))
        texts = Dataset.from_list(
            [{"text": tokenizer.apply_chat_template(row["messages"], tokenize=False)} for row in rows]
        )
        micro, accumulation = (8, 1) if contender == "b" else (2, 4)
        arguments = SFTConfig(
            dataset_text_field="text", max_length=LONGEST, warmup_steps=5,
            per_device_train_batch_size=micro, gradient_accumulation_steps=accumulation,
            max_steps=steps(contender, kind), learning_rate=2e-4, logging_steps=1, optim="adamw_8bit",
            weight_decay=0.01,
            lr_scheduler_type="linear", seed=3407, report_to="none", output_dir=str(out / "checkpoints"),
            save_strategy="no", disable_tqdm=True,
            gradient_checkpointing=bool(checkpointing),
            gradient_checkpointing_kwargs={"use_reentrant": False}, bf16=True,
            **({"padding_free": True} if contender == "b" else {}),
        )  # fmt: skip
        clock = Clock()
        trainer = SFTTrainer(
            model=model, processing_class=tokenizer, train_dataset=texts, args=arguments, callbacks=[clock]
        )
        if contender != "c":
            trainer = train_on_responses_only(trainer)
        step = trainer.training_step

        def counted(model, inputs, *args, step=step, clock=clock, **kwargs):
            clock.sums.append(
                inputs["attention_mask"].sum()
                if "attention_mask" in inputs
                else torch.tensor(inputs["input_ids"].numel())
            )
            return step(model, inputs, *args, **kwargs)

        trainer.training_step = counted
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        clock.ends = [time.perf_counter()]
        trainer.train()
        half = len(clock.ends) // 2
        seconds = clock.ends[-1] - clock.ends[half]
        result = {
            "tokens_per_second": sum(clock.tokens[half:]) / seconds,
            "milliseconds_per_step": 1000 * seconds / (len(clock.ends) - 1 - half),
            "peak_gb": torch.cuda.max_memory_reserved() / 1e9 if torch.cuda.is_available() else 0.0,
            "seconds_to_first_step": clock.first if index == 0 else None,
        }
        (out / f"{kind}.json").write_text(json.dumps(result))
        del trainer
        torch.cuda.empty_cache()


def ours(contender: str, model_folder: str, bits: int, data: dict[str, str], out: Path) -> None:
    """Contenders d to h: the command line, a process for each length."""
    for kind, file in data.items():
        folder = out / kind
        command = [
            sys.executable, "-m", "chatbot_sft", "model=local", f"model.name={model_folder}",
            f"model.load_in_4bit={str(bits == 4).lower()}",
            f"dataset.data_path={file}", "dataset.eval_fraction=0", f"training.max_steps={steps(contender, kind)}",
            "training.sample_max_new_tokens=0", "save=none", f"hydra.run.dir={folder}",
            *(["training.batch_layout=as_configured"] if contender == "e" else []),
            *(["model.engine=unsloth"] if contender == "f" else []),
            *(["model.load_in_fp8=true"] if contender == "g" else []),
            *(["training.memory_margin=0.927"] if contender == "h" else []),
        ]  # fmt: skip
        subprocess.run(command, check=True)
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        training = report["training"]
        result = {
            name: training[name]
            for name in (
                "tokens_per_second",
                "milliseconds_per_step",
                "seconds_to_first_step",
                "batch_layout",
            )
        }
        result |= {"peak_gb": report["memory"]["peak_gb"], "batch_layouts": training["batch_layouts"]}
        (out / f"{kind}.json").write_text(json.dumps(result))


def floor(model_folders: list[str]) -> dict[str, float]:
    """{model folder: tokens per second if the frozen base's matrix products were all there is}, and the rate
    itself under "tflops".
    """
    import torch

    size = 8192 if torch.cuda.is_available() else 1024
    a, b = (
        torch.randn(size, size, device="cuda" if torch.cuda.is_available() else "cpu", dtype=torch.bfloat16)
        for _ in range(2)
    )
    for _ in range(5):
        a @ b
    synchronize()
    started = time.perf_counter()
    for _ in range(30):
        a @ b
    synchronize()
    rate = 30 * 2 * size**3 / (time.perf_counter() - started)
    found = {"tflops": rate / 1e12}
    for folder in model_folders:
        c = json.loads(Path(folder, "config.json").read_text())
        head = c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
        attention = c["hidden_size"] * head * (2 * c["num_attention_heads"] + 2 * c["num_key_value_heads"])
        layer = attention + 3 * c["hidden_size"] * c["intermediate_size"]
        found[folder] = rate / (4 * (c["num_hidden_layers"] * layer + c["vocab_size"] * c["hidden_size"]))
    return found


def table(results: list[dict]) -> str:
    """Markdown: one row per contender, ratios to (a) and (b) of the same model, bits and lengths."""
    lines = [
        (
            "| model | conversations | contender | tokens/s | × (a) | × (b) | ms a step | peak GB | of the"
            " floor | first step (s) |"
        ),
        "|---" * 10 + "|",
    ]
    for row in results:
        same = {
            r["contender"]: r["tokens_per_second"]
            for r in results
            if all(r[k] == row[k] for k in ("model", "bits", "kind"))
        }
        ratios = [
            f"{row['tokens_per_second'] / same[name]:.2f}" if name in same else "" for name in ("a", "b")
        ]
        first = f"{row['seconds_to_first_step']:.0f}" if row["seconds_to_first_step"] else ""
        cells = [
            f"{row['model']} {'4-bit' if row['bits'] == 4 else 'bf16'}",
            row["kind"],
            f"({row['contender']})",
            f"{row['tokens_per_second']:,.0f}",
            *ratios,
        ]
        cells += [
            f"{row['milliseconds_per_step']:,.0f}",
            f"{row['peak_gb']:.1f}",
            f"{row['tokens_per_second'] / row['floor']:.0%}",
            first,
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
    parser.add_argument("--lengths", default="short,long")
    parser.add_argument("--contenders", default="abcdef")
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--first-gpu", type=int, default=0)
    parser.add_argument("--steps", type=int, help="of every contender, in place of STEPS")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)  # contender, bits, began
    options = parser.parse_args()
    if options.steps:
        STEPS.update(dict.fromkeys(STEPS, (options.steps, options.steps)))
    models = dict(item.split("=") for item in options.model.split(","))
    out: Path = options.out.resolve()
    data = {kind: str(out / f"{kind}.json") for kind in options.lengths.split(",")}
    if options.child:
        contender, bits, began = options.child
        ((name, folder),) = models.items()
        place = out / f"{name}-{bits}-{contender}"
        place.mkdir(parents=True, exist_ok=True)
        if contender in "abc":
            raw(contender, folder, int(bits), data, place, float(began))
        else:
            ours(contender, folder, int(bits), data, place)
        return
    from transformers import AutoTokenizer

    out.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(next(iter(models.values())))
    for kind, file in data.items():
        rows = conversations(kind, tokenizer, 600 if kind == "short" else 200)
        Path(file).write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
        sizes = [len(tokenizer.apply_chat_template(row["messages"])["input_ids"]) for row in rows[:100]]
        print(f"{kind}: mean {sum(sizes) / len(sizes):.0f} tokens, longest {max(sizes)} (of 100)", flush=True)
    speed = floor(list(models.values()))
    print(f"matrix products: {speed['tflops']:.0f} TFLOP/s (bf16, 8192)", flush=True)

    def contend(job: tuple[int, str, int]) -> None:
        gpu, name, bits = job
        for contender in options.contenders:
            started = time.time()
            command = [
                sys.executable,
                __file__,
                str(out),
                "--model",
                f"{name}={models[name]}",
                "--lengths",
                options.lengths,
            ]
            command += ["--child", contender, str(bits), str(started)]
            command += ["--steps", str(options.steps)] if options.steps else []
            log = out / f"{name}-{bits}-{contender}.log"
            with log.open("w") as stream:
                done = subprocess.run(
                    command,
                    stdout=stream,
                    stderr=stream,
                    env={**os.environ, "CUDA_VISIBLE_DEVICES": str(gpu)},
                    check=False,
                )
            print(
                f"{name} {bits} ({contender}): exit {done.returncode}, {time.time() - started:.0f} s",
                flush=True,
            )

    jobs = [(name, bits) for name in models for bits in map(int, options.bits.split(","))]
    with ThreadPoolExecutor(options.gpus) as pool:
        for gpu in range(options.gpus):
            pool.submit(
                lambda gpu=gpu: [
                    contend((options.first_gpu + gpu, *job)) for job in jobs[gpu :: options.gpus]
                ]
            )
    results = []
    for name, bits in jobs:
        for kind in data:
            for contender in options.contenders:
                file = out / f"{name}-{bits}-{contender}" / f"{kind}.json"
                if file.is_file():
                    known = {
                        "model": name,
                        "bits": bits,
                        "kind": kind,
                        "contender": contender,
                        "floor": speed[models[name]],
                    }
                    results.append({**known, **json.loads(file.read_text())})
    (out / "results.json").write_text(json.dumps(results, indent=1))
    print(table(results), flush=True)


if __name__ == "__main__":
    main()
