"""Which loop trains: ours, or TRL's for what is its own. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chatbot_sft import distributed
from chatbot_sft.errors import UserError
from chatbot_sft.optimization import built_by_native
from chatbot_sft.report import loggers

if TYPE_CHECKING:
    from chatbot_sft.config import Config

OF_DDP = ("ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph")


def only_trl_has(settings: Config) -> str | None:
    """The first setting that the native loop does not have, as "training.key=value"; None where it has all."""
    training, extra = settings.training, settings.sft_arguments
    if not built_by_native(training.optim):
        return f"training.optim={training.optim}"
    if distributed.processes() > 1 and (given := [key for key in OF_DDP if key in extra]):
        return f"training.{given[0]}={extra[given[0]]}"
    if others := [name for name in training.loggers if name in loggers.OTHERS]:
        return f"training.report_to={others[0]}"
    return None


def chosen(settings: Config) -> tuple[str, str]:
    """("native" or "trl", why).

    Raises:
        UserError: `training.loop=native` with a setting that it does not have, or TRL's loop for an objective that is
            the native one's.
    """
    loop, key = settings.training.loop, only_trl_has(settings)
    objective = settings.objective
    if not objective.is_sft and (loop == "trl" or key):
        named = objective.name if objective.name != "sft" else objective._target_
        raise UserError(
            f"objective={named} with {'training.loop=trl' if loop == 'trl' else key}: TRL's loop is"
            " its SFTTrainer; leave one of the two out"
        )
    if loop == "native" and key:
        raise UserError(
            f"training.loop=native: it has no {key}; leave one of the two out (training.loop=auto takes TRL's"
            " loop for it)"
        )
    if loop == "auto":
        return ("trl", f"for {key}") if key else ("native", "auto")
    return loop, "as configured"
