"""Merging and GGUF of a Llama-3.2-3B shape: seconds, and the peak of the process's memory against the size of
the weights, beside the peers.

    python benchmarks/exports.py WORK_FOLDER TOKENIZER_FOLDER [--converter path/to/convert_hf_to_gguf.py]
    [--shape 1b|3b]

Random weights: what is measured does not depend on them. Each case runs in a process of its own, one after
the other, on the same files. The tokenizer is any Hugging Face folder's; `--converter` is the one of a
llama.cpp checkout.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

SHAPES = {
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "head_dim": 64,
    },
    "3b": {
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "head_dim": 128,
    },
}
HUB = {"revision": None, "trust_remote_code": False}
KINDS = ("f16", "q8_0", "q4_k_m")


def make(work: Path, tokenizer: Path, shape: str) -> None:
    """A base and a LoRA of rank 16 on its seven projections, both random."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    rope = {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    }
    rope["original_max_position_embeddings"] = 8192
    config = LlamaConfig(
        **SHAPES[shape], num_key_value_heads=8, vocab_size=128256, tie_word_embeddings=True,
        rms_norm_eps=1e-5, rope_parameters=rope,
        max_position_embeddings=131072, dtype="bfloat16",
    )  # fmt: skip
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model = LlamaForCausalLM(config)
    model.save_pretrained(work / "base", max_shard_size="5GB")
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(work / "base")
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    adapted = get_peft_model(
        model,
        LoraConfig(
            r=16, lora_alpha=16, target_modules=targets, task_type="CAUSAL_LM", init_lora_weights=False
        ),
    )
    adapted.peft_config["default"].base_model_name_or_path = str(work / "base")
    adapted.save_pretrained(work / "adapter")


def ours(work: Path, output: Path) -> None:
    """What `save.method` writes: a merged folder, or a GGUF file straight from base and adapter."""
    from transformers import AutoConfig, AutoTokenizer

    from chatbot_sft.save.gguf import llama_cpp
    from chatbot_sft.save.gguf.file import WRITTEN, write_gguf
    from chatbot_sft.save.merged import sixteen_bit, write_shards
    from chatbot_sft.save.weights import of_checkpoint

    weights = of_checkpoint(
        str(work / "base"), AutoConfig.from_pretrained(work / "base"), HUB, work / "adapter", 128256
    )
    if output.suffix != ".gguf":
        output.mkdir()
        weights.config.save_pretrained(output)
        AutoTokenizer.from_pretrained(work / "base").save_pretrained(output)
        write_shards(weights, sixteen_bit(weights.config), output)
        return
    kind = output.stem
    written = output if kind in WRITTEN else output.with_name("source.gguf")
    tokenizer = AutoTokenizer.from_pretrained(work / "base")
    write_gguf(
        weights, tokenizer, work / "base", None, kind if kind in WRITTEN else "f16", "benchmark", written
    )
    if written != output:
        llama_cpp.quantize(llama_cpp.quantizer(None), written, output, kind)


def peft(work: Path, output: Path) -> None:
    """What a script does: PEFT's merge_and_unload, then save_pretrained."""
    import torch
    from peft import AutoPeftModelForCausalLM

    AutoPeftModelForCausalLM.from_pretrained(
        work / "adapter", dtype=torch.bfloat16
    ).merge_and_unload().save_pretrained(output)


CASES: dict[str, Callable[..., None]] = {"make": make, "ours": ours, "peft": peft}


def timed(command: list[str]) -> tuple[float, float]:
    """(seconds, GB of the largest process at its peak) of a command."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    stderr = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}:\n{stderr[-2000:]}")
    return time.perf_counter() - started, usage.ru_maxrss * 1024 / 1e9


def main() -> None:
    if sys.argv[1] == "case":
        _, _, name, work, output, *rest = sys.argv
        CASES[name](Path(work), Path(output), *rest)
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--converter", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="3b")
    given = parser.parse_args()
    work = given.work / given.shape
    if not (work / "adapter").is_dir():
        # In a process of its own, too: what this one has had in memory would count as its children's.
        subprocess.run(
            [sys.executable, __file__, "case", "make", str(work), str(given.tokenizer), given.shape],
            check=True,
        )
    shards = [file.stat().st_size / 1e9 for file in (work / "base").glob("*.safetensors")]
    print(
        f"weights {sum(shards):.2f} GB, largest shard {max(shards):.2f} GB, 1.3 × that + 1 GB ="
        f" {1.3 * max(shards) + 1:.2f} GB"
    )
    runs = {
        "merged_16bit, ours": ("ours", work / "merged"),
        "merged_16bit, PEFT": ("peft", work / "merged_by_peft"),
    }
    runs |= {f"{kind}, ours": ("ours", work / f"{kind}.gguf") for kind in KINDS}
    print(f"{'':40} {'seconds':>8} {'peak GB':>8}")
    for label, (case, output) in runs.items():
        report(label, timed([sys.executable, __file__, "case", case, str(work), str(output)]))
    if given.converter:
        for kind in KINDS[:2]:
            command = [
                sys.executable,
                str(given.converter),
                str(work / "merged"),
                "--outtype",
                kind,
                "--outfile",
                str(work / f"theirs-{kind}.gguf"),
            ]
            report(f"{kind}, llama.cpp's converter of a merged folder", timed(command))


def report(label: str, measured: tuple[float, float]) -> None:
    print(f"{label:40} {measured[0]:8.1f} {measured[1]:8.2f}", flush=True)


if __name__ == "__main__":
    main()
