"""The decoder layers as CUDA graphs: a short batch is over before Python has launched its thousands of
kernels; a graph launches them at once.

One pair of graphs (forward, backward) per shape of the batch, captured when the shape first comes. The head
and its loss stay outside: which positions are trained differs from batch to batch. See PyTorch's "CUDA
semantics: CUDA Graphs".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

LENGTHS = 128  # rows are padded to a multiple of so many tokens, to keep the shapes few


class CaptureFailed(Exception):
    """These layers do something that a graph cannot hold."""


@dataclass(frozen=True)
class _Graphs:
    input_ids: torch.Tensor
    hidden: torch.Tensor  # (rows, length, width): what the forward graph leaves
    hidden_gradient: torch.Tensor  # the same shape: what the backward graph reads
    forward: torch.cuda.CUDAGraph
    backward: torch.cuda.CUDAGraph


class CapturedLayers:
    """`layers(input_ids)` (to the hidden states) replayed from graphs, `loss(hidden, labels, trained_tokens)`
    as it is.

    The backward graphs add to gradients where these were when the shape was captured: they have to stay in
    place (`gradients.Gradients`).
    """

    def __init__(
        self, layers: Callable[[torch.Tensor], torch.Tensor], loss: Callable[..., torch.Tensor]
    ) -> None:
        self.layers, self.loss = layers, loss
        self.pool = torch.cuda.graph_pool_handle()
        self.graphs: dict[tuple[int, int], _Graphs] = {}

    @staticmethod
    def length(longest: int) -> int:
        """The padded length for rows of at most `longest` tokens."""
        return math.ceil(longest / LENGTHS) * LENGTHS

    def run(
        self, input_ids: torch.Tensor, labels: torch.Tensor, trained_tokens: torch.Tensor
    ) -> torch.Tensor:
        """Forward and backward pass of one micro-batch; input_ids and labels of shape (rows, length) on the
        GPU. Returns the loss.

        Raises:
            CaptureFailed: the layers cannot be captured; nothing was computed, and the process goes on as
                before.
        """
        shape = tuple(input_ids.shape)
        if shape not in self.graphs:
            self.graphs[shape] = self._capture(input_ids)
        graphs = self.graphs[shape]
        graphs.input_ids.copy_(input_ids)
        graphs.forward.replay()
        hidden = graphs.hidden.detach().requires_grad_()
        loss = self.loss(hidden, labels, trained_tokens)
        loss.backward()
        graphs.hidden_gradient.copy_(hidden.grad)
        graphs.backward.replay()
        return loss.detach()

    def _capture(self, input_ids: torch.Tensor) -> _Graphs:
        ids = input_ids.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # compiles and allocates what the capture must find ready
            expected = self.layers(ids)
            expected.backward(torch.zeros_like(expected))
            expected = expected.detach()
        torch.cuda.current_stream().wait_stream(side)
        forward, backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(forward, pool=self.pool):
                hidden = self.layers(ids)
            gradient = torch.zeros_like(hidden)
            with torch.cuda.graph(backward, pool=self.pool):
                hidden.backward(gradient)
        except Exception as error:
            _end_failed_capture()
            raise CaptureFailed(" ".join(str(error).split())) from error
        forward.replay()
        if not torch.allclose(hidden.detach(), expected, rtol=0.02, atol=0.02):
            raise CaptureFailed("the graph computes something else than the layers")
        return _Graphs(ids, hidden.detach(), gradient, forward, backward)


def _end_failed_capture() -> None:
    """A capture that broke off leaves its stream current and the random generator waiting for it."""
    torch.cuda.set_stream(torch.cuda.default_stream())
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    generator.graphsafe_set_state(generator.clone_state())


def layers_and_loss(
    engine: Any, model: Any, autocast: Callable[[], Any]
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The two halves of `model`, each under `autocast`: hidden states from ids, and the loss from hidden
    states.
    """

    def layers(input_ids: torch.Tensor) -> torch.Tensor:
        with autocast():
            return engine.hidden_states(model, input_ids)

    def loss(hidden: torch.Tensor, labels: torch.Tensor, trained_tokens: torch.Tensor) -> torch.Tensor:
        with autocast():
            return engine.head_loss(model, hidden, labels, trained_tokens)

    return layers, loss
