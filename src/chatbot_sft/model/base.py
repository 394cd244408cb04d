"""The model that a run is trained on: where it is, whether it is still the same one, and where it went with
the run when both were moved.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from chatbot_sft.config import Config
from chatbot_sft.model import embedded
from chatbot_sft.model.hub import folder_of, is_local, tokenizer_folder
from chatbot_sft.model_files import read_json
from chatbot_sft.places import read_mark
from chatbot_sft.report.masking import resolved
from chatbot_sft.run.directory import Run

PROBE = 1 << 20  # bytes read from each end of a weights file
ABOVE = 3  # folders above an export or a checkpoint in which its run directory is looked for


def located(settings: Config) -> Config:
    """`settings` with the folder that model.name leads to from here, written out: what stands in a run's
    files has to be found from anywhere.
    """
    name = settings.model.name
    if name == embedded.NAME or not Path(name).expanduser().is_dir():
        return settings
    return replace(settings, model=replace(settings.model, name=str(Path(name).expanduser().resolve())))


def named(written: str) -> str:
    """The base that an adapter_config.json has `written`. Of a folder the names of secrets are resolved; a
    hub id comes from anybody, and stays.
    """
    place = resolved(written)
    return place if Path(place).expanduser().is_dir() else written


def weights_fingerprint(settings: Config) -> str:
    """A hub model's id and commit; for a folder its name and `content`."""
    source = embedded.resolve(settings.model.name)
    if not is_local(source):
        return f"{source}@{tokenizer_folder(source, settings.model.revision).name}"
    folder = Path(source).expanduser().resolve()
    return f"{folder.name} {content(folder)}"


def architecture(settings: Config) -> str | None:
    """The model_type of its config.json; None where that says none."""
    return _architecture(settings.model.name, settings.model.revision)


@functools.cache
def _architecture(name: str, revision: str | None) -> str | None:
    """Asked for at the start, while training and by the exports: of the hub once."""
    source = embedded.resolve(name)
    return read_json(folder_of(source, revision) / "config.json", f"model.name={name}").get("model_type")


def content(folder: Path) -> str:
    """A hash of config.json and of the size and both ends of every weights file."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(PROBE))
            stream.seek(max(0, size - PROBE))
            digest.update(stream.read(PROBE))
    return digest.hexdigest()[:16]


def description(settings: Config, beside: Path) -> dict[str, str]:
    """What export.json and report.json say of the base: its name, and of a folder the way to it from
    `beside`, and what it held.
    """
    name = settings.model.name
    if name == embedded.NAME or not is_local(name):
        return {"name": name}
    folder = Path(name).expanduser().resolve()
    return {"name": name, "relative": os.path.relpath(folder, beside.resolve()), "content": content(folder)}


def moved(beside: Path) -> str | None:
    """Where the base of the export, checkpoint or run in `beside` is now; None where it did not move along."""
    for place, base in _descriptions(beside):
        if base.get("name") == embedded.NAME:
            return str(embedded.folder())
        if isinstance(base.get("relative"), str):
            folder = (place / base["relative"]).resolve()
            if (folder / "config.json").is_file() and content(folder) == base.get("content"):
                return str(folder)
    return None


def known_base(beside: Path) -> dict[str, Any]:
    """What is said of the base of the export, checkpoint or run in the folder `beside`; {} where nothing is."""
    return next((base for _, base in _descriptions(beside)), {})


def _descriptions(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """(place, what is said there of the base) in `folder` itself, and in the run directory that it is in."""
    folder = folder.resolve()
    mark = read_mark(folder) or {}
    if isinstance(mark.get("base"), dict):
        yield folder, mark["base"]
    for place in (folder, *list(folder.parents)[:ABOVE]):
        report = Run(place).peek()
        if report and report.model and report.model.base:
            yield place, report.model.base
