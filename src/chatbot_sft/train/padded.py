"""The passes of an objective's micro-batch that is not packed: padded, or end to end in no captured shape. Imported
after the engine.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from chatbot_sft.data.labels import IGNORED
from chatbot_sft.model import head as heads
from chatbot_sft.train.judge import Judge, of_sequences, spread
from chatbot_sft.train.packed import Autocast, evaluating, on_device
from chatbot_sft.train.rows import Row, sequence_tensors

if TYPE_CHECKING:
    from chatbot_sft.model.engine import Engine
    from chatbot_sft.train.layout import Layout


class PaddedPasses:
    """What `PackedPasses` does of objectives. `scaler` is a torch.amp.GradScaler, where float16 losses need one."""

    def __init__(
        self, model: Any, engine: Engine, autocast: Autocast, pad_token_id: int, scaler: Any | None
    ) -> None:
        self.model, self.engine, self.autocast, self.pad = model, engine, autocast, pad_token_id
        self.scaler = scaler

    @functools.cached_property
    def two_passes(self) -> bool:
        """Whether a gradient is computed from hidden states on, without all logits at once."""
        with evaluating(self.model):
            return self.scaler is None and self.engine.plain_head(self.model)

    def judged(self, rows: Sequence[Row], judge: Judge, layout: Layout) -> torch.Tensor:
        """Forward and backward pass of a micro-batch; what `judge` gives of it."""
        of_rows = on_device(sequence_tensors(rows), self.model.device)
        tokens = of_rows["tokens"]
        inputs, places, targets = self._inputs(rows, layout)
        if self.two_passes:
            with self.autocast():
                states = self.engine.states(self.model, inputs).flatten(0, 1)
            leaf, weight = states.detach()[places], self.model.get_output_embeddings().weight
            logps = of_sequences(heads.log_probabilities(leaf, weight, targets), tokens)
            values, by_sequence = judge(logps, of_rows)
            by_logp = spread(by_sequence, tokens, len(targets))
            gradient = torch.zeros_like(states)
            gradient[places] = heads.gradient(leaf, weight, targets, by_logp)
            states.backward(gradient)
            return values
        by_position = self._by_position(inputs, places, targets)
        values, by_sequence = judge(of_sequences(by_position.detach(), tokens), of_rows)
        total = (by_position * spread(by_sequence, tokens, len(targets))).sum()
        (self.scaler.scale(total) if self.scaler is not None else total).backward()
        return values

    def logps(self, rows: Sequence[Row], layout: Layout) -> torch.Tensor:
        """(sequences,): the log-probability of each sequence, without gradients or dropout."""
        tokens = on_device(sequence_tensors(rows), self.model.device)["tokens"]
        inputs, places, targets = self._inputs(rows, layout)
        two_passes = self.two_passes
        with torch.no_grad(), evaluating(self.model):
            if not two_passes:
                return of_sequences(self._by_position(inputs, places, targets), tokens)
            with self.autocast():
                states = self.engine.states(self.model, inputs).flatten(0, 1)[places]
            weight = self.model.get_output_embeddings().weight
            return of_sequences(heads.log_probabilities(states, weight, targets), tokens)

    def _by_position(
        self, inputs: dict[str, torch.Tensor], places: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        """(places,): the log-probability of each target, from logits."""
        with self.autocast():
            logits = logits_at(self.model, inputs, places)
        return heads.log_probability(logits, targets)

    def _inputs(
        self, rows: Sequence[Row], layout: Layout
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
        """(what the model takes, the places whose next token is trained, counted over all rows, these tokens)."""
        batch = layout.batch(list(rows), self.pad)
        labels = torch.nn.functional.pad(batch.pop("labels")[:, 1:], (0, 1), value=IGNORED).flatten()
        places = (labels != IGNORED).nonzero()[:, 0]
        tensors = on_device({**batch, "places": places, "targets": labels[places]}, self.model.device)
        places, targets = tensors.pop("places"), tensors.pop("targets")
        return self.engine.inputs(tensors), places, targets


def logits_at(model: Any, inputs: dict[str, torch.Tensor], places: torch.Tensor) -> torch.Tensor:
    """(places, vocabulary): the logits at `places`, counted over all rows, by the model's own forward.

    A hook hands the output layer the states of these alone; whatever becomes of its logits is done as ever.
    """
    some = places if len(places) else places.new_zeros(1)

    def chosen(_: Any, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (arguments[0].flatten(0, 1)[some.to(arguments[0].device)][None], *arguments[1:])

    hook = model.get_output_embeddings().register_forward_pre_hook(chosen)
    try:
        return model(**inputs, use_cache=False).logits[0][: len(places)]
    finally:
        hook.remove()
