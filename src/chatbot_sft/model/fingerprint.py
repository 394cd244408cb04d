"""What was trained, in one number."""

from __future__ import annotations

import hashlib
from typing import Any


def trained_weights(model: Any) -> str:
    """SHA-256 of the trained parameters of `model`: of each its name, dtype, shape and bytes, by their names."""
    import torch

    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if parameter.requires_grad:
            values = parameter.detach().cpu().contiguous()
            digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
            digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
