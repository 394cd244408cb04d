"""What computed a result: Python and packages. Imports none of them."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
from collections.abc import Mapping

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
    "numpy",
    "accelerate",
    "tokenizers",
    "triton",
    "unsloth_zoo",
    "xformers",
)


def versions() -> dict[str, str]:
    """Python, the platform and the packages that decide what a run computes."""
    return dict(_versions())


@functools.cache
def _versions() -> Mapping[str, str]:
    """Read once: it is a quarter of a second, in each job of a sweep."""
    numbers = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            numbers[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return numbers
