"""Other linear layers in place of a decoder's own. Imported after the engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from chatbot_sft.model.loss import base_of

Taken = list[tuple[torch.nn.Module, str, torch.nn.Module]]  # parent, name, layer


def replace_layers(model: Any, replacement: Callable[[torch.nn.Module], torch.nn.Module | None]) -> Taken:
    """Put the `replacement` of each layer of `model`'s decoder in its place, where it has one; returns what was
    taken out. Whatever `replacement` raises passes through, with `model` as it was.
    """
    taken: Taken = []
    try:
        for parent in list(base_of(model).get_decoder().modules()):
            for name, layer in list(parent.named_children()):
                if (other := replacement(layer)) is not None:
                    setattr(parent, name, other)
                    taken.append((parent, name, layer))
    except Exception:
        put_back(taken)
        raise
    return taken


def put_back(taken: Taken) -> None:
    """Each layer where it was."""
    for parent, name, layer in taken:
        setattr(parent, name, layer)
