"""Greedy answers: what the model says, token by token the likeliest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from chatbot_sft.data.messages import Message
from chatbot_sft.data.template import strftime_now


def greedy_answer(model: Any, tokenizer: Any, messages: Sequence[Message], max_new_tokens: int, **template_kwargs: Any) -> list[int]:
    """Token ids of the answer to `messages`, at most `max_new_tokens`, ending with an end token where the model ends by itself."""
    import torch

    given = {"strftime_now": strftime_now, **template_kwargs}  # in place of transformers' own clock
    prompt = tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_tensors="pt", return_dict=True, **given)
    prompt = {key: prompt[key].to(model.device) for key in ("input_ids", "attention_mask")}
    with torch.inference_mode():
        output = model.generate(
            **prompt,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=tokenizer.pad_token_id,
        )
    return output[0, prompt["input_ids"].shape[1] :].tolist()


def as_text(tokenizer: Any, ids: Sequence[int]) -> str:
    """The answer as a person reads it: without special tokens, and without the letter that the token limit cut in half."""
    return tokenizer.decode(list(ids), skip_special_tokens=True).rstrip("\ufffd").strip()
