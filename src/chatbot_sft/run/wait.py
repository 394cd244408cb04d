"""What a user waits for before anything is learned: the seconds to the end of the first step, by part."""

from __future__ import annotations

import time


class Wait:
    """The seconds since `started` (since the epoch). Each part begins where the one before it ended, so that
    together they are all of them; one that ends twice has the sum.
    """

    def __init__(self, started: float) -> None:
        self.parts: dict[str, float] = {}
        self._until = started

    def end(self, part: str) -> None:
        now = time.time()
        self.parts[part] = round(self.parts.get(part, 0.0) + now - self._until, 3)
        self._until = now

    @property
    def seconds(self) -> float:
        """Of all parts."""
        return round(sum(self.parts.values()), 3)
