"""merged_16bit and merged_4bit: folders that AutoModelForCausalLM loads.

The 16 bits are written from the trained weights, one file of them in memory at a time; for the 4 bits such a
folder is loaded whole, quantised by bitsandbytes and saved.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatbot_sft.model import embedded
from chatbot_sft.model.hub import is_local
from chatbot_sft.model.quantization import nf4

if TYPE_CHECKING:
    import torch

    from chatbot_sft.config import Config
    from chatbot_sft.save.trained import Trained
    from chatbot_sft.save.weights import Weights

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
SHARD = 2e9  # bytes of a safetensors file; one is in memory at a time
INDEX = "model.safetensors.index.json"


def write_merged_16bit(trained: Trained, folder: Path) -> None:
    """Config, safetensors, tokenizer and, of a multimodal model, the image processor's files, in the base's
    own 16-bit dtype.
    """
    weights, dtype = trained.weights, sixteen_bit(trained.weights.config)
    weights.config.dtype = dtype
    weights.config.save_pretrained(folder)
    write_shards(weights, dtype, folder)
    _finish(trained, folder)


def write_merged_4bit(trained: Trained, folder: Path) -> None:
    """The same in bitsandbytes nf4, as QLoRA loads its base: linear layers in 4 bits, embeddings, norms and
    output layer in 16.
    """
    from transformers import AutoModelForCausalLM

    dtype = sixteen_bit(trained.weights.config)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.16bit.") as merged:
        write_merged_16bit(trained, Path(merged))
        model = AutoModelForCausalLM.from_pretrained(
            merged, quantization_config=nf4(dtype), dtype=dtype, device_map={"": "cpu"}
        )
        model.save_pretrained(folder)
    _finish(trained, folder)


def _finish(trained: Trained, folder: Path) -> None:
    """What stands beside the weights. A multimodal model keeps its image processor's files."""
    trained.write_generation_config(folder)
    trained.tokenizer.save_pretrained(folder)
    for file in _processor_files(trained.settings):
        shutil.copyfile(file, folder / file.name)


def sixteen_bit(config: Any) -> torch.dtype:
    """The checkpoint's own 16-bit dtype; of float32 float16, which of the two rounds eight times finer."""
    import torch

    dtype = config.get_text_config().dtype or config.dtype
    return dtype if dtype in (torch.float16, torch.bfloat16) else torch.float16


def write_shards(weights: Weights, dtype: torch.dtype, folder: Path) -> None:
    """safetensors files of at most `SHARD` bytes, named and indexed as transformers does."""
    from safetensors.torch import save_file

    shards: list[list[str]] = [[]]
    size = 0
    for name, shape in weights.shapes.items():
        count = dtype.itemsize
        for length in shape:
            count *= length
        if shards[-1] and size + count > SHARD:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += count
    shard_of: dict[str, str] = {}  # by the tensor's name
    total = 0
    for number, names in enumerate(shards, start=1):
        file = (
            "model.safetensors"
            if len(shards) == 1
            else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        )
        tensors = {}
        for name in names:
            tensor = weights.read(name)
            tensors[name] = tensor.to(dtype).contiguous() if tensor.is_floating_point() else tensor
            total += tensors[name].nbytes
        save_file(tensors, folder / file, metadata={"format": "pt"})
        shard_of |= dict.fromkeys(names, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": shard_of}
        (folder / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")


def _processor_files(settings: Config) -> list[Path]:
    from transformers.utils import cached_file

    source = str(Path(embedded.resolve(settings.model.name)).expanduser())
    revision = None if is_local(source) else settings.model.revision
    files = [
        cached_file(source, name, revision=revision, _raise_exceptions_for_missing_entries=False)
        for name in PROCESSOR_FILES
    ]
    return [Path(file) for file in files if file is not None]
