"""A model name becomes a model with an adapter: loader → engine (unsloth or transformers) → adapter."""

from chatbot_sft.model.adapter import add_adapter
from chatbot_sft.model.loader import ModelLoader

__all__ = ["ModelLoader", "add_adapter"]
