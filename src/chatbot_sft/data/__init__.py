"""A file of conversations becomes (input_ids, labels): sources → formats → messages → template → labels, put
together by the loader.
"""

from chatbot_sft.data.loader import DatasetLoader

__all__ = ["DatasetLoader"]
