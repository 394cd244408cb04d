"""objective=dpo: of two answers to one prompt the chosen one is to become likelier than the rejected one, measured
from a reference (Rafailov 2023, arXiv 2305.18290), with the losses that TRL's DPOTrainer has of a pair by itself.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from chatbot_sft.errors import UserError
from chatbot_sft.objective.base import Figures, Objective
from chatbot_sft.objective.pairs import figures

if TYPE_CHECKING:
    import torch

    from chatbot_sft.objective.sequences import Sequences


class DPO(Objective):
    loss_types = (
        "sigmoid", "hinge", "ipo", "sigmoid_norm", "robust", "exo_pair", "nca_pair", "bco_pair", "sppo_hard",
        "apo_zero", "apo_down", "sft",
    )  # fmt: skip
    smoothed = ("robust", "exo_pair")
    refers = True

    def _check(self) -> None:
        super()._check()
        if not self.settings.label_smoothing and any(name == "exo_pair" for name, _ in self.weighted_losses):
            raise UserError(
                "objective.loss_type=exo_pair needs objective.label_smoothing above 0; its paper recommends 1e-3"
            )

    def loss(self, sequences: Sequences) -> tuple[torch.Tensor, Figures]:
        chosen, rejected = sequences.of("chosen"), sequences.of("rejected")
        losses = [weight * self._one(name, chosen, rejected) for name, weight in self.weighted_losses]
        rewards = self.beta * chosen.ratios, self.beta * rejected.ratios
        return sum(losses[1:], losses[0]), figures(chosen, rejected, rewards, (chosen.logps, rejected.logps))

    def _one(self, name: str, chosen: Sequences, rejected: Sequences) -> torch.Tensor:
        """A loss by its TRL name, over the step."""
        if name == "sft":  # what the chosen answers lose as they stand; TRL's former rpo_alpha is its weight
            return chosen.per_token(-chosen.logps)
        return chosen.mean(self._of_pairs(name, chosen, rejected))

    def _of_pairs(self, name: str, chosen: Sequences, rejected: Sequences) -> torch.Tensor:
        """That of each pair."""
        from torch import relu, sigmoid
        from torch.nn.functional import logsigmoid

        beta, smoothing = self.beta, self.settings.label_smoothing
        liked, disliked = chosen.ratios, rejected.ratios
        margin = beta * (liked - disliked)
        by_token = liked / chosen.tokens.clamp(min=1) - disliked / rejected.tokens.clamp(min=1)
        match name:
            case "sigmoid":
                return -logsigmoid(margin)
            case "hinge":
                return relu(1 - margin)
            case "ipo":  # beta is the paper's τ
                return (by_token - 1 / (2 * beta)) ** 2
            case "sigmoid_norm":
                return -logsigmoid(beta * by_token)
            case "robust":
                flipped = (1 - smoothing) * logsigmoid(margin) - smoothing * logsigmoid(-margin)
                return -flipped / (1 - 2 * smoothing)
            case "exo_pair":
                return sigmoid(margin) * (logsigmoid(margin) - math.log1p(-smoothing)) + sigmoid(-margin) * (
                    logsigmoid(-margin) - math.log(smoothing)
                )
            case "nca_pair":
                both = logsigmoid(-beta * liked) + logsigmoid(-beta * disliked)
                return -logsigmoid(beta * liked) - 0.5 * both
            case "bco_pair":
                return -logsigmoid(beta * liked) - logsigmoid(-beta * disliked)
            case "sppo_hard":
                return (liked - 0.5 / beta) ** 2 + (disliked + 0.5 / beta) ** 2
            case "apo_zero":
                return 1 - sigmoid(beta * liked) + sigmoid(beta * disliked)
            case "apo_down":
                return sigmoid(beta * liked) + 1 - sigmoid(margin)
        raise ValueError(name)
