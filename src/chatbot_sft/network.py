"""When the network may be used: where a key asks for something on the Hugging Face hub, and the user did not
say offline.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Callable
from urllib.parse import urlsplit

log = logging.getLogger(__name__)

YES = ("1", "ON", "YES", "TRUE")
USER_SAYS_OFFLINE = os.environ.get("HF_HUB_OFFLINE", "").upper() in YES


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
    _tell(offline)


def kept() -> Callable[[], None]:
    """Whether the network may be used now; returns what makes it so again."""
    value = os.environ.get("HF_HUB_OFFLINE")

    def again() -> None:
        if value is None:
            os.environ.pop("HF_HUB_OFFLINE", None)
        else:
            os.environ["HF_HUB_OFFLINE"] = value
        _tell((value or "").upper() in YES)

    return again


def _tell(offline: bool) -> None:
    """The libraries that have read it."""
    for name in ("huggingface_hub.constants", "datasets.config"):
        if name in sys.modules:
            vars(sys.modules[name])["HF_HUB_OFFLINE"] = offline


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
