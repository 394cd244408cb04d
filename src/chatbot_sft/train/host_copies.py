"""What tensors hold now, in the host's memory: to be written while they are trained on. Imports torch."""

from __future__ import annotations

from typing import Any

import torch


class HostCopies:
    """Of tensors, alone or in dicts, lists and tuples. Each memory is copied once and whole: what shares some, as the
    matrices of an adapter that are of one vector, does so in the copy too.
    """

    def __init__(self) -> None:
        self._memory: dict[int, torch.UntypedStorage] = {}

    def of(self, value: Any) -> Any:
        """`value` with a copy in place of each tensor."""
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if isinstance(value, dict):
            return {key: self.of(one) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self.of(one) for one in value)
        return value

    def _tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        there = tensor.untyped_storage()
        memory = self._memory.get(there.data_ptr())
        if memory is None:
            memory = self._memory[there.data_ptr()] = (
                there.clone() if there.device.type == "cpu" else there.cpu()
            )
        copy = torch.empty(0, dtype=tensor.dtype)
        return copy.set_(memory, tensor.storage_offset(), tensor.size(), tensor.stride())
