"""The trained model becomes a folder: the adapter alone, or merged into the base."""

from chatbot_sft.run.report import SaveResult
from chatbot_sft.save.saver import ModelSaver

__all__ = ["ModelSaver", "SaveResult"]
