"""Files of conversations become `PreparedData`: corpus (which sources) → sources (rows) → formats → messages →
template → labels → tokenise → store, judged by the gate, put together by `prepare`.
"""

from typing import Any

__all__ = ["DatasetLoader"]


def __getattr__(name: str) -> Any:
    """What conf/ calls chatbot_sft.data.DatasetLoader is above this room, which does not need it."""
    if name == "DatasetLoader":
        from chatbot_sft.seed_api import DatasetLoader

        return DatasetLoader
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
