"""report.json: everything about one run that a person or a sweeper asks afterwards. Sizes in GB, times in seconds, losses in nats per token."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

PACKAGES = ("chatbot-sft", "torch", "transformers", "trl", "peft", "unsloth", "datasets", "bitsandbytes", "hydra-core", "omegaconf")


def new_report(command: str, task: str, seed: int) -> dict[str, Any]:
    """The report of a run that has just started; stages fill in their parts as they finish."""
    return {
        "status": "running",
        "error": None,
        "command": command,
        "task": task,
        "run": None,  # task=export: the directory of the run that trained
        "seed": seed,
        "started": now(),
        "finished": None,
        "settings": {},  # what was set, as it ran
        "model": {},
        "dataset": {},
        "training": {},
        "memory": {},
        "plan": {},
        "evaluations": [],
        "samples": [],
        "save": {},
        "versions": versions(),
        "git": git_commit(Path.cwd()),
    }


def now() -> str:
    """ISO 8601 with the offset from UTC, to the second."""
    return datetime.now(UTC).astimezone().isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Python, the platform and the packages that decide what a run computes."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


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


def write_json(report: dict[str, Any], folder: Path) -> Path:
    """Write report.json in one step: a reader sees the old file or the new one, never half of it."""
    target = folder / "report.json"
    temporary = folder / f".report.json.{os.getpid()}"
    text = json.dumps(finite(report), indent=2, ensure_ascii=False, allow_nan=False)
    try:
        temporary.write_text(text.encode(errors="backslashreplace").decode() + "\n", encoding="utf-8")
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def finite(value: Any) -> Any:
    """A copy with null for NaN and infinity, which JSON does not know."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
