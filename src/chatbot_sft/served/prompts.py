"""Whether the prompts arrive as they were trained, and what was made of them where they do not."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from chatbot_sft.save.verify.compare import first_difference
from chatbot_sft.save.verify.kept import Prompt, TrainedAnswers
from chatbot_sft.served.ask import Observed, Reply
from chatbot_sft.served.finding import Finding, Judgement

DATED = 12  # tokens of a prompt that a date may take
SHARED = 0.4  # of a prompt's ids that the same tokenizer has in it too, whatever the template


def judge_prompts(kept: TrainedAnswers, observed: Observed, found: Judgement) -> None:
    """Nothing is found where the server tells nothing of them."""
    pairs = list(zip(kept.prompts, observed.replies, strict=True))
    known = [_known(reply) for _, reply in pairs]
    if not any(known):
        found.rows["prompts"] = "not told"
        found.open.add("prompts")
        found.findings.append(
            Finding(
                "prompts", "the server counts no tokens (usage.prompt_tokens)", "Not compared",
                "template and system prompt show in the answers alone", decides=False,
            )
        )  # fmt: skip
        return
    how = "token ids" if "ids" in known else "lengths"
    equal = [_arrived(reply, prompt.ids) for prompt, reply in pairs]
    found.rows["prompts"] = f"{sum(equal)}/{len(equal)} with the same {how}"
    found.numbers |= {"prompts": f"{sum(equal)}/{len(equal)}", "prompts_by": how}
    if all(equal):
        return
    differing = [pair for pair, same in zip(pairs, equal, strict=True) if not same]
    if kept.date_string and all(_only_dated(prompt, reply) for prompt, reply in differing):
        found.rows["prompts"] += ", the rest but for the date"
        found.another_day = True
        found.findings.append(
            Finding(
                "prompts",
                f"the template writes today's date, where training had {kept.date_string}",
                "As the template has it",
                "the answers may differ because of it; to be asked as in training, a server has to take"
                " chat_template_kwargs",
                decides=False,
            )
        )
        return
    cause, advice = _cause_of_prompts(kept, pairs, differing)
    number = equal.index(False)
    found.findings.append(Finding("prompts", _differing(kept, number, *pairs[number]), cause, advice))


def _known(reply: Reply) -> str:
    return "ids" if reply.prompt_ids is not None else "count" if reply.prompt_count is not None else ""


def _arrived(reply: Reply, ids: Sequence[int]) -> bool:
    """As far as the server tells; a length alone may be told for what was answered, ids for what would be."""
    return reply.prompt_ids in (None, list(ids)) and reply.prompt_count in (None, len(ids))


def _became(reply: Reply, made: Sequence[int], trained: Sequence[int]) -> bool:
    """Ids that are the trained ones, beside another count, are not those of what was answered."""
    if reply.prompt_ids == list(trained) and reply.prompt_count is not None:
        return reply.prompt_count == len(made)
    return _arrived(reply, made)


def _only_dated(prompt: Prompt, reply: Reply) -> bool:
    if reply.prompt_ids is None:
        return abs((reply.prompt_count or 0) - len(prompt.ids)) <= 2
    first = first_difference(prompt.ids, reply.prompt_ids)
    last = first_difference(prompt.ids[::-1], reply.prompt_ids[::-1])
    return max(len(prompt.ids), len(reply.prompt_ids)) - first - last <= DATED


SERVE_OWN = (
    "serve the export's own chat_template.jinja, without --chat-template; of a GGUF file llama.cpp's --jinja"
)
FAULTS: tuple[tuple[str, str], ...] = (
    (
        "Double beginning of text",
        "template and tokenizer both write it; leave one of the two out: no add_special_tokens, no BOS in a template"
        " of your own (Ollama's TEMPLATE), and the prompt is not templated before it is sent",
    ),
    (
        "A beginning of text that training had not",
        "the server adds one: no add_special_tokens, and add_bos_token=false in the served tokenizer",
    ),
    ("The beginning of text is missing", f"the template has to write it, or the tokenizer to add it; {SERVE_OWN}"),
    (
        "The system prompt is dropped",
        "a proxy or a template between you and the model leaves it out; serve the export's own template, and look at"
        " what the gateway sends on",
    ),
    ("The opening of the answer is missing", "the server renders without add_generation_prompt=true"),
    ("No chat template", SERVE_OWN),
    ("Another chat template, or none", SERVE_OWN),
    ("Another tokenizer", "the served folder is not the export of this run: serve its tokenizer.json too"),
    (
        "The prompt is cut",
        "the server's context is shorter than the prompt: vLLM --max-model-len, llama.cpp -c, Ollama num_ctx",
    ),
)  # fmt: skip
DOUBLE, ADDED, NO_BOS, NO_SYSTEM, NO_OPENING, NO_TEMPLATE, TEMPLATE, TOKENIZER, CUT = FAULTS


def _cause_of_prompts(
    kept: TrainedAnswers, pairs: Sequence[tuple[Prompt, Reply]], differing: Sequence[tuple[Prompt, Reply]]
) -> tuple[str, str]:
    """The fault under which every prompt becomes what the server says it became."""
    bos = kept.bos
    begun = all(prompt.ids[:1] == [bos] for prompt, _ in pairs)

    def explains(made: Callable[[Prompt], list[int] | None]) -> bool:
        return all(_became(reply, made(prompt) or prompt.ids, prompt.ids) for prompt, reply in pairs)

    if bos is not None and explains(lambda prompt: [bos, *prompt.ids]):
        return DOUBLE if begun else ADDED
    if begun and explains(lambda prompt: prompt.ids[1:]):
        return NO_BOS
    if explains(lambda prompt: prompt.without_system):
        return NO_SYSTEM
    if explains(lambda prompt: prompt.without_opening):
        return NO_OPENING
    told = [(prompt, reply.prompt_ids) for prompt, reply in differing if reply.prompt_ids is not None]
    if _all_cut(differing):
        return (
            CUT if told else (CUT[0], f"{CUT[1]}; of lengths alone it may be another template or model too")
        )
    if not told:
        return TEMPLATE
    if all(ids[:2] == [bos, bos] for _, ids in told) and begun:
        return DOUBLE
    shared = [len(set(prompt.ids) & set(ids)) / len(set(prompt.ids)) for prompt, ids in told]
    if len({tuple(ids) for _, ids in told}) < len({tuple(prompt.ids) for prompt, _ in told}):
        return TEMPLATE  # one that does not write the messages
    if max(shared) < SHARED:
        return TOKENIZER
    control = set(kept.control) - {bos}
    lost = all(
        control & set(prompt.ids) and not control & set(ids) and len(ids) < len(prompt.ids)
        for prompt, ids in told
    )
    return NO_TEMPLATE if lost else TEMPLATE


def _all_cut(differing: Sequence[tuple[Prompt, Reply]]) -> bool:
    """Prompts of several lengths have become one, shorter than any; where ids are told, theirs."""
    if any(not set(reply.prompt_ids or []) <= set(prompt.ids) for prompt, reply in differing):
        return False
    lengths = {len(prompt.ids) for prompt, _ in differing}
    counts = {reply.prompt_count or 0 for _, reply in differing}
    return len(lengths) > 1 and len(counts) == 1 and max(counts) < min(lengths)


def _differing(kept: TrainedAnswers, number: int, prompt: Prompt, reply: Reply) -> str:
    if reply.prompt_ids is None or reply.prompt_ids == prompt.ids:
        return f"prompt {number + 1} has {reply.prompt_count} tokens, {len(prompt.ids)} in training"
    first = first_difference(prompt.ids, reply.prompt_ids)
    wanted, there = (
        "".join(kept.tokens.get(token, f"[{token}]") for token in ids[first : first + 6])
        for ids in (prompt.ids, reply.prompt_ids)
    )
    before = "".join(kept.tokens[token] for token in prompt.ids[:first])
    if reply.prompt_text and reply.prompt_text.startswith(before):
        there = reply.prompt_text[len(before) :][:40]
    return f"prompt {number + 1} differs from token {first + 1} on: {wanted!r} in training, {there!r} on the server"


def judge_system_prompt(kept: TrainedAnswers, observed: Observed, found: Judgement) -> None:
    """Whether a caller has to send it: what becomes of a question without one."""
    if kept.system_prompt is None or observed.alone is None:
        return
    first = kept.prompts[0]
    if not _known(observed.alone):
        return
    if _arrived(observed.alone, first.ids):
        found.rows["system prompt"] = "the server puts it in by itself"
        return
    found.rows["system prompt"] = "passed on; callers have to send it"
    found.findings.append(
        Finding(
            "system prompt", "the server does not put it in by itself", "For callers",
            f"send what the model was trained with: {kept.system_prompt[:200]!r}", decides=False,
        )
    )  # fmt: skip
