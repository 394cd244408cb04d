"""A model name becomes a `Base`, loaded by an engine (unsloth or transformers), and with an adapter attached a
`Trainable`; both are made in `load`.
"""

from typing import Any

from chatbot_sft.model.adapter import add_adapter

__all__ = ["ModelLoader", "add_adapter"]


def __getattr__(name: str) -> Any:
    """What conf/ calls chatbot_sft.model.ModelLoader is above this room, which does not need it."""
    if name == "ModelLoader":
        from chatbot_sft.seed_api import ModelLoader

        return ModelLoader
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
