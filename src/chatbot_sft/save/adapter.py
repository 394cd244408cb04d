"""lora: the adapter as PEFT and vLLM load it, with tokenizer, chat template and what ends an answer."""

from __future__ import annotations

from pathlib import Path

from chatbot_sft.save.trained import Trained


def write_adapter(trained: Trained, folder: Path) -> None:
    # Rows of new tokens and modules to save are in the adapter anyway; a whole table that was merely enlarged
    # need not be.
    trained.model.save_pretrained(folder, save_embedding_layers=False)
    trained.tokenizer.save_pretrained(folder)
    trained.write_generation_config(folder)
