"""What was found of a server, and as what it has the model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from chatbot_sft.save.verify.compare import KL_BOUNDS, OVER_4_BITS

# Logits by which the distance of two tokens may change in a format of which the run has measured nothing; 16-bit
# arithmetic of another machine changes it by up to the first of them, whatever the format.
ARITHMETIC = 0.5
NOISE = {"q8": 1.0, "q6": 1.5, "q5": 2.5, "q4": 3.5, "iq4": 3.5, "merged_4bit": 3.5, "q3": 5.0, "q2": 7.0}
ROUNDED = "merged_4bit"  # an export in more bits than the base had in training differs as much as this

# Causes that more than one check may come to.
BASE = "The base model answers, without the adapter"
QUANTISATION = "Another quantisation, or fewer bits than that"
OTHER = "Another model, or another adapter"


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
    bound = max(KL_BOUNDS[kind], KL_BOUNDS["bf16"])  # a server may compute in 16 bits whatever it serves
    return Format(kind, bound + (OVER_4_BITS if over_4_bits else 0), noise)


def _longest_first() -> list[str]:
    """Formats that a name may tell; `lora` may stand for many things."""
    return sorted((kind for kind in KL_BOUNDS if kind != "lora"), key=len, reverse=True)


def _has_word(name: str, kind: str) -> bool:
    return re.search(rf"(?<![a-z0-9]){kind}(?![a-z0-9])", name.lower().replace("-", "_")) is not None


def _noise(kind: str) -> float:
    return next((noise for name, noise in NOISE.items() if kind.startswith(name)), ARITHMETIC)


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

    served: Format
    rows: dict[str, str] = field(default_factory=dict)
    open: set[str] = field(default_factory=set)  # those of them of which nothing can be said
    another_day: bool = False  # the template writes the date, and the server another one than training
    findings: list[Finding] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)

    @property
    def deciding(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.decides]
