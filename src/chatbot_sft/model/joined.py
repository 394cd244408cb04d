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
        self.bias = None if bases[0].bias is None else [base.bias for base in bases]
        adapted = [(layer, name) for layer in layers if (name := _adapter(layer))]
        self.adapted = adapted[0][0]  # all are switched off together
        self.adapters = [(layer.lora_A[name], layer.lora_B[name]) for layer, name in adapted]
        self.scales = [float(layer.scaling[name]) for layer, name in adapted]
        self.places = [self.layers.index(layer) for layer, _ in adapted]
        self.read: Tensor | None = None
        self.parts: Sequence[Tensor] = ()
        for index, layer in enumerate(layers):
            layer.joined, layer.index = self, index
            # A method, because the compiler would take any other callable for one of this layer alone.
            layer.forward = types.MethodType(_forward, layer)

    def part(self, index: int, x: Tensor) -> Tensor:
        """(…, in) to (…, out) of layer `index`."""
        layer = self.layers[index]
        if not layer.training or self.adapted.disable_adapters or x.dtype != self.weight.dtype:
            return type(layer).forward(layer, x)
        if self.read is not x:  # the first; or a model in which the others read something else
            self.read, self.parts = x, self._parts(x)
        part = self.parts[index]
        if index == len(self.sizes) - 1:
            self.read, self.parts = None, ()
        return part

    def _parts(self, x: Tensor) -> Sequence[Tensor]:
        a, b = ([layer.weight.to(x.dtype) for layer in side] for side in zip(*self.adapters, strict=True))
        parts = _Product.apply(
            x.reshape(-1, x.shape[-1]), self.weight, self.sizes, self.places, self.scales, *a, *b
        )
        parts = [part.view(*x.shape[:-1], -1) for part in parts]
        return parts if self.bias is None else [y + bias for y, bias in zip(parts, self.bias, strict=True)]

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


# The product. Operators of their own, because an adapter's share is added in place, which the compiler would undo.


class _Product(torch.autograd.Function):
    """x (rows, in) to (rows, size) for each of `sizes`, of which weight (all sizes, in) has the rows. Adapter n is of
    part `places[n]`, and then come its matrices, each a (rank, in) and each b (size, rank).

    The gradients of the parts come apart: put in one place, the compiler would compute each of them for it again.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        # By name, the compiler of PyTorch 2.11 would count two matrices as one too many, and leave out ctx.
        x, weight, sizes, places, scales, *ab = inputs
        a, b = ab[: len(places)], ab[len(places) :]
        y, low = _products(x, weight, sizes, places, scales, a, b)
        ctx.save_for_backward(x, low, weight, *ab)
        ctx.known = sizes, places, scales
        return y.split(sizes, -1)

    @staticmethod
    def backward(ctx: Any, *dy: Tensor) -> tuple[Tensor | None, ...]:
        x, low, weight, *ab = ctx.saved_tensors
        sizes, places, scales = ctx.known
        a, b = ab[: len(places)], ab[len(places) :]
        dx, da, *db = _gradients(list(dy), x, low, weight, sizes, places, scales, a, b)
        return dx, None, None, None, None, *da.split([len(matrix) for matrix in a]), *db


@torch.library.custom_op("chatbot_sft::joined", mutates_args=())
def _products(
    x: Tensor,
    weight: Tensor,
    sizes: list[int],
    places: list[int],
    scales: list[float],
    a: list[Tensor],
    b: list[Tensor],
) -> tuple[Tensor, Tensor]:
    """x times the weight and each adapter (rows, all sizes), and times each a (rows, all ranks)."""
    y, low = x @ weight.t(), x @ torch.cat(a).t()
    parts = y.split(sizes, -1)
    for place, scale, by_a, matrix in zip(places, scales, _by_adapter(low, a), b, strict=True):
        parts[place].addmm_(by_a, matrix.t(), alpha=scale)
    return y, low


@_products.register_fake
def _(
    x: Tensor, weight: Tensor, _sizes: Any, _places: Any, _scales: Any, a: list[Tensor], _b: Any
) -> tuple[Tensor, ...]:
    rows = x.shape[0]
    return x.new_empty(rows, len(weight)), x.new_empty(rows, sum(map(len, a)))


@torch.library.custom_op("chatbot_sft::joined_gradients", mutates_args=())
def _gradients(
    dy: list[Tensor],
    x: Tensor,
    low: Tensor,
    weight: Tensor,
    sizes: list[int],
    places: list[int],
    scales: list[float],
    a: list[Tensor],
    b: list[Tensor],
) -> list[Tensor]:
    """Those of x, of all a (all ranks, in), and of each b."""
    dlow, db = torch.empty_like(low), [torch.empty_like(matrix) for matrix in b]
    of_adapters = zip(places, scales, _by_adapter(low, a), _by_adapter(dlow, a), b, db, strict=True)
    for place, scale, by_a, gradient, matrix, of_matrix in of_adapters:
        torch.addmm(gradient, dy[place], matrix, beta=0, alpha=scale, out=gradient)
        torch.addmm(of_matrix, dy[place].t(), by_a, beta=0, alpha=scale, out=of_matrix)
    dx = dlow @ torch.cat(a)
    for gradient, rows in zip(dy, weight.split(sizes), strict=True):
        dx.addmm_(gradient, rows)
    return [dx, dlow.t() @ x, *db]


@_gradients.register_fake
def _(
    _dy: Any,
    x: Tensor,
    low: Tensor,
    _weight: Any,
    _sizes: Any,
    _places: Any,
    _scales: Any,
    _a: Any,
    b: list[Tensor],
) -> list[Tensor]:
    return [torch.empty_like(x), x.new_empty(low.shape[1], x.shape[1]), *map(torch.empty_like, b)]


def _by_adapter(low: Tensor, a: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return low.split([len(matrix) for matrix in a], -1)
