"""ModelLoader, the seed's class and the `_target_` of `model`: the order in which a base is loaded and an adapter
attached.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chatbot_sft.config import Config
from chatbot_sft.data.template import ChatTokenizer
from chatbot_sft.model import embedded, memory
from chatbot_sft.model import tokenizer as tokenizers
from chatbot_sft.model.earlier import adopt
from chatbot_sft.model.engine import Engine, load_engine
from chatbot_sft.model.hub import is_local
from chatbot_sft.model.load import Base, Trainable, attach, check, load_base
from chatbot_sft.network import allow_network

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
        """What can be said of the model without loading anything, see `load.check`."""
        check(self.settings)

    def load_and_configure(self) -> tuple[Any, Any]:
        """(model, tokenizer): the adapter in place, the chat template checked.

        Raises:
            UserError: what `check` finds, a hub id that cannot be had, or a tokenizer without a chat
                template.
        """
        trainable = attach(self.load_base(), self.settings)
        return trainable.model, trainable.tokenizer

    def load_base(self) -> Base:
        """The first half of `load_and_configure`."""
        self.check()
        engine = self.load_engine()
        return load_base(self.settings, self.source, engine, self.load_tokenizer())

    def load(self) -> Trainable:
        """`load_and_configure` as a value."""
        model, tokenizer = self.load_and_configure()
        return Trainable(self.load_engine(), model, tokenizer)

    def load_engine(self) -> Engine:
        """Import the engine (seconds), once."""
        if self.engine is None:
            self.source = embedded.resolve(self.settings.model.name)
            if is_local(self.source):  # it is written into adapter_config.json
                self.source = str(Path(self.source).expanduser().resolve())
            allow_network(not is_local(self.source))
            self.engine, choice = load_engine(self.settings.model.engine)
            log.info("engine: %s (%s)", choice.name, choice.reason)
        return self.engine

    def chat_tokenizer(self) -> ChatTokenizer:
        """The base's tokenizer and template for the data gate, by its files alone where they say all of it.

        Raises:
            UserError: it cannot be had, or has no chat template.
        """
        if chat := tokenizers.chat_tokenizer(self.settings):
            return chat
        model, kwargs = self.settings.model, self.settings.dataset.chat_template_kwargs
        return ChatTokenizer.from_transformers(
            self.load_tokenizer(), model.name, kwargs, model.new_tokens or ()
        )

    def load_tokenizer(self) -> Any:
        """The tokenizer as transformers loads it, see `tokenizer.load_tokenizer`."""
        self.load_engine()
        return tokenizers.load_tokenizer(self.settings, self.source)

    def chat_template(self) -> str | None:
        """The text of `model.chat_template`; None where the tokenizer's own is used."""
        return tokenizers.chat_template(self.settings)

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
