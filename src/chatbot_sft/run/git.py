"""What git knows of a folder. The commit is read from its files; git itself runs only where `asked`."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from chatbot_sft.errors import UserError

KEY = "replay.git=true"
LONGEST = 1 << 18  # characters of a diff that are kept
MOST = 100  # names of untracked files
SECONDS = 60
# Nothing of the repository's own configuration runs, and nothing in it is written.
QUIETLY = ("git", "--no-optional-locks", "-c", "core.fsmonitor=false", "-c", "core.quotePath=false")


@dataclass(frozen=True)
class Git:
    """The repository around a folder. `dirty` and what follows are None and empty where git was not asked."""

    commit: str | None  # None before the first
    dirty: bool | None = None  # whether tracked files differ from the commit
    diff: str = ""  # from the commit, up to `LONGEST` characters
    cut: int = 0  # characters of the diff that were left out
    untracked: list[str] = field(default_factory=list)  # up to `MOST` names


def of(folder: Path, asked: bool) -> Git | None:
    """What the lock says of `folder`; None outside of a repository.

    Raises:
        UserError: git was asked for, and there is none, or it refuses.
    """
    if _git_folder(folder) is None:
        return None
    if not asked:
        return Git(commit(folder))
    status = _run(folder, "status", "--porcelain=v1", "-z").split("\0")
    untracked = [line[3:] for line in status if line.startswith("?? ")]
    dirty = any(line and not line.startswith("?? ") for line in status)
    known = commit(folder)
    diff = _run(folder, "diff", "--no-ext-diff", "--no-textconv", "--no-color", "HEAD") if known else ""
    return Git(known, dirty, diff[:LONGEST], max(0, len(diff) - LONGEST), untracked[:MOST])


def commit(folder: Path) -> str | None:
    """The commit checked out in the repository around `folder`; None outside of one, and before the first."""
    git = _git_folder(folder)
    if git is None:
        return None
    head = _text(git / "HEAD")
    if not head.startswith("ref: "):
        return head or None
    reference = head.removeprefix("ref: ")
    common = git / (_text(git / "commondir") or ".")  # of a worktree, where the branches are
    loose = _text(common / reference)
    lines = _text(common / "packed-refs").splitlines()
    return loose or next((line.split()[0] for line in lines if line.endswith(f" {reference}")), None)


def _git_folder(folder: Path) -> Path | None:
    """The .git of the repository around `folder`; in a worktree or a submodule the folder that its file names."""
    for parent in (folder, *folder.parents):
        git = parent / ".git"
        if git.is_dir():
            return git
        if git.is_file():
            return parent / _text(git).removeprefix("gitdir: ")
    return None


def _text(file: Path) -> str:
    """Its content; empty where it cannot be read."""
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""


def _run(folder: Path, *words: str) -> str:
    try:
        done = subprocess.run([*QUIETLY, *words], cwd=folder, capture_output=True, timeout=SECONDS)
    except FileNotFoundError:
        raise UserError(f"{KEY}: git is not installed; leave it out, the commit is known without") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"{KEY}: git {words[0]} took over {SECONDS} s in {folder}; leave it out") from None
    if done.returncode:
        why = " ".join(done.stderr.decode(errors="replace").split())[:200]
        raise UserError(f"{KEY}: git {words[0]} failed in {folder}: {why}; mend it, or leave {KEY} out")
    return done.stdout.decode(errors="replace")
