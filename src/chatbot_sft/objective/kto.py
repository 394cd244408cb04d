"""objective=kto: single answers that were liked or not (Ethayarajh 2024, arXiv 2402.01306), with TRL's two losses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chatbot_sft.config.schema import ObjectiveConfig
from chatbot_sft.objective.base import Figures, Objective

if TYPE_CHECKING:
    import torch

    from chatbot_sft.objective.sequences import Sequences


class KTO(Objective):
    """How much likelier a liked answer became is measured from how far the model has moved at all: the mean over the
    whole step of what mismatched answers gained, at least 0.
    """

    loss_types = ("kto", "apo_zero_unpaired")
    refers = True

    def __init__(self, settings: ObjectiveConfig) -> None:
        super().__init__(settings)
        self.looks = any(name == "kto" for name, _ in self.weighted_losses)

    def look(self, sequences: Sequences) -> torch.Tensor:
        return sequences.mean(sequences.ratios)

    def loss(self, sequences: Sequences) -> tuple[torch.Tensor, Figures]:
        liked, disliked = sequences.of("desirable"), sequences.of("undesirable")
        moved = sequences.tokens.new_zeros(())
        if self.looks and sequences.seen is not None:
            moved = sequences.seen.clamp(min=0)
        losses = [
            weight * sequences.mean(self._of_answers(liked, disliked, moved if name == "kto" else 0 * moved))
            for name, weight in self.weighted_losses
        ]
        rewards = [side.mean(self.beta * side.ratios.detach()) for side in (liked, disliked)]
        return sum(losses[1:], losses[0]), {
            "rewards/chosen": rewards[0],
            "rewards/rejected": rewards[1],
            "rewards/margins": rewards[0] - rewards[1],
            "logps/chosen": liked.mean(liked.logps.detach()),
            "logps/rejected": disliked.mean(disliked.logps.detach()),
            "kl": sequences.mean(moved.expand_as(sequences.tokens)),  # whole, however the step is cut
        }

    def _of_answers(self, liked: Sequences, disliked: Sequences, moved: torch.Tensor) -> torch.Tensor:
        """That of each answer, the liked ones first."""
        import torch

        settings = self.settings
        good = 1 - torch.sigmoid(self.beta * (liked.ratios - moved))
        bad = 1 - torch.sigmoid(self.beta * (moved - disliked.ratios))
        return torch.cat([settings.desirable_weight * good, settings.undesirable_weight * bad])
