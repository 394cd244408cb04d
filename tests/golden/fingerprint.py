"""The trained weights in a few numbers."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from chatbot_sft.save import ModelSaver

PROJECTIONS = 4


def fingerprint(weights: dict[str, Any]) -> dict[str, Any]:
    """Of float32 tensors by name: how many values, their norm, their sums under fixed random signs, and the
    hash of their bytes.
    """
    import numpy

    vector = numpy.concatenate(
        [weights[name].detach().cpu().float().flatten().numpy() for name in sorted(weights)]
    )
    draw = numpy.random.default_rng(0)
    signs = (
        numpy.where(draw.integers(2, size=len(vector), dtype=numpy.int8), 1.0, -1.0)
        for _ in range(PROJECTIONS)
    )
    exact = vector.astype(numpy.float64)
    return {
        "values": len(vector),
        "norm": float(numpy.sqrt((exact**2).sum())),
        "projections": [float((exact * sign).sum()) for sign in signs],
        "sha256": hashlib.sha256(vector.tobytes()).hexdigest(),
    }


class Fingerprint(ModelSaver):
    """A `save._target_` that writes no model, but fingerprint.json of what was trained."""

    def save(self, save_config: Any = None) -> Any:
        trained = {
            name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad
        }
        file = Path(self.settings.paths.output_dir, "fingerprint.json")
        file.write_text(json.dumps(fingerprint(trained)), encoding="utf-8")
        return super().save(save_config)
