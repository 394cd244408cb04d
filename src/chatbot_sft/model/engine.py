"""Which engine trains: Unsloth wherever it imports, plain transformers + PEFT where it does not."""

from __future__ import annotations

import functools
import importlib.metadata
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from chatbot_sft.cache import part_folder
from chatbot_sft.errors import UserError
from chatbot_sft.logs import quiet
from chatbot_sft.model import hardware

if TYPE_CHECKING:
    import torch

    from chatbot_sft.config import Config

UNSLOTH_ON_CPU = (2026, 10, 8)  # the first release that imports without a GPU


class Engine(Protocol):
    """A module of functions; `unsloth_engine` and `transformers_engine` are the two.

    `model` is what `load` or `add_lora` gave: a transformers or PEFT model, patched as the engine does it.
    """

    NAME: str

    def load(self, source: str, settings: Config, dtype: torch.dtype) -> Any:
        """The base model from a folder or hub id, ready for an adapter or for full fine-tuning."""

    def add_lora(self, model: Any, settings: Config, arguments: dict[str, Any]) -> Any:
        """The PEFT model: `model` frozen, with the adapter of `arguments`, those of `peft.LoraConfig`."""

    def checkpointing(self, settings: Config) -> bool | str:
        """Whether activations are recomputed in the backward pass; "unsloth": and offloaded."""

    def for_training(self, model: Any, checkpointing: bool) -> None:
        """Switch to training mode, with or without recomputed activations."""

    def for_inference(self, model: Any) -> None:
        """Switch to generation mode."""

    def inputs(self, batch: dict[str, Any]) -> dict[str, Any]:
        """What the model's forward takes of a micro-batch, which is of `rows.padded` or `rows.padding_free`.

        Of one without padding Unsloth takes the rows' lengths too, transformers their positions alone.
        """

    def prepare(self, model: Any) -> None:
        """Once, before training: what TRL's SFTTrainer does to a model under this engine."""

    def compute_dtype(self, model: Any, wanted: str | None) -> str | None:
        """What matrix products are cast to ("bf16", "fp16", None), where `wanted` is what was configured."""

    def loss(self, model: Any, inputs: dict[str, Any], trained_tokens: torch.Tensor) -> torch.Tensor:
        """The loss of a micro-batch in training, a scalar; `inputs` has labels of shape (rows, length).

        Divided by `trained_tokens`, the trained tokens of the whole step as a scalar tensor.
        """

    def use_scaler(self, model: Any, scaler: Any) -> None:
        """Tell the model of the `torch.amp.GradScaler` that scales its loss in float16."""

    def capturable(self, model: Any) -> bool:
        """Whether `hidden_states` can run as a CUDA graph and `head_loss` does the rest.

        They are called for such a model alone.
        """

    def hidden_states(self, model: Any, input_ids: torch.Tensor) -> torch.Tensor:
        """What the layers make of `input_ids` (rows, length), padded on the right: (rows, length, width)."""

    def head_loss(
        self, model: Any, hidden: torch.Tensor, labels: torch.Tensor, trained_tokens: torch.Tensor
    ) -> torch.Tensor:
        """`loss` from hidden states (rows, length, width) and `labels` (rows, length) on."""

    def padding_free(self, model: Any) -> bool:
        """Whether the engine trains a batch without padding where nothing else is asked for."""

    def trainer_class(self) -> type:
        """TRL's SFTTrainer, as this engine needs it on this machine: for training.loop=trl."""


@dataclass(frozen=True)
class Choice:
    name: str
    reason: str


def expected(requested: str) -> Choice:
    """The engine that `requested` leads to here, from versions and hardware alone: nothing is imported."""
    if requested != "auto":
        return Choice(requested, "as configured")
    try:
        version = importlib.metadata.version("unsloth")
    except importlib.metadata.PackageNotFoundError:
        return Choice("transformers", "auto: unsloth is not installed")
    if hardware.gpus():
        return Choice("unsloth", f"auto: unsloth {version} on {hardware.gpus()[0].name}")
    if tuple(int(part) for part in version.split(".")[:3]) >= UNSLOTH_ON_CPU:
        return Choice("unsloth", f"auto: unsloth {version} trains on a CPU")
    return Choice(
        "transformers",
        f"auto: unsloth {version} needs a GPU; {'.'.join(map(str, UNSLOTH_ON_CPU))} and later train on a CPU",
    )


@functools.cache
def load_engine(requested: str) -> tuple[Engine, Choice]:
    """Import the engine; must come before anything imports transformers or trl.

    Raises:
        UserError: `requested` is "unsloth" and it does not import here.
    """
    prepare_environment()
    choice = expected(requested)
    if choice.name == "unsloth":
        try:
            with quiet():
                from chatbot_sft.model import unsloth_engine
            return unsloth_engine, choice
        # Unsloth raises ImportError, RuntimeError or NotImplementedError for a machine it does not support
        except Exception as error:
            why = " ".join(str(error).split())
            if requested == "unsloth":
                raise UserError(
                    f"model.engine=unsloth: unsloth does not import here ({why}); use"
                    " model.engine=transformers"
                ) from error
            choice = Choice("transformers", f"auto: unsloth does not import here: {why}")
    from chatbot_sft.model import transformers_engine

    return transformers_engine, choice


def prepare_environment() -> None:
    """Keep third-party libraries off the network and out of the working directory. Unsloth and TRL read these
    once, at import.
    """
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
    os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(part_folder("unsloth_compiled")))
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # OpenMP reads it as torch is imported. Threads that wait awake take the cores from each other and from
    # other processes: 5 to 7 times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
