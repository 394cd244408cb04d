"""How far two trainings of the same may lie apart where nothing is different."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Noise:
    """Relative to the value: of losses, of whatever else is computed (gradient norms, perplexity, rewards), of the
    norm of all trained weights; and the share of sample answers that may be other ones.
    """

    loss: float = 0.0
    others: float = 0.0
    weights: float = 0.0
    answers: float = 0.0

    def of(self, figure: str) -> float:
        return self.loss if figure == "loss" else self.others


CPU = Noise()  # sums are taken in the same order by the same instructions
# Some of a GPU's kernels add in the order in which their blocks end. Of a 3B model on an H200, 206 and 240 steps, a
# replay's losses were 0.11% apart at most, its gradient norms 0.9%, all its weights 2.1%; of one matrix 31%, whose
# gradient is small and whose steps are as long as any (docs/replay.md).
GPU = Noise(loss=0.005, others=0.1, weights=0.1, answers=1.0)
