"""What the benchmarks of training share: conversations to train on, and the model as the peers' scripts load it.

(a) is Unsloth as its notebooks write it, (b) the same hand-tuned, (c) TRL + PEFT.
"""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

EXAMPLE = Path(__file__).resolve().parent.parent / "data" / "thinking_teacher_conversations.json"
MEAN = {"short": 220, "long": 1500}  # tokens
LONGEST = 2048
CHECKPOINTING = {"a": "unsloth", "b": False, "c": True}
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def conversations(kind: str, tokenizer, count: int) -> list[dict]:
    """`count` conversations of one question and one answer, their lengths lognormal around the mean of
    `kind`; the words are the example's.
    """
    draw = random.Random(kind)
    words = " ".join(
        m["content"] for row in json.loads(EXAMPLE.read_text(encoding="utf-8")) for m in row["messages"]
    ).split()
    per_word = len(tokenizer(" ".join(words[:5000]))["input_ids"]) / 5000
    made = []
    for _ in range(count):
        tokens = min(LONGEST * 0.95, max(40, draw.lognormvariate(math.log(MEAN[kind]) - 0.08, 0.4)))
        size = int((tokens - 20) / per_word)
        start = draw.randrange(len(words) - 4000)
        text = words[start : start + size]
        cut = max(3, size // 4)
        made.append(
            {
                "messages": [
                    {"role": "user", "content": " ".join(text[:cut])},
                    {"role": "assistant", "content": " ".join(text[cut:])},
                ]
            }
        )
    return made


def synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def adapted(contender: str, folder: str, bits: int) -> tuple[Any, Any]:
    """(model, tokenizer): the model in `folder`, in 4 or 16 bits, with an adapter of rank 16."""
    if contender != "c":
        from unsloth import FastLanguageModel

        model, tokenizer = FastLanguageModel.from_pretrained(
            folder, max_seq_length=LONGEST, dtype=None, load_in_4bit=bits == 4
        )
        model = FastLanguageModel.get_peft_model(
            model, r=16, lora_alpha=16, lora_dropout=0, bias="none", target_modules=MODULES,
            use_gradient_checkpointing=CHECKPOINTING[contender], random_state=3407,
        )  # fmt: skip
        return model, tokenizer
    import torch
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    nf4 = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, quantization_config=nf4 if bits == 4 else None,
        device_map={"": 0} if torch.cuda.is_available() else None,
    )  # fmt: skip
    if bits == 4:
        model = prepare_model_for_kbit_training(model, gradient_checkpointing_kwargs={"use_reentrant": False})
    lora = LoraConfig(r=16, lora_alpha=16, target_modules=MODULES, task_type="CAUSAL_LM")
    return get_peft_model(model, lora), AutoTokenizer.from_pretrained(folder)
