"""`model.new_tokens`: tokens that the base does not know, with rows of their own in its embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from chatbot_sft.data.template import added_tokens


def add_tokens(tokenizer: Any, new_tokens: Sequence[str], name: str) -> None:
    """Add `new_tokens` to a transformers tokenizer, with the ids of the data gate's `ChatTokenizer`.

    Raises:
        UserError: it has one of them already.
    """
    tokenizer.add_tokens(added_tokens(new_tokens, tokenizer.backend_tokenizer, name), special_tokens=True)


def extend_embeddings(model: Any, tokenizer: Any, new_tokens: Sequence[str]) -> list[int]:
    """Rows for `new_tokens` in the input and output embeddings, each the mean of the rows of all older
    tokens. Returns the tokens' ids.

    A table that has rows to spare keeps its size; another gets exactly as many as the tokenizer has tokens,
    because that is the size `AutoPeftModelForCausalLM` gives the base before it loads the adapter.
    """
    import torch

    ids = tokenizer.convert_tokens_to_ids(list(new_tokens))
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    tables = (model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    with torch.no_grad():
        for weight in {id(table): table for table in tables}.values():  # tied, they are one
            weight[ids] = weight[: min(ids)].float().mean(0).to(weight.dtype)
    return ids
