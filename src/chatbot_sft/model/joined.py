"""Projections that read the same states, and their adapters, as one product: queries, keys and values; gate and
up. Many small products leave a card idle, and each gradient on its own is read and written once more.
Imported after the engine.

Held together as servers hold them (vLLM's qkv_proj and gate_up_proj), with the adapter's products as Unsloth's
LoRA_QKV and LoRA_MLP order them. Nothing but the way through `forward` changes: PEFT finds its layers by class and
by name, and each weight is what it was, the rows of one place.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer

from chatbot_sft.model.loss import base_of

TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
Tensor = torch.Tensor


class Joined:
    """`layers` as one product, computed for the first that is asked and kept until the last has been. In
    evaluation each is by itself.
    """

    def __init__(self, layers: Sequence[Any]) -> None:
        bases = [_base(layer) for layer in layers]
        self.layers, self.sizes = list(layers), [base.out_features for base in bases]
        self.weight = in_one_place([base.weight for base in bases])
        biases = [base.bias for base in bases if base.bias is not None]
        self.bias = torch.cat(biases) if biases else None
        adapted = [(layer, name) for layer in layers if (name := _adapter(layer))]
        self.adapters = [(layer.lora_A[name], layer.lora_B[name]) for layer, name in adapted]
        self.scales = [float(layer.scaling[name]) for layer, name in adapted]
        self.starts = [sum(self.sizes[: self.layers.index(layer)]) for layer, _ in adapted]
        self.read: Tensor | None = None
        self.parts: tuple[Tensor, ...] = ()
        for index, layer in enumerate(layers):
            layer.joined, layer.index = self, index
            # A method, because the compiler would take any other callable for one of this layer alone.
            layer.forward = types.MethodType(_forward, layer)

    def part(self, index: int, x: Tensor) -> Tensor:
        """(…, in) to (…, out) of layer `index`."""
        layer = self.layers[index]
        alone = isinstance(layer, LoraLayer) and layer.disable_adapters
        if alone or not layer.training or x.dtype != self.weight.dtype:
            return type(layer).forward(layer, x)
        if self.read is not x:  # the first; or a model in which the others read something else
            self.read, self.parts = x, self._parts(x)
        part = self.parts[index]
        if index == len(self.sizes) - 1:
            self.read, self.parts = None, ()
        return part

    def _parts(self, x: Tensor) -> tuple[Tensor, ...]:
        a, b = ([layer.weight.to(x.dtype) for layer in side] for side in zip(*self.adapters, strict=True))
        rows = x.reshape(-1, x.shape[-1])
        y, _ = _product(rows, self.weight, a, b, self.scales, self.starts)
        y = y if self.bias is None else y + self.bias
        return y.view(*x.shape[:-1], len(self.weight)).split(self.sizes, -1)

    def separate(self) -> None:
        """Each layer by itself again."""
        for layer in self.layers:
            del layer.forward, layer.joined, layer.index


def _forward(layer: Any, x: Tensor) -> Tensor:
    joined: Joined = layer.joined
    return joined.part(layer.index, x)


def join(model: Any) -> list[Joined]:
    """Make one product of what in `model`'s decoder reads the same."""
    return [Joined(layers) for layers in _siblings(model) if _joinable(layers)]


def adjoin(model: Any) -> None:
    """Have the weights that `join` makes one product of in one place, before anybody else knows where they are."""
    for layers in _siblings(model):
        if _alike(layers):
            in_one_place([layer.weight for layer in layers])


def in_one_place(weights: Sequence[Tensor]) -> Tensor:
    """`weights` (out, in) one below the other, which they are views of from here on."""
    first = weights[0]
    ends = [weight.data_ptr() + weight.numel() * weight.element_size() for weight in weights]
    begins = [weight.data_ptr() for weight in weights[1:]]
    storages = {weight.untyped_storage().data_ptr() for weight in weights}
    if ends[:-1] == begins and len(storages) == 1:
        rows = sum(map(len, weights))
        return first.data.as_strided((rows, first.shape[1]), first.stride(), first.storage_offset())
    whole = torch.cat([weight.data for weight in weights])
    for weight, rows_of_it in zip(weights, whole.split([len(weight) for weight in weights]), strict=True):
        weight.data = rows_of_it
    return whole


# Which are joined


def _siblings(model: Any) -> Iterator[list[Any]]:
    for module in base_of(model).get_decoder().modules():
        children = dict(module.named_children())
        for names in TOGETHER:
            if len(layers := [children[name] for name in names if name in children]) > 1:
                yield layers


def _joinable(layers: Sequence[Any]) -> bool:
    """A frozen base, and plain adapters over it: dropout gives each its own input, DoRA asks each for its matrix."""
    adapted = [layer for layer in layers if isinstance(layer, BaseTunerLayer)]
    bases = [_base(layer) for layer in layers]
    trained = any(parameter.requires_grad for base in bases for parameter in base.parameters())
    return bool(adapted) and all(map(_adapter, adapted)) and _alike(bases) and not trained


def _base(layer: Any) -> Any:
    return layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer


def _adapter(layer: Any) -> str | None:
    """The name of the one that `layer` has; None where it has none, or more than two matrices to it."""
    if not isinstance(layer, LoraLayer) or len(layer.active_adapters) != 1:
        return None
    (name,) = layer.active_adapters
    plain = (
        name in layer.lora_A
        and isinstance(layer.lora_dropout[name], torch.nn.Identity)
        and name not in layer.lora_variant
        and layer.lora_B[name].bias is None
    )
    return name if plain else None


def _alike(layers: Sequence[Any]) -> bool:
    if any(type(layer) is not torch.nn.Linear for layer in layers):
        return False
    forms = {(one.in_features, one.weight.dtype, one.weight.device, one.bias is None) for one in layers}
    return len(forms) == 1


# The product. An operator of its own, because the adapter's share is added in place, which the compiler would undo.


@torch.library.custom_op("chatbot_sft::joined", mutates_args=())
def _product(
    x: Tensor, weight: Tensor, a: list[Tensor], b: list[Tensor], scales: list[float], starts: list[int]
) -> tuple[Tensor, Tensor]:
    """x (rows, in), weight (out, in), adapters a (rank, in) and b (part of out, rank), each from its row `start` of
    the weight on, to the sum (rows, out) and to x times each a (rows, all ranks).
    """
    y, h = x @ weight.t(), x @ torch.cat(a).t()
    for place, low, matrix, scale in zip(_places(y, b, starts), _by_adapter(h, a), b, scales, strict=True):
        place.addmm_(low, matrix.t(), alpha=scale)
    return y, h


@_product.register_fake
def _(x: Tensor, weight: Tensor, a: list[Tensor], *_: Any) -> tuple[Tensor, Tensor]:
    rows = x.shape[0]
    return x.new_empty(rows, len(weight)), x.new_empty(rows, sum(map(len, a)))


@torch.library.custom_op("chatbot_sft::joined_gradients", mutates_args=())
def _gradients(
    dy: Tensor, x: Tensor, h: Tensor, weight: Tensor, a: list[Tensor], b: list[Tensor], scales: list[float],
    starts: list[int],
) -> list[Tensor]:  # fmt: skip
    """Those of x, of each a below the other, and of each b."""
    dh, db = torch.empty_like(h), [torch.empty_like(matrix) for matrix in b]
    lows = zip(_places(dy, b, starts), _by_adapter(h, a), _by_adapter(dh, a), b, db, scales, strict=True)
    for place, low, dlow, matrix, dmatrix, scale in lows:
        torch.addmm(dlow, place, matrix, beta=0, alpha=scale, out=dlow)
        torch.addmm(dmatrix, place.t(), low, beta=0, alpha=scale, out=dmatrix)
    dx = (dy @ weight).addmm_(dh, torch.cat(a))
    return [dx, dh.t() @ x, *db]


@_gradients.register_fake
def _(
    dy: Tensor, x: Tensor, h: Tensor, weight: Tensor, a: list[Tensor], b: list[Tensor], *_: Any
) -> list[Tensor]:
    return [torch.empty_like(x), x.new_empty(h.shape[1], x.shape[1]), *map(torch.empty_like, b)]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, a, b, ctx.scales, ctx.starts = inputs
    ctx.adapters = len(a)
    ctx.save_for_backward(x, output[1], weight, *a, *b)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, dy: Tensor, _: Any) -> tuple[Any, ...]:
    x, h, weight, *matrices = ctx.saved_tensors
    a, b = matrices[: ctx.adapters], matrices[ctx.adapters :]
    dx, da, *db = _gradients(dy.contiguous(), x, h, weight, a, b, ctx.scales, ctx.starts)
    return dx, None, list(da.split([len(matrix) for matrix in a])), db, None, None


_product.register_autograd(_backward, setup_context=_keep)


def _places(y: Tensor, b: Sequence[Tensor], starts: Sequence[int]) -> list[Tensor]:
    return [y[:, start : start + len(matrix)] for matrix, start in zip(b, starts, strict=True)]


def _by_adapter(h: Tensor, a: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return h.split([len(matrix) for matrix in a], -1)
