"""What the composed run will need: of memory the least that it can do with, of each disk what it will write.

Told without torch: from config.json and the headers of safetensors files where the model is here, else from the
number in its name. `task=plan` measures it.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatbot_sft.optimization import REPLACED, state_bytes
from chatbot_sft.report.words import amount

if TYPE_CHECKING:
    from chatbot_sft.config import Config

FOUR_BIT = 0.55  # bytes a weight, the scale of each 64 in it
TOKENIZER = 30e6  # bytes of the files beside an adapter: tokenizer and chat template
LIBRARIES = {"cpu": 1.0e9, "gpu": 4e9}  # of main memory, what Python, PyTorch and the others take
CUDA = 0.6e9  # of a card's memory, what a process takes before its first tensor
SHORT = 512  # tokens: the least that a conversation is counted with, where the model may be given more
CHECKPOINTS = 10  # where it cannot be told how many there will be
# Matrices of a decoder layer → (rows, columns) by the names of config.json.
MATRICES = {
    "q_proj": ("hidden", "queries"), "k_proj": ("hidden", "keys"), "v_proj": ("hidden", "keys"),
    "o_proj": ("queries", "hidden"), "gate_proj": ("hidden", "inner"), "up_proj": ("hidden", "inner"),
    "down_proj": ("inner", "hidden"),
}  # fmt: skip


@dataclass(frozen=True)
class Size:
    """How large the model is: numbers of weights, `embeddings` those that 4 bits leave alone, `trained` those that
    are trained. `known` says from what.
    """

    weights: float
    embeddings: float
    trained: float
    known: str
    layers: int = 0
    width: int = 0
    vocabulary: int = 0


@dataclass(frozen=True)
class Write:
    """What will be written: `size` bytes at `place`; `key` is what names another place."""

    what: str
    place: Path
    size: float
    key: str


def size_of(settings: Config, folder: Path | None, name: str) -> Size | None:
    """Of the model in `folder`, else of what is called `name`; None where neither says."""
    config = _config(folder)
    part = config.get("text_config")
    text: Mapping[str, Any] = part if isinstance(part, dict) else config
    dims = _dims(text) if text else None
    counted = _counted(folder) if folder else 0
    weights = counted or (_by_name(name) if not dims else _by_config(dims, text))
    if not weights:
        return None
    embeddings = dims["vocabulary"] * dims["hidden"] * _tables(text) if dims else 0.1 * weights
    trained = weights if settings.full_finetuning else _adapter(settings, dims, weights)
    known = "by its files" if counted else "by its config.json" if dims else f"by the name {name}"
    if not dims:
        return Size(weights, embeddings, trained, known)
    return Size(weights, embeddings, trained, known, dims["layers"], dims["hidden"], dims["vocabulary"])


def memory(settings: Config, size: Size, gpu: bool) -> dict[str, float]:
    """Bytes by part, of the card with a `gpu`, else of main memory: weights, adapter, gradients, optimizer, one short
    conversation whose layers are computed again.
    """
    model = settings.model
    wide = 4.0 if model.dtype == "float32" or (not gpu and model.dtype is None) else 2.0
    optim = "adamw_torch" if settings.training.optim in REPLACED and not gpu else settings.training.optim
    if settings.full_finetuning:
        frozen, trained = 0.0, wide
    else:
        narrow = FOUR_BIT if model.load_in_4bit else 1.0 if model.load_in_fp8 else wide
        frozen, trained = narrow * (size.weights - size.embeddings) + wide * size.embeddings, 4.0
    tokens = min(model.max_seq_length, SHORT)
    return {
        "weights": frozen,
        "trained weights": trained * size.trained,
        "gradients": trained * size.trained,
        "optimizer": state_bytes(optim) * size.trained,
        "one short conversation": tokens * (2 * size.layers * size.width + 6 * size.vocabulary),
        "libraries": CUDA if gpu else LIBRARIES["cpu"],
    }


def writes(settings: Config, size: Size, gpu: bool) -> list[Write]:
    """Checkpoints and exports of a training, each at its highest."""
    training, save = settings.training, settings.save
    optim = "adamw_torch" if training.optim in REPLACED and not gpu else training.optim
    trained = (2.0 if gpu else 4.0) if settings.full_finetuning else 4.0
    checkpoint = (trained + state_bytes(optim)) * size.trained + TOKENIZER
    count = checkpoints(settings)
    found = [
        Write(
            amount(count, "checkpoint"),
            Path(training.output_dir),
            count * checkpoint,
            "hydra.run.dir=/larger/disk/run",
        )
    ]
    exports = sum(export_bytes(method, settings, size) for method in save.methods)
    if exports:
        names = ", ".join(save.methods)
        found.append(
            Write(f"exports ({names})", Path(save.save_path), exports, "save.save_path=/larger/disk/model")
        )
    return found


def checkpoints(settings: Config) -> int:
    """How many are on the disk at once: those that are kept, and the one that is being written."""
    training = settings.training
    every, steps = training.save_steps, training.max_steps
    if every is None or every <= 0:
        written = 1
    elif every < 1:
        written = math.ceil(1 / every)
    else:
        written = math.ceil(steps / every) if steps and steps > 0 else CHECKPOINTS
    kept = training.save_total_limit
    return written if kept is None else min(written, kept + 1)


def export_bytes(method: str, settings: Config, size: Size) -> float:
    """What an export takes while it is written."""
    if method == "lora":
        return 4 * size.trained + TOKENIZER
    if method == "merged_16bit":
        return 2 * size.weights + TOKENIZER
    if method == "merged_4bit":  # from 16 bits, which stand beside it meanwhile
        return (
            2 * size.weights + FOUR_BIT * (size.weights - size.embeddings) + 2 * size.embeddings + TOKENIZER
        )
    kinds = settings.save.quantizations
    bits = {kind: _bits(kind) for kind in kinds}
    intermediate = 16 if any(value < 8.5 for value in bits.values()) and "f16" not in kinds else 0
    return size.weights * (sum(bits.values()) + intermediate) / 8


def _bits(kind: str) -> float:
    """Of a weight in a GGUF file, its share of the scales among them: q4_k_m has nearly 5, q8_0 8.5."""
    number = int(re.sub(r"\D*(\d+).*", r"\1", kind))
    return number if kind.startswith(("f", "bf")) else 8.5 if number == 8 else number + 1


def _config(folder: Path | None) -> Mapping[str, Any]:
    file = folder / "config.json" if folder else None
    try:
        value = json.loads(file.read_text(encoding="utf-8")) if file and file.is_file() else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _dims(text: Mapping[str, Any]) -> dict[str, int] | None:
    """Of a decoder's config.json; None where one of them is not there."""
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
    given = [text[name] for name in names if type(text.get(name)) is int and text[name] > 0]
    if len(given) < len(names):
        return None
    hidden, layers, heads, inner, vocabulary = given
    head, shared = (text.get(name) for name in ("head_dim", "num_key_value_heads"))
    head = head if type(head) is int else hidden // heads
    return {
        "hidden": hidden,
        "layers": layers,
        "inner": inner,
        "vocabulary": vocabulary,
        "queries": heads * head,
        "keys": (shared if type(shared) is int else heads) * head,
    }


def _tables(text: Mapping[str, Any]) -> int:
    """Of embeddings: one where the output layer shares it."""
    return 1 if text.get("tie_word_embeddings") else 2


def _by_config(dims: Mapping[str, int], text: Mapping[str, Any]) -> float:
    layer = sum(dims[rows] * dims[columns] for rows, columns in MATRICES.values())
    experts = next(
        (text[key] for key in ("num_local_experts", "num_experts") if type(text.get(key)) is int), 1
    )
    inner = 3 * dims["hidden"] * dims["inner"] * (experts - 1)
    return dims["layers"] * (layer + inner) + dims["vocabulary"] * dims["hidden"] * _tables(text)


def _by_name(name: str) -> float:
    """`Llama-3.2-3B-Instruct` has 3 × 10^9 weights; 0 where the name has no such number."""
    last = name.rpartition("/")[2]
    found = re.findall(
        r"(?<![\w.])(\d+(?:\.\d+)?)([bBmM])(?![a-zA-Z])", last.replace("-", " ").replace("_", " ")
    )
    return max((float(number) * (1e9 if unit in "bB" else 1e6) for number, unit in found), default=0.0)


def _counted(folder: Path) -> float:
    """Values in the safetensors files, by their headers; 0 where they cannot be read, or hold packed numbers."""
    total = 0
    try:
        for file in folder.glob("*.safetensors"):
            with file.open("rb") as stream:
                header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
            header.pop("__metadata__", None)
            if any(tensor["dtype"] in ("U8", "I32") for tensor in header.values()):
                return 0
            total += sum(math.prod(tensor["shape"]) for tensor in header.values())
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        MemoryError,
        RecursionError,
    ):
        return 0
    return total


def _adapter(settings: Config, dims: Mapping[str, int] | None, weights: float) -> float:
    rank, targets = settings.lora.r, settings.lora.target_modules
    if dims is None:  # as it is with Llama's shapes
        return weights * 0.0076 * rank / 16
    named = list(MATRICES) if isinstance(targets, str) else [one for one in targets if one in MATRICES]
    matrices = (MATRICES[one] for one in named)
    each = sum(rank * (dims[rows] + dims[columns]) for rows, columns in matrices)
    saved = len(settings.lora.modules_to_save or []) * dims["vocabulary"] * dims["hidden"]
    return dims["layers"] * each + saved


def existing(place: Path) -> Path:
    """The deepest folder above `place`, or itself, that is there."""
    place = place.expanduser().absolute()
    return next((one for one in (place, *place.parents) if os.path.lexists(one)), place)
