"""The frozen base's matrix products in float8 (e4m3), a scale per row of each factor: twice bfloat16's rate on
Hopper and newer. Imported after the engine.

As torchao's row-wise recipe does it (github.com/pytorch/ao, torchao/float8), with a weight that never changes:
it is rounded once, by its rows for the forward product and by its columns for the gradient's. Adapter, norms,
attention and output layer stay as they are.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import torch

from chatbot_sft.model.layers import replace_layers

LARGEST = torch.finfo(torch.float8_e4m3fn).max
MULTIPLE = 16  # both sides of a weight, as the kernel wants them


class Float8Linear(torch.nn.Module):
    """The linear layer `layer`, frozen: (…, in) to (…, out) in the dtype of its weight."""

    def __init__(self, layer: torch.nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.dtype, self.bias = layer.weight.dtype, layer.bias
        weight = layer.weight.detach()
        for name, matrix in (("by_output", weight), ("by_input", weight.t())):
            values, scales = rounded(matrix)
            self.register_buffer(name, values.contiguous(), persistent=False)
            self.register_buffer(f"{name}_scales", scales, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, self.in_features).to(self.dtype)
        y = _Product.apply(rows, self.by_output, self.by_output_scales, self.by_input, self.by_input_scales)
        y = y.view(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias


class _Product(torch.autograd.Function):
    """rows (n, in) to (n, out). The weight is there twice: rounded by its rows, and transposed by its columns."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: torch.Tensor,
        by_output: torch.Tensor,
        output_scales: torch.Tensor,
        by_input: torch.Tensor,
        input_scales: torch.Tensor,
    ) -> torch.Tensor:
        ctx.save_for_backward(by_input, input_scales)
        return product(rows, by_output, output_scales)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return product(gradient.contiguous(), *ctx.saved_tensors), None, None, None, None


def rounded(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows, columns) as float8 of that shape and float32 scales (rows, 1): their product is `matrix` again."""
    scales = matrix.abs().amax(-1, keepdim=True).float().clamp(min=1e-12) / LARGEST
    return (matrix.float() / scales).to(torch.float8_e4m3fn), scales


def product(rows: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """`rows` (n, in), rounded here, times `weight` (out, in) in float8 with `scales` (out, 1): (n, out)."""
    return _multiplied(*rounded(rows), weight, scales, rows.dtype)


# An operator of its own, because the compiler of PyTorch 2.11 does not see through scaled_mm's enumerations.
@torch.library.custom_op("chatbot_sft::float8_product", mutates_args=())
def _multiplied(
    rows: torch.Tensor,
    row_scales: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    functional = torch.nn.functional
    by_row = functional.ScalingType.RowWise
    return functional.scaled_mm(
        rows, weight.t(), row_scales, by_row, scales.t(), by_row, output_dtype=dtype, use_fast_accum=True
    )


_multiplied.register_fake(
    lambda rows, _row_scales, weight, _scales, dtype: rows.new_empty(
        rows.shape[0], weight.shape[0], dtype=dtype
    )
)


def round_base(model: Any) -> int:
    """Put `Float8Linear` in place of the frozen linear layers of `model`'s decoder; how many there were."""
    return len(replace_layers(model, lambda layer: Float8Linear(layer) if roundable(layer) else None))


def roundable(layer: torch.nn.Module) -> TypeGuard[torch.nn.Linear]:
    """An adapter's own matrices are trained; a side that the kernel does not take stays in 16 bits."""
    if type(layer) is not torch.nn.Linear or layer.weight.requires_grad:
        return False
    return not layer.in_features % MULTIPLE and not layer.out_features % MULTIPLE
