"""How many rows of each source a run uses, and which: weights, counts and `max_rows`, decided by the seed."""

from __future__ import annotations

import random
from collections.abc import Sequence

from chatbot_sft.config import SourceConfig
from chatbot_sft.errors import UserError


def wanted_rows(available: Sequence[int], sources: Sequence[SourceConfig], max_rows: int | None) -> list[int]:
    """Rows to use of each source.

    `count` is a number of rows (more than there are repeats them). `weight` is a share of the mixture, which
    is as large as it can be without repeating a row. Without either, all rows. `max_rows` then scales the
    whole down, the shares unchanged.

    Raises:
        UserError: weights for some sources only.
    """
    weights = [source.weight for source in sources if source.weight is not None]
    without = [source.data_path for source in sources if source.weight is None]
    if weights:
        if without:
            raise UserError(f"{without[0]}: give every source of dataset.sources a weight, or none")
        total = min(rows * sum(weights) / weight for rows, weight in zip(available, weights, strict=True))
        wanted = _rounded([total * weight / sum(weights) for weight in weights])
    else:
        wanted = [
            rows if source.count is None else source.count
            for rows, source in zip(available, sources, strict=True)
        ]
    if max_rows is not None and sum(wanted) > max_rows:
        wanted = _rounded([max_rows * rows / sum(wanted) for rows in wanted])
    return wanted


def chosen_rows(available: int, wanted: int, shuffle: bool, seed: int) -> dict[int, int]:
    """{index: how often} for `wanted` of `available` rows: whole passes, then a seeded sample (or the first)."""
    passes, rest = divmod(wanted, available)
    extra = random.Random(seed).sample(range(available), rest) if shuffle else range(rest)
    uses = dict.fromkeys(range(available), passes) if passes else {}
    for index in extra:
        uses[index] = uses.get(index, 0) + 1
    return uses


def _rounded(shares: Sequence[float]) -> list[int]:
    """Whole numbers with the same sum (rounded down): the largest remainders get what is left over."""
    floors = [int(share + 1e-9) for share in shares]
    left = int(sum(shares) + 1e-9) - sum(floors)
    for index in sorted(range(len(shares)), key=lambda index: floors[index] - shares[index])[:left]:
        floors[index] += 1
    return floors
