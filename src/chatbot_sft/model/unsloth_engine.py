"""Unsloth: FastLanguageModel and its patched trainer. Importing this module imports unsloth, so it must come before transformers and trl."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import unsloth  # first: it patches transformers and trl as they are imported

if TYPE_CHECKING:
    import torch

    from chatbot_sft.config import Config

NAME = "unsloth"


def load(source: str, settings: Config, dtype: torch.dtype) -> Any:
    model, _ = unsloth.FastLanguageModel.from_pretrained(
        source,
        max_seq_length=settings.model.max_seq_length,
        dtype=dtype,
        load_in_4bit=settings.model.load_in_4bit,
        full_finetuning=settings.full_finetuning,
        use_gradient_checkpointing=checkpointing(settings),
        trust_remote_code=settings.model.trust_remote_code,
        random_state=settings.seed,
        **({"revision": settings.model.revision} if settings.model.revision else {}),
    )
    return model


def add_lora(model: Any, settings: Config, arguments: dict[str, Any]) -> Any:
    return unsloth.FastLanguageModel.get_peft_model(
        model,
        **arguments,
        use_gradient_checkpointing=checkpointing(settings),
        random_state=settings.seed,
        max_seq_length=settings.model.max_seq_length,
    )


def checkpointing(settings: Config) -> bool | str:
    """Unsloth offloads checkpointed activations to spare GPU memory; on a CPU there is none to spare, and recomputing costs a third."""
    value = settings.lora.use_gradient_checkpointing
    return False if value == "unsloth" and unsloth.DEVICE_TYPE == "cpu" else value


def for_training(model: Any) -> None:
    unsloth.FastLanguageModel.for_training(model)


def for_inference(model: Any) -> None:
    unsloth.FastLanguageModel.for_inference(model)


def trainer_class() -> type:
    import trl

    return trl.SFTTrainer
