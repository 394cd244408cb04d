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
# Some of a GPU's kernels add in the order in which their blocks end. Two layouts of one training, which round
# otherwise at every step, were 0.3% apart in their losses at most (benchmarks/README.md, 1,000 steps): one layout is
# granted half a percent, and what no benchmark has, a tenth.
GPU = Noise(loss=0.005, others=0.1, weights=0.5, answers=1.0)
