"""One kind of figure of a run, held against its replay's."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Compared:
    """`first` is where it first differs (a step, or a tensor's name; None: nowhere), with the value of the run and
    that of the replay; `largest` the largest difference, relative to the run's value, or what `by` says of it, and
    `noise` what of it is granted. `count` is how many figures there are.
    """

    what: str
    count: int
    first: str | None = None
    before: str = ""
    after: str = ""
    largest: float = 0.0
    noise: float = 0.0
    by: str = "at most"

    @property
    def identical(self) -> bool:
        return self.first is None

    @property
    def reproduced(self) -> bool:
        return self.identical or self.largest <= self.noise

    def __str__(self) -> str:
        if self.identical:
            return "identical to the bit"
        apart = f"{self.before} → {self.after}"
        by = "" if self.largest == float("inf") else f", {self.by} {100 * self.largest:.2g}%"
        granted = f" (noise up to {100 * self.noise:g}%)" if self.noise else ""
        return f"{'within the noise' if self.reproduced else 'differs'}: {self.first}: {apart}{by}{granted}"
