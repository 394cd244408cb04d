"""The loss of one micro-batch: the negative log-likelihood of its trained tokens, divided by those of the
whole step. Imported after the engine.

Here stands what both engines share of it; and what TRL's SFTTrainer does to a model before it trains it.
"""

from __future__ import annotations

import inspect
from typing import Any

import peft
import torch

from chatbot_sft.data.labels import IGNORED


def own_loss(model: Any, inputs: dict[str, Any], trained_tokens: torch.Tensor) -> torch.Tensor:
    """As the model's own forward computes it. `inputs` has labels."""
    if takes_count(model):
        return model(**inputs, num_items_in_batch=trained_tokens).loss
    # Such a model averages over its own micro-batch: weighted by its trained tokens, the parts add up to the
    # mean of the step.
    return model(**inputs).loss * ((inputs["labels"][:, 1:] != IGNORED).sum() / trained_tokens)


def base_of(model: Any) -> Any:
    """`model` without PEFT's wrapper."""
    return model.get_base_model() if isinstance(model, peft.PeftModel) else model


def takes_count(model: Any) -> bool:
    """Whether the model divides by a number of tokens that it is given."""
    base = base_of(model)
    if hasattr(base, "accepts_loss_kwargs"):  # said by the few whose signature does not tell
        return base.accepts_loss_kwargs
    return any(
        parameter.kind == parameter.VAR_KEYWORD
        for parameter in inspect.signature(base.forward).parameters.values()
    )


def add_fused_head(model: Any) -> None:
    """Give `model` TRL's output layer that never holds all logits, for `fused_loss`; generation and
    evaluation go on as they were.
    """
    from trl.trainer.utils import add_fused_lm_head

    add_fused_lm_head(base_of(model))


def fused_loss(model: Any, inputs: dict[str, Any], trained_tokens: torch.Tensor) -> torch.Tensor:
    """As TRL's SFTTrainer computes it."""
    return model(**inputs, fused_lm_head=True, num_items_in_batch=trained_tokens).loss


def quantised(model: Any) -> bool:
    base = base_of(model)
    # Such models alone have them.
    return getattr(base, "is_loaded_in_4bit", False) or getattr(base, "is_loaded_in_8bit", False)


def cast_adapter(model: Any) -> None:
    """Over a base of 4 or 8 bits, an adapter is trained in bfloat16 (QLoRA, arXiv 2305.14314); DoRA's
    magnitudes would stand still in it.
    """
    if quantised(model):
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "lora_magnitude_vector" not in name:
                parameter.data = parameter.data.to(torch.bfloat16)
