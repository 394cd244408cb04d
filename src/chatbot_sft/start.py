"""What refuses a start by what is in its run directory already, before a file of it is written. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from chatbot_sft import places
from chatbot_sft.config import Config
from chatbot_sft.export import check_overrides
from chatbot_sft.model.base import located
from chatbot_sft.run_directory import refuse_taken
from chatbot_sft.train import resume


def refuse(config: Mapping[str, Any], overrides: Sequence[str] = ()) -> None:
    """Raises UserError where the run directory, or a place beside it, is none for this run; or `overrides` are none of an export."""
    settings = located(Config.from_mapping(config))
    if settings.task == "export":
        check_overrides(list(overrides))
    places.check_run(settings)
    refuse_taken(settings)
    resume.refuse_completed(settings)
