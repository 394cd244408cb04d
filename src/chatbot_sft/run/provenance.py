"""What explains a run, beside what decides it: with what command, from which files, by which code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chatbot_sft.run.fingerprint import FileMark
from chatbot_sft.run.git import Git

DATA = "data"  # of `files`: what is trained on and held out, in the order in which it is read
GOLDEN = "evaluation.golden"  # of `files`: what is asked


@dataclass(frozen=True)
class Code:
    """SHA-256 of this program's sources, and of the files of the user's own classes by their dotted names; the
    commit of the checkout that the program runs from, None where it is installed.
    """

    sha256: str
    own: dict[str, str] = field(default_factory=dict)
    commit: str | None = None


@dataclass(frozen=True)
class Provenance:
    """`files` has the marks of all that was read, by the key that names it, and of the data under `DATA`."""

    command: str
    folder: str  # in which the command was given: relative paths begin there
    seeds: dict[str, int]
    driver: str | None  # of the GPU
    template: str  # SHA-256 of the chat template
    files: dict[str, list[FileMark]]
    code: Code
    git: Git | None = None  # of `folder`

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Provenance:
        """What `dataclasses.asdict` made of one.

        Raises:
            TypeError, KeyError: it is none.
        """
        files = {key: [FileMark(**mark) for mark in marks] for key, marks in values["files"].items()}
        git = None if values["git"] is None else Git(**values["git"])
        return cls(**{**values, "files": files, "code": Code(**values["code"]), "git": git})

    def flat(self) -> dict[str, Any]:
        """What two runs may differ in, by its name; how they were started says nothing."""
        git = self.git or Git(None)
        marks = {
            f"{key} file {Path(mark.path).name}": mark.short
            for key, marks in self.files.items()
            for mark in marks
        }
        return {
            "driver": self.driver,
            "template": self.template[:16],
            **marks,
            "code": self.code.sha256[:16],
            **{f"code of {name}": one[:16] for name, one in self.code.own.items()},
            "code.commit": self.code.commit,
            "git.commit": git.commit,
            "git.dirty": git.dirty,
        }
