"""Whether an export is the model that was trained: both answer the same questions, and are compared.

The export is asked as its user's library reads it from disk (see `probe`), the trained model as it is in
memory (see `trained`). The comparison itself is arithmetic on two `Observation`s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatbot_sft.data.template import render_as_of
from chatbot_sft.inference import ChatModel
from chatbot_sft.save.verify.evidence import ANSWERS, Evidence, Row

if TYPE_CHECKING:
    import numpy as np

# Mean KL divergence from the trained model, in nats, that an export may have. What each format really has on
# SmolLM2-135M, the hardest to quantise of the models here, is in docs/export.md; a wrong export is off by
# whole nats.
KL_BOUNDS = {
    "lora": 0.005, "f32": 0.005, "f16": 0.01, "bf16": 0.02, "merged_16bit": 0.02, "q8_0": 0.03,
    "q6_k": 0.06, "q5_k_m": 0.25, "q5_k_s": 0.25,
    "q5_0": 0.3, "q5_1": 0.3, "q4_k_m": 0.4, "q4_k_s": 0.5, "q4_0": 0.6, "q4_1": 0.6, "iq4_nl": 0.5,
    "iq4_xs": 0.5, "merged_4bit": 0.6,
    "q3_k_l": 0.8, "q3_k_m": 1.0, "q3_k_s": 1.5, "q2_k": 2.5,
}  # fmt: skip
# More, for an export in more bits than the base had in training: what rounding it did to the trained model.
OVER_4_BITS = 0.4
SHARE = (0.5, 1.5)  # of what training changed, that an export has to show
# Logits; two tokens that are nearer to each other are even in any 16-bit arithmetic, that of llama.cpp's
# cache of keys and values too.
TIE = 0.01
MOVED = 1e-4  # nats; below, training has changed too little for its direction to be told


@dataclass(frozen=True)
class Observation:
    """What a model makes of the evidence: the ids of its prompts, greedy answers to the first of them, and
    float32 logits (positions, vocabulary).
    """

    prompt_ids: list[list[int]]
    answers: list[list[int]]
    logits: np.ndarray
    stop_ids: list[int]

    def write(self, file: Path) -> None:
        import json

        import numpy as np

        with file.open("wb") as stream:
            np.savez(
                stream, logits=self.logits, others=json.dumps([self.prompt_ids, self.answers, self.stop_ids])
            )

    @classmethod
    def read(cls, file: Path) -> Observation:
        import json

        import numpy as np

        with np.load(file) as arrays:
            prompt_ids, answers, stop_ids = json.loads(str(arrays["others"]))
            return cls(prompt_ids, answers, arrays["logits"], stop_ids)


@dataclass(frozen=True)
class Reference:
    """The trained model's observation of `evidence`, which ends with its own answers, so that an export's
    logits are measured on these texts too.

    `base_logits` are those of the base without the adapter at the first `positions`, the trained ones; None
    where there is no base beside it.
    """

    trained: Observation
    evidence: Evidence
    positions: int
    base_logits: np.ndarray | None
    over_4_bits: bool
    token: Callable[[int], str]  # what a person calls it

    @property
    def moved(self) -> float | None:
        """Mean KL divergence of the base from the trained model, in nats; None without a base beside it."""
        if self.base_logits is None:
            return None
        return _kl(
            log_probabilities(self.trained.logits[: self.positions]), log_probabilities(self.base_logits)
        )


@dataclass
class Verification:
    """What was found of one export; `failures` says what is wrong with it, a line each."""

    prompts: str  # "8/8": with the same token ids
    kl: float  # mean over the trained positions, nats
    kl_bound: float
    kl_base: float | None  # the same of the base without the adapter: how far training went
    # Of that way, how much the export has gone: 1 is all of it; None where it cannot be told.
    trained_share: float | None
    positions: int
    # "231/240": tokens of the trained model's answers that are the export's too, up to the first that differs.
    greedy: str
    ended: str  # "3/3": answers that ended by themselves
    trained_ended: str
    # Logits: twice the largest change of a margin on the trained positions, the format's noise.
    noise: float
    failures: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def observe(model: ChatModel, evidence: Evidence) -> Observation:
    """Ask `model` everything that `evidence` holds, as of the day of the training."""
    render_as_of(datetime.fromisoformat(evidence.date))
    prompt_ids = [model.prompt_ids(prompt) for prompt in evidence.prompts]
    answers = [model.answer(ids, evidence.max_new_tokens) for ids in prompt_ids[:ANSWERS]]
    return Observation(prompt_ids, answers, logits_of(model, evidence.rows), sorted(model.stop_ids))


def logits_of(model: ChatModel, rows: Sequence[Row]) -> np.ndarray:
    """float32 (positions of all rows, vocabulary)."""
    import numpy as np

    return np.concatenate([model.logits(row.ids, row.positions) for row in rows])


def refer(
    model: ChatModel,
    evidence: Evidence,
    base_logits: np.ndarray | None,
    over_4_bits: bool,
    token: Callable[[int], str],
) -> Reference:
    """Ask the trained model, and hold its own answers against it as well."""
    import numpy as np

    trained = observe(model, evidence)
    pairs = zip(trained.prompt_ids, trained.answers, strict=False)
    said = [
        Row([*prompt, *answer], list(range(len(prompt) - 1, len(prompt) - 1 + len(answer))))
        for prompt, answer in pairs
    ]
    positions = len(trained.logits)
    trained = replace(trained, logits=np.concatenate([trained.logits, logits_of(model, said)]))
    return Reference(
        trained, replace(evidence, rows=[*evidence.rows, *said]), positions, base_logits, over_4_bits, token
    )


def compare(reference: Reference, export: Observation, kind: str) -> Verification:
    """Hold `export`, asked `reference.evidence`, in the format `kind` (of `KL_BOUNDS`), against the model."""
    trained, count, ends = reference.trained, reference.positions, reference.evidence.ends
    # A table with rows to spare may be saved without them.
    size = min(trained.logits.shape[1], export.logits.shape[1])
    t, e = (log_probabilities(logits[:count, :size]) for logits in (trained.logits, export.logits))
    bound = KL_BOUNDS[kind] + (OVER_4_BITS if reference.over_4_bits and kind != "lora" else 0)
    kl, kl_base, share = _kl(t, e), reference.moved, None
    if reference.base_logits is not None and kl_base is not None and kl_base > MOVED:
        share = _share(t, log_probabilities(reference.base_logits[:, :size]), e)
    noise, agreed, strayed, wrong = _greedy(reference, export)
    stops = set(export.stop_ids)
    equal = [a == b for a, b in zip(trained.prompt_ids, export.prompt_ids, strict=True)]
    ended, trained_ended = _ended(export.answers, stops), _ended(trained.answers, {*trained.stop_ids, *ends})
    failures = []
    if not all(equal):
        failures.append(_differing_prompt(trained.prompt_ids, export.prompt_ids, equal))
    if not kl <= bound:
        failures.append(
            f"its probabilities are {kl:.3g} nats away from the trained model's, {bound:g} is the bound for"
            f" {kind}"
        )
    if share is not None and not SHARE[0] <= share <= SHARE[1]:
        failures.append(f"it shows {share:.0%} of what training changed: {_what_share_means(share)}")
    failures += wrong
    missing = [token for token in ends if token not in stops]
    if missing:
        failures.append(
            f"it does not stop at {', '.join(map(reference.token, missing))}, with which the trained"
            " answers end"
        )
    unended = [
        n
        for n, (said, stopped) in enumerate(zip(ended, trained_ended, strict=True))
        if stopped and not said and not strayed[n]
    ]
    if unended:
        failures.append(f"its answer to prompt {unended[0] + 1} does not end, where the trained model's does")
    return Verification(
        f"{sum(equal)}/{len(equal)}", kl, bound, kl_base, share, count,
        f"{agreed}/{sum(map(len, trained.answers))}",
        f"{sum(ended)}/{len(ended)}", f"{sum(trained_ended)}/{len(trained_ended)}", noise, failures,
    )  # fmt: skip


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    import numpy as np

    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _kl(t: np.ndarray, other: np.ndarray) -> float:
    import numpy as np

    return float((np.exp(t) * (t - other)).sum(axis=1).mean())


def _share(t: np.ndarray, b: np.ndarray, e: np.ndarray) -> float | None:
    """How far `e` went from the base `b` to `t`: e - b projected on t - b, by the trained probabilities.

    Rounding errors of a format point anywhere and change it little; an adapter that was left out makes it 0,
    one that was added twice 2. None where those errors are larger than all that training changed, so that the
    way cannot be told from them.
    """
    import numpy as np

    weight = np.exp(t)
    way, gone = (change - (weight * change).sum(axis=1, keepdims=True) for change in (t - b, e - b))
    length = (weight * way**2).sum()
    share = float((weight * gone * way).sum() / length)
    beside = (weight * (gone - share * way) ** 2).sum()
    return share if beside <= length else None


def _margin_changes(trained: np.ndarray, export: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per position how far the trained model's likeliest token is above its second, and by how much that
    distance is another in `export`.
    """
    import numpy as np

    pairs = np.argpartition(trained, -2, axis=1)[:, -2:]
    t, e = (np.take_along_axis(logits, pairs, axis=1) for logits in (trained, export))
    return np.abs(t[:, 1] - t[:, 0]), np.abs((t[:, 1] - t[:, 0]) - (e[:, 1] - e[:, 0]))


def _greedy(reference: Reference, export: Observation) -> tuple[float, int, list[bool], list[str]]:
    """(the format's noise, equal tokens, whether each answer strayed where it may, what is wrong).

    The format's noise is twice the largest change of a margin, on the trained positions and on the answer up
    to the token in question: twice, because the largest of some hundreds is not the largest of all.
    """
    margins, changes = _margin_changes(reference.trained.logits, export.logits)
    agreed, begin = 0, reference.positions
    strayed, wrong = [], []
    trained_noise = 2 * float(changes[: reference.positions].max())
    for number, (wanted, answer) in enumerate(zip(reference.trained.answers, export.answers, strict=True)):
        first = first_difference(wanted, answer)
        agreed += first
        differs = first < len(wanted) and first < len(answer)
        strayed.append(differs)
        if differs:
            noise = max(TIE, trained_noise, 2 * changes[begin : begin + first].max(initial=0))
            margin = margins[begin + first]
            tokens = f"{reference.token(wanted[first])!r} → {reference.token(answer[first])!r}"
            if margin > noise:
                wrong.append(
                    f"its answer to prompt {number + 1} differs at token {first + 1} ({tokens}), where the"
                    f" trained model was sure by {margin:.3g} logits and the format's noise is {noise:.3g}"
                )
        begin += len(wanted)
    return trained_noise, agreed, strayed, wrong


def first_difference(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Where `a` and `b` first differ; the length of the shorter where one begins with the other."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((place for place, (x, y) in pairs if x != y), min(len(a), len(b)))


def _ended(answers: Sequence[Sequence[int]], stops: set[int]) -> list[bool]:
    return [bool(answer) and answer[-1] in stops for answer in answers]


def _differing_prompt(
    trained: Sequence[Sequence[int]], export: Sequence[Sequence[int]], equal: Sequence[bool]
) -> str:
    number = equal.index(False)
    wanted, ids = trained[number], export[number]
    first = first_difference(wanted, ids)
    part = slice(first, first + 4)
    return (
        f"prompt {number + 1} becomes other token ids, from the {first + 1}. on:"
        f" {list(wanted[part])} → {list(ids[part])} (template, beginning of text or tokenizer)"
    )


def _what_share_means(share: float) -> str:
    if share < SHARE[0]:
        return "the adapter is missing, or not all of it is there"
    return "the adapter was added more than once"
