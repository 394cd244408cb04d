"""The trained weights one tensor at a time: read, the adapter added in float32, handed on.

Merged and GGUF exports are written from `Weights`: the base's tensors by the names they have in its
checkpoint, and what training made of each. As a rule no second model is in memory; `trained_weights` says
where a merged copy has to be.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatbot_sft.model import embedded
from chatbot_sft.model.hub import is_local, readable_errors

if TYPE_CHECKING:
    import torch

    from chatbot_sft.config import Config

# What an adapter was merged into.
OWN = "the base's own weights"
AS_TRAINED = "the base as it was in training"
DEQUANTISED = "the 4-bit base, dequantised: there are no 16-bit weights"
PEFT_PREFIX = "base_model.model."
ROWS = ".token_adapter.trainable_tokens_delta"


@dataclass(frozen=True)
class Weights:
    """`shapes` has the checkpoint's tensors by name, in order; `read(name)` is one as trained, on the CPU.

    What the adapter touches is float32, so that whoever writes it rounds once; the rest has the dtype it is
    kept in. `base` says what the adapter was merged into, `config` is transformers' configuration of the
    whole model with as many tokens as the embeddings have rows.
    """

    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], torch.Tensor]
    base: str
    config: Any


def trained_weights(model: Any, settings: Config) -> Weights:
    """The weights of the trained `model`, which is left as it is.

    They come from the base's safetensors files, whatever the base was loaded as: an adapter trained over 4
    bits is merged into the 16-bit weights. Where that cannot be, a merged copy is made in memory: the
    adapter's initialisation changed the base (`lora.init_lora_weights`), the base is there in 4 bits alone,
    or transformers stacks its tensors while loading (mixtures of experts). Trained in full, `model` itself is
    what is read.

    Raises:
        UserError: the base's files cannot be had.
    """
    from transformers import AutoConfig

    source = str(Path(embedded.resolve(settings.model.name)).expanduser())
    hub = {"revision": settings.model.revision, "trust_remote_code": settings.model.trust_remote_code}
    pickles = {"use_safetensors": settings.model.use_safetensors}
    with readable_errors(settings.model.name), tempfile.TemporaryDirectory() as adapter:
        config, rows = AutoConfig.from_pretrained(source, **hub), model.get_input_embeddings().weight.shape[0]
        if settings.full_finetuning:
            return of_model(model, config, AS_TRAINED)
        if settings.lora_changes_base:
            return of_model(_merged(copy.deepcopy(model).to("cpu")), config, AS_TRAINED)
        model.save_pretrained(adapter, save_embedding_layers=False)
        return of_checkpoint(source, config, hub, Path(adapter), rows) or _of_loaded(
            source, config, {**hub, **pickles}, Path(adapter), rows
        )


def of_model(model: Any, config: Any, base: str) -> Weights:
    """The weights of a plain transformers model in memory, under the names of its checkpoint; `config` is the
    base's, which knows its own dtype.
    """
    from transformers.core_model_loading import revert_weight_conversion

    state, rows = dict(model.state_dict()), model.get_input_embeddings().weight.shape[0]
    tied = set(model.all_tied_weights_keys)
    untied = {name: tensor for name, tensor in state.items() if name not in tied}
    named = revert_weight_conversion(model, untied)
    return Weights(
        {name: tuple(tensor.shape) for name, tensor in named.items()},
        lambda name: named[name].detach().cpu(),
        base,
        _sized(config, rows),
    )


def of_checkpoint(source: str, config: Any, hub: dict[str, Any], adapter: Path, rows: int) -> Weights | None:
    """The base's safetensors with the PEFT adapter in the folder `adapter`; the embeddings have `rows` rows.

    None where the base has no 16- or 32-bit safetensors, or where its tensors are not the model's parameters
    one by one.
    """
    import torch
    from peft import PeftConfig, load_peft_weights
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM

    folder = _fetched(source, hub["revision"])
    if not any(folder.glob("*.safetensors")) or getattr(config, "quantization_config", None) is not None:
        return None
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config, trust_remote_code=hub["trust_remote_code"])
    tensors = _tensors(folder, skeleton, rows)
    if tensors is None:
        return None
    rows = next(
        tensor.shape[0]
        for tensor in tensors.values()
        if tensor.inside == f"{_embedding_names(skeleton)[0]}.weight"
    )
    trained, peft_config = load_peft_weights(str(adapter), device="cpu"), PeftConfig.from_pretrained(adapter)
    merge = _Merge(
        skeleton,
        peft_config,
        {name.removeprefix(PEFT_PREFIX).replace(".base_layer.", "."): t for name, t in trained.items()},
    )

    def read(name: str) -> torch.Tensor:
        stored = tensors[name]
        # Opened anew each time: pages of a file that stays mapped would stay in memory.
        with safe_open(stored.file, "pt") as file:
            tensor = file.get_tensor(name).clone()
        if tensor.shape != stored.shape:
            tensor = torch.nn.functional.pad(tensor, (0, 0, 0, stored.shape[0] - len(tensor)))
        return merge(stored.inside, tensor)

    return Weights({name: tensor.shape for name, tensor in tensors.items()}, read, OWN, _sized(config, rows))


@dataclass(frozen=True)
class _Tensor:
    """Where a tensor of the checkpoint is, which parameter of the model it becomes, and its shape there."""

    file: Path
    inside: str
    shape: tuple[int, ...]


def _tensors(folder: Path, skeleton: Any, rows: int) -> dict[str, _Tensor] | None:
    """By name; None where they are not the parameters of `skeleton` one by one. Embeddings get `rows` rows
    where they have fewer.
    """
    from safetensors import safe_open

    module_name, known = _renaming(skeleton), set(skeleton.state_dict())
    embeddings = {f"{name}.weight" for name in _embedding_names(skeleton)}
    stored: dict[str, _Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (no dictionary)
                inside, shape = module_name(name), tuple(tensors.get_slice(name).get_shape())
                if inside not in known:
                    return None
                if inside not in skeleton.all_tied_weights_keys:  # else the same matrix a second time
                    sized = (max(rows, shape[0]), *shape[1:]) if inside in embeddings else shape
                    stored[name] = _Tensor(file, inside, sized)
    return stored


@dataclass(frozen=True)
class _Merge:
    """PEFT's own arithmetic, a parameter at a time; `trained`: the adapter's tensors by the model's names."""

    skeleton: Any
    config: Any
    trained: dict[str, torch.Tensor]

    def __call__(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor`, the base's parameter `name`, as it was trained."""
        import torch

        if name in self.trained:
            return self.trained[name]
        module, _, kind = name.rpartition(".")
        if kind == "weight" and module + ROWS in self.trained:
            (rows,) = (
                rows
                for part, rows in self.config.trainable_token_indices.items()
                if f".{module}".endswith(f".{part}")
            )
            return tensor.float().index_copy(0, torch.tensor(rows), self.trained[module + ROWS].float())
        layer = {
            key.removeprefix(f"{module}."): value
            for key, value in self.trained.items()
            if key.startswith(f"{module}.lora_")
        }
        return self._layer(module, tensor, layer) if kind == "weight" and layer else tensor

    def _layer(self, module: str, weight: torch.Tensor, adapter: dict[str, torch.Tensor]) -> torch.Tensor:
        import torch
        from peft import get_peft_model, set_peft_model_state_dict

        base = copy.deepcopy(self.skeleton.get_submodule(module))
        base.weight = torch.nn.Parameter(weight.float(), requires_grad=False)
        config = copy.copy(self.config)
        config.target_modules = ["layer"]
        config.exclude_modules = config.modules_to_save = config.trainable_token_indices = None
        config.ensure_weight_tying, config.bias = False, "none"
        config.task_type = config.base_model_name_or_path = None
        adapted = get_peft_model(torch.nn.ModuleDict({"layer": base}), config)
        set_peft_model_state_dict(
            adapted, {f"{PEFT_PREFIX}layer.{key}": value.float() for key, value in adapter.items()}
        )
        layer = adapted.get_submodule(f"{PEFT_PREFIX}layer")
        with torch.no_grad():
            layer.merge()
        return layer.get_base_layer().weight.data


def _of_loaded(source: str, config: Any, hub: dict[str, Any], adapter: Path, rows: int) -> Weights:
    """The adapter on a copy of the base that is loaded whole, on the CPU."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(source, dtype="auto", device_map={"": "cpu"}, **hub)
    quantised = getattr(config, "quantization_config", None) is not None
    if quantised:
        base = base.dequantize()
        # How the 4 bits were read, which would be undone when names are turned back.
        base._weight_conversions = None
    if rows > base.get_input_embeddings().weight.shape[0]:
        base.resize_token_embeddings(rows, mean_resizing=False)
    merged = _merged(PeftModel.from_pretrained(base, adapter))
    return of_model(merged, config, DEQUANTISED if quantised else OWN)


def _sized(config: Any, rows: int) -> Any:
    """`config` for embeddings of `rows` rows, in 16 or 32 bits."""
    config = copy.deepcopy(config)
    config.get_text_config().vocab_size = rows
    if getattr(config, "quantization_config", None) is not None:
        del config.quantization_config
    return config


def _merged(adapted: Any) -> Any:
    """The plain model in `adapted`, its adapter added to the weights; what it touches becomes float32."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for layer in adapted.modules():
        if isinstance(layer, BaseTunerLayer):
            weight = layer.get_base_layer().weight
            weight.data = weight.data.float()
            layer.merge()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="All adapters are already merged")
        return adapted.merge_and_unload()  # what is left: taking the adapter layers out


def _fetched(source: str, revision: str | None) -> Path:
    """The base's folder; of a hub model its safetensors and configuration, which Unsloth, training over a
    4-bit copy, need not have fetched.
    """
    if is_local(source):
        return Path(source)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(source, revision=revision, allow_patterns=["*.safetensors", "*.json"]))


def _renaming(skeleton: Any) -> Callable[[str], str]:
    """What transformers calls a tensor of the checkpoint as it loads it; the name of no parameter where it
    stacks or splits it.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    transforms = get_model_conversion_mapping(skeleton)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if not isinstance(transform, WeightRenaming)]
    known = skeleton.state_dict()

    def inside(name: str) -> str:
        renamed, converter = rename_source_key(name, renamings, converters, skeleton.base_model_prefix, known)
        return renamed if converter is None else ""

    return inside


def _embedding_names(model: Any) -> list[str]:
    """Of the input embeddings, and of the output's."""
    names = {id(module): name for name, module in model.named_modules()}
    return [names[id(module)] for module in (model.get_input_embeddings(), model.get_output_embeddings())]
