"""What the methods that learn from pairs have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chatbot_sft.objective.base import Figures

if TYPE_CHECKING:
    import torch

    from chatbot_sft.objective.sequences import Sequences


def figures(
    chosen: Sequences,
    rejected: Sequences,
    rewards: tuple[torch.Tensor, torch.Tensor],
    logps: tuple[torch.Tensor, torch.Tensor],
) -> Figures:
    """The names are TRL's; `rewards` and `logps` are those of the chosen and of the rejected ones."""
    liked, disliked = (reward.detach() for reward in rewards)
    return {
        "rewards/chosen": chosen.mean(liked),
        "rewards/rejected": rejected.mean(disliked),
        "rewards/margins": chosen.mean(liked - disliked),
        "rewards/accuracies": chosen.mean((liked > disliked).float()),
        "logps/chosen": chosen.mean(logps[0].detach()),
        "logps/rejected": rejected.mean(logps[1].detach()),
    }
