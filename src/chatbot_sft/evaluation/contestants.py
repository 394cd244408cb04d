"""Who is asked: what `run=` or `evaluation.url` names, the model it was trained on, and evaluation.against."""

from __future__ import annotations

import functools
import gc
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatbot_sft.config import Config
from chatbot_sft.evaluation.answer import Asked, Local, Remote
from chatbot_sft.evaluation.server import Server
from chatbot_sft.inference.opening import ModelOnDisk, find
from chatbot_sft.logs import quiet
from chatbot_sft.model import embedded

if TYPE_CHECKING:
    from chatbot_sft.inference import ChatModel

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Contestant:
    """A model under its `title` (before, earlier, after). `identity` says which it is, by more than its name;
    `open` loads it; `trained_system` is the system prompt of its training data, known once it is opened.
    """

    title: str
    name: str
    identity: Any
    open: Callable[[], Asked]
    trained_system: Callable[[Asked], str | None]


def contestants(settings: Config) -> Iterator[Contestant]:
    """The one that is evaluated comes first: what is wrong with it shows at once.

    Raises:
        UserError: one of them is not there.
    """
    asked = settings.evaluation
    against = find(asked.against) if asked.against else None
    file = find(settings.run) if settings.run else None
    base = file if file and file.has_base else None
    title = "after" if base or against else "model"
    yield _on_disk(title, str(settings.run), file, settings) if file else _remote(title, against, settings)
    if base:
        yield _base_of(base, settings)
    elif file:
        log.info("before: what %s was trained on is not written in it, so that is not asked", file.path)
    if against:
        yield _on_disk("earlier", str(asked.against), against, settings)


def free_memory() -> None:
    """Of a model that nothing refers to any more."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _on_disk(title: str, named: str, file: ModelOnDisk, settings: Config) -> Contestant:
    kind = f" ({file.kind})" if Path(named).is_dir() else ""
    return Contestant(
        title,
        f"{named}{kind}",
        _files(file.path),
        functools.partial(_local, file.open, settings),
        lambda asked: _system_of(file, asked),
    )


def _base_of(file: ModelOnDisk, settings: Config) -> Contestant:
    name = file.base or f"the base of {file.path}"
    place = Path(embedded.resolve(file.base)).expanduser() if file.base else file.path
    return Contestant(
        "before",
        name,
        ["base", name, _files(place)],
        functools.partial(_local, file.open_base, settings),
        _none,
    )


def _remote(title: str, against: ModelOnDisk | None, settings: Config) -> Contestant:
    """A server knows of no training: it is told the system prompt of what it is compared with."""
    asked = settings.evaluation
    server = Server(str(asked.url), asked.model, asked.api_key_variable, asked.timeout, asked.retries)
    name = server.choose()
    return Contestant(
        title,
        f"{name} at {server.url}",
        [server.url, name],
        lambda: Remote(server, asked.max_new_tokens, asked.batch_size),
        lambda _: against.system_prompt if against else None,
    )


def _local(load: Callable[[], ChatModel], settings: Config) -> Local:
    with quiet():
        return Local(load(), settings.evaluation.max_new_tokens, settings.evaluation.batch_size)


def _system_of(file: ModelOnDisk, asked: Asked) -> str | None:
    """What a GGUF file itself says, else what stands beside a model."""
    own = asked.model.system_prompt if isinstance(asked, Local) else None
    return own or file.system_prompt


def _none(asked: Asked) -> None:
    """A base was trained with no system prompt of ours: it is told that of what became of it."""


def _files(path: Path) -> list[Any]:
    """The files of a model, by their sizes and times: another model at the same place is another one."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    facts = [(file, file.stat()) for file in files if file.is_file()]
    return [str(path.absolute()), [[file.name, one.st_size, one.st_mtime_ns] for file, one in facts]]
