"""What an optimizer step leaves on the device and the host wants to know: read late, the device need not wait."""

from __future__ import annotations

import torch


class Figures:
    """Copies of `tensors` (no dimensions each) on their way to the host."""

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        values = torch.stack([tensor.detach().float().reshape(()) for tensor in tensors])
        self._ready: torch.cuda.Event | None = None
        if values.is_cuda:
            self._values = torch.empty(values.shape, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._ready = torch.cuda.Event()
            self._ready.record()
        else:
            self._values = values

    def read(self) -> tuple[torch.Tensor, ...]:
        """The figures as float32 on the host, once they are there."""
        if self._ready is not None:
            self._ready.synchronize()
        return self._values.unbind()
