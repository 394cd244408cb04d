"""Rows of (input_ids, labels) train the model: arguments → trainer (order, loss) → monitor."""

from chatbot_sft.train.monitor import TrainingMonitor
from chatbot_sft.train.trainer import Planned, SFTTrainerWrapper

__all__ = ["Planned", "SFTTrainerWrapper", "TrainingMonitor"]
