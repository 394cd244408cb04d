"""What an objective makes of a micro-batch: figures, and the gradient of its loss by each sequence's log-probability.
Imported after the engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from chatbot_sft.objective.base import Objective
from chatbot_sft.objective.sequences import MISMATCHED, Sequences, Totals
from chatbot_sft.train.rows import Row, StepRows, sequence_tensors

BESIDES = ("tokens", "reference")  # of `rows.sequence_tensors`; the others are places by kind


class Judge:
    """Of one step: `names` are those of the objective's figures, `totals` is what all of the step has, `seen` what
    the objective looked at before.
    """

    def __init__(
        self, objective: Objective, names: Sequence[str], totals: Totals, seen: torch.Tensor | None
    ) -> None:
        self.objective, self.names, self.totals, self.seen = objective, names, totals, seen

    def __call__(
        self, logps: torch.Tensor, of_rows: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(what is added to the step's loss and to each of its figures, the gradient of the loss by `logps`).
        `of_rows` is of `rows.sequence_tensors`.
        """
        leaf = logps.detach().requires_grad_()
        with torch.enable_grad():
            loss, figures = self.objective.loss(sequences_of(leaf, of_rows, self.totals, self.seen))
            (gradient,) = torch.autograd.grad(loss, leaf)
        return torch.stack([loss.detach(), *(figures[name] for name in self.names)]), gradient


def figure_names(objective: Objective) -> list[str]:
    """What `objective` reports, told from a micro-batch without sequences: every process has to know it, of each."""
    of_none = sequence_tensors([])
    nothing = torch.zeros(0, requires_grad=True)
    _, figures = objective.loss(sequences_of(nothing, of_none, Totals(0, 0), torch.zeros(())))
    return list(figures)


def judged_at_once(
    objective: Objective, rows: Sequence[Row], logps: torch.Tensor, beside: torch.Tensor
) -> dict[str, float]:
    """ "loss" and the figures of `rows` as if they were one step: by the log-probabilities of their sequences, and of
    what stands `beside` each row.
    """
    totals = StepRows([list(rows)]).totals
    seen = None
    if objective.looks:
        others = sequence_tensors([row.beside for row in rows if row.beside])
        seen = objective.look(sequences_of(beside, others, beside_totals(totals)))
    loss, figures = objective.loss(sequences_of(logps, sequence_tensors(rows), totals, seen))
    return {name: value.item() for name, value in {"loss": loss, **figures}.items()}


def beside_totals(totals: Totals) -> Totals:
    """Those of what stands beside the rows of a step of `totals`."""
    return replace(totals, sequences={MISMATCHED: sum(totals.sequences.values())}, trained={})


def sequences_of(
    logps: torch.Tensor, of_rows: Mapping[str, torch.Tensor], totals: Totals, seen: torch.Tensor | None = None
) -> Sequences:
    """What an objective is given, of `rows.sequence_tensors` and the log-probabilities of the same sequences."""
    places = {name: place for name, place in of_rows.items() if name not in BESIDES}
    return Sequences(logps, of_rows["tokens"].float(), of_rows["reference"], places, totals, seen)


def of_sequences(by_position: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Sums over the trained positions of each sequence, of which there are `tokens`, always in the same order."""
    return torch.segment_reduce(by_position, "sum", lengths=tokens, unsafe=True)


def spread(by_sequence: torch.Tensor, tokens: torch.Tensor, positions: int) -> torch.Tensor:
    """What each sequence has, for each of its trained positions."""
    return by_sequence.repeat_interleave(tokens, output_size=positions)
