"""What a model says: the one place that asks transformers for an answer, whoever wants it."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from chatbot_sft.data.messages import Message
from chatbot_sft.data.template import ChatTemplate
from chatbot_sft.model.sharding import sharded


def rendered(tokenizer: Any, messages: Sequence[Message], template_kwargs: Mapping[str, Any]) -> list[int]:
    """`messages` and the beginning of an answer, through the chat template of a transformers tokenizer, as its
    `apply_chat_template` has them; but with our clock, and within bounds: see `data.rendering`.

    Raises:
        BadRow: the template refuses them.
        UserError: it takes too long, or too much memory.
    """
    kwargs = {"add_generation_prompt": True, **template_kwargs}
    text = ChatTemplate.of_transformers(tokenizer, kwargs).render(messages)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def generation_stops(model: Any) -> frozenset[int]:
    """The tokens at which generation stops, as the model's own generation_config says."""
    ends = model.generation_config.eos_token_id
    return frozenset(ends if isinstance(ends, list) else {ends} - {None})


def generate(
    model: Any,
    prompt: Sequence[int],
    max_new_tokens: int,
    stop_ids: Collection[int],
    pad_token_id: int | None,
    temperature: float = 0.0,
    streamer: Any = None,
) -> list[int]:
    """The ids of an answer to the ids of a `prompt`, its stop token included where it ended by itself.

    Temperature 0 is greedy: token by token the likeliest. Above, the temperature alone decides. Nothing else
    that the model's generation_config says has a part in it: no penalty, beams, cut of the unlikely, or
    forbidden token.
    """
    import torch

    # Not inference_mode: what FSDP gathers in it could not be trained through later.
    ids = torch.tensor([list(prompt)], device=model.device)
    with torch.no_grad(), _plain(model, stop_ids, pad_token_id):
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            do_sample=temperature > 0,
            temperature=temperature or None,
            top_k=None,  # transformers' own defaults for what nobody has set
            top_p=None,
            pad_token_id=pad_token_id,
            streamer=streamer,
            synced_gpus=sharded(model),
        )
    return output[0, len(prompt) :].tolist()


def generate_batch(
    model: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop_ids: Collection[int],
    pad_token_id: int | None,
) -> list[list[int]]:
    """The greedy answers to several prompts at a time, each as `generate` has it.

    The prompts stand at the right, behind padding that nothing attends to. A sum over other shapes is rounded
    otherwise: where two tokens are as likely to the last bit, another one may come than from `generate`.
    """
    import torch

    if not prompts:
        return []
    width = max(map(len, prompts))
    pad = pad_token_id if pad_token_id is not None else 0
    rows = [[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    with torch.no_grad(), _plain(model, stop_ids, pad):
        output = model.generate(
            input_ids=torch.tensor(rows, device=model.device),
            attention_mask=torch.tensor(mask, device=model.device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=pad,
        )
    return [_until_stop(row, stop_ids) for row in output[:, width:].tolist()]


def _until_stop(ids: list[int], stop_ids: Collection[int]) -> list[int]:
    """Without what fills a row up after its end."""
    end = next((place for place, token in enumerate(ids) if token in stop_ids), len(ids))
    return ids[: end + 1]


@contextlib.contextmanager
def _plain(model: Any, stop_ids: Collection[int], pad_token_id: int | None) -> Iterator[None]:
    """Within it, `model` has a generation_config that says how an answer ends, and no more.

    `generate` fills in from the model's own whatever a call leaves out, and many settings have no value that
    means "unset". PEFT and multimodal models keep it in a module within them, or in several.
    """
    from transformers import GenerationConfig

    plain = GenerationConfig(eos_token_id=sorted(stop_ids) or None, pad_token_id=pad_token_id)
    own = "generation_config"
    owners = [(module, vars(module)[own]) for module in model.modules() if own in vars(module)]
    for module, _ in owners:
        module.generation_config = plain
    try:
        yield
    finally:
        for module, before in owners:
            module.generation_config = before


def greedy_answer(
    model: Any, tokenizer: Any, messages: Sequence[Message], max_new_tokens: int, **template_kwargs: Any
) -> list[int]:
    """The answer's token ids, at most `max_new_tokens`, with an end token where the model ends by itself."""
    prompt = rendered(tokenizer, messages, template_kwargs)
    return generate(model, prompt, max_new_tokens, generation_stops(model), tokenizer.pad_token_id)


def as_text(tokenizer: Any, ids: Sequence[int]) -> str:
    """The answer as a person reads it: without special tokens, and without the letter that the token limit
    cut in half.
    """
    return tokenizer.decode(list(ids), skip_special_tokens=True).rstrip("\ufffd").strip()
