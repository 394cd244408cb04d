"""Checkpoints on disk: which are whole, what they were trained from, and how they appear and go in one step. Imports no torch.

A checkpoint is transformers' `checkpoint-N` folder with `run.json` in it, written last: what decides the run's result (its identity), when the run
began, what the trainer's own state leaves out, and the size of every file.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from chatbot_sft.config import Config
from chatbot_sft.errors import UserError
from chatbot_sft.model import embedded
from chatbot_sft.model.hub import is_local, tokenizer_folder

log = logging.getLogger(__name__)

RECORD = "run.json"
SAVING, REMOVING = ".saving", ".removing"  # names that transformers' search for checkpoint-N passes by
NAME = re.compile(r"checkpoint-(\d+)")
PROBE = 1 << 20  # bytes read from each end of a weights file


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint; `record` is its run.json."""

    folder: Path
    record: Mapping[str, Any]

    @property
    def step(self) -> int:
        return self.record["step"]


@dataclass
class Origin:
    """Where a run begins: afresh, or at `checkpoint`. `started` is the first start's time; `seconds` have been trained up to the checkpoint."""

    started: datetime = field(default_factory=lambda: datetime.now().replace(microsecond=0))
    checkpoint: Checkpoint | None = None
    resumes: list[dict[str, Any]] = field(default_factory=list)  # step, time, checkpoint, and the training.resume that asked for it
    identity: dict[str, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return self.checkpoint.record["seconds"] if self.checkpoint else 0.0

    @property
    def finished(self) -> bool:
        """Whether the training had come to its end; evaluation and saving may still be missing."""
        return self.checkpoint is not None and self.checkpoint.record["finished"]


# Finding


def all_in(folder: Path) -> list[Checkpoint]:
    """The whole checkpoints in `folder`, by step. One that misses a file, or a part of it, is none."""
    found = [read(path) for path in _named(folder)]
    return sorted((checkpoint for checkpoint in found if checkpoint), key=lambda checkpoint: checkpoint.step)


def last_in(folder: Path) -> Checkpoint | None:
    """The whole checkpoint with the highest step in `folder`."""
    return next(reversed(all_in(folder)), None)


def read(folder: Path) -> Checkpoint | None:
    """The checkpoint in `folder`; None where it is not whole."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return Checkpoint(folder, record) if record["files"] == _sizes(folder) else None
    except (OSError, ValueError):
        return None


def _named(folder: Path) -> list[Path]:
    """Everything called checkpoint-N, whole or not."""
    return [path for path in folder.iterdir() if NAME.fullmatch(path.name)] if folder.is_dir() else []


def _sizes(folder: Path) -> dict[str, int]:
    """{relative path: bytes} of every file but run.json itself."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != RECORD)
    return {str(path.relative_to(folder)): path.stat().st_size for path in sorted(files)}


def refuse_completed(settings: Config) -> None:
    """Raises UserError where the run directory holds the report of a training that came to its end, unless `training.resume` is never."""
    file = Path(settings.paths.output_dir, "report.json")
    if settings.task != "train" or settings.training.resume == "never" or not file.is_file():
        return
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return
    if report.get("task") == "train" and report.get("status") == "completed":
        raise UserError(f"{file.parent}: this run is already completed; name another run directory (hydra.run.dir=DIR)")


def find_origin(settings: Config) -> Origin:
    """Where `training.resume` says to begin; touches nothing.

    `training.resume=PATH` names where a run begins: once it has written checkpoints of its own, the same command goes on from those.

    Raises:
        UserError: PATH holds no whole checkpoint.
    """
    resume, own = settings.training.resume, last_in(Path(settings.training.output_dir))
    if resume == "never":
        return Origin()
    if resume == "auto":
        found = own
    else:
        found = _at(Path(resume).expanduser())
        if found is None:
            raise UserError(f"training.resume={resume}: no whole checkpoint there; name a checkpoint-N folder, or a run directory that has one")
        if own and any(entry["asked"] == str(Path(resume).expanduser().resolve()) for entry in own.record["resumes"]):
            found = own
    if found is None:
        return Origin()
    asked = resume if resume == "auto" else str(Path(resume).expanduser().resolve())
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    entry = {"step": found.step, "time": now, "checkpoint": str(found.folder), "asked": asked}
    return Origin(datetime.fromisoformat(found.record["started"]), found, [*found.record["resumes"], entry])


def _at(place: Path) -> Checkpoint | None:
    """`place` as a checkpoint, a folder of checkpoints, or a run directory."""
    return read(place) or last_in(place) or last_in(place / "checkpoints")


def settle(origin: Origin, settings: Config) -> None:
    """Make the checkpoint folder ready for a run that begins at `origin`.

    What killed runs left half-written is removed. Checkpoints that this run does not come from, or that come after its beginning, would stand in its
    way: they are moved into a folder beside, `checkpoints.1` and so on.
    """
    folder = Path(settings.training.output_dir)
    save = Path(settings.save.save_path)
    exports = [*save.parent.glob(f".{save.name}.*"), *save.glob(".*.*")] if save.is_relative_to(settings.paths.output_dir) else []
    for leftover in (folder / SAVING, folder / REMOVING, *exports):
        shutil.rmtree(leftover, ignore_errors=True)
    begin = origin.checkpoint if origin.checkpoint and origin.checkpoint.folder.parent.resolve() == folder.resolve() else None
    kept = [checkpoint.folder.name for checkpoint in all_in(folder) if begin and checkpoint.step <= begin.step]
    aside = [path for path in _named(folder) if path.name not in kept]
    if aside:
        number = next(n for n in range(1, 1_000_000) if not folder.with_name(f"{folder.name}.{n}").exists())
        place = folder.with_name(f"{folder.name}.{number}")
        place.mkdir()
        for path in aside:
            shutil.move(path, place)
        log.warning("resume: this run does not go on from %s; moved to %s", ", ".join(sorted(path.name for path in aside)), place)
    if origin.checkpoint:
        log.info("resume: from step %d, %s", origin.checkpoint.step, origin.checkpoint.folder)


# Identity

# name: see weights_fingerprint; chat_template: its text decides what the training rows are; engine and dtype as they turned out
MODEL_ASIDE = {"name", "token", "trust_remote_code", "chat_template", "engine", "dtype"}
LORA_ASIDE = {"use_gradient_checkpointing"}  # recomputes the same numbers
TRAINING_ASIDE = {  # where things are written, how often one looks, and how a step of the same rows is cut
    "output_dir", "resume", "save_steps", "save_total_limit", "stop_on_divergence", "logging_steps", "report_to", "sample_prompts",
    "sample_max_new_tokens", "per_device_train_batch_size", "gradient_accumulation_steps", "batch_layout", "memory_margin", "optim",
    "eval_steps", "per_device_eval_batch_size", "early_stopping_patience", "early_stopping_threshold", "load_best_model_at_end",
}  # fmt: skip
REPORTING = re.compile(r"(log|save|hub|report|run_name|project|trackio|dataloader|skip_memory_metrics|per_device_eval)")


def identity(config: Mapping[str, Any], settings: Config, fingerprint: str) -> dict[str, Any]:
    """What decides a run's result, as flat "section.key" → JSON value. `fingerprint` is that of the training rows.

    The effective batch size stands for its factors. What only an imported engine knows is added later, see `resolved`.
    """
    sections = settings.to_dict()
    for name in ("model", "lora", "training"):  # with the keys that a user's own class takes
        sections[name] |= dict(config.get(name) or {})
    passed = settings.sft_arguments
    values = {
        "seed": settings.seed,
        "model (config and weights)": weights_fingerprint(settings),
        "dataset (training rows)": fingerprint[:16],
        "dataset.shuffle": settings.dataset.shuffle,
        "effective batch size": settings.effective_batch_size * int(os.environ.get("WORLD_SIZE", "1")),
    }
    for name, aside in (("model", MODEL_ASIDE), ("lora", LORA_ASIDE), ("training", TRAINING_ASIDE)):
        for key, value in sorted(sections[name].items()):
            if key not in aside and not (key in passed and REPORTING.match(key)):
                values[f"{name}.{key}"] = value
    return json.loads(json.dumps(values, default=str))


def resolved(engine: str, dtype: str, optim: str) -> dict[str, Any]:
    """The part of the identity that depends on the machine."""
    return {"model.engine": engine, "model.dtype": dtype, "training.optim": optim}


def weights_fingerprint(settings: Config) -> str:
    """A hub model's id and commit; for a folder a hash of config.json and of the size and both ends of every weights file, wherever it lies."""
    source = embedded.resolve(settings.model.name)
    if not is_local(source):
        return f"{source}@{tokenizer_folder(source, settings.model.revision).name}"
    folder = Path(source).expanduser()
    found = hashlib.sha256((folder / "config.json").read_bytes())
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        size = file.stat().st_size
        found.update(f"{file.name} {size}".encode())
        with file.open("rb") as stream:
            found.update(stream.read(PROBE))
            stream.seek(max(0, size - PROBE))
            found.update(stream.read(PROBE))
    return f"{folder.name} {found.hexdigest()[:16]}"


def refuse_changes(origin: Origin, now: Mapping[str, Any], whole: bool) -> None:
    """Add `now` to the run's identity.

    Raises:
        UserError: it differs from what the checkpoint was trained from. `whole`: `now` has every key of the first stage, so that one which is missing
            counts as changed.
    """
    origin.identity |= now
    if origin.checkpoint is None:
        return
    before = origin.checkpoint.record["identity"]
    keys = [*now, *(key for key in before if whole and key not in now and key not in resolved("", "", ""))]
    changed = [f"{key} {_shown(before, key)} → {_shown(now, key)}" for key in keys if before.get(key) != now.get(key)]
    if changed:
        raise UserError(
            f"training.resume: {origin.checkpoint.folder} was trained with other settings: {'; '.join(changed)}. Set them back, name another run "
            "directory (hydra.run.dir=DIR), or start afresh in this one with training.resume=never"
        )


def _shown(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key], ensure_ascii=False).strip('"') if key in values else "(not set)"


# Writing


def publish(staged: Path, target: Path, record: Mapping[str, Any]) -> None:
    """Make the finished folder `staged` appear as `target` in one step, with its run.json, after all of it has reached the disk."""
    (staged / RECORD).write_text(json.dumps({**record, "files": _sizes(staged)}, indent=1, ensure_ascii=False), encoding="utf-8")
    for path in [*staged.rglob("*"), staged]:
        _sync(path)
    staged.rename(target)
    _sync(target.parent)


def record(origin: Origin, step: int, seconds: float, finished: bool, losses: Mapping[str, float], layout: Mapping[str, Any]) -> dict[str, Any]:
    """The content of run.json, but for the files' sizes."""
    return {
        "step": step,
        "started": origin.started.isoformat(),
        "seconds": seconds,
        "finished": finished,
        "losses": dict(losses),
        "layout": dict(layout),
        "resumes": origin.resumes,
        "identity": origin.identity,
    }


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def prune(folder: Path, limit: int | None, best: str | None) -> None:
    """Remove the oldest checkpoints over `limit` (None: keep all); never the newest, nor `best`. A removed one is gone in one step."""
    if limit is None:
        return
    present = all_in(folder)
    protected = [checkpoint for checkpoint in present if checkpoint is present[-1] or (best and checkpoint.folder.resolve() == Path(best).resolve())]
    others = [checkpoint for checkpoint in present if checkpoint not in protected]
    for checkpoint in others[: max(0, len(present) - max(limit, len(protected)))]:
        trash = folder / REMOVING
        trash.mkdir(exist_ok=True)
        checkpoint.folder.rename(trash / checkpoint.folder.name)
        shutil.rmtree(trash, ignore_errors=True)
