"""Supervised fine-tuning of chat models, from the command line (`python -m chatbot_sft`) or from Python."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chatbot_sft.seed_api import (
        ConfigLoader,
        DatasetLoader,
        ModelLoader,
        SFTTrainerWrapper,
        TrainingMonitor,
        UserError,
    )

__all__ = [
    "ConfigLoader",
    "DatasetLoader",
    "ModelLoader",
    "SFTTrainerWrapper",
    "TrainingMonitor",
    "UserError",
]


def __getattr__(name: str) -> Any:
    """Imported when they are asked for: `--help`, `--cfg` and a typo need none of the stages."""
    if name in __all__:
        return getattr(importlib.import_module("chatbot_sft.seed_api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
