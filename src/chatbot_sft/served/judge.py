"""What a server made of a run's prompts, held against what the trained model made of them.

Arithmetic on what `ask` brought; nothing is asked here. A difference counts where it cannot be the noise of the
format that is served; it then has a likely cause, and what to do about it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from chatbot_sft.save.verify.compare import KL_BOUNDS, OVER_4_BITS, first_difference
from chatbot_sft.save.verify.kept import Prompt, TrainedAnswer, TrainedAnswers
from chatbot_sft.served.ask import Likely, Observed, Reply

# Logits by which the distance of two tokens may change in a format of which the run has measured nothing; 16-bit
# arithmetic of another machine changes it by up to the first of them, whatever the format.
ARITHMETIC = 0.5
NOISE = {"q8": 1.0, "q6": 1.5, "q5": 2.5, "q4": 3.5, "iq4": 3.5, "merged_4bit": 3.5, "q3": 5.0, "q2": 7.0}
ROUNDED = "merged_4bit"  # an export in more bits than the base had in training differs as much as this
FEW = 16  # places of answers; below, a mean of them decides nothing
COARSE = 0.25  # of a divergence: so much nearer to the base is the base
DATED = 12  # tokens of a prompt that a date may take
RUNNERS_UP = 3  # a token that rounding may bring up is among so many


@dataclass(frozen=True)
class Finding:
    """`check` is the line of the table it belongs to. One that does not decide is for knowing."""

    check: str
    what: str
    cause: str
    advice: str
    decides: bool = True

    @property
    def line(self) -> str:
        return f"{self.check}: {self.what}. {self.cause}: {self.advice}"


@dataclass
class Judgement:
    """`rows`: check → what was found, in a few words. `numbers` are the same for programs."""

    served_as: str
    rows: dict[str, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)

    @property
    def deciding(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.decides]


@dataclass(frozen=True)
class Format:
    """As what the model is served, and how far that may be from the trained model."""

    kind: str
    kl_bound: float
    noise: float  # logits


def format_of(
    given: str | None, names: Sequence[str], checks: Mapping[str, Mapping[str, Any]], over_4_bits: bool
) -> Format:
    """The format that is `given`, or that one of the `names` on the server has in it, or the coarsest that the run
    exported (`checks`: what was measured of each).
    """
    named = (kind for name in names for kind in _longest_first() if _has_word(name, kind))
    exported = sorted((kind for kind in checks if kind in KL_BOUNDS), key=KL_BOUNDS.__getitem__)
    kind = given or next(named, exported[-1] if exported else "merged_16bit")
    measured = checks.get(kind, {}).get("noise", _noise(kind))
    noise = max(ARITHMETIC, measured, _noise(ROUNDED) if over_4_bits else 0.0)
    return Format(kind, KL_BOUNDS[kind] + (OVER_4_BITS if over_4_bits else 0), noise)


def _longest_first() -> list[str]:
    """Formats that the name of a file may tell; `lora` and `merged_…` are words of ours."""
    return sorted(
        (kind for kind in KL_BOUNDS if not kind.startswith(("lora", "merged"))), key=len, reverse=True
    )


def _has_word(name: str, kind: str) -> bool:
    return re.search(rf"(?<![a-z0-9]){kind}(?![a-z0-9])", name.lower().replace("-", "_")) is not None


def _noise(kind: str) -> float:
    return next((noise for name, noise in NOISE.items() if kind.startswith(name)), ARITHMETIC)


def judge(kept: TrainedAnswers, observed: Observed, served: Format, others: Sequence[str] = ()) -> Judgement:
    """`others` are the models that the server has beside the one that was asked."""
    found = Judgement(served.kind)
    same_prompts = _prompts(kept, observed, found)
    if same_prompts:
        _system_prompt(kept, observed, found)
    compared = [
        _compared(kept, answer, reply) for answer, reply in zip(kept.answers, observed.replies, strict=False)
    ]
    _answers(kept, observed, compared, served, found, same_prompts, others)
    _ends(kept, observed, compared, found)
    if same_prompts:
        _probabilities(kept, observed, compared, served, found)
    return found


# Prompts


def _prompts(kept: TrainedAnswers, observed: Observed, found: Judgement) -> bool:
    """Whether all of them arrived as they were trained; true too where the server tells nothing of it."""
    pairs = list(zip(kept.prompts, observed.replies, strict=True))
    known = [_known(reply) for _, reply in pairs]
    if not any(known):
        found.rows["prompts"] = "not told"
        found.findings.append(
            Finding(
                "prompts", "the server counts no tokens (usage.prompt_tokens)", "Not compared",
                "template and system prompt show in the answers alone", decides=False,
            )
        )  # fmt: skip
        return True
    how = "token ids" if "ids" in known else "lengths"
    equal = [_arrived(reply, prompt.ids) for prompt, reply in pairs]
    found.rows["prompts"] = f"{sum(equal)}/{len(equal)} with the same {how}"
    found.numbers |= {"prompts": f"{sum(equal)}/{len(equal)}", "prompts_by": how}
    if all(equal):
        return True
    differing = [pair for pair, same in zip(pairs, equal, strict=True) if not same]
    if kept.date_string and all(_only_dated(prompt, reply) for prompt, reply in differing):
        found.rows["prompts"] += ", the rest but for the date"
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
        return True
    cause, advice = _cause_of_prompts(kept, pairs, differing)
    number = equal.index(False)
    found.findings.append(Finding("prompts", _differing(kept, number, *pairs[number]), cause, advice))
    return False


def _known(reply: Reply) -> str:
    return "ids" if reply.prompt_ids is not None else "count" if reply.prompt_count is not None else ""


def _arrived(reply: Reply, ids: Sequence[int]) -> bool:
    """As far as the server tells; a length alone may be told for what was answered, ids for what would be."""
    return reply.prompt_ids in (None, list(ids)) and reply.prompt_count in (None, len(ids))


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
    ("The prompt is cut", "the server's context is shorter than the prompt: vLLM --max-model-len, llama.cpp -c, Ollama num_ctx"),
)  # fmt: skip
DOUBLE, ADDED, NO_BOS, NO_SYSTEM, NO_OPENING, NO_TEMPLATE, TEMPLATE, TOKENIZER, CUT = FAULTS


def _cause_of_prompts(
    kept: TrainedAnswers, pairs: Sequence[tuple[Prompt, Reply]], differing: Sequence[tuple[Prompt, Reply]]
) -> tuple[str, str]:
    """The fault under which every prompt becomes what the server says it became."""
    bos = kept.bos
    begun = all(prompt.ids[:1] == [bos] for prompt, _ in pairs)

    def explains(made: Callable[[Prompt], list[int] | None]) -> bool:
        return all(_arrived(reply, made(prompt) or prompt.ids) for prompt, reply in pairs)

    if bos is not None and explains(lambda prompt: [bos, *prompt.ids]):
        return DOUBLE if begun else ADDED
    if begun and explains(lambda prompt: prompt.ids[1:]):
        return NO_BOS
    if explains(lambda prompt: prompt.without_system):
        return NO_SYSTEM
    if explains(lambda prompt: prompt.without_opening):
        return NO_OPENING
    counts = {reply.prompt_count for _, reply in differing}
    short = all((reply.prompt_count or 0) < len(prompt.ids) for prompt, reply in differing)
    if (
        len(counts) == 1
        and short
        and len(differing) > 1
        and len({len(prompt.ids) for prompt, _ in differing}) > 1
    ):
        return CUT
    told = [(prompt, reply.prompt_ids) for prompt, reply in differing if reply.prompt_ids is not None]
    if not told:
        return TEMPLATE
    if all(ids[:2] == [bos, bos] for _, ids in told) and begun:
        return DOUBLE
    control = set(kept.control) - {bos}
    if not any(control & set(ids) for _, ids in told) and any(
        control & set(prompt.ids) for prompt, _ in told
    ):
        return NO_TEMPLATE
    shared = [len(set(prompt.ids) & set(ids)) / len(set(prompt.ids)) for prompt, ids in told]
    return TOKENIZER if max(shared) < 0.4 else TEMPLATE


def _differing(kept: TrainedAnswers, number: int, prompt: Prompt, reply: Reply) -> str:
    if reply.prompt_ids is None or reply.prompt_ids == prompt.ids:
        return f"prompt {number + 1} has {reply.prompt_count} tokens, {len(prompt.ids)} in training"
    first = first_difference(prompt.ids, reply.prompt_ids)
    wanted, there = (
        "".join(kept.tokens.get(token, f"[{token}]") for token in ids[first : first + 6])
        for ids in (prompt.ids, reply.prompt_ids)
    )
    return f"prompt {number + 1} differs from token {first + 1} on: {wanted!r} in training, {there!r} on the server"


def _system_prompt(kept: TrainedAnswers, observed: Observed, found: Judgement) -> None:
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


# Answers


@dataclass(frozen=True)
class Compared:
    """An answer beside the trained model's: the `place` of the first token that differs, None where they are alike as
    far as both go; `after` is what came behind the end of the trained one; `as_base`: it goes on as the base would.
    """

    place: int | None
    said: str  # there, by the server
    agreed: int  # tokens
    after: str = ""
    wrote_end: str = ""  # the text of the end token, where it stands in the answer
    stopped: bool = False  # it is the trained one's beginning, and nothing else
    as_base: bool = False


def _compared(kept: TrainedAnswers, answer: TrainedAnswer, reply: Reply) -> Compared:
    form = _squashed if reply.thinking else str.lstrip
    said, wrote_end, behind = _up_to_end(form(reply.thinking + reply.text), kept)
    lengths = [len(form("".join(answer.pieces[:count]))) for count in range(len(answer.pieces) + 1)]
    whole = form(answer.text).rstrip()
    said = said if said.startswith(whole) else said.rstrip()
    common = len(os.path.commonprefix([said, whole]))
    agreed = next((n for n, length in enumerate(lengths[1:]) if length > common), len(answer.ids))
    if reply.ids is not None:
        agreed = first_difference(_without_end(answer.ids, kept), _without_end(reply.ids, kept))
    if common == len(whole):
        after = said[len(whole) :].strip() + behind if answer.ended else ""
        return Compared(None, "", len(answer.ids), after, wrote_end)
    base = _as_base(kept, answer, said, lengths, whole)
    if common == len(said):
        return Compared(agreed, "the end", agreed, "", wrote_end, True, base)
    return Compared(agreed, said[min(common, lengths[agreed]) :][:12], agreed, "", wrote_end, False, base)


def _squashed(text: str) -> str:
    """Without white space and the tags of thinking: how a server takes a thought out is its own affair."""
    return "".join(re.sub(r"</?think>", "", text).split())


def _up_to_end(said: str, kept: TrainedAnswers) -> tuple[str, str, str]:
    """(what stands before the text of an end token, that text, what stands behind it)."""
    for end in filter(None, (kept.tokens.get(token, "").strip() for token in kept.ends)):
        before, found, behind = said.partition(end)
        if found:
            return before, end, behind.strip()
    return said, "", ""


def _without_end(ids: Sequence[int], kept: TrainedAnswers) -> list[int]:
    return list(ids[:-1]) if ids and ids[-1] in kept.ends else list(ids)


def _as_base(
    kept: TrainedAnswers, answer: TrainedAnswer, said: str, lengths: Sequence[int], whole: str
) -> bool:
    """Greedy, the base says what the trained model says up to the first place where it would say another token, and
    there that one.
    """
    if answer.base_ids is None:
        return False
    place = first_difference(answer.ids, answer.base_ids)
    if place == len(answer.ids):
        return False
    token = answer.base_ids[place]
    own = "" if token in kept.ends else kept.tokens.get(token, "").rstrip("\ufffd")
    beginning = (whole[: lengths[place]] + own).lstrip()
    return said == beginning.rstrip() if token in kept.ends else bool(own) and said.startswith(beginning)


def _answers(
    kept: TrainedAnswers,
    observed: Observed,
    compared: Sequence[Compared],
    served: Format,
    found: Judgement,
    same_prompts: bool,
    others: Sequence[str],
) -> None:
    total = sum(len(answer.ids) for answer in kept.answers)
    agreed = sum(one.agreed for one in compared)
    alike = sum(one.place is None for one in compared)
    found.rows["greedy answers"] = (
        f"{alike}/{len(compared)} alike; {agreed}/{total} tokens up to the first that differs"
    )
    found.numbers |= {
        "answers": f"{alike}/{len(compared)}",
        "greedy": f"{agreed}/{total}",
        "noise": served.noise,
    }
    if not same_prompts:  # what follows from another prompt is no finding of its own
        found.rows["greedy answers"] += " (the prompts differ)"
        return
    wrong = [number for number, one in enumerate(compared) if _counts(kept, number, one, observed, served)]
    if not wrong:
        return
    number = wrong[0]
    one, answer = compared[number], kept.answers[number]
    place = one.place or 0
    sure = f"the trained model was sure by {answer.margins[place]:.3g} logits, the noise of {served.kind} is {served.noise:.3g}"
    wanted = kept.tokens.get(answer.ids[place], "")
    what = f"answer {number + 1} differs at token {place + 1} ({wanted!r} → {one.said!r}); {sure}"
    found.findings.append(
        Finding("greedy answers", what, *_cause_of_answers(kept, observed, compared, wrong, served, others))
    )


def _counts(kept: TrainedAnswers, number: int, one: Compared, observed: Observed, served: Format) -> bool:
    if one.place is None or (one.stopped and observed.replies[number].finish == "length"):
        return False  # cut by the server: the end's affair
    return kept.answers[number].margins[one.place] > served.noise


def _cause_of_answers(
    kept: TrainedAnswers,
    observed: Observed,
    compared: Sequence[Compared],
    wrong: Sequence[int],
    served: Format,
    others: Sequence[str],
) -> tuple[str, str]:
    if any(observed.again[n].text != observed.replies[n].text for n in wrong):
        return (
            "The server samples",
            "the same request is answered otherwise the second time, at temperature 0; look for a gateway or a"
            " default that sets the temperature",
        )
    plain = [_compared(kept, kept.answers[n], observed.plain[n]) for n in wrong]
    if all(
        one.place is None or one.place > (compared[n].place or 0) for n, one in zip(wrong, plain, strict=True)
    ):
        return (
            "A repetition penalty of the server's own",
            "without one the answers agree; start vLLM with --generation-config vllm, put `PARAMETER repeat_penalty 1`"
            " into Ollama's Modelfile, or send repetition_penalty=1 with each request",
        )
    differing = [one for one in compared if one.place is not None]
    if all(one.as_base for one in differing):
        also = f"; the server also has {', '.join(others[:5])}" if others else ""
        return (
            "The base model answers, without the adapter",
            "ask for the adapter by the name that vLLM's --lora-modules gives it, or serve the merged export"
            + also,
        )
    if all(_near(kept, n, compared[n]) for n in wrong):
        return (
            "Another quantisation, or fewer bits than that",
            f"judged as {served.kind}; if it is meant, say so with evaluation.format={'|'.join(('q8_0', 'q4_k_m'))} …, else"
            " serve the export that was verified",
        )
    return (
        "Another model, or another adapter",
        "compare the served path with the export of this run (its export.json); an older export of the same name, or"
        " another run's adapter",
    )


def _near(kept: TrainedAnswers, number: int, one: Compared) -> bool:
    """Whether rounding may have brought up what the server said there: one of the next likeliest, and not too far."""
    answer, place = kept.answers[number], one.place or 0
    if answer.margins[place] > max(NOISE.values()):
        return False
    runners = [kept.tokens.get(token, "").strip() for token in answer.top[place][:RUNNERS_UP]]
    said = one.said.strip()
    return any(runner and said.startswith(runner) for runner in runners)


# Ends


def _ends(kept: TrainedAnswers, observed: Observed, compared: Sequence[Compared], found: Judgement) -> None:
    trained = sum(answer.ended for answer in kept.answers)
    ended = sum(
        reply.finish == "stop" and not one.wrote_end
        for reply, one in zip(observed.replies, compared, strict=False)
    )
    found.rows["ends by itself"] = f"{ended}/{len(compared)}; {trained}/{len(compared)} in training"
    found.numbers |= {"ended": f"{ended}/{len(compared)}", "trained_ended": f"{trained}/{len(compared)}"}
    ends = " or ".join(repr(kept.tokens.get(token, str(token))) for token in kept.ends) or "its end token"
    keep_end = (
        "serve the export's own generation_config.json (vLLM: no --generation-config of another model), or its"
        f" GGUF file; until then send stop=[{ends}]"
    )
    for number, (answer, reply, one) in enumerate(
        zip(kept.answers, observed.replies, compared, strict=False), 1
    ):
        if one.wrote_end:
            what = f"answer {number} has {one.wrote_end!r} in its text"
            found.findings.append(
                Finding("ends by itself", what, "The end token is written, not obeyed", keep_end)
            )
            return
        if one.stopped and reply.finish == "length":
            what = f"answer {number} is cut after {one.agreed} tokens, {kept.max_new_tokens} were asked for"
            advice = "the server or a gateway caps max_tokens, or its context is short (vLLM --max-model-len, Ollama num_ctx)"
            found.findings.append(Finding("ends by itself", what, "A limit of the server's", advice))
            return
        if answer.ended and one.place is None and (one.after or reply.finish == "length"):
            what = f"answer {number} goes on where the trained model's ends ({one.after[:40]!r})"
            found.findings.append(
                Finding("ends by itself", what, f"The server does not stop at {ends}", keep_end)
            )
            return


# Probabilities


def _probabilities(
    kept: TrainedAnswers, observed: Observed, compared: Sequence[Compared], served: Format, found: Judgement
) -> None:
    trained, base = [], []
    for answer, reply, one in zip(kept.answers, observed.replies, compared, strict=False):
        last = len(answer.ids) if one.place is None else one.place + 1
        for place in range(min(last, len(reply.likely), len(answer.ids))):
            likely = reply.likely[place]
            trained.append(_divergence(kept, answer.top[place], answer.logprobs[place], likely))
            if answer.base_logprobs is not None:
                base.append(_divergence(kept, answer.top[place], answer.base_logprobs[place], likely))
    if not trained:
        found.rows["probabilities"] = "not offered"
        return
    kl, kl_base = _mean(trained), _mean(base) if base else None
    found.rows["probabilities"] = (
        f"{kl:.2g} nats from the trained model's at {len(trained)} places; the bound of {served.kind} is {served.kl_bound:g}"
    )
    found.numbers |= {"kl": kl, "kl_bound": served.kl_bound, "kl_from_base": kl_base, "places": len(trained)}
    if len(trained) < FEW or kl <= served.kl_bound:
        return
    if kl_base is not None and kl_base < COARSE * kl:
        cause = "The base model answers, without the adapter"
        advice = "ask for the adapter by its name, or serve the merged export"
    elif kl <= max(KL_BOUNDS.values()):
        cause = "Another quantisation, or fewer bits than that"
        advice = f"judged as {served.kind}; if it is meant, say so with evaluation.format"
    else:
        cause, advice = (
            "Another model, or another adapter",
            "compare the served path with the export of this run",
        )
    if any(finding.cause == cause for finding in found.findings):
        return
    what = f"{kl:.3g} nats away from the trained model's, {served.kl_bound:g} is the bound for {served.kind}"
    found.findings.append(Finding("probabilities", what, cause, advice))


def _divergence(
    kept: TrainedAnswers, top: Sequence[int], logprobs: Sequence[float], likely: Sequence[Likely]
) -> float:
    """KL divergence in nats of the server's probabilities from `logprobs` of the tokens `top`, by the tokens that both
    name and all others taken as one: never more than the whole one.
    """
    import math

    own = dict(zip(top, logprobs, strict=True))
    by_text = {kept.tokens.get(token, ""): token for token in reversed(top)}
    pairs = [
        (own[token], one.logprob)
        for one in likely
        if (token := one.id if one.id is not None else by_text.get(one.text)) in own and token is not None
    ]
    whole = sum(math.exp(a) * (a - b) for a, b in pairs)
    rest, there = (max(1 - sum(math.exp(pair[side]) for pair in pairs), 1e-9) for side in (0, 1))
    return whole + rest * math.log(rest / there)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
