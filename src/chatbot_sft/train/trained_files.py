"""The files of what is trained in a run's checkpoints: weights, and what stands beside them. Imported after the
engine.

Most of the time of a small checkpoint goes into what is the same in all of a run: PEFT's search for the names of
its weights, its configuration and model card, the tokenizer. It is made for the first one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.utils import CONFIG_NAME
from safetensors.torch import save_file

from chatbot_sft.model.earlier import WEIGHTS
from chatbot_sft.train.host_copies import HostCopies

CARD = "README.md"  # PEFT's model card


@dataclass(frozen=True)
class TrainedFiles:
    """`same` are the files that all checkpoints have, `weights` the parameters that the adapter's file has, by their
    names there; None where the model writes its weights itself.
    """

    model: Any
    same: Mapping[Path, bytes]
    weights: Mapping[str, torch.nn.Parameter] | None

    @classmethod
    def first(
        cls, model: Any, tokenizer: Any, trained: Sequence[torch.nn.Parameter], folder: Path
    ) -> TrainedFiles:
        """Those of `model`, of which `trained` is trained, written into `folder`."""
        model.save_pretrained(str(folder))
        same = [Path(name) for name in tokenizer.save_pretrained(str(folder))]
        weights = _weights(model, trained)
        if weights is not None:
            same += [folder / CONFIG_NAME, folder / CARD]
        return cls(model, {path.relative_to(folder): path.read_bytes() for path in same}, weights)

    def taken(self, copies: HostCopies) -> Callable[[Path], None]:
        """What writes the same files into another folder, with weights as they are now: a copy, unless the model
        writes them itself.
        """
        now = self.weights and copies.of({name: value.detach() for name, value in self.weights.items()})

        def write(folder: Path) -> None:
            if now is None:
                self.model.save_pretrained(str(folder))
            else:
                save_file(now, folder / WEIGHTS, metadata={"format": "pt"})
            for name, content in self.same.items():
                file = folder / name
                file.parent.mkdir(exist_ok=True)
                file.write_bytes(content)

        return write


def _weights(model: Any, trained: Sequence[torch.nn.Parameter]) -> dict[str, torch.nn.Parameter] | None:
    """By their names in PEFT's file; None where that has something else too, something made of them, or one of them
    by two names.
    """
    if not isinstance(model, PeftModel):
        return None
    at = {(parameter.data_ptr(), parameter.shape): parameter for parameter in trained}
    weights: dict[str, torch.nn.Parameter] = {}
    for name, value in get_peft_model_state_dict(model).items():
        parameter = at.get((value.data_ptr(), value.shape))
        if parameter is None:
            return None
        weights[name] = parameter
    return weights if len(set(weights.values())) == len(weights) else None
