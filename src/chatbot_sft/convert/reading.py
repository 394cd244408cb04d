"""A peer's YAML file as plain values, and whose file it is."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from yaml import MappingNode, Node, SafeLoader, SequenceNode, YAMLError, compose

from chatbot_sft import text_files
from chatbot_sft.config.containers import as_dict
from chatbot_sft.convert.peer import Peer
from chatbot_sft.errors import UserError, listed, not_yaml

LARGEST = 1_000_000  # bytes: a training file has some thousands
MOST = 100_000  # values, with every alias written out


class _Named(io.StringIO):
    """Text with the name of its file, by which YAML's errors say where they are."""

    def __init__(self, text: str, file: Path) -> None:
        super().__init__(text)
        self.name = str(file)


def read(file: Path) -> dict[str, Any]:
    """The keys of `file` with their values; `1e-4` is a number, as both peers take it.

    Raises:
        UserError: no such file, not YAML, a key that stands twice, or no keys at all.
    """
    try:
        if file.stat().st_size > LARGEST:
            raise UserError(f"{file}: {file.stat().st_size / 1e6:.1f} MB; a training file is far smaller")
        text = text_files.read(file)
        refuse_unfolding(_Named(text, file), file)
        loaded = OmegaConf.load(_Named(text, file))
        values = as_dict(loaded, resolve=False) if isinstance(loaded, DictConfig) else None
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{file}: {error.strerror or error}") from None
    except YAMLError as error:
        raise UserError(f"not YAML: {not_yaml(error)}") from None
    except RecursionError:
        raise UserError(f"{file}: nested too deeply") from None
    except Exception as error:  # PyYAML and OmegaConf raise unrelated types for text that is not YAML
        raise UserError(f"{file}: {' '.join(str(error).split())}") from None
    if not values:
        raise UserError(f"{file}: expected keys and values, such as `base_model: …`")
    return values


def refuse_unfolding(text: io.StringIO, file: Path) -> None:
    """Raises UserError for a file whose aliases stand for more than could be held: nine of nine of nine …"""
    sizes: dict[int, int] = {}

    def size(node: Node) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = MOST  # an alias of itself
            parts = [part for pair in node.value for part in pair] if isinstance(node, MappingNode) else []
            parts = node.value if isinstance(node, SequenceNode) else parts
            sizes[id(node)] = 1 + sum(map(size, parts))
        return sizes[id(node)]

    root = compose(text, Loader=SafeLoader)
    if root is not None and size(root) > MOST:
        raise UserError(f"{file}: its aliases stand for over {MOST:,} values; a training file has far fewer")


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
