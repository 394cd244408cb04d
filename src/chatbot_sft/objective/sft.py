"""objective=sft: the answers as they stand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chatbot_sft.config.schema import ObjectiveConfig
from chatbot_sft.objective.base import Figures, Objective

if TYPE_CHECKING:
    import torch

    from chatbot_sft.objective.sequences import Sequences


class SFT(Objective):
    """The mean over all trained tokens of a step of their negative log-probability. What each weighs is known
    before any is computed: the head has loss and gradient in one pass. Not so of a subclass with another loss.
    """

    def __init__(self, settings: ObjectiveConfig) -> None:
        super().__init__(settings)
        self.means_tokens = type(self).loss is SFT.loss

    def loss(self, sequences: Sequences) -> tuple[torch.Tensor, Figures]:
        return sequences.per_token(-sequences.logps), {}
