"""The 4 bits of QLoRA, the same wherever weights are loaded in them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def nf4(compute_dtype: torch.dtype) -> Any:
    """A `quantization_config`: bitsandbytes' nf4, its constants quantised too (Dettmers et al. 2023)."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )
