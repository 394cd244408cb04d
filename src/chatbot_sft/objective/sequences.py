"""What an objective is given: the sequences of a micro-batch as numbers, and what the whole step has of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PLAIN = "conversation"  # the kind of a row that is one sequence and says nothing of it
MISMATCHED = "mismatched"  # a row's prompt with another row's answer
PREFERRED = ("chosen", "desirable", PLAIN)  # kinds of answers that are to become likelier


@dataclass(frozen=True)
class Totals:
    """What a step has in all processes. `sequences` and `trained` (tokens) are by kind."""

    tokens: int
    trained_tokens: int
    sequences: Mapping[str, int] = field(default_factory=dict)
    trained: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Sequences:
    """Of each sequence, as float32 tensors of shape (sequences,): `logps`, the sum of the log-probabilities of its
    trained tokens, which has a gradient; their number `tokens`; and `reference`, that sum by the reference.

    `places` are the sequences of each kind, `seen` is what `Objective.look` made of the step.
    """

    logps: torch.Tensor
    tokens: torch.Tensor
    reference: torch.Tensor
    places: Mapping[str, torch.Tensor]
    totals: Totals
    seen: torch.Tensor | None = None
    kinds: tuple[str, ...] = ()  # that these are of; of all kinds: none

    def of(self, kind: str) -> Sequences:
        """Those of a kind: "chosen", "rejected", "desirable", "undesirable". The n-th chosen one and the n-th
        rejected one are a pair.
        """
        place = self.places.get(kind)
        if place is None:
            place = self.tokens.new_zeros(0).long()
        return replace(
            self,
            logps=self.logps[place],
            tokens=self.tokens[place],
            reference=self.reference[place],
            kinds=(kind,),
        )

    @property
    def ratios(self) -> torch.Tensor:
        """How much likelier each is than to the reference: the difference of their log-probabilities."""
        return self.logps - self.reference

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of `values`, one for each of these sequences, by the number of such sequences in the step."""
        return values.sum() / max(1, self._total(self.totals.sequences))

    def per_token(self, values: torch.Tensor) -> torch.Tensor:
        """The same by the number of their trained tokens in the step."""
        return values.sum() / max(1, self._total(self.totals.trained))

    def _total(self, by_kind: Mapping[str, int]) -> int:
        return sum(count for kind, count in by_kind.items() if not self.kinds or kind in self.kinds)
