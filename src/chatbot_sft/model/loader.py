"""ModelLoader: from a model name to the model that is trained and its tokenizer."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatbot_sft import text_files
from chatbot_sft.config import Config
from chatbot_sft.data.template import NO_TEMPLATE, ChatTokenizer, compile_template
from chatbot_sft.errors import UserError, listed
from chatbot_sft.logs import quiet
from chatbot_sft.model import embedded, hardware, memory
from chatbot_sft.model.adapter import add_adapter
from chatbot_sft.model.earlier import adopt, load_weights
from chatbot_sft.model.engine import Engine, load_engine
from chatbot_sft.model.hub import allow_network, is_local, readable_errors, tokenizer_folder
from chatbot_sft.model.tokens import add_tokens, extend_embeddings
from chatbot_sft.model_files import check_folder, read_json, read_text
from chatbot_sft.report.masking import by_name
from chatbot_sft.targets import locate

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)


class ModelLoader:
    """Loads what `config.model` names and puts `config.lora` on it.

    After `load_and_configure`, `engine` is the engine that was used and `source` the folder or hub id the
    weights came from.
    """

    def __init__(self, config: Mapping[str, Any] | Config) -> None:
        self.settings = adopt(config)
        self.config = self.settings.to_dict()
        self.engine: Engine | None = None
        self.source = ""

    def check(self) -> None:
        """What can be said of the model without loading anything.

        Raises:
            UserError: a folder that holds no model, or not a whole one; 4-bit without bitsandbytes; loftq
                without a GPU; a chat template that is none.
        """
        model = self.settings.model
        if model.load_in_4bit and importlib.util.find_spec("bitsandbytes") is None:
            raise UserError(
                "model.load_in_4bit=true needs bitsandbytes: `pip install bitsandbytes`, or set"
                " model.load_in_4bit=false"
            )
        if (
            self.settings.lora.init_lora_weights == "loftq"
            and not self.settings.full_finetuning
            and not hardware.gpus()
        ):
            raise UserError(
                "lora.init_lora_weights=loftq: PEFT computes it on a GPU, and there is none here; pissa and"
                " olora need none"
            )
        self.chat_template()
        if is_local(model.name) or Path(model.name).expanduser().is_file():
            check_folder(model.name, model.trust_remote_code)

    def chat_template(self) -> str | None:
        """The text of `model.chat_template`; None where the tokenizer's own is used.

        Raises:
            UserError: no such file, or one that is not Jinja.
        """
        if self.settings.model.chat_template is None:
            return None
        file, where = (
            Path(self.settings.model.chat_template).expanduser(),
            f"model.chat_template={self.settings.model.chat_template}",
        )
        if not file.exists():
            raise UserError(f"{where}: no such file")
        source = read_text(file, where).removeprefix(
            text_files.MARK
        )  # it would stand at the head of every prompt
        compile_template(source)
        return source

    def load_and_configure(self) -> tuple[Any, Any]:
        """(model, tokenizer): the adapter in place, the chat template checked.

        Raises:
            UserError: what `check` finds, a hub id that cannot be had, or a tokenizer without a chat
                template.
        """
        self.check()
        engine = self.load_engine()
        tokenizer = self.load_tokenizer()
        dtype = weights_dtype(self.settings)
        with quiet(progress=not is_local(self.source)), readable_errors(self.settings.model.name):
            self._check_names_of_weights()
            model = engine.load(self.source, self.settings, dtype)
            new = self.settings.model.new_tokens
            extra = {"new_token_ids": extend_embeddings(model, tokenizer, new)} if new else {}
            model = locate("lora", self.settings.lora._target_, add_adapter)(
                model, self.settings, engine, **extra
            )
            if self.settings.model.adapter:
                load_weights(
                    model, Path(self.settings.model.adapter), f"model.adapter={self.settings.model.adapter}"
                )
        model.config.pad_token_id = tokenizer.pad_token_id
        _name_secrets(model)
        trainable, total = count_parameters(model)
        if self.settings.model.adapter:
            lora = self.settings.lora
            log.info(
                "adapter: goes on from %s, which decides lora.* (r=%d, alpha=%d)",
                self.settings.model.adapter,
                lora.r,
                lora.lora_alpha,
            )
        log.info(
            "model: %s, %.0fM parameters, %.2fM trained (%.2f%%), %s",
            self.settings.model.name, total / 1e6, trainable / 1e6, 100 * trainable / total,
            "4-bit" if self.settings.model.load_in_4bit else str(dtype).removeprefix("torch."),
        )  # fmt: skip
        return model, tokenizer

    def _check_names_of_weights(self) -> None:
        """Hold the names and shapes in the weights files against the architecture's, without reading a
        weight.

        transformers makes up what is missing, with a warning as the only word. Weights that are stored in 4
        or 8 bits have names of their own.

        Raises:
            UserError: the files do not have all of the model.
        """
        from transformers import AutoConfig, AutoModelForCausalLM

        model = self.settings.model
        given = {"revision": model.revision, "trust_remote_code": model.trust_remote_code}
        if "quantization_config" in AutoConfig.from_pretrained(self.source, **given).to_dict():
            return
        try:
            _, found = AutoModelForCausalLM.from_pretrained(
                self.source,
                device_map={"": "meta"},
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **given,
            )
        except (RuntimeError, ValueError, KeyError) as error:
            raise UserError(
                f"model.name={model.name}: cannot be loaded: {' '.join(str(error).split())[:400]}"
            ) from error
        for name, stored, wanted in sorted(found["mismatched_keys"]):
            raise UserError(
                f"model.name={model.name}: {name} has the shape {tuple(stored)}, config.json makes it"
                f" {tuple(wanted)}"
            )
        missing = sorted(found["missing_keys"])
        if missing:
            other = (
                f"; it has {min(found['unexpected_keys'])}, which the model does not know"
                if found["unexpected_keys"]
                else ""
            )
            raise UserError(
                f"model.name={model.name}: its files lack {len(missing):,} of the model's weights, which"
                f" would be made up: {listed(missing)}{other}"
            )

    def load_engine(self) -> Engine:
        """Import the engine (seconds), once."""
        if self.engine is None:
            self.source = embedded.resolve(self.settings.model.name)
            if is_local(self.source):
                self.source = str(
                    Path(self.source).expanduser().resolve()
                )  # it is written into adapter_config.json
            allow_network(not is_local(self.source))
            self.engine, choice = load_engine(self.settings.model.engine)
            log.info("engine: %s (%s)", choice.name, choice.reason)
        return self.engine

    def chat_tokenizer(self) -> ChatTokenizer:
        """The base's tokenizer and template for the data gate: no engine, no torch, and of a hub model
        nothing but these files.

        Raises:
            UserError: it cannot be had, or has no chat template.
        """
        name, kwargs, new = (
            self.settings.model.name,
            self.settings.dataset.chat_template_kwargs,
            self.settings.model.new_tokens or (),
        )
        source = embedded.resolve(name)
        folder = (
            Path(source).expanduser()
            if is_local(source)
            else tokenizer_folder(source, self.settings.model.revision)
        )
        found = ChatTokenizer.from_folder(folder, name, kwargs, new, self.chat_template())
        if found:
            _check_vocabulary(found, read_json(folder / "config.json", f"model.name={name}"), name)
        return found or ChatTokenizer.from_transformers(self.load_tokenizer(), name, kwargs, new)

    def load_tokenizer(self) -> Any:
        """The tokenizer of the base with `model.new_tokens`, the same for both engines.

        Raises:
            UserError: it cannot be loaded, has no chat template, or has one of the new tokens.
        """
        self.load_engine()
        from transformers import AutoTokenizer

        with quiet(progress=not is_local(self.source)), readable_errors(self.settings.model.name):
            tokenizer = AutoTokenizer.from_pretrained(
                self.source,
                revision=self.settings.model.revision,
                trust_remote_code=self.settings.model.trust_remote_code,
            )
        if template := self.chat_template():
            log.info(
                "chat template: %s, in place of %s",
                self.settings.model.chat_template,
                "the tokenizer's own" if tokenizer.chat_template else "none",
            )
            tokenizer.chat_template = template
        if not tokenizer.chat_template:
            raise UserError(NO_TEMPLATE.format(name=self.settings.model.name))
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        if self.settings.model.new_tokens:
            add_tokens(tokenizer, self.settings.model.new_tokens, self.settings.model.name)
        return tokenizer

    @staticmethod
    def show_memory_stats(start_memory: float | None = None) -> dict[str, Any]:
        """Memory now and at its peak, in GB; with `start_memory` also what training added. Prints nothing:
        see `print_memory_stats`.
        """
        return memory.measure(start_memory).as_dict()

    @staticmethod
    def print_memory_stats(stats: Mapping[str, Any]) -> None:
        """One line a figure of what `show_memory_stats` returned."""
        print(f"device            {stats['device']} ({stats['total_memory_gb']:.1f} GB)")
        print(f"memory now        {stats['current_memory_gb']:.2f} GB")
        print(f"memory at peak    {stats['peak_memory_gb']:.2f} GB")
        if "training_memory_gb" in stats:
            print(
                f"added by training {stats['training_memory_gb']:.2f} GB (peak: {stats['peak_percent']:.1f}%"
                " of the device)"
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


def _check_vocabulary(tokenizer: ChatTokenizer, config: Mapping[str, Any], name: str) -> None:
    """Raises UserError where a token of `tokenizer` has no row in the model's embeddings, or its end of
    sequence is none: it is another model's.

    Other added tokens are not judged: Gemma 3 1B has one for images beyond its rows.
    """
    rows = (config.get("text_config") or config).get("vocab_size")
    last = max(tokenizer.backend.get_vocab(with_added_tokens=False).values(), default=0)
    if rows is not None and last >= rows:
        raise UserError(
            f"model.name={name}: its tokenizer has token {last}, config.json a vocab_size of {rows}; they are"
            " not of one model"
        )
    eos = tokenizer.template.tokens.get("eos_token")
    number = tokenizer.backend.token_to_id(eos) if eos else None
    if eos and (number is None or (rows is not None and number >= rows)):
        why = (
            "not a token of tokenizer.json"
            if number is None
            else f"token {number}, and config.json has a vocab_size of {rows}"
        )
        raise UserError(
            f"model.name={name}: tokenizer_config.json: eos_token {eos} is {why}; name a token that the model"
            " knows"
        )
    for stop in tokenizer.stop_ids:
        if type(stop) is not int or stop < 0 or (rows is not None and stop >= rows):
            raise UserError(
                f"model.name={name}: generation_config.json: eos_token_id {stop!r} is no token of the model"
                f" (vocab_size {rows})"
            )


def weights_dtype(settings: Config) -> torch.dtype:
    """The dtype the weights are loaded in. Unset: bfloat16 on a GPU that has it (else float16), float32 on a
    CPU.
    """
    import torch

    if settings.model.dtype is not None:
        return getattr(torch, settings.model.dtype)
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.float32


def autocast_dtype(settings: Config) -> str | None:
    """The dtype matrix products run in: "bf16", "fp16", or None for the weights' own float32.

    On a CPU with bfloat16 units the products are cast unless `model.dtype=float32` asks for float32
    throughout.
    """
    import torch

    if settings.model.dtype is None and not torch.cuda.is_available():
        return "bf16" if hardware.cpu_bfloat16() else None
    return {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(weights_dtype(settings))


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
