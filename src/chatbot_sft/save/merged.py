"""merged_16bit: the adapter added into a fresh copy of the 16-bit base, in float32, rounded once."""

from __future__ import annotations

import copy
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatbot_sft.model import embedded

if TYPE_CHECKING:
    import torch

    from chatbot_sft.config import Config

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")


def write_merged(model: Any, settings: Config, folder: Path) -> None:
    """Write config and safetensors of the merged model into `folder`. `model` itself is left as it is.

    The base is read again from where it came from, so an adapter trained over 4-bit weights is merged into the 16-bit ones. Where the adapter's
    initialisation changed the base (`lora.init_lora_weights`), it is the base in memory. A multimodal model keeps its image processor's files.
    """
    from transformers import AutoConfig
    from transformers.utils import cached_file

    source = str(Path(embedded.resolve(settings.model.name)).expanduser())
    hub = {"revision": settings.model.revision, "trust_remote_code": settings.model.trust_remote_code}
    config = AutoConfig.from_pretrained(source, **hub)
    dtype = sixteen_bit(config.get_text_config().dtype or config.dtype)
    if settings.full_finetuning:
        merged = copy.deepcopy(model).to("cpu", dtype)
    elif settings.lora_changes_base:
        merged = _unloaded(copy.deepcopy(model).to("cpu"), dtype).to(dtype)
    else:
        merged = _unloaded(_on_base(model, source, dtype, hub), dtype)
    merged.config.get_text_config().use_cache = True
    merged.save_pretrained(folder)
    if config.get_text_config() is not config:
        for name in PROCESSOR_FILES:
            found = cached_file(source, name, revision=settings.model.revision, _raise_exceptions_for_missing_entries=False)
            if found is not None:
                shutil.copyfile(found, folder / name)


def sixteen_bit(dtype: torch.dtype | None) -> torch.dtype:
    """The checkpoint's own 16-bit dtype; float16 for a float32 checkpoint: of the two it rounds eight times finer."""
    import torch

    return dtype if dtype in (torch.float16, torch.bfloat16) else torch.float16


def _on_base(model: Any, source: str, dtype: torch.dtype, hub: dict[str, Any]) -> Any:
    """`model`'s adapter on a fresh copy of its base, on the CPU."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, device_map={"": "cpu"}, **hub)
    rows = model.get_input_embeddings().weight.shape[0]
    if rows > base.get_input_embeddings().weight.shape[0]:
        base.resize_token_embeddings(rows, mean_resizing=False)
    with tempfile.TemporaryDirectory() as adapter:
        model.save_pretrained(adapter, save_embedding_layers=False)
        return PeftModel.from_pretrained(base, adapter)


def _unloaded(merged: Any, dtype: torch.dtype) -> Any:
    """The plain model in `merged`, its adapter added to the weights."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    for layer in merged.modules():
        if isinstance(layer, ModulesToSaveWrapper):
            layer.to(dtype)  # PEFT loads them in float32
        if isinstance(layer, BaseTunerLayer):
            weight = layer.get_base_layer().weight
            weight.data = weight.data.float()
            layer.merge()
            weight.data = weight.data.to(dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="All adapters are already merged")
        return merged.merge_and_unload()  # what is left: taking the adapter layers out
