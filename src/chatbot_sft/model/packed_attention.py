"""Attention for conversations packed end to end: each attends to itself alone. Imported after the engine.

`attention` is registered with transformers' `AttentionInterface` and reads the bounds of the conversations
from the arguments that transformers hands its flash-attention functions (`cu_seq_lens_q`). On a GPU it is
PyTorch's own variable-length kernel; elsewhere each conversation is attended to by itself, which is what the
kernel is tested against. Without bounds (evaluation, generation) it is transformers' own attention.
"""

from __future__ import annotations

import inspect
import itertools
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "chatbot_sft_packed"
try:
    from torch.nn.attention.varlen import varlen_attn

    # What the kernel takes changed from one PyTorch to the next.
    TAKES = frozenset(inspect.signature(varlen_attn).parameters)
except ImportError:  # before PyTorch 2.10
    TAKES = frozenset()


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int = 0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Query, key and value of shape (1, heads, tokens, head size) to (1, tokens, heads, head size).

    `cu_seq_lens_q` (conversations + 1,), int32, is where each conversation begins and the last one ends; a
    conversation may be empty. None of them is longer than `max_length_q`, which a CUDA graph keeps for good:
    it has to hold for every batch that the graph will run.
    """
    if cu_seq_lens_q is None:
        return ALL_ATTENTION_FUNCTIONS["sdpa"](
            module,
            query,
            key,
            value,
            attention_mask,
            scaling=scaling,
            dropout=dropout,
            sliding_window=sliding_window,
            **kwargs,
        )
    if query.is_cuda:
        return _kernel(query, key, value, cu_seq_lens_q, max_length_q, scaling, sliding_window), None
    return _one_by_one(query, key, value, cu_seq_lens_q, scaling, sliding_window), None


def register() -> None:
    """Make `attention` known to transformers as NAME."""
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def has_kernel() -> bool:
    """Whether this PyTorch has the variable-length kernel."""
    return bool(TAKES)


def _kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: torch.Tensor,
    longest: int,
    scaling: float | None,
    sliding_window: int | None,
) -> torch.Tensor:
    # Rotary positions of a float32 residual stream make float32 of query and key; the kernel has none.
    q, k, v = (tensor[0].transpose(0, 1).to(value.dtype) for tensor in (query, key, value))
    grouped = q.shape[1] != k.shape[1]
    window = (-1 if sliding_window is None else sliding_window - 1, 0)
    options: dict[str, Any] = {"window_size": window} if "window_size" in TAKES else {"is_causal": True}
    if "enable_gqa" in TAKES:
        options["enable_gqa"] = grouped
    elif grouped:
        k, v = (tensor.repeat_interleave(q.shape[1] // k.shape[1], 1) for tensor in (k, v))
    if scaling is not None and "scale" in TAKES:
        options["scale"] = scaling
    elif scaling is not None:
        q = q * (scaling * q.shape[-1] ** 0.5)
    q, k, v = (tensor.contiguous() for tensor in (q, k, v))
    output = varlen_attn(q, k, v, bounds, bounds, longest, longest, **options)
    assert isinstance(output, torch.Tensor)  # a tuple where more is asked for
    return output[None]


def _one_by_one(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: torch.Tensor,
    scaling: float | None,
    sliding_window: int | None,
) -> torch.Tensor:
    outputs = []
    for start, end in itertools.pairwise(bounds.tolist()):
        if start == end:
            continue
        q, k, v = (tensor[:, :, start:end] for tensor in (query, key, value))
        place = torch.arange(end - start, device=q.device)
        seen = place[None, :] <= place[:, None]
        if sliding_window is not None:
            seen &= place[None, :] > place[:, None] - sliding_window
        output = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=seen, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
        )
        outputs.append(output)
    return torch.cat(outputs, dim=2).transpose(1, 2)
