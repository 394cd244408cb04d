"""Unsloth: FastLanguageModel and its patched trainer. Importing this module imports unsloth, so it must come
before transformers and trl.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import unsloth  # first: it patches transformers and trl as they are imported

import peft  # isort: skip

from chatbot_sft.model.loss import add_fused_head, base_of, cast_adapter, fused_loss, own_loss  # isort: skip

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
        use_safetensors=settings.model.use_safetensors,
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
    """Unsloth offloads checkpointed activations to spare GPU memory; on a CPU there is none to spare, and
    recomputing costs a third.
    """
    value = settings.lora.use_gradient_checkpointing
    return False if value == "unsloth" and unsloth.DEVICE_TYPE == "cpu" else value


def for_training(model: Any, checkpointing: bool, random: bool = True) -> None:
    """What it recomputes is never captured."""
    unsloth.FastLanguageModel.for_training(model, use_gradient_checkpointing=checkpointing)


def for_inference(model: Any) -> None:
    unsloth.FastLanguageModel.for_inference(model)


def inputs(batch: dict[str, Any]) -> dict[str, Any]:
    return batch


def prepare(model: Any) -> None:
    """On a CPU Unsloth leaves TRL's trainer as it is."""
    if unsloth.DEVICE_TYPE == "cpu":
        cast_adapter(model)
        if _chunked(model) is None:
            add_fused_head(model)


def compute_dtype(model: Any, wanted: str | None) -> str | None:
    """As under Unsloth's SFTTrainer: some families overflow in float16 and say so; where every weight is
    trained in bfloat16 nothing is cast.
    """
    in_bfloat16 = os.environ.get("UNSLOTH_MIXED_PRECISION") == "bfloat16"  # set as such a model was loaded
    # A private mark, read by unsloth/models/rl.py the same way.
    forced = vars(base_of(model)).get("_unsloth_forced_float32")
    return None if unsloth.DEVICE_TYPE != "cpu" and (in_bfloat16 or forced) else wanted


def loss(model: Any, inputs: dict[str, Any], trained_tokens: torch.Tensor) -> torch.Tensor:
    """As under Unsloth's SFTTrainer: its fused kernel on a GPU; on a CPU in chunks of rows, which it does
    where it is asked to alone.
    """
    inputs = {**inputs, "use_cache": False}  # a cache of keys and values would lose the bounds of the rows
    if unsloth.DEVICE_TYPE != "cpu":
        from unsloth_zoo.temporary_patches.utils import apply_pending_eager_fallbacks

        apply_pending_eager_fallbacks()  # layers that were compiled too often run as they are from here on
        return own_loss(model, inputs, trained_tokens)
    chunked = _chunked(model)
    if chunked is None:
        return fused_loss(model, inputs, trained_tokens)
    chunked._unsloth_cpu_chunked_ce_active = True
    try:
        return own_loss(model, inputs, trained_tokens)
    finally:
        chunked._unsloth_cpu_chunked_ce_active = False


def _chunked(model: Any) -> Any | None:
    """The part of `model` that computes its loss in chunks on a CPU. A private mark of unsloth_zoo
    (cpu/trainer.py reads it the same way).
    """
    base = base_of(model)
    return base if vars(base).get("_unsloth_cpu_chunked_ce") else None


def use_scaler(model: Any, scaler: Any) -> None:
    """Its fused loss computes the gradient in the forward pass: without the scale it would vanish in float16."""
    for part in (model, base_of(model), base_of(model).model):
        part.accelerator_scaler = scaler


def trainer_class() -> type:
    import trl

    return trl.SFTTrainer


def capturable(model: Any) -> bool:
    """Whether `model` runs Unsloth's own layers, which wait for nothing, under a head that is not trained."""
    return _own_layers(model) and not model.get_base_model().lm_head.weight.requires_grad


def packable(model: Any) -> str | None:
    return "Unsloth's layers look at the bounds of conversations on the host"


def packed_hidden_states(
    model: Any, input_ids: torch.Tensor, position_ids: torch.Tensor, cu_seq_lens: torch.Tensor, longest: int
) -> torch.Tensor:
    raise NotImplementedError("packable() says no")


def compile_layers(model: Any) -> None:
    raise NotImplementedError("packable() says no")


def plain_head(model: Any) -> bool:
    return False  # its layers are called through its own forward


def states(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    raise NotImplementedError("plain_head() says no")


def padding_free(model: Any) -> bool:
    """Unsloth itself trains its own layers without padding where nothing else is asked for, on a GPU."""
    return unsloth.DEVICE_TYPE != "cpu" and _own_layers(model)


def _own_layers(model: Any) -> bool:
    """Llama, Mistral, Qwen …; the other families run transformers' code, compiled."""
    base = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    return type(base.model).forward.__module__.startswith("unsloth.")


def hidden_states(model: Any, input_ids: torch.Tensor) -> torch.Tensor:
    """What the layers make of `input_ids` (rows, length): (rows, length, width), padding on the right left
    unmasked behind causal attention.
    """
    return model.get_base_model().model(input_ids=input_ids, use_cache=False).last_hidden_state


def head_loss(
    model: Any, hidden: torch.Tensor, labels: torch.Tensor, trained_tokens: torch.Tensor
) -> torch.Tensor:
    """Cross entropy summed over the trained positions of `labels` (rows, length), divided by
    `trained_tokens`: Unsloth's fused kernel.
    """
    from unsloth.models.llama import resolve_logit_transforms
    from unsloth_zoo.fused_losses.cross_entropy_loss import unsloth_fused_ce_loss

    base = model.get_base_model()
    names = ("logit_softcapping", "logit_scale_multiply", "logit_scale_divide")
    transforms = dict(zip(names, resolve_logit_transforms(base.config), strict=True))
    return unsloth_fused_ce_loss(
        None, hidden, base.lm_head.weight, None, labels, n_items=trained_tokens, **transforms
    )
