"""In which numbers the weights are held, and in which they are multiplied."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chatbot_sft.config import Config
from chatbot_sft.model import hardware

if TYPE_CHECKING:
    import torch


def weights_dtype(settings: Config) -> torch.dtype:
    """The dtype the weights are loaded in. Unset: bfloat16 on a GPU that has it (else float16), float32 on a
    CPU.
    """
    import torch

    if settings.model.dtype is not None:
        return getattr(torch, settings.model.dtype)
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.float32


def autocast_dtype(settings: Config) -> str | None:
    """The dtype matrix products run in: "bf16", "fp16", or None for the weights' own float32.

    On a CPU with bfloat16 units the products are cast unless `model.dtype=float32` asks for float32
    throughout.
    """
    import torch

    if settings.model.dtype is None and not torch.cuda.is_available():
        return "bf16" if hardware.cpu_bfloat16() else None
    return {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(weights_dtype(settings))


def precision_name(settings: Config) -> str:
    """What the weights are held in, for people: "4-bit", "float8", "bfloat16" …"""
    if settings.model.load_in_4bit:
        return "4-bit"
    return "float8" if settings.model.load_in_fp8 else str(weights_dtype(settings)).removeprefix("torch.")
