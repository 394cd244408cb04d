"""The gradients of an adapter: in one place for CUDA graphs, one vector over all processes, and one vector
for clipping and the optimizer.

bitsandbytes' 8-bit AdamW over the 392 matrices of a 3B LoRA takes 23 ms a step on an H200, more than the
gradient's own kernels for a short batch; over one vector it takes one launch. Its states are quantised in
blocks of 256 values: every matrix begins at a block of its own, so the result is the same to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING

from chatbot_sft.train.captures import Captures

if TYPE_CHECKING:
    import torch

BLOCK = 256  # values that share a quantisation constant
SMALLEST_8BIT = 4096  # bitsandbytes keeps 32-bit states for parameters below this size
FIGURES = 32  # numbers that are summed with a gradient, at most


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

    def forget(self) -> None:
        """The gradients have been used."""
        for parameter in self.parameters:
            parameter.grad = None

    def collect(self) -> None:
        """A backward pass has ended: its gradients count from here on."""

    def whole(self) -> None:
        """The parameters are what is trained, in its full precision: to be evaluated, saved, or loaded."""

    @property
    def weights(self) -> list[torch.Tensor]:
        """All that is trained, in as few tensors as there are, where it is `whole`."""
        return [parameter.data for parameter in self.parameters]

    def remember(self) -> None:
        """The optimizer is about to move the weights. Raises NotImplementedError: there is no room for all."""
        raise NotImplementedError

    def undo(self) -> None:
        """Put back the weights as they were when `remember` was last called."""
        raise NotImplementedError

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

    After `compute_in` another dtype a copy in that one takes part in forward and backward passes, and
    `vector` stays what the optimizer moves (mixed precision as in arXiv 1710.03740): one cast a step, not one
    of each matrix each time it is used. Runs that share `captures` have the copy in one place, in any dtype: what
    stands there is of one step.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter], captures: Captures | None = None) -> None:
        import torch

        super().__init__(parameters)
        starts = [0]
        for parameter in self.parameters:
            starts.append(starts[-1] + -(-parameter.numel() // BLOCK) * BLOCK)
        self.starts = starts[:-1]
        like = self.parameters[0]
        self.vector = torch.nn.Parameter(torch.zeros(starts[-1], dtype=like.dtype, device=like.device))
        # What `sum` reduces where it is: the gradient, and behind it the figures.
        self.summed = torch.zeros(starts[-1] + FIGURES, dtype=like.dtype, device=like.device)
        self.gradient = self.summed[: starts[-1]]
        self.vector.grad = self.gradient
        self.master = _Vector(self.vector.data, self.gradient, self._views)
        for parameter, place in zip(self.parameters, self.master.places, strict=True):
            place.copy_(parameter.data)
            parameter.data = place
        self.captures = captures
        self.copy: _Vector | None = None
        self.before: torch.Tensor | None = None
        self.gradients = self.master.gradients

    @property
    def form(self) -> Hashable:
        """Equal for parameters that can stand in one place."""
        return (*(parameter.shape for parameter in self.parameters), self.vector.device)

    def compute_in(self, dtype: torch.dtype | None) -> None:
        """The dtype of forward and backward passes from here on; None: the parameters' own."""
        import torch

        self.whole()

        def copied() -> _Vector:
            copy = torch.zeros_like(self.vector.data, dtype=dtype)
            return _Vector(copy, torch.zeros_like(copy), self._views)

        if dtype is None or (dtype == self.vector.dtype and self.captures is None):
            self.copy = None
        elif self.copy is None:  # one that is there stays where graphs know it
            place = (self.form, dtype)
            self.copy = self.captures.place(place, copied) if self.captures else copied()
        self.gradients = (self.copy or self.master).gradients

    def attach(self) -> None:
        """Zero the gradients and put them in place; the backward pass then adds to them."""
        self.vector.grad = self.gradient.zero_()
        if self.copy is not None:
            self.copy.values.copy_(self.vector.data)
            self.copy.gradient.zero_()
        now = self.copy or self.master
        if self.parameters[0].grad is now.gradients[0]:  # since the last step
            return
        for parameter, place, gradient in zip(self.parameters, now.places, now.gradients, strict=True):
            parameter.grad = None
            parameter.data = place
            parameter.grad = gradient

    def forget(self) -> None:
        """Nothing: `attach` zeroes them where they are."""

    def collect(self) -> None:
        if self.copy is not None:
            self.gradient.add_(self.copy.gradient)
            self.copy.gradient.zero_()

    def whole(self) -> None:
        for parameter, place in zip(self.parameters, self.master.places, strict=True):
            parameter.grad = None
            parameter.data = place

    @property
    def weights(self) -> list[torch.Tensor]:
        return [self.vector.data]

    def remember(self) -> None:
        import torch

        if self.before is None:
            self.before = torch.empty_like(self.vector.data)
        self.before.copy_(self.vector.data)

    def undo(self) -> None:
        if self.before is not None:
            self.vector.data.copy_(self.before)

    def sum(self, *figures: torch.Tensor | float) -> list[torch.Tensor]:
        import torch

        if self.summed.dtype != torch.float32:  # it would round the figures
            return super().sum(*figures)
        end = len(self.gradient) + len(figures)
        for place, figure in zip(self.summed[len(self.gradient) : end], figures, strict=True):
            place.copy_(torch.as_tensor(figure))
        torch.distributed.all_reduce(self.summed[:end])
        return list(self.summed[len(self.gradient) : end].clone())

    def _views(self, vector: torch.Tensor) -> list[torch.Tensor]:
        """`vector` as the parameters."""
        return [
            vector[start : start + parameter.numel()].view(parameter.shape)
            for start, parameter in zip(self.starts, self.parameters, strict=True)
        ]


class _Vector:
    """`values` of all parameters and their `gradient`, and both as `views` shows them: a parameter each."""

    def __init__(
        self,
        values: torch.Tensor,
        gradient: torch.Tensor,
        views: Callable[[torch.Tensor], list[torch.Tensor]],
    ) -> None:
        self.values, self.gradient = values, gradient
        self.places, self.gradients = views(values), views(gradient)
