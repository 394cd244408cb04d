"""What a path of data is by its name: a URL, a hub id, a kind of file. A leaf, for the configuration as for
the data.
"""

from __future__ import annotations

import re
from pathlib import Path

KINDS = {
    ".json": "json", ".jsonl": "json", ".ndjson": "json", ".csv": "csv", ".tsv": "csv",
    ".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow", ".ipc": "arrow",
}  # fmt: skip
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".lz4")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def is_url(path: str) -> bool:
    """`https://…`, `s3://…`, `hf://…`."""
    return "://" in path


def is_hub_id(path: str) -> bool:
    """`org/name` where no such file or folder exists, and nothing says that a file was meant: no data suffix,
    no folder `org` here.
    """
    if not HUB_ID.fullmatch(path) or Path(path).exists() or path.startswith("."):
        return False
    return not kind_by_name(Path(path)) and not Path(path).parent.is_dir()


def kind_by_name(file: Path) -> str | None:
    """`json`, `csv`, `parquet` or `arrow` by the suffix, compressed or not."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes[-1:] and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return KINDS.get(suffixes[-1]) if suffixes else None
