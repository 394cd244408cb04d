"""Files by their content: what a lock says of data and weights."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

LARGE = 64 << 20  # bytes; of larger weights a sample is hashed
PARTS, PART = 16, 1 << 20  # how many parts the sample has, and their bytes
SHORT = 16  # digits of a hash that are shown


@dataclass(frozen=True)
class FileMark:
    """A file as it was: where, how large, and SHA-256 of its bytes; `sampled`: of its size and a sample of them."""

    path: str  # absolute
    bytes: int
    sha256: str
    sampled: bool = False

    @property
    def short(self) -> str:
        return self.sha256[:SHORT]


def data_mark(file: Path) -> FileMark:
    """Every byte of it."""
    return FileMark(str(file.absolute()), file.stat().st_size, sha256(file))


def weights_mark(file: Path) -> FileMark:
    """Every byte of it; over `LARGE`, its size and `PARTS` parts of it, the first and the last among them, as far
    from each other as can be. A training moves every one of a matrix's values, so that other weights show there;
    a few flipped bits between the parts do not.
    """
    size = file.stat().st_size
    if size <= LARGE:
        return FileMark(str(file.absolute()), size, sha256(file))
    digest = hashlib.sha256(str(size).encode())
    with file.open("rb") as stream:
        for part in range(PARTS):
            stream.seek((size - PART) * part // (PARTS - 1))
            digest.update(stream.read(PART))
    return FileMark(str(file.absolute()), size, digest.hexdigest(), sampled=True)


def weights_marks(folder: Path) -> list[FileMark]:
    """Of a model's or an adapter's folder: its configuration and its weights, by their names."""
    names = ("config.json", "adapter_config.json", "*.safetensors", "*.bin")
    return [weights_mark(file) for file in sorted(file for name in names for file in folder.glob(name))]


def sha256(file: Path) -> str:
    """Of every byte; read again only where its size or its time is another."""
    status = file.stat()
    return _sha256(file.absolute(), status.st_size, status.st_mtime_ns)


@functools.lru_cache(1024)
def _sha256(file: Path, size: int, time: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def together(hashes: Iterable[tuple[object, str]]) -> str:
    """One hash of (name, hash) pairs."""
    return hashlib.sha256("\0".join(f"{name} {one}" for name, one in hashes).encode()).hexdigest()
