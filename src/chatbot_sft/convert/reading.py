"""A peer's YAML file as plain values, and whose file it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from chatbot_sft import text_files
from chatbot_sft.config.containers import as_dict
from chatbot_sft.convert.peer import Peer
from chatbot_sft.errors import UserError, listed, not_yaml

LARGEST = 1_000_000  # bytes: a training file has some thousands


def read(file: Path) -> dict[str, Any]:
    """The keys of `file` with their values; `1e-4` is a number, as both peers take it.

    Raises:
        UserError: no such file, not YAML, a key that stands twice, or no keys at all.
    """
    try:
        if file.stat().st_size > LARGEST:
            raise UserError(f"{file}: {file.stat().st_size / 1e6:.1f} MB; a training file is far smaller")
        text_files.read(file)
        loaded = OmegaConf.load(file)
        values = as_dict(loaded, resolve=False) if isinstance(loaded, DictConfig) else None
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{file}: {error.strerror or error}") from None
    except YAMLError as error:
        raise UserError(f"{file}: not YAML: {not_yaml(error)}") from None
    except RecursionError:
        raise UserError(f"{file}: nested too deeply") from None
    except Exception as error:  # PyYAML and OmegaConf raise unrelated types for text that is not YAML
        raise UserError(f"{file}: {' '.join(str(error).split())}") from None
    if not values:
        raise UserError(f"{file}: expected keys and values, such as `base_model: …`")
    return values


def told(values: dict[str, Any], file: Path, peers: Sequence[Peer]) -> Peer:
    """Whose file it is: by the model's key, which every file has, else by the keys that one of them alone knows, if
    most keys are its own.

    Raises:
        UserError: it may be either's, or nobody's.
    """
    named = [peer for peer in peers if values.get(peer.model) is not None]
    if len(named) == 1:
        return named[0]
    own = {
        peer.name: [
            key
            for key in values
            if key in peer.rules and not any(key in other.rules for other in peers if other is not peer)
        ]
        for peer in peers
    }
    found = [
        peer for peer in peers if own[peer.name] and 2 * len(values.keys() & peer.rules.keys()) > len(values)
    ]
    if len(found) == 1 and not named:
        return found[0]
    choices = " or ".join(f"--from {peer.name}" for peer in peers)
    if not found and not named:
        keys = " or ".join(f"{peer.model} ({peer.title})" for peer in peers)
        raise UserError(
            f"{file}: no training file of either by its keys ({listed(values, 5)}): one has {keys};"
            f" say whose it is with {choices}"
        )
    examples = " and ".join(
        f"{peer.title}'s {listed(own[peer.name] or [peer.model], 2)}" for peer in found or named
    )
    raise UserError(f"{file}: it has keys of both, {examples}; say whose it is with {choices}")
