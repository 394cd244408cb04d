"""How far two trainings of the same may lie apart where nothing is different."""

from __future__ import annotations

from dataclasses import dataclass

LOSSES = ("loss", "perplexity", "token_accuracy")


@dataclass(frozen=True)
class Noise:
    """Relative to the value: of losses, of whatever else is computed of a step (gradient norms, rewards), of the norm
    of a trained matrix; and the share of sample answers that may be other ones.
    """

    loss: float = 0.0
    others: float = 0.0
    weights: float = 0.0
    answers: float = 0.0

    def of(self, figure: str) -> float:
        return self.loss if figure in LOSSES else self.others


CPU = Noise()  # sums are taken in the same order by the same instructions
# Of a GPU's kernels some add in the order in which their blocks end. Twice what was measured: docs/replay.md.
GPU = Noise(loss=0.02, others=0.2, weights=0.1, answers=1.0)
