"""In what this place is another than that of a run: each by its class of `DIFFERENCES`, and whether it decides what
is computed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from chatbot_sft.config import Config
from chatbot_sft.config.schema import ADAPTER, DIFFERENCES, REFERENCE, ROWS, WEIGHTS
from chatbot_sft.errors import UserError
from chatbot_sft.model import hardware
from chatbot_sft.replay import evidence
from chatbot_sft.replay.places import among
from chatbot_sft.run.fingerprint import SHORT, FileMark
from chatbot_sft.run.lock import MACHINE, NOT_SET, Lock, changed
from chatbot_sft.run.provenance import DATA, GOLDEN
from chatbot_sft.run.versions import versions

NONE = "(none)"
# Packages that compute nothing of a training: the configuration is composed, and the rows are compared, already.
BESIDE = ("platform", "hydra-core", "omegaconf", "datasets", "tokenizers", "chatbot-sft")
OF_UNSLOTH = ("unsloth", "unsloth_zoo", "xformers")


@dataclass(frozen=True)
class Change:
    """`of` is one of `DIFFERENCES`, or "driver"; `decides` whether another result may come of it. `key` is what a
    command may name another file by.
    """

    of: str
    what: str
    before: str
    after: str
    decides: bool = True
    key: str = ""

    def __str__(self) -> str:
        return f"{self.of}: {self.what} {self.before} → {self.after}"


def before_the_start(lock: Lock, settings: Config, where: str) -> list[Change]:
    """What can be told without preparing the data or importing an engine; `where` names the run.

    Raises:
        UserError: it cannot be run here at all: a file is gone.
    """
    found = [*_versions(lock), *_device(lock)]
    if lock.provenance is not None:
        found += [*_code(lock, settings), *_files(lock, settings, where)]
    return found


def of_what_is_known(lock: Lock, now: Lock) -> list[Change]:
    """What the data and the engine, when they are there, add to that. What `now` does not know yet is none."""
    keys = dict.fromkeys([*lock.decides, *now.decides])
    if not keys.keys() & set(MACHINE) <= now.decides.keys():  # the engine is not there yet
        keys = dict.fromkeys(key for key in keys if key not in MACHINE)
    found = [
        Change(_class_of(one.key), one.key, _short(one.before), _short(one.after))
        for one in changed(lock.decides, now.decides, keys)
        if not (one.key == WEIGHTS and _content(one.before) == _content(one.after))
    ]
    if lock.tokenizer != now.tokenizer:
        found.append(Change("tokenizer", "SHA-256", lock.tokenizer[:SHORT], now.tokenizer[:SHORT]))
    before, after = lock.provenance, now.provenance
    if before and after and before.template != after.template:
        found.append(Change("tokenizer", "chat template", before.template[:SHORT], after.template[:SHORT]))
    return found


def refusal(changes: Sequence[Change], allowed: Sequence[str]) -> str | None:
    """Why nothing may be trained with these `changes`; None where it may."""
    deciding = [change for change in changes if change.decides and change.of not in allowed]
    if not deciding:
        return None
    classes = [name for name in DIFFERENCES if name in {*allowed, *(change.of for change in deciding)}]
    said = "; ".join(map(str, deciding[:4])) + (f" and {len(deciding) - 4} more" if len(deciding) > 4 else "")
    keys = dict.fromkeys(change.key for change in deciding if change.key)
    named = f", name where it is as it was ({', '.join(f'{key}=PATH' for key in keys)})" if keys else ""
    return (
        f"what decides the result is different here: {said}; make it as it was{named}, or compare all the same:"
        f" replay.allow=[{','.join(classes)}]"
    )


def _versions(lock: Lock) -> Iterator[Change]:
    """A lock of the version before has fewer packages; what it does not name is not known."""
    now = versions()
    for name in dict.fromkeys([*lock.versions, *now]):
        before, after = lock.versions.get(name), now.get(name)
        if before == after or (before is None and lock.provenance is None):
            continue
        decides = name not in BESIDE and not (name in OF_UNSLOTH and _engine(lock) == "transformers")
        if name == "python":
            decides = _minor(before) != _minor(after)
        yield Change("versions", name, before or NONE, after or NONE, decides)


def _engine(lock: Lock) -> Any:
    return lock.decides.get("model.engine")


def _minor(version: str | None) -> list[str]:
    return (version or "").split(".")[:2]


def _device(lock: Lock) -> Iterator[Change]:
    if (device := hardware.device()) != lock.device:
        yield Change("device", "computes on", lock.device, device)
    if lock.provenance and (driver := evidence.driver()) != lock.provenance.driver:
        # The kernels come with torch; a driver compiles what was made for an older card.
        yield Change("driver", "version", lock.provenance.driver or NONE, driver or NONE, decides=False)


def _code(lock: Lock, settings: Config) -> Iterator[Change]:
    if lock.provenance is None:
        return
    before, after = lock.provenance.code, evidence.code(settings)
    if before.sha256 != after.sha256:
        commits = [f" ({code.commit[:8]})" if code.commit else "" for code in (before, after)]
        yield Change(
            "code", "chatbot_sft", before.sha256[:SHORT] + commits[0], after.sha256[:SHORT] + commits[1]
        )
    for name, sha256 in after.own.items():
        if before.own.get(name) != sha256:
            yield Change("code", name, before.own.get(name, NONE)[:SHORT], sha256[:SHORT])


def _files(lock: Lock, settings: Config, where: str) -> Iterator[Change]:
    """Raises UserError where one is gone."""
    if lock.provenance is None:
        return
    before = lock.provenance.files
    try:
        now = evidence.files(settings)
    except UserError as error:
        lost = next((mark for mark in before.get(DATA, []) if not Path(mark.path).exists()), None)
        known = f" ({Path(lost.path).name} had SHA-256 {lost.sha256}, {lost.bytes:,} bytes)" if lost else ""
        raise UserError(
            f"{where}: its data are not here: {error}{known}; put them back, or name where they are now:"
            " dataset.data_path=PATH"
        ) from None
    if now.get(DATA) and not before.get(DATA):
        raise UserError(
            f"{where}: its lock is damaged: it names no data files; take it from a copy of the run"
        )
    for key, marks in before.items():
        if key == GOLDEN and settings.evaluation.golden is None:
            continue  # it decides no row
        of = "data" if key in (DATA, GOLDEN) else "weights"
        if marks and not now.get(key):
            read = Path(marks[0].path)
            section, _, name = key.partition(".")
            given = settings[section][name] if name else None
            was = read.parent if of == "weights" else read
            if given and not among(read, Path(given).expanduser().absolute()):
                raise UserError(
                    f"{where}: {key}={given}: nothing that could be read there; the run read {was}: name where that"
                    f" is now, or leave {key} out"
                )
            raise UserError(
                f"{where}: {key}: {was} is gone ({read.name} had SHA-256 {marks[0].sha256}); put it back, or name"
                f" where it is now: {key}=PATH"
            )
        for change in _marks(of, marks, now.get(key, [])):
            yield replace(change, key=_data_key(settings, change.what) if key == DATA else key)


def _marks(of: str, before: Sequence[FileMark], after: Sequence[FileMark]) -> Iterator[Change]:
    if len(before) != len(after):
        names = [", ".join(Path(mark.path).name for mark in marks) or NONE for marks in (before, after)]
        yield Change(of, "files", names[0], names[1])
        return
    for was, now in zip(before, after, strict=True):
        if was.sha256 != now.sha256:
            sizes = [f"{mark.short}, {mark.bytes:,} bytes" for mark in (was, now)]
            other = f"in place of {was.path} " if was.path != now.path else ""
            yield Change(of, now.path, f"{other}SHA-256 {sizes[0]}", sizes[1])


def _data_key(settings: Config, file: str) -> str:
    """By which a file of the data is named."""
    held_out = settings.dataset.eval_data_path
    if held_out and among(Path(file), Path(held_out).expanduser().absolute()):
        return "dataset.eval_data_path"
    return "dataset.sources" if settings.dataset.sources else "dataset.data_path"


def _content(weights: Any) -> str:
    """The fingerprint of a base without the name of its folder, which may be another here."""
    return str(weights).rpartition(" ")[2]


def _class_of(key: str) -> str:
    if key == ROWS:
        return "data"
    if key in (WEIGHTS, ADAPTER, REFERENCE):
        return "weights"
    return "device" if key in MACHINE else "settings"


def _short(value: Any) -> str:
    text = (
        "(not set)"
        if value is NOT_SET
        else value
        if isinstance(value, str)
        else json.dumps(value, default=str)
    )
    return text if len(text) <= 80 else f"{text[:79]}…"
