"""Models that come from the Hugging Face hub: which names mean one, and what to say when it cannot be had."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from chatbot_sft.data.template import TOKENIZER_FILES
from chatbot_sft.errors import UserError, reason
from chatbot_sft.network import USER_SAYS_OFFLINE, allow_network


def is_local(name: str) -> bool:
    """A path rather than a hub id: it exists, or it is written like a path."""
    return Path(name).expanduser().is_dir() or name.startswith(("/", "./", "../", "~")) or name.count("/") > 1


def folder_of(source: str, revision: str | None) -> Path:
    """Where the tokenizer files and config.json of a local model are, or of a hub model.

    Raises:
        UserError: they cannot be had from the hub.
    """
    return Path(source).expanduser() if is_local(source) else tokenizer_folder(source, revision)


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
            raise UserError(
                f"model.name={name}: cannot be loaded: {reason(error)}; download it again"
            ) from error
        if "cannot be loaded with `safetensors`" in text:
            raise UserError(
                f"model.name={name}: it has no *.safetensors; model.allow_pickle=true loads its pickled weights with"
                " PyTorch's loader for weights alone"
            ) from error
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
