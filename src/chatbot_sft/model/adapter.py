"""The `lora` stage: the adapter on the base model, or none for full fine-tuning."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from chatbot_sft.config import ALL_LINEAR
from chatbot_sft.errors import UserError, did_you_mean, listed

if TYPE_CHECKING:
    from chatbot_sft.config import Config
    from chatbot_sft.model.engine import Engine

log = logging.getLogger(__name__)


def add_adapter(model: Any, settings: Config, engine: Engine, new_token_ids: Sequence[int] = ()) -> Any:
    """What is trained: `model` with a LoRA on `lora.target_modules`, or itself where `lora.r` is 0.

    `new_token_ids` are rows of the embeddings that are trained beside the adapter.

    Raises:
        UserError: a target module, or a module to save, that the model does not have.
    """
    if settings.full_finetuning:
        return model
    arguments = lora_arguments(model, settings, new_token_ids)
    model = engine.add_lora(model, settings, arguments)
    head = model.get_output_embeddings()
    if type(head).__name__ == "TrainableTokensWrapper":
        # TRL's fused loss reads it, and PEFT's wrapper passes on the weight alone.
        head.bias = head.original_module.bias
    return model


def lora_arguments(model: Any, settings: Config, new_token_ids: Sequence[int] = ()) -> dict[str, Any]:
    """The arguments of `peft.LoraConfig` that `config.lora` means for this model.

    Only what reads text gets an adapter: the vision tower of a multimodal model is left as it is.

    Raises:
        UserError: a target module, or a module to save, that the model does not have.
    """
    lora, parts = settings.lora, _parts(model)
    arguments: dict[str, Any] = {
        "r": lora.r,
        "lora_alpha": lora.lora_alpha,
        "lora_dropout": lora.lora_dropout,
        "target_modules": _targets(model, lora.target_modules, parts),
        "bias": lora.bias,
        "use_rslora": lora.use_rslora,
        "modules_to_save": lora.modules_to_save,
        "init_lora_weights": lora.init_lora_weights,
    }
    if lora.use_dora:
        arguments["use_dora"] = True
    if lora.init_lora_weights == "loftq":
        arguments["loftq_config"] = {"loftq_bits": lora.loftq_bits, "loftq_iter": lora.loftq_iter}
    others = [
        name
        for name, _ in model.named_modules()
        if _ends_with(name, arguments["target_modules"]) and not parts.read_text(name)
    ]
    if others:
        arguments["exclude_modules"] = rf"(?!{re.escape(parts.decoder)}\.|{re.escape(parts.output)}$).*"
    saved = _check_saved(model, lora.modules_to_save or [])
    matrices = [parts.input.rpartition(".")[2], parts.output.rpartition(".")[2]]
    if parts.tied and set(saved) & set(matrices):
        log.info("lora: %s and %s are one matrix in this model, and are trained as one", *matrices)
        saved = [*(name for name in saved if name not in matrices), matrices[0]]
        arguments["modules_to_save"] = saved
        arguments["ensure_weight_tying"] = True
    if new_token_ids:
        # PEFT trains these rows alone, and of tied matrices the output with the input; what is saved in full
        # has them already.
        untied = matrices[:1] if parts.tied else matrices
        rows = {name: list(new_token_ids) for name in untied if name not in saved}
        if rows:
            arguments["trainable_token_indices"] = rows
    return arguments


def check_modules(model: Any, settings: Config) -> None:
    """Raises UserError where `model`, which may be without weights (on the meta device), does not have a module that
    `settings.lora` names.
    """
    if not settings.full_finetuning:
        _targets(model, settings.lora.target_modules, _parts(model))
        _check_saved(model, settings.lora.modules_to_save or [])


@dataclass(frozen=True)
class _Parts:
    """Module names: the stack of language layers, and the embeddings; `tied` where both share their weight."""

    decoder: str
    input: str
    output: str
    tied: bool

    def read_text(self, name: str) -> bool:
        return name.startswith(f"{self.decoder}.") or name == self.output


def _parts(model: Any) -> _Parts:
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    names = {id(module): name for name, module in model.named_modules()}
    return _Parts(
        names[id(model.get_decoder())], names[id(inputs)], names[id(outputs)], inputs.weight is outputs.weight
    )


def _targets(model: Any, wanted: str | list[str], parts: _Parts) -> list[str]:
    """`wanted`, or the names of all linear layers of the language model."""
    import torch

    names = [name for name, _ in model.named_modules() if parts.read_text(name)]
    layers = model.get_submodule(parts.decoder).named_modules()
    linear = sorted({name.rpartition(".")[2] for name, part in layers if isinstance(part, torch.nn.Linear)})
    if wanted == ALL_LINEAR:
        return linear
    missing = [target for target in wanted if not any(_ends_with(name, [target]) for name in names)]
    # The experts of a mixture are stacked in one parameter; which of its names Unsloth takes for them is its
    # own business.
    experts = any(
        parameter.ndim == 3 for name, parameter in model.named_parameters() if parts.read_text(name)
    )
    if len(missing) == len(wanted) or (missing and not experts):
        raise UserError(
            f"lora.target_modules: the model has no {listed(missing)}{_meant(missing, linear)}; its"
            f" linear layers are {', '.join(linear)}; lora.target_modules={ALL_LINEAR} takes them all"
        )
    return list(wanted)


def _check_saved(model: Any, wanted: Sequence[str]) -> list[str]:
    modules = [module for module, _ in model.named_modules()]
    last = sorted({module.rpartition(".")[2] for module in modules} - {""})
    missing = [name for name in wanted if not any(_ends_with(module, [name]) for module in modules)]
    if missing:
        raise UserError(
            f"lora.modules_to_save: the model has no {listed(missing)}{_meant(missing, last)}; the usual"
            " ones are embed_tokens and lm_head"
        )
    return list(wanted)


def _meant(missing: Sequence[str], known: list[str]) -> str:
    """Where several are missing, they are those of another model."""
    return did_you_mean(missing[0], known) if len(missing) == 1 else ""


def _ends_with(name: str, targets: Sequence[str]) -> bool:
    """As PEFT matches a list of names."""
    return any(name == target or name.endswith(f".{target}") for target in targets)
