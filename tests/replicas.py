"""Tiny random checkpoints, each of the architecture that the model named in a file of conf/model has.

The configurations are those of the models' own config.json with the sizes taken down: what differs between
the families (rope scaling, tied embeddings, q and k norms, fused projections, a vision tower) is as it is
there. Tokenizer and template are those of tests/families.py.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LAYERS = 2
SPLIT = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
FUSED = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
LLAMA3_ROPE = {"rope_type": "llama3", "rope_theta": 500000.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
PROCESSOR = {
    "processor_config.json": {"processor_class": "Gemma3Processor", "image_seq_length": 4},
    "preprocessor_config.json": {
        "image_processor_type": "Gemma3ImageProcessor",
        "processor_class": "Gemma3Processor",
        "do_resize": True,
        "size": {"height": 16, "width": 16},
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    },
}


@dataclass(frozen=True)
class Replica:
    """`make(vocab_size)` is the model; `linear` the modules of one of its `layers` that get an adapter;
    `family` names the chat template.
    """

    family: str
    make: Callable[[int], Any]
    linear: tuple[str, ...] = SPLIT
    layers: str = "model.layers"
    tied: bool = True
    spare_rows: int = 0  # of the embedding table, over the tokenizer's tokens
    files: dict[str, Any] | None = None  # further JSON files

    @property
    def adapted(self) -> set[str]:
        """Full names of the modules that get an adapter."""
        return {f"{self.layers}.{layer}.{name}" for layer in range(LAYERS) for name in self.linear}


def llama(tied: bool, **rope: Any) -> Callable[[int], Any]:
    def make(vocab_size: int) -> Any:
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=vocab_size, **SIZES, tie_word_embeddings=tied, rms_norm_eps=1e-5, **rope
        )
        return LlamaForCausalLM(config)

    return make


def qwen3(vocab_size: int) -> Any:
    """A head is wider than hidden_size / heads, and q and k are normed."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    rope = {"rope_type": "default", "rope_theta": 1e6}
    config = Qwen3Config(
        vocab_size=vocab_size,
        **SIZES,
        head_dim=16,
        tie_word_embeddings=True,
        rope_parameters=rope,
        max_position_embeddings=40960,
    )
    return Qwen3ForCausalLM(config)


def mistral(vocab_size: int) -> Any:
    from transformers import MistralConfig, MistralForCausalLM

    rope = {"rope_type": "default", "rope_theta": 1e6}
    config = MistralConfig(
        vocab_size=vocab_size,
        **SIZES,
        head_dim=8,
        sliding_window=None,
        rope_parameters=rope,
        max_position_embeddings=32768,
    )
    return MistralForCausalLM(config)


def phi4_mini(vocab_size: int) -> Any:
    """Phi3ForCausalLM: q, k and v in one layer, gate and up in another; three quarters of each head rotate,
    by LongRoPE's factors.
    """
    from transformers import Phi3Config, Phi3ForCausalLM

    factors = {"short_factor": [1.0] * 6, "long_factor": [1.0 + n for n in range(6)]}
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.75,
        "original_max_position_embeddings": 4096,
        **factors,
    }
    config = Phi3Config(
        vocab_size=vocab_size, **{**SIZES, "hidden_size": 64}, tie_word_embeddings=True, sliding_window=262144, rope_parameters=rope,
        max_position_embeddings=131072, original_max_position_embeddings=4096, pad_token_id=0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return Phi3ForCausalLM(config)


def gemma3(vocab_size: int) -> Any:
    """Gemma3ForConditionalGeneration with its vision tower, whose attention has modules of the same names as
    the language layers.
    """
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    rope = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    }
    text = {
        "vocab_size": vocab_size, **SIZES, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16, "rope_parameters": rope,
        "layer_types": ["sliding_attention", "full_attention"], "max_position_embeddings": 131072,
    }  # fmt: skip
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
    }
    image = {
        "mm_tokens_per_image": 4,
        "image_token_index": vocab_size - 1,
        "boi_token_index": vocab_size - 2,
        "eoi_token_index": vocab_size - 3,
    }
    return Gemma3ForConditionalGeneration(
        Gemma3Config(text_config=text, vision_config=vision, **image, eos_token_id=[1, 5])
    )


def llama3(tied: bool, factor: float) -> Callable[[int], Any]:
    rope = {**LLAMA3_ROPE, "factor": factor, "original_max_position_embeddings": 8192}
    return llama(tied, rope_parameters=rope, max_position_embeddings=131072)


def chatml_llama(vocab_size: int) -> Any:
    return llama(
        True, rope_parameters={"rope_type": "default", "rope_theta": 100000.0}, max_position_embeddings=8192
    )(vocab_size)


# By the name of the file in conf/model.
REPLICAS = {
    "smollm2": Replica("chatml", chatml_llama),
    "local": Replica("chatml", chatml_llama),
    "llama1b": Replica("llama3", llama3(True, 32.0)),
    "llama3b": Replica("llama3", llama3(True, 32.0)),
    "llama8b": Replica("llama3", llama3(False, 8.0), tied=False),
    "qwen3_4b": Replica("qwen3", qwen3, spare_rows=267),
    "gemma3_4b": Replica(
        "gemma3", gemma3, layers="model.language_model.layers", spare_rows=64, files=PROCESSOR
    ),
    "mistral7b": Replica("mistral", mistral, tied=False),
    "phi4_mini": Replica("phi4", phi4_mini, linear=FUSED),
}
# Phi-4 mini as an upload that split its fused layers would have it.
LLAMAFIED_PHI = Replica("phi4", chatml_llama)


def small_vocabulary(tokenizer: dict, size: int = 2000) -> dict:
    """A byte-level tokenizer.json cut to its first tokens: the control tokens, the bytes and the most
    frequent pieces.
    """
    model = tokenizer["model"]
    vocab = {token: number for token, number in model["vocab"].items() if number < size}
    pairs = (merge if isinstance(merge, list) else merge.split(" ") for merge in model["merges"])
    merges = [pair for pair in pairs if "".join(pair) in vocab and all(part in vocab for part in pair)]
    return {**tokenizer, "model": {**model, "vocab": vocab, "merges": merges}}


def write(replica: Replica, tokenizer_folder: Path, end_of_turn: str, folder: Path) -> Path:
    """The checkpoint in `folder`, in bfloat16 as the real ones are."""
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    torch.manual_seed(0)
    model = replica.make(len(tokenizer) + replica.spare_rows)
    with torch.no_grad():
        for parameter in model.parameters():
            if (
                parameter.ndim == 2
            ):  # wider than the usual 0.02, so that the likeliest token stands out from the others
                parameter.normal_(std=0.2)
    ids = (tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(end_of_turn))
    model.generation_config.eos_token_id = sorted(set(ids))
    model.generation_config.pad_token_id = model.generation_config.bos_token_id = None
    for config in (model.config, model.config.get_text_config()):
        config.eos_token_id, config.bos_token_id, config.pad_token_id = (
            tokenizer.eos_token_id,
            tokenizer.bos_token_id,
            tokenizer.pad_token_id,
        )
    model.to(torch.bfloat16).save_pretrained(folder)
    for file in tokenizer_folder.iterdir():
        shutil.copy(file, folder)
    for name, content in (replica.files or {}).items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder
