"""The `lora` stage: the adapter on the base model, or none for full fine-tuning."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from chatbot_sft.errors import UserError

if TYPE_CHECKING:
    from chatbot_sft.config import Config
    from chatbot_sft.model.engine import Engine

log = logging.getLogger(__name__)


def add_adapter(model: Any, settings: Config, engine: Engine) -> Any:
    """The model that is trained: `model` with a LoRA on `lora.target_modules`, or `model` itself where `lora.r` is 0.

    Raises:
        UserError: a target module that the model does not have.
    """
    if settings.full_finetuning:
        return model
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    missing = [module for module in settings.lora.target_modules if module not in names]
    if len(missing) == len(settings.lora.target_modules):
        linear = sorted(
            {name.rpartition(".")[2] for name, module in model.named_modules() if type(module).__name__.startswith("Linear")} - {"lm_head"}
        )
        raise UserError(f"lora.target_modules: the model has none of {', '.join(missing)}; its linear layers are {', '.join(linear)}")
    return engine.add_lora(model, settings)
