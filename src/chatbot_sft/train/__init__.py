"""Rows of (input_ids, labels) train the model: sampler (which) → rows → layout, measured (how) → steps.

Around them evaluation, checkpoints that a run resumes from, and the guard against divergence; `trainer` puts all of it together.
"""

from chatbot_sft.train.monitor import TrainingMonitor
from chatbot_sft.train.trainer import Planned, SFTTrainerWrapper

__all__ = ["Planned", "SFTTrainerWrapper", "TrainingMonitor"]
