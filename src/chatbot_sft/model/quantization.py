"""The 4 bits of QLoRA, the same wherever weights are loaded in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def nf4(compute_dtype: torch.dtype) -> Any:
    """A `quantization_config`: bitsandbytes' nf4, its constants quantised too (Dettmers et al. 2023)."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )


def decode(model: Any) -> Callable[[], None]:
    """Put 16-bit layers of the same numbers in place of the 4-bit ones of `model`'s decoder, which otherwise
    are decoded twice a step, in each pass. Returns what puts these back.

    Raises:
        torch.OutOfMemoryError: there is no room for them; `model` is as it was.
    """
    import torch
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    from chatbot_sft.model.loss import base_of

    taken: list[tuple[torch.nn.Module, str, torch.nn.Module]] = []

    def encode() -> None:
        for parent, name, layer in taken:
            setattr(parent, name, layer)

    try:
        for parent in list(base_of(model).get_decoder().modules()):
            for name, layer in list(parent.named_children()):
                if not isinstance(layer, Linear4bit):
                    continue
                decoded = torch.nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
                weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
                decoded.weight = torch.nn.Parameter(weight, requires_grad=False)
                decoded.bias = layer.bias
                setattr(parent, name, decoded)
                taken.append((parent, name, layer))
    except torch.OutOfMemoryError:
        encode()
        raise
    return encode
