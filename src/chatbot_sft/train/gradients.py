"""The gradients of an adapter: in one place for CUDA graphs, one vector over all processes, and one vector
for optimizers that work by parameter.

bitsandbytes' 8-bit AdamW over the 392 matrices of a 3B LoRA takes 23 ms a step on an H200, more than the
gradient's own kernels for a short batch; over one vector it takes one launch. Its states are quantised in
blocks of 256 values: every matrix begins at a block of its own, so the result is the same to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

BLOCK = 256  # values that share a quantisation constant
SMALLEST_8BIT = 4096  # bitsandbytes keeps 32-bit states for parameters below this size


def flattens(parameters: Sequence[torch.nn.Parameter]) -> bool:
    """Whether one vector can stand for `parameters` without changing what an 8-bit optimizer computes:
    matrices alone, of one dtype and device.
    """
    kinds = {(parameter.dtype, parameter.device) for parameter in parameters}
    return len(kinds) == 1 and all(
        parameter.ndim == 2 and parameter.numel() >= SMALLEST_8BIT for parameter in parameters
    )


class Gradients:
    """A gradient that stays in one place for each of `parameters`."""

    def __init__(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self.gradients: list[torch.Tensor] | None = None

    def attach(self) -> None:
        """Zero the gradients and put them in place; the backward pass then adds to them."""
        import torch

        if self.gradients is None:
            self.gradients = [torch.zeros_like(parameter) for parameter in self.parameters]
        torch._foreach_zero_(self.gradients)
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient

    def share(self) -> None:
        """Give every process the parameters of the first: an initialisation need not be the same to the bit
        on two devices.
        """
        import torch

        for parameter in self.parameters:
            torch.distributed.broadcast(parameter.data, 0)

    def sum(self, *figures: torch.Tensor | float) -> list[torch.Tensor]:
        """Put the sum over all processes in place of each process's own gradients, and return that of
        `figures`: one all-reduce of one vector.
        """
        import torch

        own = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        beside = [
            torch.as_tensor(figure, dtype=torch.float32, device=own[0].device).reshape(1)
            for figure in figures
        ]
        vector = torch.cat([tensor.flatten() for tensor in (*own, *beside)])
        torch.distributed.all_reduce(vector)
        *gradients, sums = vector.split([gradient.numel() for gradient in own] + [len(beside)])
        for gradient, part in zip(own, gradients, strict=True):
            gradient.copy_(part.view_as(gradient))
        return list(sums)


class FlatParameters(Gradients):
    """Moves `parameters` into `vector` (shape (total values,)) and their gradients into `vector.grad`; both
    stay views of it.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        import torch

        super().__init__(parameters)
        starts = [0]
        for parameter in self.parameters:
            starts.append(starts[-1] + -(-parameter.numel() // BLOCK) * BLOCK)
        like = self.parameters[0]
        self.vector = torch.nn.Parameter(torch.zeros(starts[-1], dtype=like.dtype, device=like.device))
        self.vector.grad = torch.zeros_like(self.vector)
        self.gradients = [
            self.vector.grad[start : start + parameter.numel()].view_as(parameter)
            for start, parameter in zip(starts, self.parameters, strict=False)
        ]
        for start, parameter in zip(starts, self.parameters, strict=False):
            place = self.vector.data[start : start + parameter.numel()].view_as(parameter)
            place.copy_(parameter.data)
            parameter.data = place
