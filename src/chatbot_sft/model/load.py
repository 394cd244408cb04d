"""The model stage: a `Base` is loaded once, an adapter is attached to it, and both are what is trained."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatbot_sft.config import Config
from chatbot_sft.config.schema import OUR_PACKAGE
from chatbot_sft.errors import UserError, listed, reason
from chatbot_sft.logs import quiet
from chatbot_sft.model import hardware, quantization, sharding
from chatbot_sft.model.adapter import check_modules
from chatbot_sft.model.base import description
from chatbot_sft.model.earlier import load_weights
from chatbot_sft.model.engine import Engine
from chatbot_sft.model.hub import is_local, readable_errors
from chatbot_sft.model.precision import precision_name, weights_dtype
from chatbot_sft.model.tokenizer import chat_template
from chatbot_sft.model.tokens import extend_embeddings
from chatbot_sft.model_files import check_folder
from chatbot_sft.report.masking import by_name
from chatbot_sft.run import report
from chatbot_sft.targets import locate

if TYPE_CHECKING:
    from chatbot_sft.warm import Loan

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Base:
    """A published model in memory, ready for an adapter; nothing in it is of one training.

    `source` is the folder or hub id the weights came from, `new_token_ids` the rows that model.new_tokens got.
    """

    source: str
    engine: Engine
    model: Any
    tokenizer: Any
    new_token_ids: Sequence[int] = ()


@dataclass(frozen=True, eq=False)
class Trainable:
    """What is trained: a base with its adapter, or a whole model, and its tokenizer."""

    engine: Engine
    model: Any
    tokenizer: Any

    def described(self, settings: Config) -> report.Model:
        """What report.json says of it."""
        trainable, total = count_parameters(self.model)
        return report.Model(
            name=settings.model.name,
            engine=self.engine.NAME,
            parameters=total,
            trainable_parameters=trainable,
            dtype=precision_name(settings),
            base=description(settings, Path(settings.paths.output_dir)),
            adapter=settings.model.adapter,
        )


def check(settings: Config) -> None:
    """What can be said of the model without loading anything.

    Raises:
        UserError: a folder that holds no model, or not a whole one; 4-bit without bitsandbytes; loftq without
            a GPU; a chat template that is none; training.shard or model.load_in_fp8 where it cannot be
            had.
    """
    quantization.check(settings)
    sharding.check(settings)
    model, lora = settings.model, settings.lora
    if model.load_in_4bit and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            "model.load_in_4bit=true needs bitsandbytes: `pip install bitsandbytes`, or set"
            " model.load_in_4bit=false"
        )
    if lora.init_lora_weights == "loftq" and not settings.full_finetuning and not hardware.gpus():
        raise UserError(
            "lora.init_lora_weights=loftq: PEFT computes it on a GPU, and there is none here; pissa and"
            " olora need none"
        )
    check_files(settings)


def check_files(settings: Config) -> None:
    """Raises UserError where the chat template or the model's folder is not there, or is none."""
    model = settings.model
    chat_template(settings)
    if is_local(model.name) or Path(model.name).expanduser().is_file():
        check_folder(model.name, model.trust_remote_code, model.allow_pickle)


def load_base(
    settings: Config, source: str, engine: Engine, tokenizer: Any, loan: Loan | None = None
) -> Base:
    """The model in `source`, with rows for the new tokens of `tokenizer`; one that is there already, where `loan`
    has it.

    Raises:
        UserError: it cannot be had, or its files do not have all of it.
    """
    new = settings.model.new_tokens

    def load() -> Any:
        check_names_of_weights(settings, source)
        return engine.load(source, settings, weights_dtype(settings))

    with quiet(progress=not is_local(source)), readable_errors(settings.model.name):
        model = loan.base(settings, source, engine, load) if loan else load()
        ids = extend_embeddings(model, tokenizer, new) if new else ()
    return Base(source, engine, model, tokenizer, ids)


def attach(base: Base, settings: Config) -> Trainable:
    """`base` with the adapter that `settings` mean, by the function that `lora._target_` names; with the
    weights of `model.adapter`, where one is gone on from.

    Raises:
        UserError: a module that the model does not have, or an adapter of another shape.
    """
    name, adapter, lora = settings.model.name, settings.model.adapter, settings.lora
    add_adapter = locate("lora", lora._target_, settings.allow_targets)
    extra = {"new_token_ids": base.new_token_ids} if base.new_token_ids else {}
    with quiet(progress=not is_local(base.source)), readable_errors(name):
        model = add_adapter(base.model, settings, base.engine, **extra)
        if adapter:
            load_weights(model, Path(adapter), f"model.adapter={adapter}")
    model.config.pad_token_id = base.tokenizer.pad_token_id
    _name_secrets(model)
    if adapter:
        log.info(
            "adapter: goes on from %s, which decides lora.* (r=%d, alpha=%d)",
            adapter,
            lora.r,
            lora.lora_alpha,
        )
    trainable, total = count_parameters(model)
    log.info(
        "model: %s, %.0fM parameters, %.2fM trained (%.2f%%), %s",
        name, total / 1e6, trainable / 1e6, 100 * trainable / total, precision_name(settings),
    )  # fmt: skip
    return Trainable(base.engine, model, base.tokenizer)


def check_names_of_weights(settings: Config, source: str) -> None:
    """Hold the names and shapes in the weights files against the architecture's, without reading a
    weight.

    transformers makes up what is missing, with a warning as the only word. Weights that are stored in 4
    or 8 bits have names of their own.

    Raises:
        UserError: the files do not have all of the model, or that has no module that lora.target_modules or
            lora.modules_to_save names.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    model = settings.model
    given = {"revision": model.revision, "trust_remote_code": model.trust_remote_code}
    if "quantization_config" in AutoConfig.from_pretrained(source, **given).to_dict():
        return
    try:
        bare, info = AutoModelForCausalLM.from_pretrained(
            source,
            device_map={"": "meta"},
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            use_safetensors=model.use_safetensors,
            **given,
        )
    except (RuntimeError, ValueError, KeyError) as error:
        raise UserError(
            f"model.name={model.name}: cannot be loaded: {reason(error)}; download it again"
        ) from error
    if settings.lora._target_.startswith(OUR_PACKAGE):
        check_modules(bare, settings)
    for name, stored, wanted in sorted(info["mismatched_keys"]):
        raise UserError(
            f"model.name={model.name}: {name} has the shape {tuple(stored)}, config.json makes it"
            f" {tuple(wanted)}; download both again"
        )
    missing = sorted(info["missing_keys"])
    if missing:
        other = (
            f"; it has {min(info['unexpected_keys'])}, which the model does not know"
            if info["unexpected_keys"]
            else ""
        )
        raise UserError(
            f"model.name={model.name}: its files lack {len(missing):,} of the model's weights, which"
            f" would be made up: {listed(missing)}{other}; download it again"
        )


def _name_secrets(model: Any) -> None:
    """Where the path of the base has a secret in it, libraries write the variable's name into
    adapter_config.json, model cards and logs.
    """
    from peft import PeftModel

    base = model
    if isinstance(model, PeftModel):
        base = model.get_base_model()
        for adapter in model.peft_config.values():
            adapter.base_model_name_or_path = by_name(adapter.base_model_name_or_path)
    base.name_or_path, base.config.name_or_path = (
        by_name(base.name_or_path),
        by_name(base.config.name_or_path),
    )


def count_parameters(model: Any) -> tuple[int, int]:
    """(trainable, all) parameters. A 4-bit tensor holds two values a byte; its `quant_state` knows the real
    shape.
    """
    trainable = total = 0
    for parameter in model.parameters():
        count = (
            parameter.quant_state.shape.numel()
            if type(parameter).__name__ == "Params4bit"
            else parameter.numel()
        )
        total += count
        trainable += count if parameter.requires_grad else 0
    return trainable, total
