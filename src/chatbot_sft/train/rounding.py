"""What it costs to round the frozen base to float8, measured as it is done. Imported after the engine."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from chatbot_sft.data.labels import IGNORED
from chatbot_sft.model.float8 import round_base
from chatbot_sft.model.head import CHUNK
from chatbot_sft.model.loss import base_of
from chatbot_sft.run.report import Rounding
from chatbot_sft.train.rows import Row, sequences

if TYPE_CHECKING:
    from chatbot_sft.train.step import Step

log = logging.getLogger(__name__)


def rounded(step: Step, rows: Sequence[Row]) -> Rounding:
    """Round the base of `step.model`, for good; says what `rows` lose by it."""
    rows = sequences(rows)
    with step.inference(), torch.no_grad():
        step.model.eval()
        exact = [_hidden(step, row) for row in rows]
        layers = round_base(step.model)
        figures = torch.zeros(3, dtype=torch.float64, device=step.args.device)
        for row, before in zip(rows, exact, strict=True):
            figures += _compared(step, row, before, _hidden(step, row))
    tokens = sum(row.trained_tokens for row in rows)
    before, after, divergence = (figures / max(1, tokens)).tolist()
    log.info(
        "model: %d layers rounded to float8: loss %.4f → %.4f, KL divergence %.3g (nats per token, %d"
        " conversations)",
        layers,
        before,
        after,
        divergence,
        len(rows),
    )
    return Rounding(layers, len(rows), before, after, divergence)


def _hidden(step: Step, row: Row) -> torch.Tensor:
    """(length, width): what the decoder makes of one conversation."""
    decoder: Any = base_of(step.model).get_decoder()
    ids = torch.tensor([row.input_ids], device=step.args.device)
    with step.autocast():
        return decoder(input_ids=ids, use_cache=False).last_hidden_state[0]


def _compared(step: Step, row: Row, exact: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Sums over the trained tokens of `row`: the loss by each, and the divergence of the second from the first,
    by the output layer alone.
    """
    targets = torch.tensor(row.labels[1:], device=step.args.device)
    trained = targets != IGNORED
    head = step.model.get_output_embeddings()
    sums = torch.zeros(3, dtype=torch.float64, device=targets.device)
    # The logits of a whole conversation, twice and in float32, would be several GB.
    parts = zip(
        targets[trained].split(CHUNK),
        exact[:-1][trained].split(CHUNK),
        other[:-1][trained].split(CHUNK),
        strict=True,
    )
    for wanted, *hidden in parts:
        p, q = (head(rows.to(head.weight.dtype)).float().log_softmax(-1) for rows in hidden)
        index = wanted[:, None]
        losses = (-p.gather(1, index), -q.gather(1, index), p.exp() * (p - q))
        sums += torch.stack([loss.double().sum() for loss in losses])
    return sums
