"""Whether the server's log probabilities are within the bound of its format, where it offers them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from chatbot_sft.report.words import amount
from chatbot_sft.save.verify.compare import KL_BOUNDS
from chatbot_sft.save.verify.kept import TrainedAnswers
from chatbot_sft.served.answers import Compared
from chatbot_sft.served.ask import Likely
from chatbot_sft.served.finding import BASE, OTHER, QUANTISATION, Finding, Judgement

PROBABILITIES = "probabilities"  # the check
FEW = 16  # places of answers; below, a mean of them decides nothing
COARSE = 0.25  # of a divergence: so much nearer to the base is the base
TINY = 1e-9  # a probability


def judge_probabilities(kept: TrainedAnswers, compared: Sequence[Compared], found: Judgement) -> None:
    """At each place up to the first token that differs: until there both have read the same."""
    trained, base = [], []
    for one in compared:
        answer, likely = one.answer, one.reply.likely
        for place in range(min(one.agreed + 1, len(likely), len(answer.ids))):
            top = answer.top[place]
            trained.append(_divergence(kept, top, answer.logprobs[place], likely[place]))
            if answer.base_logprobs is not None:
                base.append(_divergence(kept, top, answer.base_logprobs[place], likely[place]))
    if not trained:
        found.rows[PROBABILITIES] = "not offered"
        found.open.add(PROBABILITIES)
        return
    kl, from_base, served = _mean(trained), _mean(base) if base else None, found.served
    found.rows[PROBABILITIES] = (
        f"{kl:.2g} nats from the trained model's at {amount(len(trained), 'place')}; the bound of {served.kind} is"
        f" {served.kl_bound:g}"
    )
    found.numbers |= {
        "kl": kl,
        "kl_bound": served.kl_bound,
        "kl_from_base": from_base,
        "places": len(trained),
    }
    if kl <= served.kl_bound:
        return
    if len(trained) < FEW:
        found.open.add(PROBABILITIES)
        return
    what = f"they are {kl:.3g} nats away from the trained model's, {served.kl_bound:g} is the bound for {served.kind}"
    cause, advice = _cause(kl, from_base)
    known = any(finding.cause == cause for finding in found.findings)
    found.findings.append(
        Finding(PROBABILITIES, what, "The same" if known else cause, advice, not found.another_day)
    )


def _cause(kl: float, from_base: float | None) -> tuple[str, str]:
    if from_base is not None and from_base < COARSE * kl:
        return BASE, "ask for the adapter by its name, or serve the merged export"
    if kl <= max(KL_BOUNDS.values()):
        return QUANTISATION, "where this one is meant, say as what: evaluation.format=q4_k_m, say"
    return OTHER, "compare what is served with the export of this run (its export.json)"


def _divergence(
    kept: TrainedAnswers, top: Sequence[int], logprobs: Sequence[float], likely: Sequence[Likely]
) -> float:
    """KL divergence in nats of the server's probabilities from the `logprobs` of the tokens `top`, by those that
    both name, all others taken as one: never more than the whole one.
    """
    own = dict(zip(top, logprobs, strict=True))
    texts = {token: kept.tokens.get(token, "") for token in reversed(top)}
    by_text = {text.strip(): token for token, text in texts.items()} | {
        text: token for token, text in texts.items()
    }  # not every tokenizer tells its space
    pairs = []
    for one in likely:
        token = by_text.get(one.text, by_text.get(one.text.strip())) if one.id is None else one.id
        if token is not None and token in own:
            pairs.append((own[token], one.logprob))
    named = sum(math.exp(own) * (own - there) for own, there in pairs)
    rest, there = (max(1 - sum(math.exp(pair[side]) for pair in pairs), TINY) for side in (0, 1))
    return named + rest * math.log(rest / there)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
