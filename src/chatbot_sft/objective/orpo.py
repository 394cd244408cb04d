"""objective=orpo: learn the chosen answer, and make its odds larger than those of the rejected one, in one go and
without a reference (Hong 2024, arXiv 2403.07691).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from chatbot_sft.objective.base import Figures, Objective
from chatbot_sft.objective.pairs import figures

if TYPE_CHECKING:
    import torch

    from chatbot_sft.objective.sequences import Sequences


class ORPO(Objective):
    """A sequence's probability is the mean over its tokens. The part that learns the answer is the mean over the
    chosen tokens of the whole step.
    """

    def loss(self, sequences: Sequences) -> tuple[torch.Tensor, Figures]:
        from torch.nn.functional import logsigmoid

        chosen, rejected = sequences.of("chosen"), sequences.of("rejected")
        liked, disliked = (side.logps / side.tokens.clamp(min=1) for side in (chosen, rejected))
        odds = (liked - disliked) - (_log_of_rest(liked) - _log_of_rest(disliked))
        answers = chosen.per_token(-chosen.logps)
        preference = chosen.mean(-logsigmoid(odds))
        rewards = self.beta * liked, self.beta * disliked
        return answers + self.beta * preference, {
            **figures(chosen, rejected, rewards, (liked, disliked)),
            "nll_loss": answers.detach(),
            "log_odds_chosen": chosen.mean(odds.detach()),
        }


def _log_of_rest(logp: torch.Tensor) -> torch.Tensor:
    """log(1 - exp(logp)), near 0 too."""
    import torch

    certain = logp.clamp(max=-1e-7)  # of an answer that is certain there is no rest
    return torch.log(-torch.expm1(certain))
