"""What the composed run takes: its engine, its model's size, and all that it writes, by place."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from chatbot_sft.cache import VARIABLE, cache_dir
from chatbot_sft.doctor import gpu, hub, need
from chatbot_sft.doctor.finding import Finding, ok
from chatbot_sft.doctor.need import Size, Write

if TYPE_CHECKING:
    from chatbot_sft.config import Config

ROWS = 3  # tokenised rows in the cache, as a multiple of the data's own size


def check(settings: Config) -> Iterator[Finding]:
    """The engine that trains, told from versions, hardware and what is trained."""
    from chatbot_sft.model.engine import by_what_is_trained, expected

    choice = by_what_is_trained(settings, _architecture) or expected(settings.model.engine)
    yield ok("engine", f"{choice.name} ({choice.reason})")


def _architecture(settings: Config) -> str | None:
    """By what is here of the model: the hub is not asked."""
    from chatbot_sft.model_files import read_json

    folder = hub.model_folder(settings)
    if folder is None or not (folder / "config.json").is_file():
        return None
    return read_json(folder / "config.json", f"model.name={settings.model.name}").get("model_type")


def size(settings: Config) -> Size | None:
    """Of the model, by what is here of it."""
    from chatbot_sft.model import embedded

    name = embedded.HUB_ID if settings.model.name == embedded.NAME else settings.model.name
    return need.size_of(settings, hub.model_folder(settings), name)


def writes(settings: Config, model: Size | None) -> list[Write]:
    """Checkpoints, exports, what goes into our cache and into the hub's."""
    if settings.task not in ("train", "plan", "check"):
        return []
    found = [
        Write(
            "rows in the cache",
            cache_dir(),
            ROWS * _data_bytes(settings),
            f"export {VARIABLE}=/larger/disk/cache",
        )
    ]
    if model is None or settings.task == "check":
        return found
    found += _of_model(settings, model)
    if settings.task == "train":
        found += need.writes(settings, model, bool(gpu.of_the_run()))
    return found


def _of_model(settings: Config, model: Size) -> list[Write]:
    from chatbot_sft.model import embedded

    if settings.model.name == embedded.NAME and embedded.converted() is None:
        where = f"export {VARIABLE}=/larger/disk/cache"
        return [Write("the converted model in the cache", cache_dir(), 4 * model.weights, where)]
    coming = hub.download(settings, model.weights)
    return [
        Write(
            "the model in the hub's cache",
            hub.cache_folder(),
            coming,
            "export HF_HOME=/larger/disk/huggingface",
        )
    ]


def _data_bytes(settings: Config) -> float:
    """Of the files that are named; of globs, folders and hub ids, which may hold anything, nothing."""
    named = [Path(source.data_path).expanduser() for source in settings.dataset.mixture]
    return sum(os.path.getsize(path) for path in named if path.is_file())  # noqa: PTH202
