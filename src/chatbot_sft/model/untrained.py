"""End tokens that the base never learned, such as <|eot_id|> in Llama 3's base: their rows of the output
embeddings say nothing.

LoRA changes what the layers hand to the output embeddings, not those. Two tokens with one row keep one
probability, and a row of zeros the logit 0, however long the training. (meta-pytorch/torchtune#2429,
QwenLM/Qwen3#1064, unslothai/unsloth#416 and its fix_untrained_tokens.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from chatbot_sft.config import Config

SAME, ZERO = 0.01, 0.001  # of a row's own norm, of the usual norm
COMPARED = 1000  # rows from which the usual norm is told


def told(model: Any, tokenizer: Any, settings: Config, ends: Sequence[int]) -> str | None:
    """One line where one of `ends`, the tokens that end the trained answers, cannot be learned.

    `model` has its adapter.
    """
    head = model.get_output_embeddings()
    if (
        settings.full_finetuning
        or settings.lora.modules_to_save
        or any(parameter.requires_grad for parameter in head.parameters())
    ):
        return None
    if not head.weight.is_floating_point():  # quantised
        return None
    # Those have rows of their own, which are trained.
    new = set(tokenizer.convert_tokens_to_ids(list(settings.model.new_tokens or [])))
    rows = len(head.weight)
    special = [
        number
        for number in (*tokenizer.added_tokens_decoder, *range(len(tokenizer), rows))
        if number < rows and number not in new
    ]
    unlearned = indistinct(head.weight, [end for end in ends if end not in new], special)
    if not unlearned:
        return None
    names = ", ".join(tokenizer.convert_ids_to_tokens(unlearned))
    return (
        f"{settings.model.name} never learned {names}, with which the answers end, and LoRA alone"
        " cannot teach it: answers may not end; lora.modules_to_save=[embed_tokens,lm_head] trains its row,"
        " or name an instruct model"
    )


def indistinct(weight: torch.Tensor, tokens: Sequence[int], others: Sequence[int]) -> list[int]:
    """Those of `tokens` whose row of `weight` is zero, or that of another token of `others`, which are few:
    special tokens and spare rows.
    """
    import torch

    with torch.no_grad():
        usual = weight[:: max(1, len(weight) // COMPARED)].float().norm(dim=1).median()
        compared = weight[list(others)].float()
        unlearned = []
        for token in tokens:
            row = weight[token].float()
            alike = (compared - row).norm(dim=1) <= SAME * row.norm()
            twins = [other for other, same in zip(others, alike.tolist(), strict=True) if same]
            if row.norm() <= ZERO * usual or any(other != token for other in twins):
                unlearned.append(token)
        return unlearned
