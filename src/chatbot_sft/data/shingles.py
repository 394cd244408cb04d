"""Texts as sets of shingles: every run of five characters, without case, punctuation and white space."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

SHINGLE = 5  # characters: runs of words leave out languages without spaces, and are few in a short chat
LONGEST = 20_000  # characters of a text that are compared: more than most models are trained to read
SEPARATORS = re.compile(r"[\W_]+")


def normalised(text: str) -> str:
    """Letters and digits in small letters, a space for all that stands between; the text where it has none."""
    plain = unicodedata.normalize("NFC", text[:LONGEST]).casefold()
    return SEPARATORS.sub(" ", plain).strip() or " ".join(plain.split())


def digest(text: str) -> int:
    """63 bits that say which text it is; surrogates are allowed."""
    return int.from_bytes(hashlib.blake2b(_bytes(text), digest_size=8).digest(), "little") >> 1


def shingles(text: str) -> np.ndarray:
    """The hashes of the shingles of a `normalised` text, in the text's order; one where it is shorter."""
    import numpy as np

    codes = np.frombuffer(text.ljust(SHINGLE, "\0").encode("utf-32-le", "surrogatepass"), np.uint32)
    codes = codes.astype(np.uint64)
    count = len(codes) - SHINGLE + 1
    hashes = np.zeros(count, np.uint64)
    for place in range(SHINGLE):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + codes[place : place + count]
    hashes ^= hashes >> np.uint64(29)
    hashes *= np.uint64(0xBF58476D1CE4E5B9)
    return (hashes >> np.uint64(32)).astype(np.uint32)


def distinct(values: np.ndarray) -> np.ndarray:
    """Sorted and without repeats: NumPy's own `unique` hashes them first, and takes many times as long."""
    import numpy as np

    ordered = np.sort(values)
    new = np.ones(len(ordered), bool)
    np.not_equal(ordered[1:], ordered[:-1], out=new[1:])
    return ordered[new]


def in_common(one: np.ndarray, other: np.ndarray) -> float:
    """The Jaccard similarity of two sets of hashes, each sorted and without repeats."""
    import numpy as np

    both = len(np.intersect1d(one, other, assume_unique=True))
    return both / (len(one) + len(other) - both)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
