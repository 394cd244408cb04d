"""The seed's Python API, by the seed's names; `_target_` in conf/ names the same classes, each by its room
(chatbot_sft.data.DatasetLoader …), and a user's own are subclasses of them.

Each is a façade: what it does is done by the rooms, in values that can be had without it (`PreparedData`,
`Base`, `Trainable`, `Outcome`, `SaveResult`). A pipeline calls one method of each, which goes by way of the
seed's methods, so that whatever of them a subclass overrides counts in a run as well: `DatasetLoader.prepare`
and `prepare_for`, `ModelLoader.load`, a `Session`'s own, `ModelSaver.save`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatbot_sft.config import Config, ConfigLoader
from chatbot_sft.data.messages import Message
from chatbot_sft.data.prepare import PreparedData, not_prepared, prepare
from chatbot_sft.data.preview import PreviewRow
from chatbot_sft.data.template import ChatTokenizer
from chatbot_sft.data.user_text import UserText
from chatbot_sft.errors import UserError
from chatbot_sft.model import embedded, memory
from chatbot_sft.model import tokenizer as tokenizers
from chatbot_sft.model.earlier import adopt
from chatbot_sft.model.engine import Engine, engine_of
from chatbot_sft.model.hub import is_local
from chatbot_sft.model.load import Base, Trainable, attach, check, load_base
from chatbot_sft.network import allow_network
from chatbot_sft.run.report import DatasetStatistics, SaveResult
from chatbot_sft.save import ModelSaver
from chatbot_sft.save.verify.evidence import gather
from chatbot_sft.targets import locate
from chatbot_sft.train.monitor import TrainingMonitor
from chatbot_sft.train.session import Session

if TYPE_CHECKING:
    from datasets import Dataset

    from chatbot_sft.warm import Loan

log = logging.getLogger(__name__)

__all__ = [
    "ConfigLoader",
    "DatasetLoader",
    "ModelLoader",
    "ModelSaver",
    "SFTTrainerWrapper",
    "TrainingMonitor",
    "UserError",
]


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
        self.loan: Loan | None = None  # where the jobs of a process share what they read

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
        engine = self.load_engine()  # which says what the source is
        return load_base(self.settings, self.source, engine, self.load_tokenizer(), self.loan)

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
            self.engine, choice = engine_of(self.settings)
            log.info("engine: %s (%s)", choice.name, choice.reason)
        return self.engine

    def chat_tokenizer(self) -> ChatTokenizer:
        """The base's tokenizer and template for the data gate, by its files alone where they say all of it.

        Raises:
            UserError: it cannot be had, or has no chat template.
        """
        if chat := tokenizers.chat_tokenizer(self.settings, self.loan):
            return chat
        model, kwargs = self.settings.model, self.settings.dataset.chat_template_kwargs
        return ChatTokenizer.from_transformers(
            self.load_tokenizer(), model.name, kwargs, model.new_tokens or ()
        )

    def load_tokenizer(self) -> Any:
        """The tokenizer as transformers loads it, see `tokenizer.load_tokenizer`."""
        self.load_engine()
        return tokenizers.load_tokenizer(self.settings, self.source, self.loan)

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


class DatasetLoader:
    """Prepares the dataset that `config` names for `tokenizer`.

    Override `formatting_prompts_func` to write the text yourself; labels are then found from the messages
    where the text is the template's own rendering of them, else by the chat template's turn markers. After
    `prepare_dataset`, `eval_dataset` holds the held-out rows (None without any), `statistics` the counts and
    `report` all that the gate found; `prepared` is all of it as one value.
    """

    def __init__(self, config: Mapping[str, Any] | Config, tokenizer: Any = None) -> None:
        self.settings = Config.from_mapping(config)
        self.config = self.settings.to_dict()
        self.tokenizer = tokenizer
        self.eval_dataset: Dataset | None = None
        self.prepared: PreparedData | None = None
        self._chat: tuple[Any, ChatTokenizer] | None = None  # of which tokenizer, and what it is for the gate

    @property
    def writes_its_own_text(self) -> bool:
        """Whether a subclass has its own `formatting_prompts_func`; it then needs the transformers tokenizer."""
        return type(self).formatting_prompts_func is not DatasetLoader.formatting_prompts_func

    @property
    def statistics(self) -> DatasetStatistics:
        return self.prepared.statistics if self.prepared else not_prepared(self.settings)

    @property
    def report(self) -> dict[str, Any]:
        return self.prepared.findings if self.prepared else {}

    def formatting_prompts_func(self, examples: Mapping[str, Sequence[Any]]) -> dict[str, list[str]]:
        """`{"text": [...]}` for a batch of columns; here the chat template over the message column."""
        template = self._chat_tokenizer().template
        return {
            "text": [template.render(messages) for messages in examples[self.settings.dataset.message_field]]
        }

    def prepare(self, tokenizer: ChatTokenizer | None = None) -> PreparedData:
        """The data as a value, refused or not; made once, and again only for another tokenizer.

        `tokenizer` serves where no transformers tokenizer has been given yet.

        Raises:
            UserError: a file that cannot be read.
        """
        user_text = None
        if self.writes_its_own_text:
            name = f"{type(self).__name__}.formatting_prompts_func"
            user_text = UserText(self.formatting_prompts_func, name)
        self.prepared = prepare(
            self.settings, tokenizer or self._chat_tokenizer(), user_text, before=self.prepared
        )
        return self.prepared

    def check(self, tokenizer: ChatTokenizer | None = None) -> dict[str, Any]:
        """`prepare`, and what the gate found; `report` keeps it.

        Raises:
            UserError: a file that cannot be read, or `gate.BadData` where `dataset.on_bad_row` does not allow
                to go on.
        """
        return self.prepare(tokenizer).refuse_bad().findings

    def prepare_dataset(self) -> Dataset:
        """The training rows as a `datasets.Dataset`, see `PreparedData.training`.

        Raises:
            UserError: see `check`.
        """
        prepared = self.prepare(self._chat_tokenizer()).refuse_bad()
        log.info("data: %s", prepared)
        self.eval_dataset = prepared.held_out
        return prepared.training

    def prepare_for(self, tokenizer: Any) -> PreparedData:
        """What is trained with `tokenizer`, which transformers has loaded: `prepare_dataset` as a value.

        Raises:
            UserError: see `check`.
        """
        self.tokenizer = tokenizer
        training = self.prepare_dataset()
        return self.prepare(self._chat_tokenizer()).with_rows(training, self.eval_dataset)

    def sample_prompts(self) -> list[list[Message]]:
        """See `PreparedData.sample_prompts`."""
        return (self.prepared or self.prepare()).sample_prompts()

    def preview_rows(self) -> list[PreviewRow]:
        """See `PreparedData.preview_rows`."""
        return (self.prepared or self.prepare()).preview_rows()

    def _chat_tokenizer(self) -> ChatTokenizer:
        if self.tokenizer is None:
            raise UserError(
                "DatasetLoader: needs a tokenizer to prepare the dataset; make it as DatasetLoader(config, tokenizer)"
            )
        if self._chat is None or self._chat[0] is not self.tokenizer:
            model, kwargs = self.settings.model, self.settings.dataset.chat_template_kwargs
            chat = ChatTokenizer.from_transformers(self.tokenizer, model.name, kwargs, model.new_tokens or ())
            self._chat = (self.tokenizer, chat)
        return self._chat[1]


class SFTTrainerWrapper(Session):
    """A `Session` by the seed's names, which also saves what it has trained.

    `create_trainer` alone trains on every token; `enable_response_only_training` puts the loss where the
    labels of `dataset` are, and so does `setup_and_train`. `trainer` is TRL's trainer.
    """

    def setup_and_train(self) -> Any:
        """`create_trainer`, `enable_response_only_training`, `train`."""
        self.setup()
        return self.train()

    def save_model(self, save_config: Mapping[str, Any] | None = None) -> SaveResult:
        """Save what was trained as `config.save` says, or `save_config` (keys of that section), and print
        where.
        """
        result = self.saver().save(save_config)
        for export in result.exports:
            print(
                f"saved {export.method}{', verified' if export.verified else ''}:"
                f" {Path(export.path).absolute()}"
            )
        return result

    def saver(self) -> ModelSaver:
        """The saver of this model, with conversations of its data to hold exports against."""
        evidence = gather(self.dataset, self.eval_dataset, self.tokenizer)
        saver = locate("save", self.settings.save._target_, self.settings.allow_targets)
        return saver(self.settings, self.model, self.tokenizer, evidence)
