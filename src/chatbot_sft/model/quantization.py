"""A frozen base in fewer than 16 bits: the 4 of QLoRA, the same wherever weights are loaded in them, and where
float8 can be had.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from chatbot_sft.errors import refuse_with
from chatbot_sft.model import hardware

if TYPE_CHECKING:
    import torch

    from chatbot_sft.config import Config

# 4-bit layer → its 16-bit copy, as long as anybody has it: runs that take turns on one base have one copy.
_decoded: weakref.WeakKeyDictionary[torch.nn.Module, weakref.ref[torch.nn.Module]] = (
    weakref.WeakKeyDictionary()
)
FLOAT8 = 9.0  # the compute capability from which scales per row have a fast kernel


def check(settings: Config) -> None:
    """Raises UserError where `model.load_in_fp8` cannot be had. Imports nothing."""
    model = settings.model
    if not model.load_in_fp8 or settings.task not in ("train", "plan"):
        return
    cards = hardware.gpus()
    here = f"{cards[0].name} has {cards[0].capability:g}" if cards else "there is none here"
    refuse_with(
        "model.load_in_fp8=true",
        (model.load_in_4bit, "a base is in 8 bits or in 4; set model.load_in_4bit=false"),
        (settings.full_finetuning, "lora.r=0 trains the base itself; set lora.r above 0"),
        (settings.lora.use_dora, "DoRA's norms are of the 16-bit weights; set lora.use_dora=false"),
        (model.engine == "unsloth", "Unsloth's layers have their own products; leave model.engine out"),
        (settings.training.shard, "its rounded weights are not cut; set training.shard=false"),
        (
            model.dtype not in (None, "bfloat16"),
            f"model.dtype={model.dtype}: the kernel gives bfloat16; leave model.dtype out",
        ),
        (
            all(card.capability < FLOAT8 for card in cards),
            f"needs a GPU of compute capability {FLOAT8:g} or more (Hopper and newer); {here}",
        ),
    )


def nf4(compute_dtype: torch.dtype) -> Any:
    """A `quantization_config`: bitsandbytes' nf4, its constants quantised too (Dettmers et al. 2023)."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )


@dataclass(frozen=True)
class Decoded:
    """16-bit layers in place of 4-bit ones, as long as somebody keeps them in memory."""

    layers: list[torch.nn.Module]
    encode: Callable[[], None]  # puts the 4 bits back


def decode(model: Any) -> Decoded:
    """Put 16-bit layers of the same numbers in place of the 4-bit ones of `model`'s decoder, which otherwise
    are decoded twice a step, in each pass.

    Raises:
        torch.OutOfMemoryError: there is no room for them; `model` is as it was.
    """
    import torch
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    from chatbot_sft.model.layers import put_back, replace_layers

    def decoded(layer: torch.nn.Module) -> torch.nn.Module | None:
        if not isinstance(layer, Linear4bit):
            return None
        if (there := _decoded.get(layer)) and (plain := there()):
            return plain
        plain = torch.nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
        weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        plain.weight = torch.nn.Parameter(weight, requires_grad=False)
        plain.bias = layer.bias
        _decoded[layer] = weakref.ref(plain)
        return plain

    taken = replace_layers(model, decoded)
    layers = [getattr(parent, name) for parent, name, _ in taken]
    return Decoded(layers, functools.partial(put_back, taken))
