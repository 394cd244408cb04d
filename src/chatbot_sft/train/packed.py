"""The passes of a packed micro-batch: conversations end to end through the layers, compiled and captured where
that pays, then the head at trained positions alone. Imported after the engine.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from chatbot_sft.model import head as heads
from chatbot_sft.model.head import loss_and_gradient
from chatbot_sft.train.graphs import CapturedLayers, CaptureFailed, Head
from chatbot_sft.train.judge import Judge, of_sequences, spread
from chatbot_sft.train.packing import PackedShapes
from chatbot_sft.train.rows import Row, packed, sequence_tensors, sequences

if TYPE_CHECKING:
    from chatbot_sft.model.engine import Engine
    from chatbot_sft.train.layout import Layout

Autocast = Callable[[], contextlib.AbstractContextManager[Any]]


class PackedPasses:
    """Forward and backward passes of `model`. `shapes` says in which sizes conversations come, `random` whether
    the layers have dropout, `graphs` where those of a layout are.
    """

    def __init__(
        self,
        model: Any,
        engine: Engine,
        autocast: Autocast,
        pad_token_id: int,
        smoothing: float,
        shapes: PackedShapes,
        random: bool = False,
        graphs: Callable[[Layout], CapturedLayers] | None = None,
    ) -> None:
        self.model, self.engine, self.autocast, self.pad = model, engine, autocast, pad_token_id
        self.smoothing, self.shapes, self.random = smoothing, shapes, random
        self.graphs = graphs or (lambda layout: CapturedLayers(random))
        self.captured: CapturedLayers | None = None

    def run(self, rows: Sequence[Row], count: torch.Tensor, layout: Layout) -> torch.Tensor:
        """Forward and backward pass of a micro-batch; its loss, already divided by `count` tokens.

        Raises:
            graphs.CaptureFailed: `layout` is captured, and the layers cannot be.
        """
        batch = self.batch(rows)
        return self._pass(batch, self._head(batch.pop("positions"), batch.pop("targets"), count), layout)

    def judged(self, rows: Sequence[Row], judge: Judge, layout: Layout) -> torch.Tensor:
        """Forward and backward pass of a micro-batch whose loss is an objective's; what `judge` gives of it.

        Raises:
            graphs.CaptureFailed: as `run`.
        """
        batch = self.batch(rows)
        positions, targets = batch.pop("positions"), batch.pop("targets")
        of_rows = self._on_device(sequence_tensors(rows))
        weight = self.model.get_output_embeddings().weight

        def head(hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            states = hidden[0, positions]
            logps = of_sequences(heads.log_probabilities(states, weight, targets), of_rows["tokens"])
            values, by_sequence = judge(logps, of_rows)
            by_logp = spread(by_sequence, of_rows["tokens"], len(targets))
            gradient = torch.zeros_like(hidden)
            gradient[0, positions] = heads.gradient(states, weight, targets, by_logp)
            return values, gradient

        return self._pass(batch, head, layout)

    def logps(self, rows: Sequence[Row], layout: Layout) -> torch.Tensor:
        """(sequences,): the log-probability of each sequence, without gradients or dropout.

        Raises:
            graphs.CaptureFailed: as `run`.
        """
        batch = self.batch(rows)
        positions, targets = batch.pop("positions"), batch.pop("targets")
        tokens = self._on_device(sequence_tensors(rows))["tokens"]
        with torch.no_grad():
            if layout.captured and not self.random:
                with torch.enable_grad():  # what is captured has a backward pass
                    hidden = self._captured(batch, layout).hidden(self.layers, batch)
            else:
                with evaluating(self.model), uncompiled():
                    hidden = self.layers(**batch)
            weight = self.model.get_output_embeddings().weight
            return of_sequences(heads.log_probabilities(hidden[0, positions], weight, targets), tokens)

    def _pass(self, batch: dict[str, torch.Tensor], head: Head, layout: Layout) -> torch.Tensor:
        if layout.captured:
            return self._captured(batch, layout).run(self.layers, batch, head)
        with uncompiled():
            hidden = self.layers(**batch)
            loss, gradient = head(hidden.detach())
            hidden.backward(gradient)
        return loss

    def _captured(self, batch: dict[str, torch.Tensor], layout: Layout) -> CapturedLayers:
        """The layers, compiled anew where they are to be captured for this batch."""
        # The backward pass is a graph of its own, which draws its own numbers.
        if layout.checkpointing and self.random:
            raise CaptureFailed("layers that are recomputed would draw another dropout")
        if self.captured is None:
            self.captured = self.graphs(layout)
        self.captured.prove(self.layers, batch)
        if layout.compiled and not self.captured.hold(batch):
            self.engine.compile_layers(self.model)  # again: another run may have compiled its own since
        return self.captured

    def loss(self, rows: Sequence[Row], count: torch.Tensor) -> torch.Tensor:
        """The loss alone, of the model as it is: not in training, nothing compiled."""
        batch = self.batch(rows)
        head = self._head(batch.pop("positions"), batch.pop("targets"), count)
        self.model.eval()
        with torch.no_grad(), uncompiled():
            return head(self.layers(**batch))[0]

    def batch(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """`rows.packed` of them, on the device of the model.

        Raises:
            ValueError: they do not fit into `shapes`; a graph would compute something else of them.
        """
        parts = sequences(rows)
        longest = max(map(len, parts))
        if len(parts) > self.shapes.rows or longest > self.shapes.longest:
            raise ValueError(
                f"{len(parts)} conversations of up to {longest} tokens are not within {self.shapes}"
            )
        size = self.shapes.size(sum(map(len, parts)))
        return self._on_device(packed(parts, self.pad, size, self.shapes.bounds, self.shapes.longest))

    def _on_device(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return on_device(tensors, self.model.device)

    def layers(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, cu_seq_lens: torch.Tensor
    ) -> torch.Tensor:
        """(1, tokens) to the hidden states (1, tokens, width)."""
        longest = self.shapes.longest
        with self.autocast():
            return self.engine.packed_hidden_states(self.model, input_ids, position_ids, cu_seq_lens, longest)

    def _head(self, positions: torch.Tensor, targets: torch.Tensor, count: torch.Tensor) -> Head:
        weight = self.model.get_output_embeddings().weight

        def head(hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            loss, by_position = loss_and_gradient(
                hidden[0, positions], weight, targets, count, self.smoothing
            )
            gradient = torch.zeros_like(hidden)
            gradient[0, positions] = by_position
            return loss, gradient

        return head


def on_device(tensors: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """Copies that do not wait for the device."""
    if device.type == "cuda":  # from pageable memory the copy would
        tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
    return {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}


@contextlib.contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Without dropout."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def uncompiled() -> contextlib.AbstractContextManager[Any]:
    """Layers that were compiled run as they are: for batches of all shapes, in evaluations and answers."""
    return torch.compiler.set_stance("force_eager")
