"""Whether an export is the model that was trained: both answer the same questions, and what they say is compared.

Everything is measured on the export as its user's library reads it from disk; see `probe`. The comparison itself is arithmetic on two `Observation`s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatbot_sft.inference import ChatModel
from chatbot_sft.save.evidence import ANSWERS, Evidence

if TYPE_CHECKING:
    import numpy as np

# Mean KL divergence from the trained model, in nats, that an export may have. What each format really has on SmolLM2-135M, the hardest to
# quantise of the models here, is in docs/export.md; a wrong export is off by whole nats.
KL_BOUNDS = {
    "lora": 0.005, "f32": 0.005, "f16": 0.01, "bf16": 0.02, "merged_16bit": 0.02, "q8_0": 0.03, "q6_k": 0.06, "q5_k_m": 0.12, "q5_k_s": 0.15,
    "q5_0": 0.2, "q5_1": 0.2, "q4_k_m": 0.4, "q4_k_s": 0.5, "q4_0": 0.6, "q4_1": 0.6, "iq4_nl": 0.5, "iq4_xs": 0.5, "merged_4bit": 0.6,
    "q3_k_l": 0.8, "q3_k_m": 1.0, "q3_k_s": 1.5, "q2_k": 2.5,
}  # fmt: skip
OVER_4_BITS = 0.4  # more, for an export in more bits than the base had in training: what rounding it did to the trained model
SHARE = (0.5, 1.5)  # of what training changed, that an export has to show
MOVED = 1e-4  # nats; below, training has changed too little for its direction to be told


@dataclass(frozen=True)
class Observation:
    """What a model makes of the evidence: the ids of its prompts, greedy answers to the first of them, and float32 logits (positions, vocabulary)."""

    prompt_ids: list[list[int]]
    answers: list[list[int]]
    logits: np.ndarray
    stop_ids: list[int]

    def write(self, file: Path) -> None:
        import json

        import numpy as np

        with file.open("wb") as stream:
            np.savez(stream, logits=self.logits, others=json.dumps([self.prompt_ids, self.answers, self.stop_ids]))

    @classmethod
    def read(cls, file: Path) -> Observation:
        import json

        import numpy as np

        with np.load(file) as kept:
            prompt_ids, answers, stop_ids = json.loads(str(kept["others"]))
            return cls(prompt_ids, answers, kept["logits"], stop_ids)


@dataclass(frozen=True)
class Reference:
    """The trained model's observation, its top-2 margins (logits) at each token of its answers, and the base's logits where it has an adapter."""

    trained: Observation
    margins: list[list[float]]
    base_logits: np.ndarray | None
    ends: list[int]  # with which trained answers end
    over_4_bits: bool
    token: Callable[[int], str]

    @property
    def moved(self) -> float | None:
        """Mean KL divergence of the base from the trained model, in nats; None where there is no base beside it."""
        if self.base_logits is None:
            return None
        return _kl(_log_probabilities(self.trained.logits), _log_probabilities(self.base_logits))


@dataclass
class Verification:
    """What was found of one export; `failures` says what is wrong with it, a line each."""

    prompts: str  # "8/8": with the same token ids
    kl: float  # mean over the trained positions, nats
    kl_bound: float
    kl_base: float | None  # the same of the base without the adapter: how far training went
    trained_share: float | None  # of that way, how much the export has gone: 1 is all of it
    positions: int
    noise: float  # what a top-2 margin may change by in this format, logits
    greedy: str  # "231/240": tokens of the trained model's answers that are the export's too, up to the first that differs
    ended: str  # "3/3": answers that ended by themselves
    trained_ended: str
    failures: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.failures

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def observe(model: ChatModel, evidence: Evidence) -> Observation:
    """Ask `model` everything that `evidence` holds."""
    import numpy as np

    prompt_ids = [model.prompt_ids(prompt) for prompt in evidence.prompts]
    logits = np.concatenate([model.logits(row.ids, row.positions) for row in evidence.rows])
    answers = [model.answer(ids, evidence.max_new_tokens) for ids in prompt_ids[:ANSWERS]]
    return Observation(prompt_ids, answers, logits, sorted(model.stop_ids))


def refer(model: ChatModel, evidence: Evidence, base_logits: np.ndarray | None, over_4_bits: bool, token: Callable[[int], str]) -> Reference:
    """`observe` the trained model, and how sure it was of each token it said; `token` is what a person calls one."""
    import numpy as np

    trained = observe(model, evidence)
    margins = []
    for prompt, answer in zip(trained.prompt_ids, trained.answers, strict=False):
        said = model.logits([*prompt, *answer], range(len(prompt) - 1, len(prompt) - 1 + len(answer)))
        margins.append(_margins(np.sort(said, axis=1)[:, -2:]).tolist() if len(answer) else [])
    return Reference(trained, margins, base_logits, evidence.ends, over_4_bits, token)


def compare(reference: Reference, export: Observation, kind: str) -> Verification:
    """Hold `export`, of the format `kind` (a key of `KL_BOUNDS`), against the trained model."""
    trained = reference.trained
    size = min(trained.logits.shape[1], export.logits.shape[1])  # a table with rows to spare may be saved without them
    t, e = _log_probabilities(trained.logits[:, :size]), _log_probabilities(export.logits[:, :size])
    bound = KL_BOUNDS[kind] + (OVER_4_BITS if reference.over_4_bits and kind != "lora" else 0)
    kl, kl_base, share = _kl(t, e), reference.moved, None
    if kl_base is not None and kl_base > MOVED:
        share = _share(t, _log_probabilities(reference.base_logits[:, :size]), e)
    noise = _noise(trained.logits, export.logits)
    agreed, compared, strayed, wrong = _greedy(reference, export, noise)
    stops = set(export.stop_ids)
    equal = [ours == theirs for ours, theirs in zip(trained.prompt_ids, export.prompt_ids, strict=True)]
    ended, trained_ended = _ended(export.answers, stops), _ended(trained.answers, {*trained.stop_ids, *reference.ends})
    failures = []
    if not all(equal):
        failures.append(_differing_prompt(trained.prompt_ids, export.prompt_ids, equal))
    if not kl <= bound:
        failures.append(f"its probabilities are {kl:.3g} nats away from the trained model's, {bound:g} is the bound for {kind}")
    if share is not None and not SHARE[0] <= share <= SHARE[1]:
        failures.append(f"it shows {share:.0%} of what training changed: {_what_share_means(share)}")
    failures += wrong
    missing = [token for token in reference.ends if token not in stops]
    if missing:
        failures.append(f"it does not stop at {', '.join(map(reference.token, missing))}, with which the trained answers end")
    unended = [n for n, (said, stopped) in enumerate(zip(ended, trained_ended, strict=True)) if stopped and not said and not strayed[n]]
    if unended:
        failures.append(f"its answer to prompt {unended[0] + 1} does not end, where the trained model's does")
    return Verification(
        f"{sum(equal)}/{len(equal)}", kl, bound, kl_base, share, len(t), noise, f"{agreed}/{compared}",
        f"{sum(ended)}/{len(ended)}", f"{sum(trained_ended)}/{len(trained_ended)}", failures,
    )  # fmt: skip


def _log_probabilities(logits: np.ndarray) -> np.ndarray:
    import numpy as np

    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _kl(t: np.ndarray, other: np.ndarray) -> float:
    import numpy as np

    return float((np.exp(t) * (t - other)).sum(axis=1).mean())


def _share(t: np.ndarray, b: np.ndarray, e: np.ndarray) -> float:
    """How far `e` has gone from the base `b` towards `t`: the projection of e - b on t - b, weighted by the trained probabilities.

    Rounding errors of a format point anywhere and hardly change it; an adapter that was left out makes it 0, one that was added twice 2.
    """
    import numpy as np

    weight = np.exp(t)
    way = t - b
    way = way - (weight * way).sum(axis=1, keepdims=True)
    return float((weight * (e - b) * way).sum() / (weight * way * way).sum())


def _margins(values: np.ndarray) -> np.ndarray:
    return values[:, 1] - values[:, 0]


def _noise(trained: np.ndarray, export: np.ndarray) -> float:
    """Twice the largest change, over the trained positions, of the distance between the trained model's two likeliest tokens.

    Twice, because the answers have more positions than were measured, and other ones.
    """
    import numpy as np

    pairs = np.argpartition(trained, -2, axis=1)[:, -2:]
    ours, theirs = (np.take_along_axis(logits, pairs, axis=1) for logits in (trained, export))
    return 2 * float(np.abs(_margins(ours) - _margins(theirs)).max())


def _greedy(reference: Reference, export: Observation, noise: float) -> tuple[int, int, list[bool], list[str]]:
    """(equal tokens, tokens compared, whether each answer strayed where it may, what is wrong)."""
    agreed = compared = 0
    strayed, wrong = [], []
    for number, (ours, theirs, margins) in enumerate(zip(reference.trained.answers, export.answers, reference.margins, strict=True)):
        first = next((n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
        agreed, compared = agreed + first, compared + len(ours)
        differs = first < len(ours) and first < len(theirs)
        strayed.append(differs)
        if differs and margins[first] > noise:
            said = f"{reference.token(ours[first])!r} → {reference.token(theirs[first])!r}"
            wrong.append(
                f"its answer to prompt {number + 1} differs at token {first + 1} ({said}), where the trained model was sure by "
                f"{margins[first]:.3g} logits and the format's noise is {noise:.3g}"
            )
    return agreed, compared, strayed, wrong


def _ended(answers: Sequence[Sequence[int]], stops: set[int]) -> list[bool]:
    return [bool(answer) and answer[-1] in stops for answer in answers]


def _differing_prompt(trained: Sequence[Sequence[int]], export: Sequence[Sequence[int]], equal: Sequence[bool]) -> str:
    number = equal.index(False)
    ours, theirs = trained[number], export[number]
    first = next((n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    return (
        f"prompt {number + 1} becomes other token ids, from the {first + 1}. on: {list(ours[first : first + 4])} → {list(theirs[first : first + 4])}"
        " (template, beginning of text or tokenizer)"
    )


def _what_share_means(share: float) -> str:
    if share < SHARE[0]:
        return "the adapter is missing, or not all of it is there"
    return "the adapter was added more than once"
