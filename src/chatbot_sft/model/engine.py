"""Which engine trains: plain transformers + PEFT where that packs conversations, or where Unsloth does not
import; else Unsloth.
"""

from __future__ import annotations

import functools
import gc
import importlib.metadata
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from chatbot_sft.cache import part_folder
from chatbot_sft.errors import UserError
from chatbot_sft.garbage import uncollected
from chatbot_sft.logs import quiet
from chatbot_sft.model import compile_keys, hardware
from chatbot_sft.model.base import architecture

if TYPE_CHECKING:
    import torch

    from chatbot_sft.config import Config

UNSLOTH_ON_CPU = (2026, 10, 8)  # the first release that imports without a GPU
VARLEN_ATTENTION = (2, 10)  # the first PyTorch that has it
BFLOAT16 = 8.0  # the compute capability from which a card has it
# The architectures (transformers' model_type) whose packed training tests/train/test_packed.py holds.
PACKED = ("llama", "mistral", "qwen3", "phi3", "gemma3", "gemma3_text")


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

    def for_training(self, model: Any, checkpointing: bool, random: bool = True) -> None:
        """Switch to training mode, with or without recomputed activations, which draw the same `random` numbers
        again. Where there are none their state is not read: it cannot be in a graph.
        """

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

    def packable(self, model: Any) -> str | None:
        """Why `packed_hidden_states` cannot run this model; None where it can, and the model is then ready
        for it.
        """

    def packed_hidden_states(
        self,
        model: Any,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        cu_seq_lens: torch.Tensor,
        longest: int,
    ) -> torch.Tensor:
        """What the layers make of conversations packed end to end: (1, tokens) to (1, tokens, width). Where
        each begins is in `cu_seq_lens` (conversations + 1,), int32; none is longer than `longest`.
        """

    def compile_layers(self, model: Any) -> None:
        """Compile each layer of `packed_hidden_states`, once for all sizes."""

    def hidden_states(self, model: Any, input_ids: torch.Tensor) -> torch.Tensor:
        """What the layers make of `input_ids` (rows, length), padded on the right: (rows, length, width)."""

    def head_loss(
        self, model: Any, hidden: torch.Tensor, labels: torch.Tensor, trained_tokens: torch.Tensor
    ) -> torch.Tensor:
        """`loss` from hidden states (rows, length, width) and `labels` (rows, length) on."""

    def plain_head(self, model: Any) -> bool:
        """Whether logits are the product of `states` and the output layer's weight, and nothing else."""

    def states(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """What the layers make of `inputs`, those of a micro-batch without labels: (rows, length, width). It is
        called where the head is plain alone.
        """

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


def engine_of(settings: Config) -> tuple[Engine, Choice]:
    """`load_engine` of the engine that `settings` lead to here: `auto` goes by what is trained, too."""
    decided = by_what_is_trained(settings, architecture)
    return (load_engine(decided.name)[0], decided) if decided else load_engine(settings.model.engine)


def by_what_is_trained(settings: Config, of: Callable[[Config], str | None]) -> Choice | None:
    """The engine, where what is trained decides it; None where `expected` does. `of` as `trains_packed` takes it."""
    auto, objective = settings.model.engine == "auto", settings.objective
    if auto and settings.training.shard:
        return Choice("transformers", "auto: training.shard=true")
    if auto and not objective.is_sft:
        return Choice("transformers", f"auto: objective={objective.name}")
    if settings.model.load_in_fp8:
        return Choice("transformers", "model.load_in_fp8=true")
    if auto and trains_packed(settings, of):
        return Choice("transformers", f"auto: packs conversations on {hardware.gpus()[0].name}")
    return None


def trains_packed(settings: Config, of: Callable[[Config], str | None]) -> bool:
    """Whether the plain engine packs and captures this training here, which beat Unsloth's layers where it was
    measured (benchmarks/README.md): an adapter in bfloat16. `of` says the model's architecture; nothing is
    imported.
    """
    model, lora, training = settings.model, settings.lora, settings.training
    cards = hardware.gpus()
    torch = importlib.metadata.version("torch").split(".")
    return (
        bool(cards)
        and cards[0].capability >= BFLOAT16
        and (int(torch[0]), int(torch[1])) >= VARLEN_ATTENTION
        and training.batch_layout == "auto"
        and training.loop != "trl"
        and not settings.full_finetuning
        and model.dtype in (None, "bfloat16")
        and not model.new_tokens
        and not lora.modules_to_save
        and not settings.sft_arguments.get("neftune_noise_alpha")
        and of(settings) in PACKED
    )


@functools.cache
def load_engine(requested: str) -> tuple[Engine, Choice]:
    """Import the engine; must come before anything imports transformers or trl.

    Raises:
        UserError: `requested` is "unsloth" and it does not import here.
    """
    prepare_environment()
    with uncollected():  # a sixth of the time
        imported = _imported(requested)
        compile_keys.alike()
        gc.freeze()  # it stays: no look for garbage, the next one first, has to go through half a million objects
    return imported


def _imported(requested: str) -> tuple[Engine, Choice]:
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
    with quiet():
        from chatbot_sft.model import transformers_engine

    return transformers_engine, choice


def prepare_environment() -> None:
    """Keep third-party libraries off the network and out of the working directory. Unsloth and TRL read these
    once, at import.
    """
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
    os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(part_folder("unsloth_compiled")))
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(part_folder("compiled")))
    # Of kernels that are not the compiler's, too: Unsloth's, bitsandbytes', TRL's.
    os.environ.setdefault("TRITON_CACHE_DIR", str(part_folder("compiled") / "triton"))
    # Also of layers with a product of their own in them (model/joined.py), which PyTorch otherwise traces and
    # differentiates anew in each process.
    os.environ.setdefault("TORCHINDUCTOR_AUTOGRAD_CACHE_ALLOW_CUSTOM_AUTOGRAD", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # transformers would take what a service on the hub converted, from a pull request of anybody's.
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # OpenMP reads it as torch is imported. Threads that wait awake take the cores from each other and from
    # other processes: 5 to 7 times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
