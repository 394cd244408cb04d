"""Linear layers that read the same states, as one product: queries, keys and values; gate and up; and the first
matrices of their adapters. A short batch leaves a card idle in many small products. Imported after the engine.

As servers hold them (vLLM's qkv_proj and gate_up_proj), with the weights where they were: each layer has the rows
of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer

from chatbot_sft.model.layers import Taken, replace_layers
from chatbot_sft.model.loss import base_of

TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


class Part(torch.nn.Module):
    """The linear layer `layer`, number `index` of `product`: (…, in) to (…, out). In evaluation it is by itself."""

    def __init__(self, layer: torch.nn.Linear, product: _Product, index: int) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias
        self.product, self.index = product, index

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            return self.product.part(x, self.index)
        return torch.nn.functional.linear(x, self.weight, self.bias)


class _Product:
    """That of `layers`, computed for the first that is asked, and kept until the last has been."""

    def __init__(self, layers: Sequence[torch.nn.Linear]) -> None:
        self.layers, self.sizes = list(layers), [layer.out_features for layer in layers]
        self.weight = None if any(map(_trained, layers)) else in_one_place([layer.weight for layer in layers])
        biases = [layer.bias for layer in layers if layer.bias is not None]
        self.bias = torch.cat(biases) if biases else None
        self.read: torch.Tensor | None = None
        self.parts: tuple[torch.Tensor, ...] = ()

    def part(self, x: torch.Tensor, index: int) -> torch.Tensor:
        if self.read is not x:  # its first layer; or a model in which the others read something else
            weight = (
                torch.cat([layer.weight for layer in self.layers]) if self.weight is None else self.weight
            )
            self.read = x
            self.parts = torch.nn.functional.linear(x, weight, self.bias).split(self.sizes, -1)
        part = self.parts[index]
        if index == len(self.sizes) - 1:
            self.read, self.parts = None, ()
        return part


def join(model: Any) -> Taken:
    """Make one product of what in `model`'s decoder reads the same; what was taken out, for `layers.put_back`."""
    parts: dict[torch.nn.Module, Part] = {}
    frozen = [layers for layers in _bases(model) if not any(map(_trained, layers))]
    for layers in [*frozen, *_adapters(model)]:
        product = _Product(layers)
        parts |= {layer: Part(layer, product, index) for index, layer in enumerate(layers)}
    return replace_layers(model, parts.get)


def adjoin(model: Any) -> None:
    """Have the weights that `join` makes one product of in one place, before anybody else knows where they are."""
    for layers in _bases(model):
        in_one_place([layer.weight for layer in layers])


def in_one_place(weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """`weights` (out, in) one below the other, which they are views of from here on."""
    first = weights[0]
    ends = [weight.data_ptr() + weight.numel() * weight.element_size() for weight in weights]
    begins = [weight.data_ptr() for weight in weights[1:]]
    storages = {weight.untyped_storage().data_ptr() for weight in weights}
    if ends[:-1] == begins and len(storages) == 1:
        rows = sum(map(len, weights))
        return first.data.as_strided((rows, first.shape[1]), first.stride(), first.storage_offset())
    whole = torch.cat([weight.data for weight in weights])
    for weight, rows in zip(weights, whole.split([len(weight) for weight in weights]), strict=True):
        weight.data = rows
    return whole


def _siblings(model: Any) -> Iterator[list[torch.nn.Module]]:
    for module in base_of(model).get_decoder().modules():
        children = dict(module.named_children())
        for names in TOGETHER:
            yield [children[name] for name in names if name in children]


def _bases(model: Any) -> Iterator[list[torch.nn.Linear]]:
    for siblings in _siblings(model):
        layers = [
            layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer for layer in siblings
        ]
        if _alike(layers):
            yield layers


def _adapters(model: Any) -> Iterator[list[torch.nn.Linear]]:
    """Dropout gives each its own input; DoRA asks each for its matrix."""
    for siblings in _siblings(model):
        adapted = [layer for layer in siblings if isinstance(layer, LoraLayer)]
        for name in adapted[0].active_adapters if adapted else ():
            layers = [
                layer.lora_A[name]
                for layer in adapted
                if name in layer.lora_A
                and isinstance(layer.lora_dropout[name], torch.nn.Identity)
                and name not in layer.lora_magnitude_vector
            ]
            if _alike(layers):
                yield layers


def _trained(layer: torch.nn.Linear) -> bool:
    return any(parameter.requires_grad for parameter in layer.parameters())


def _alike(layers: Sequence[Any]) -> bool:
    if len(layers) < 2 or any(type(layer) is not torch.nn.Linear for layer in layers):
        return False
    forms = {
        (layer.in_features, layer.weight.dtype, layer.weight.device, layer.bias is None) for layer in layers
    }
    return len(forms) == 1
