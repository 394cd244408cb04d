"""What a training method is: a loss over the log-probabilities of sequences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chatbot_sft.config import Config, one_of
from chatbot_sft.config.schema import ObjectiveConfig
from chatbot_sft.errors import UserError
from chatbot_sft.targets import locate

if TYPE_CHECKING:
    import torch

    from chatbot_sft.objective.sequences import Sequences

Figures = dict[str, Any]  # name → a tensor without dimensions


class Objective:
    """A training method; `settings` is the section `objective`, with the keys of your own in `settings.extra`.

    `loss` is called with the sequences of one micro-batch and gives its part of the step's loss and of the step's
    figures: what it gives for all micro-batches of all processes is added up, and so has to be divided by what the
    whole step has (`Sequences.mean` and `per_token` do so). It must not look at numbers on the host (`.item()`, a
    boolean mask, `if` of a tensor): a GPU would wait for it.
    """

    loss_types: tuple[str, ...] = ()  # that objective.loss_type may name, the first where it names none
    smoothed: tuple[str, ...] = ()  # of these, those that objective.label_smoothing means something to
    refers = False  # whether `Sequences.reference` is used
    looks = False  # whether `look` is called
    means_tokens = (
        False  # whether the loss is the mean over trained tokens, whose gradient one pass of the head has
    )

    def __init__(self, settings: ObjectiveConfig) -> None:
        self.settings = settings
        self.beta = settings.beta
        self._check()

    def loss(self, sequences: Sequences) -> tuple[torch.Tensor, Figures]:
        """The loss, and what is reported beside it: "rewards/chosen", "rewards/margins", "logps/chosen" …"""
        raise NotImplementedError

    def look(self, sequences: Sequences) -> torch.Tensor:
        """Where `looks`: called before the gradient of a step is computed, without gradients, with sequences of
        kind "mismatched": each row's prompt with the answer of another row, always the same. The sum over all
        micro-batches and processes is `Sequences.seen` of the same step.
        """
        raise NotImplementedError

    @property
    def weighted_losses(self) -> list[tuple[str, float]]:
        """Each objective.loss_type with its weight in objective.loss_weights."""
        given = self.settings.loss_type
        names = given if isinstance(given, list) else [given] if given else list(self.loss_types[:1])
        return list(zip(names, self.settings.loss_weights or [1.0] * len(names), strict=True))

    def _check(self) -> None:
        """Raises UserError where a setting means nothing to this method."""
        given, weights = self.settings.loss_type, self.settings.loss_weights
        names = given if isinstance(given, list) else [given] if given else []
        method = type(self).__name__
        for name in names:
            if not self.loss_types:
                raise UserError(f"objective.loss_type={name}: {method} has one loss; leave it out")
            one_of("objective.loss_type", name, self.loss_types)
        if weights is not None and len(weights) != max(1, len(names)):
            raise UserError(
                f"objective.loss_weights={weights}: {len(weights)} weights for {max(1, len(names))} loss types; give"
                " as many"
            )
        if self.settings.label_smoothing and not set(self.smoothed) & set(names or self.loss_types[:1]):
            known = f"objective.loss_type={' or '.join(self.smoothed)}" if self.smoothed else "objective=dpo"
            raise UserError(
                f"objective.label_smoothing={self.settings.label_smoothing:g}: has no meaning here; it needs {known}"
            )
        if self.settings.reference and not self.refers:
            raise UserError(
                f"objective.reference={self.settings.reference}: {method} has no reference; leave it out"
            )


def objective_of(settings: Config) -> Objective:
    """The objective that `settings` name.

    Raises:
        UserError: there is none of that name, or a setting means nothing to it.
    """
    base = f"{Objective.__module__.rpartition('.')[0]}.{Objective.__name__}"
    located = locate("objective", settings.objective._target_, settings.allow_targets, base)
    objective: Objective = located(settings.objective)
    smoothing = settings.sft_arguments.get("label_smoothing_factor")
    if smoothing and not objective.means_tokens:
        raise UserError(
            f"training.label_smoothing_factor={smoothing} with objective={settings.objective.name}: it is of"
            " objective=sft; leave it out"
        )
    return objective
