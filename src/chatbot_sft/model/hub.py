"""Models that come from the Hugging Face hub: when the network may be used, and what to say when it fails."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from chatbot_sft.data.template import TOKENIZER_FILES
from chatbot_sft.errors import UserError

log = logging.getLogger(__name__)

USER_SAYS_OFFLINE = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def is_local(name: str) -> bool:
    """A path rather than a hub id: it exists, or it is written like a path."""
    return Path(name).expanduser().is_dir() or name.startswith(("/", "./", "../", "~")) or name.count("/") > 1


def allow_network(allowed: bool) -> None:
    """A local model asks nothing of the hub; a hub id may be fetched unless the user set HF_HUB_OFFLINE.

    huggingface_hub and datasets read the variable once, at import; in a sweep a later job can need the other
    setting.
    """
    offline = USER_SAYS_OFFLINE or not allowed
    if not offline and not _answers():
        log.info("hub: no answer from %s; only what is in the local cache can be used", endpoint())
        offline = True
    os.environ["HF_HUB_OFFLINE"] = "1" if offline else "0"
    for name in ("huggingface_hub.constants", "datasets.config"):
        if name in sys.modules:
            vars(sys.modules[name])["HF_HUB_OFFLINE"] = offline


def tokenizer_folder(name: str, revision: str | None) -> Path:
    """The tokenizer files and config.json of a hub model, and nothing else of it, in the hub's local cache.

    Raises:
        UserError: they cannot be had.
    """
    allow_network(True)
    import huggingface_hub

    wanted = [*TOKENIZER_FILES, "config.json"]
    with readable_errors(name):
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=wanted))


def endpoint() -> str:
    """The hub's address, as huggingface_hub takes it from the environment."""
    return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"


def _answers() -> bool:
    """Whether the hub's host takes a connection (true behind a proxy): its client would retry for minutes."""
    proxies = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")
    if any(os.environ.get(name) for name in proxies):
        return True
    address = urlsplit(endpoint())
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        with socket.create_connection((address.hostname, port), timeout=5):
            return True
    except OSError:
        return False


@contextlib.contextmanager
def readable_errors(name: str) -> Iterator[None]:
    """What transformers says of a model it cannot find, an OSError over several paragraphs, in one line.

    Raises:
        UserError: for such an OSError.
    """
    try:
        yield
    except OSError as error:
        text = str(error).lower()
        if is_local(name):
            raise UserError(f"model.name={name}: cannot be loaded: {' '.join(str(error).split())}") from error
        if USER_SAYS_OFFLINE:
            why = "HF_HUB_OFFLINE is set, and the model is not in the local cache"
        elif "gated" in text:
            why = "it is gated: accept its licence on the hub and set HF_TOKEN"
        elif "not a valid model identifier" in text or "404" in text:
            why = "there is no such model, or it is private: check the name, set HF_TOKEN"
        else:
            why = "no answer from the network, and the model is not in the local cache"
        raise UserError(
            f"model.name={name}: cannot be had from the Hugging Face hub ({why}); a downloaded folder works"
            " without: model=local model.name=/path/to/folder"
        ) from error
