"""Sets that may have much in common, proposed as pairs: through MinHash (datasketch) and bands of it (LSH), or,
of few sets, through their rarest members.

datasketch's own index keeps a Python set a row and band, half a gigabyte for 100,000 rows. Here a band is one
sorted array: memory is that of the signatures (256 bytes a row) and of one band.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from chatbot_sft.data.shingles import distinct
from chatbot_sft.errors import UserError
from chatbot_sft.extras import install

if TYPE_CHECKING:
    import numpy as np

PERMUTATIONS = 64
RECALL = 0.99  # of pairs that are just alike enough: so many share a band
MARGIN = 0.15  # by which an estimate from so many permutations may be too low: three standard deviations
# With so many of its bucket is each compared, and with the first: templates make buckets of thousands.
NEIGHBOURS = 16
PIECE = 4_096  # hashes that go through the permutations at once
PAIRS = 1 << 15  # pairs whose signatures are compared at once


def available() -> bool:
    """Whether datasketch is installed; without importing it, which takes a second or two."""
    return importlib.util.find_spec("datasketch") is not None


def signatures(sets: Iterable[np.ndarray]) -> np.ndarray:
    """`PERMUTATIONS` numbers for each set of hashes.

    Raises:
        UserError: datasketch is not installed.
    """
    import numpy as np

    try:
        from datasketch import MinHash
    except ImportError:
        raise UserError(f"dataset.on_near_duplicates: many rows need datasketch: {install('data')}") from None
    # The hashes are there already: an array goes through as one value.
    empty = MinHash(num_perm=PERMUTATIONS, hashfunc=lambda hashes: hashes)
    made = bytearray()
    for one in sets:
        sketch = empty.copy()
        for at in range(0, len(one), PIECE):
            sketch.update_batch([one[at : at + PIECE]])
        made += sketch.digest().astype(np.uint32).tobytes()
    return np.frombuffer(made, np.uint32).reshape(-1, PERMUTATIONS)


def proposed(sketches: np.ndarray, own: int, threshold: float) -> np.ndarray:
    """(earlier, later) places of sets that may have `threshold` in common, shape (pairs, 2); of each later one
    the likeliest first. The first `own` are compared with each other and with the rest.
    """
    import numpy as np

    found = np.empty(0, np.int64)
    everyone = np.arange(len(sketches))
    for keys in _keys(sketches, threshold):
        likely = [found]
        for pairs in _in_buckets(keys, everyone, own):
            codes = pairs[_estimates(pairs, sketches) >= threshold - MARGIN] @ [len(sketches), 1]
            likely.append(codes)
        found = distinct(np.concatenate(likely))
    pairs = np.stack(np.divmod(found, max(len(sketches), 1)), 1)
    return pairs[np.lexsort((pairs[:, 0], -_estimates(pairs, sketches), pairs[:, 1]))]


def proposed_of_few(sets: Sequence[np.ndarray], own: int, threshold: float) -> np.ndarray:
    """The same of sets without repeats: every pair that has `threshold` in common shares one of the rarest
    members of both, of which so many are looked at that no other members could make up for them.
    """
    import numpy as np

    sizes = np.array([len(one) for one in sets], np.int64)
    owners = np.repeat(np.arange(len(sets)), sizes)
    _, members, counts = np.unique(
        np.concatenate([*sets, np.empty(0, np.uint32)]), return_inverse=True, return_counts=True
    )
    order = np.lexsort((members, counts[members], owners))
    begins = np.cumsum(sizes) - sizes
    rank = np.arange(len(owners)) - begins[owners]
    rare = rank <= sizes[owners] - np.ceil(threshold * sizes[owners] - 1e-9)
    found = [*_in_buckets(members[order][rare], owners[rare], own), np.empty((0, 2), np.int64)]
    codes, shared = np.unique(np.concatenate(found) @ [len(sets), 1], return_counts=True)
    pairs = np.stack(np.divmod(codes, max(len(sets), 1)), 1)
    return pairs[np.lexsort((pairs[:, 0], -shared, pairs[:, 1]))]


def bands(threshold: float) -> tuple[int, int]:
    """(bands, numbers of each): as wide as they may be for pairs at the threshold to share one with `RECALL`."""
    for width in range(PERMUTATIONS // 2, 1, -1):
        count = PERMUTATIONS // width
        if 1 - (1 - threshold**width) ** count >= RECALL:
            return count, width
    return PERMUTATIONS, 1


def _keys(sketches: np.ndarray, threshold: float) -> Iterator[np.ndarray]:
    """For each band a number a set, equal where the band is."""
    import numpy as np

    count, width = bands(threshold)
    for band in range(count):
        keys = np.zeros(len(sketches), np.uint64)
        for column in sketches[:, band * width : (band + 1) * width].T:
            keys = (keys ^ column) * np.uint64(0x9E3779B97F4A7C15)
            keys ^= keys >> np.uint64(29)
        yield keys


def _in_buckets(keys: np.ndarray, places: np.ndarray, own: int) -> Iterator[np.ndarray]:
    """Pairs of places with equal keys: each with its neighbours, with the first, and with the first that is not
    among the `own`; none of two that are not.
    """
    import numpy as np

    order = np.lexsort((places, keys))
    keys, places = keys[order], places[order]
    firsts = np.searchsorted(keys, keys)
    foreign = np.flatnonzero(places >= own)
    numbers = np.arange(len(keys))
    yield _pairs(places, firsts, numbers, own)
    if len(foreign):
        nearest = np.minimum(np.searchsorted(keys[foreign], keys), len(foreign) - 1)
        same = keys[foreign[nearest]] == keys
        yield _pairs(places, numbers[same], foreign[nearest][same], own)
    for step in range(1, NEIGHBOURS + 1):
        near = np.flatnonzero(keys[step:] == keys[:-step])
        if not len(near):
            return
        yield _pairs(places, near, near + step, own)


def _pairs(places: np.ndarray, one: np.ndarray, other: np.ndarray, own: int) -> np.ndarray:
    import numpy as np

    pairs = np.stack([places[one], places[other]], 1)
    return pairs[(pairs[:, 0] < pairs[:, 1]) & (pairs[:, 0] < own)]


def _estimates(pairs: np.ndarray, sketches: np.ndarray) -> np.ndarray:
    """The share of equal numbers in the signatures of each pair."""
    import numpy as np

    estimates = np.empty(len(pairs), np.float32)
    for at in range(0, len(pairs), PAIRS):
        one, other = pairs[at : at + PAIRS].T
        estimates[at : at + PAIRS] = (sketches[one] == sketches[other]).mean(1)
    return estimates
