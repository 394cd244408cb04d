"""Supervised fine-tuning of chat models, from the command line (`python -m chatbot_sft`) or from Python."""

from chatbot_sft.config import ConfigLoader
from chatbot_sft.data import DatasetLoader
from chatbot_sft.errors import UserError
from chatbot_sft.model import ModelLoader
from chatbot_sft.train import SFTTrainerWrapper, TrainingMonitor

__all__ = ["ConfigLoader", "DatasetLoader", "ModelLoader", "SFTTrainerWrapper", "TrainingMonitor", "UserError"]
