"""Whether the greedy answers are the trained model's, where it was sure, and end where its own do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from chatbot_sft.report.words import amount
from chatbot_sft.save.verify.compare import first_difference
from chatbot_sft.save.verify.kept import TrainedAnswer, TrainedAnswers
from chatbot_sft.served.ask import Observed, Reply
from chatbot_sft.served.finding import BASE, NOISE, OTHER, QUANTISATION, Finding, Judgement

RUNNERS_UP = 3  # a token that rounding may bring up is among so many
ANSWERS, ENDS = "greedy answers", "ends by itself"  # checks


@dataclass(frozen=True)
class Compared:
    """A reply beside the trained model's answer, the `number`th: the `place` of the first token that differs, None
    where they are alike as far as both go, and what the server `said` there; `after` is what came behind the end of
    the trained one. `stopped`: it is the trained one's beginning and nothing else; `as_base`: it goes on as the base.
    """

    number: int
    answer: TrainedAnswer
    reply: Reply
    place: int | None = None
    said: str = ""
    after: str = ""
    wrote_end: str = ""  # the text of the end token, where it stands in the answer
    stopped: bool = False
    as_base: bool = False

    @property
    def agreed(self) -> int:
        return len(self.answer.ids) if self.place is None else self.place

    @property
    def cut(self) -> bool:
        """By a limit of the server's."""
        return self.stopped and self.reply.finish == "length"

    @property
    def margin(self) -> float:
        """How sure the trained model was of its token where the server leaves it: at the end, where it goes on."""
        return self.answer.margins[self.place if self.place is not None else -1]


def compare_all(kept: TrainedAnswers, replies: Sequence[Reply]) -> list[Compared]:
    pairs = zip(kept.answers, replies, strict=False)
    return [_compared(kept, number, answer, reply) for number, (answer, reply) in enumerate(pairs, 1)]


def _compared(kept: TrainedAnswers, number: int, answer: TrainedAnswer, reply: Reply) -> Compared:
    """By the texts; by the ids where the server tells them: two tokens may have the same text."""
    form = _squashed if reply.thinking else str.lstrip
    said, wrote_end, behind = _up_to_end(form(reply.thinking + reply.text), kept)
    lengths = [len(form("".join(answer.pieces[:count]))) for count in range(len(answer.pieces) + 1)]
    whole = form(answer.text).rstrip()
    if not said.startswith(whole):
        said = said.rstrip()
    common = first_difference(whole, said)
    as_base = _as_base(kept, answer, said, whole, lengths)
    if common == len(whole):
        after = said[len(whole) :].strip() + behind if answer.ended else ""
        return Compared(number, answer, reply, after=after, wrote_end=wrote_end, as_base=as_base)
    place = next(n for n, length in enumerate(lengths[1:]) if length > common)
    if reply.ids is not None:
        place = min(place, first_difference(answer.ids, reply.ids))
    stopped = common == len(said)
    there = "the end" if stopped else said[min(common, lengths[place]) :][:12]
    return Compared(number, answer, reply, place, there, "", wrote_end, stopped, as_base)


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


def _as_base(
    kept: TrainedAnswers, answer: TrainedAnswer, said: str, whole: str, lengths: Sequence[int]
) -> bool:
    """Greedy, the base says what the trained model says up to the first place where it would say another token, and
    there that one.
    """
    if answer.base_ids is None:
        return False
    place = first_difference(answer.ids, answer.base_ids)
    if place == len(answer.ids):
        return False
    token, before = answer.base_ids[place], whole[: lengths[place]]
    if token in kept.ends:
        return said == before.rstrip()
    own = "".join(kept.tokens.get(token, "").rstrip("\ufffd").split())  # not every tokenizer tells its space
    return bool(own) and "".join(said.split()).startswith("".join(before.split()) + own)


def judge_answers(
    kept: TrainedAnswers,
    observed: Observed,
    compared: Sequence[Compared],
    found: Judgement,
    others: Sequence[str],
) -> None:
    """`others` are models that the server has too. Where the prompts are others, so may the answers be."""
    tokens = sum(len(answer.ids) for answer in kept.answers)
    agreed = sum(one.agreed for one in compared)
    alike = f"{sum(one.place is None for one in compared)}/{len(compared)}"
    found.rows[ANSWERS] = f"{alike} alike; {agreed}/{tokens} tokens up to the first that differs"
    found.numbers |= {"answers": alike, "greedy": f"{agreed}/{tokens}", "noise": found.served.noise}
    if found.deciding:
        found.open.add(ANSWERS)
        return
    wrong = [one for one in compared if one.place is not None and not one.cut and _sure(one, found)]
    if not wrong:
        return
    one = wrong[0]
    wanted = kept.tokens.get(one.answer.ids[one.agreed], "")
    what = (
        f"answer {one.number} differs at token {one.agreed + 1} ({wanted!r} → {one.said!r}), where the trained model"
        f" was sure by {one.margin:.3g} logits and the noise of {found.served.kind} is {found.served.noise:.3g}"
    )
    cause, advice = _cause(kept, observed, compared, wrong, others)
    found.findings.append(Finding(ANSWERS, what, cause, advice, decides=not found.another_day))


def _sure(one: Compared, found: Judgement) -> bool:
    return one.margin > found.served.noise


def _cause(
    kept: TrainedAnswers,
    observed: Observed,
    compared: Sequence[Compared],
    wrong: Sequence[Compared],
    others: Sequence[str],
) -> tuple[str, str]:
    again = compare_all(kept, observed.again)
    if any(again[one.number - 1].reply.text != one.reply.text for one in wrong):
        return (
            "The server samples",
            "the same request is answered otherwise the second time, at temperature 0: look for a gateway or default"
            " that sets a temperature",
        )
    plain = compare_all(kept, observed.plain)
    if all(plain[one.number - 1].agreed > one.agreed for one in wrong):
        return (
            "A repetition penalty of the server's own",
            "without one the answers agree: vLLM --override-generation-config '{\"repetition_penalty\": 1}',"
            " llama.cpp --repeat-penalty 1, PARAMETER repeat_penalty 1 in Ollama's Modelfile",
        )
    if all(one.as_base for one in compared if one.place is not None):
        also = f" (it also has {', '.join(others[:5])})" if others else ""
        return (
            BASE,
            "ask for the adapter by the name that vLLM's --lora-modules gives it, or serve the merged export"
            + also,
        )
    if all(_rounded(kept, one) for one in wrong):
        return (
            QUANTISATION,
            "serve the export that was verified; where this one is meant, say as what: evaluation.format=q4_k_m, say",
        )
    return (
        OTHER,
        "compare what is served with the export of this run (its export.json): an older one of that name, or another"
        " run's",
    )


def _rounded(kept: TrainedAnswers, one: Compared) -> bool:
    """Whether rounding may have brought up what the server said: one of the next likeliest, and not too far."""
    runners = [kept.tokens.get(token, "").strip() for token in one.answer.top[one.agreed][:RUNNERS_UP]]
    near = any(runner and one.said.strip().startswith(runner) for runner in runners)
    return near and one.margin <= max(NOISE.values())


def judge_ends(kept: TrainedAnswers, compared: Sequence[Compared], found: Judgement) -> None:
    trained = f"{sum(answer.ended for answer in kept.answers)}/{len(compared)}"
    ended = f"{sum(one.reply.finish == 'stop' and not one.wrote_end for one in compared)}/{len(compared)}"
    found.rows[ENDS] = f"{ended}; {trained} in training"
    found.numbers |= {"ended": ended, "trained_ended": trained}
    finding = next(filter(None, (_fault_of_end(kept, one, found) for one in compared)), None)
    if finding:
        found.findings.append(finding)
    elif any(one.place is not None for one in compared):
        found.open.add(ENDS)


def _fault_of_end(kept: TrainedAnswers, one: Compared, found: Judgement) -> Finding | None:
    ends = " or ".join(repr(kept.tokens.get(token, str(token))) for token in kept.ends) or "its end token"
    advice = (
        "serve the export's own generation_config.json and tokenizer (vLLM: no --generation-config of another model),"
        f" or its GGUF file with its Modelfile; until then send stop=[{ends}]"
    )
    if one.wrote_end:
        what = f"answer {one.number} has {one.wrote_end!r} in its text"
        return Finding(ENDS, what, "The end token is written, not obeyed", advice)
    if one.cut:
        what = f"answer {one.number} is cut after {amount(one.agreed, 'token')}, {kept.max_new_tokens} were asked for"
        limits = "a gateway caps max_tokens, or the context is short (vLLM --max-model-len, Ollama num_ctx)"
        return Finding(ENDS, what, "A limit of the server's", limits)
    goes_on = one.answer.ended and one.place is None and (one.after or one.reply.finish == "length")
    if not goes_on or not _sure(one, found) or found.deciding:
        return None
    what = f"answer {one.number} goes on where the trained model's ends ({one.after[:40]!r})"
    if one.as_base:
        return Finding(ENDS, what, BASE, "ask for the adapter by its name, or serve the merged export")
    return Finding(ENDS, what, f"The server does not stop at {ends}", advice)
