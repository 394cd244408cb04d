"""The frozen base of an adapter, a part of it in each process: PyTorch's FSDP2, a decoder layer at a time. A
layer is whole in a process while it runs there; the adapter always is.

From then on every pass of the model is one of all processes: one that is missing keeps the others waiting.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chatbot_sft import distributed
from chatbot_sft.errors import refuse_with

if TYPE_CHECKING:
    import torch

    from chatbot_sft.config import Config


def check(settings: Config) -> None:
    """Raises UserError where `training.shard` cannot be had. Imports nothing."""
    if not settings.training.shard or settings.task not in ("train", "plan"):
        return
    refuse_with(
        "training.shard=true",
        (settings.full_finetuning, "lora.r=0 trains the base itself; set lora.r above 0"),
        (
            settings.model.load_in_4bit,
            "a 4-bit weight is packed bytes with constants for the whole matrix, which cannot be cut; set"
            " model.load_in_4bit=false",
        ),
        (
            settings.model.engine == "unsloth",
            "Unsloth's layers are for one card; set model.engine=transformers",
        ),
        (settings.training.loop == "trl", "TRL's loop does not have it; leave training.loop out"),
        (
            distributed.processes() == 1,
            "there is one process, with nobody to share with: torchrun --nproc-per-node 2 -m chatbot_sft …",
        ),
    )


def shard(model: Any, device: torch.device) -> None:
    """Cut the frozen weights of `model`, which are on the CPU, layer by layer: each goes to `device` whole, and
    this process's part of it stays there.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from chatbot_sft.model.loss import base_of

    decoder = base_of(model).get_decoder()
    mesh = init_device_mesh(device.type, (distributed.processes(),))
    trained = {parameter for parameter in model.parameters() if parameter.requires_grad}
    for layer in decoder.layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=trained)
    # Nothing more is cut: it makes one of the layers, whose weights are then on their way a layer early.
    fully_shard(decoder, mesh=mesh, reshard_after_forward=True, ignored_params=set(decoder.parameters()))


def sharded(model: Any) -> bool:
    from torch.distributed.fsdp import FSDPModule

    return any(isinstance(module, FSDPModule) for module in model.modules())


def bytes_here(parameter: torch.Tensor) -> int:
    """Of `parameter`, what this process holds."""
    from torch.distributed.tensor import DTensor

    return parameter.to_local().nbytes if isinstance(parameter, DTensor) else parameter.nbytes
