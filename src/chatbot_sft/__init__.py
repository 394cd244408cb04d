"""Supervised fine-tuning of chat models, from the command line (`python -m chatbot_sft`) or from Python."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chatbot_sft.config import ConfigLoader
    from chatbot_sft.data import DatasetLoader
    from chatbot_sft.errors import UserError
    from chatbot_sft.model import ModelLoader
    from chatbot_sft.train import SFTTrainerWrapper, TrainingMonitor

__all__ = [
    "ConfigLoader",
    "DatasetLoader",
    "ModelLoader",
    "SFTTrainerWrapper",
    "TrainingMonitor",
    "UserError",
]

# Imported when they are asked for: `--help`, `--cfg` and a typo need none of the stages.
_HOMES = {
    "ConfigLoader": "config",
    "DatasetLoader": "data",
    "ModelLoader": "model",
    "SFTTrainerWrapper": "train",
    "TrainingMonitor": "train",
    "UserError": "errors",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"chatbot_sft.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
