"""Rows of (input_ids, labels) train the model.

Read `loop` (what happens, in order), `step` (one gradient) and `job`; `trl` is the other loop. Beside them:
`batches` (which rows) and `rows`; `layout`, `tuning` and `trials` (how a step is run here), `graphs`,
`gradients`; `optimizer`; `evaluation`; `guard` with its `rails`; `progress`; `randomness`; `snapshot` (what a
checkpoint holds). `choice` says which loop trains, `arguments` what TRL is told, and `trainer` is the seed's
SFTTrainerWrapper around all of it.
"""

from chatbot_sft.train.monitor import TrainingMonitor
from chatbot_sft.train.trainer import Planned, SFTTrainerWrapper

__all__ = ["Planned", "SFTTrainerWrapper", "TrainingMonitor"]
