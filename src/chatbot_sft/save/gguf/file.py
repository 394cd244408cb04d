"""GGUF, llama.cpp's file format: architectures, tensors and hyperparameters, written with the official `gguf`
package one tensor at a time.

The names and conventions are those of llama.cpp's convert_hf_to_gguf.py (MIT): rotary pairs of Llama's q and
k side by side, Gemma's norms with their one added, Llama 3's rope factors as a tensor of their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatbot_sft.errors import UserError
from chatbot_sft.inference.gguf_model import SYSTEM_PROMPT
from chatbot_sft.save.gguf.vocabulary import add_vocabulary

if TYPE_CHECKING:
    import numpy as np
    import torch

    from chatbot_sft.save.weights import Weights

WRITTEN = ("f32", "f16", "bf16", "q8_0")  # by the gguf package; the others by llama.cpp
Q8_0_BLOCK = 32


@dataclass(frozen=True)
class Architecture:
    """llama.cpp's `name` for it, and how its tensors differ from the checkpoint's."""

    name: str
    permuted: bool = False  # q and k with the halves of each rotary pair side by side
    norm_offset: float = 0.0  # added to every norm's weight


LLAMA, GEMMA3 = Architecture("llama", permuted=True), Architecture("gemma3", norm_offset=1.0)
ARCHITECTURES = {  # by transformers' model_type
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
    "gemma3": GEMMA3,
    "gemma3_text": GEMMA3,
}
ROPE_TYPES = ("default", "linear", "llama3", "yarn")


def check_architecture(config: Mapping[str, Any], name: str) -> None:
    """`config` is the content of a config.json, `name` that of the model.

    Raises:
        UserError: this version writes no GGUF of such a model.
    """
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        raise UserError(
            f"save.method=gguf: model.name={name} is a {kind} model; GGUF is written for"
            f" {', '.join(ARCHITECTURES)}; use save=merged_16bit"
        )
    text = config.get("text_config") or config
    rope = text.get("rope_scaling") or text.get("rope_parameters") or {}
    for part in (rope, *(value for value in rope.values() if isinstance(value, Mapping))):
        rope_type = part.get("rope_type", part.get("type", "default"))
        if rope_type not in ROPE_TYPES:
            raise UserError(
                f"save.method=gguf: model.name={name} has rope type {rope_type}, which is not written to"
                " GGUF; use save=merged_16bit"
            )


def write_gguf(
    weights: Weights,
    tokenizer: Any,
    tokenizer_folder: Path,
    end_of_turn: int | None,
    kind: str,
    name: str,
    file: Path,
    system_prompt: str | None = None,
) -> None:
    """Write `file` with matrices of `kind`, one of `WRITTEN`; vectors are float32.

    `tokenizer` has been saved in `tokenizer_folder`. One tensor is in memory at a time. `end_of_turn` is the
    token that ends an answer, `name` what the model is called, `system_prompt` what it was trained with.
    """
    import gguf

    config = weights.config.get_text_config()
    architecture = ARCHITECTURES[config.model_type]
    names = gguf_names(weights, architecture)
    writer = gguf.GGUFWriter(file, architecture.name)
    writer.add_string("general.quantized_by", "chatbot_sft")  # by this save.overwrite knows its own file
    writer.add_name(name)
    if system_prompt:
        writer.add_string(SYSTEM_PROMPT, system_prompt)
    writer.add_file_type(gguf.LlamaFileType["ALL_F32" if kind == "f32" else f"MOSTLY_{kind.upper()}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_hyperparameters(writer, config, architecture)
    embeddings = next(source for source, target in names.items() if target == "token_embd.weight")
    rows = weights.shapes[embeddings][0]
    add_vocabulary(writer, tokenizer, tokenizer_folder, rows, end_of_turn)
    factors = _rope_factors(config)
    if factors is not None:
        writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
    for source, target in names.items():
        shape, tensor_kind = weights.shapes[source], _kind(weights.shapes[source], kind)
        writer.add_tensor_info(
            target,
            shape,
            *_size(shape, tensor_kind),
            raw_dtype=gguf.GGMLQuantizationType[tensor_kind.upper()],
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if factors is not None:
        writer.write_tensor_data(factors)
    for source in names:
        tensor = _as_llama_cpp_has_it(source, weights.read(source), config, architecture)
        writer.write_tensor_data(_encoded(tensor, _kind(weights.shapes[source], kind)))
    writer.close()


def gguf_names(weights: Weights, architecture: Architecture) -> dict[str, str]:
    """{checkpoint name: llama.cpp's name} of the language model's tensors; without a vision tower's."""
    import gguf

    arch = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture.name)
    known = gguf.get_tensor_name_map(arch, weights.config.get_text_config().num_hidden_layers)
    names: dict[str, str] = {}
    for name in weights.shapes:
        if "vision_tower" in name or "multi_modal_projector" in name:
            continue
        plain = "lm_head.weight" if "lm_head" in name else name.replace("language_model.", "")
        target = known.get_name(plain, (".weight", ".bias"))
        if target is None:
            raise UserError(
                f"save.method=gguf: llama.cpp's {architecture.name} has no tensor for {name}; use"
                " save=merged_16bit"
            )
        names[name] = target
    return names


def _add_hyperparameters(writer: Any, config: Any, architecture: Architecture) -> None:
    import gguf

    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head_dim)
    writer.add_vocab_size(config.vocab_size)
    rope = _rope(config)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if architecture is GEMMA3:
        writer.add_sliding_window(config.sliding_window)
        writer.add_sliding_window_pattern(config.layer_types.index("full_attention") + 1)
        writer.add_rope_freq_base_swa(config.rope_parameters["sliding_attention"]["rope_theta"])


def _rope(config: Any) -> dict[str, Any]:
    """The rotary parameters; of Gemma 3, which has two kinds of layers, those of full attention."""
    rope = config.rope_parameters
    return rope.get("full_attention", rope)


def _rope_factors(config: Any) -> np.ndarray | None:
    """Llama 3's divisors of the rotary frequencies, float32 (head_dim / 2,): `_compute_llama3_parameters` of
    transformers as llama.cpp wants it.
    """
    import numpy as np

    rope = _rope(config)
    if rope["rope_type"] != "llama3":
        return None
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    wavelengths = 2 * math.pi * rope["rope_theta"] ** (np.arange(0, head_dim, 2) / head_dim)
    turns = rope["original_max_position_embeddings"] / wavelengths
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


def _as_llama_cpp_has_it(
    name: str, tensor: torch.Tensor, config: Any, architecture: Architecture
) -> torch.Tensor:
    if architecture.norm_offset and name.endswith("norm.weight"):
        return tensor.float() + architecture.norm_offset
    if architecture.permuted and (".q_proj." in name or ".k_proj." in name):
        heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
        return permute(tensor, heads)
    return tensor


def permute(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of q or k: of each head's two halves one from each in turn (llama.cpp's `LlamaModel.permute`)."""
    return (
        tensor.reshape(heads, 2, len(tensor) // heads // 2, *tensor.shape[1:])
        .transpose(1, 2)
        .reshape(tensor.shape)
    )


def _kind(shape: tuple[int, ...], kind: str) -> str:
    """Vectors stay float32; rows that Q8_0 cannot cut into blocks become float16, as llama.cpp has it."""
    if len(shape) == 1:
        return "f32"
    return "f16" if kind == "q8_0" and shape[-1] % Q8_0_BLOCK else kind


def _size(shape: tuple[int, ...], kind: str) -> tuple[Any, int]:
    """numpy dtype and bytes of a tensor. The dtype is not that of the encoded bytes, so that the writer takes
    `shape` for one of values.
    """
    import gguf
    import numpy as np

    values, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind.upper()]]
    return np.dtype(np.float32), math.prod(shape) // values * size


def _encoded(tensor: torch.Tensor, kind: str) -> np.ndarray:
    import gguf
    import torch

    if kind == "q8_0":
        return gguf.quants.quantize(tensor.float().numpy(), gguf.GGMLQuantizationType.Q8_0)
    dtype = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[kind]
    return tensor.to(dtype).contiguous().view(torch.uint8).numpy()
