"""What computed a result: Python, packages, the commit. Imports none of them."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path

PACKAGES = (
    "chatbot-sft",
    "torch",
    "transformers",
    "trl",
    "peft",
    "unsloth",
    "datasets",
    "bitsandbytes",
    "hydra-core",
    "omegaconf",
)


def versions() -> dict[str, str]:
    """Python, the platform and the packages that decide what a run computes."""
    numbers = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            numbers[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return numbers


def git_commit(folder: Path) -> str | None:
    """The commit checked out in the repository around `folder`, read from its files; None outside of one."""
    for parent in (folder, *folder.parents):
        git = parent / ".git"
        if not git.is_dir():
            continue
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        if not head.startswith("ref: "):
            return head
        reference = head.removeprefix("ref: ")
        if (git / reference).is_file():
            return (git / reference).read_text(encoding="utf-8").strip()
        packed = git / "packed-refs"
        lines = packed.read_text(encoding="utf-8").splitlines() if packed.is_file() else []
        return next((line.split()[0] for line in lines if line.endswith(f" {reference}")), None)
    return None
