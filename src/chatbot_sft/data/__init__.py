"""A file of conversations becomes (input_ids, labels): sources → formats → messages → template → labels."""

from chatbot_sft.data.loader import DatasetLoader

__all__ = ["DatasetLoader"]
