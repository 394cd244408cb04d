"""A `Trainable` and prepared rows become an `Outcome`: `stage` says how, with a `Session` for the training itself.

Read `loop` (what happens, in order), `step` (one gradient) and `job`; `trl` is the other loop. Beside them:
`batches` (which rows) and `rows`; `layout`, `planning`, `tuning`, `search` and `trials` (how a step is run
here), `graphs`, `gradients`; `optimizer`; `evaluation`; `guard` with its `rails`; `progress`; `randomness`;
`snapshot` (what a checkpoint holds). `choice` says which loop trains, `arguments` what TRL is told, `outcome`
what it came to.
"""

from typing import Any

from chatbot_sft.train.monitor import TrainingMonitor

__all__ = ["SFTTrainerWrapper", "TrainingMonitor"]


def __getattr__(name: str) -> Any:
    """What conf/ calls chatbot_sft.train.SFTTrainerWrapper saves as well, and so is above this room."""
    if name == "SFTTrainerWrapper":
        from chatbot_sft.seed_api import SFTTrainerWrapper

        return SFTTrainerWrapper
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
