"""The trained model becomes a folder: the adapter alone, or merged into the base."""

from chatbot_sft.save.saver import ModelSaver, SaveResult

__all__ = ["ModelSaver", "SaveResult"]
