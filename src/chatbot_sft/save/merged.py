"""merged_16bit: the adapter added into a fresh copy of the 16-bit base, in float32, rounded once."""

from __future__ import annotations

import copy
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatbot_sft.model import embedded

if TYPE_CHECKING:
    import torch

    from chatbot_sft.config import Config


def write_merged(model: Any, settings: Config, folder: Path) -> None:
    """Write config and safetensors of the merged model into `folder`. `model` itself is left as it is.

    The base is read again from where it came from, so an adapter trained over 4-bit weights is merged into the 16-bit ones.
    """
    from transformers import AutoConfig

    source = str(Path(embedded.resolve(settings.model.name)).expanduser())
    hub = {"revision": settings.model.revision, "trust_remote_code": settings.model.trust_remote_code}
    config = AutoConfig.from_pretrained(source, **hub)
    dtype = sixteen_bit(config.get_text_config().dtype or config.dtype)
    merged = copy.deepcopy(model).to("cpu", dtype) if settings.full_finetuning else _merge(model, source, dtype, hub)
    merged.config.use_cache = True
    merged.save_pretrained(folder)


def sixteen_bit(dtype: torch.dtype | None) -> torch.dtype:
    """The checkpoint's own 16-bit dtype; float16 for a float32 checkpoint: of the two it rounds eight times finer."""
    import torch

    return dtype if dtype in (torch.float16, torch.bfloat16) else torch.float16


def _merge(model: Any, source: str, dtype: torch.dtype, hub: dict[str, Any]) -> Any:
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, device_map={"": "cpu"}, **hub)
    with tempfile.TemporaryDirectory() as adapter:
        model.save_pretrained(adapter)
        merged = PeftModel.from_pretrained(base, adapter)
    for layer in merged.modules():
        if isinstance(layer, BaseTunerLayer):
            weight = layer.get_base_layer().weight
            weight.data = weight.data.float()
            layer.merge()
            weight.data = weight.data.to(dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="All adapters are already merged")
        return merged.merge_and_unload()  # what is left: taking the adapter layers out
