"""The decoder layers as CUDA graphs: a short batch is over before Python has launched its thousands of
kernels; a graph launches them at once.

One pair of graphs (forward, backward) per shape of the batch, captured when the shape first comes. The head
and its loss stay outside: which positions are trained differs from batch to batch. See PyTorch's "CUDA
semantics: CUDA Graphs".
"""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass

import torch

APART = 0.1  # of the norm of hidden states: compiled layers round otherwise than these do
LENGTHS = 128  # rows are padded to a multiple of so many tokens, to keep the shapes few
Inputs = dict[str, torch.Tensor]
Layers = Callable[..., torch.Tensor]
# Of hidden states the loss, and its gradient.
Head = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class CaptureFailed(Exception):
    """These layers do something that a graph cannot hold."""


@dataclass(frozen=True)
class _Graphs:
    inputs: Inputs
    hidden: torch.Tensor  # (rows, length, width): what the forward graph leaves
    hidden_gradient: torch.Tensor  # the same shape: what the backward graph reads
    forward: torch.cuda.CUDAGraph
    backward: torch.cuda.CUDAGraph


class _Ground:
    """The memory that graphs work in, and the stream that they are captured on. All graphs of a process share it,
    those of runs that take turns too: a micro-batch is over before the next begins, and leaves nothing behind.
    """

    def __init__(self) -> None:
        self.pool, self.stream = torch.cuda.MemPool(), torch.cuda.Stream()

    @classmethod
    def of_process(cls) -> _Ground:
        """Given back when no captured layers are left."""
        device = torch.cuda.current_device()
        ground = _grounds.get(device)
        if ground is None:
            ground = _grounds[device] = cls()
        return ground


_grounds: weakref.WeakValueDictionary[int, _Ground] = weakref.WeakValueDictionary()  # by device


class CapturedLayers:
    """`layers(**inputs)`, to the hidden states (rows, length, width), replayed from graphs. The layers are asked
    where a shape first comes; later they may be another run's, whose weights are in the same places.

    The backward graphs add to gradients where these were when the shape was captured: they have to stay in
    place (`gradients.Gradients`).
    """

    def __init__(self, random: bool = False, read: object = None) -> None:
        """`random`: each pass draws its own dropout, so a graph cannot be held against the layers. `read` is what
        they read that nobody else may keep in memory.
        """
        self.random, self.read = random, read
        self.unseen: set[tuple[torch.Size, ...]] = set()  # shapes that this run has not seen yet
        self.ground = _Ground.of_process()
        self.graphs: dict[tuple[torch.Size, ...], _Graphs] = {}

    @staticmethod
    def length(longest: int) -> int:
        """The padded length for rows of at most `longest` tokens."""
        return math.ceil(longest / LENGTHS) * LENGTHS

    def hold(self, inputs: Inputs) -> bool:
        """Whether there are graphs for inputs of these shapes."""
        return _shapes(inputs) in self.graphs

    def run(self, layers: Layers, inputs: Inputs, head: Head) -> torch.Tensor:
        """Forward and backward pass of one micro-batch on the GPU. `head` makes of the hidden states the loss,
        which is returned, and its gradient, of their shape.

        Raises:
            CaptureFailed: the layers cannot be captured; nothing was computed, and the process goes on as
                before.
        """
        graphs = self._forward(layers, inputs)
        loss, gradient = head(graphs.hidden)
        graphs.hidden_gradient.copy_(gradient)
        graphs.backward.replay()
        return loss

    def hidden(self, layers: Layers, inputs: Inputs) -> torch.Tensor:
        """The hidden states alone, until the next pass. Raises CaptureFailed as `run` does."""
        return self._forward(layers, inputs).hidden

    def _forward(self, layers: Layers, inputs: Inputs) -> _Graphs:
        shapes = _shapes(inputs)
        if shapes not in self.graphs:
            self.graphs[shapes] = self._capture(layers, inputs)
        return self._replayed(inputs)

    def _replayed(self, inputs: Inputs) -> _Graphs:
        graphs = self.graphs[_shapes(inputs)]
        for name, tensor in inputs.items():
            graphs.inputs[name].copy_(tensor, non_blocking=True)
        graphs.forward.replay()
        return graphs

    def hand_over(self) -> CapturedLayers:
        """To another run, which has each graph proved as it first comes to it."""
        self.unseen = set(self.graphs)
        return self

    def prove(self, layers: Layers, inputs: Inputs) -> None:
        """Forget a graph of a run before that computes something else than `layers`: what it reads may be gone."""
        shapes = _shapes(inputs)
        if shapes not in self.unseen:
            return
        self.unseen.discard(shapes)
        if self.random:
            return
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            expected = layers(**inputs).float()
            apart = (self._replayed(inputs).hidden.float() - expected).norm()
            if not apart <= APART * expected.norm():
                del self.graphs[shapes]

    def _capture(self, layers: Layers, inputs: Inputs) -> _Graphs:
        inputs = {name: tensor.clone() for name, tensor in inputs.items()}
        pool, stream = self.ground.pool, self.ground.stream
        stream.wait_stream(torch.cuda.current_stream())
        forward, backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        capture = functools.partial(
            torch.cuda.graph,
            pool=pool.id,  # type: ignore[arg-type]  # the stub knows graph_pool_handle's alone
            stream=stream,
        )
        try:
            # Compiles, and allocates what the capture must find ready: from the graphs' own memory, in which
            # the capture then finds room.
            with torch.cuda.stream(stream), torch.cuda.use_mem_pool(pool):
                expected = layers(**inputs)
                expected.backward(torch.zeros_like(expected))
                expected = expected.detach()
            torch.cuda.current_stream().wait_stream(stream)
            with capture(forward):
                hidden = layers(**inputs)
            gradient = torch.zeros_like(hidden)
            with capture(backward):
                hidden.backward(gradient)
        except torch.OutOfMemoryError:
            _end_failed_capture()
            raise
        except Exception as error:  # a compiler that is not there, a layer that asks the device
            _end_failed_capture()
            raise CaptureFailed(" ".join(str(error).split())) from error
        forward.replay()
        if not self.random and not torch.allclose(hidden.detach(), expected, rtol=0.02, atol=0.02):
            raise CaptureFailed("the graph computes something else than the layers")
        return _Graphs(inputs, hidden.detach(), gradient, forward, backward)


def _shapes(inputs: Inputs) -> tuple[torch.Size, ...]:
    return tuple(tensor.shape for tensor in inputs.values())


def _end_failed_capture() -> None:
    """A capture that broke off leaves its stream current and the random generator waiting for it."""
    torch.cuda.set_stream(torch.cuda.default_stream())
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    generator.graphsafe_set_state(generator.clone_state())
