"""DatasetLoader, the seed's class and the `_target_` of `dataset`: `prepare` by the seed's names, with a place
for a text function of the user's own.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from chatbot_sft.config import Config
from chatbot_sft.data.messages import Message
from chatbot_sft.data.prepare import PreparedData, not_prepared, prepare
from chatbot_sft.data.preview import PreviewRow
from chatbot_sft.data.template import ChatTokenizer
from chatbot_sft.data.user_text import UserText
from chatbot_sft.errors import UserError
from chatbot_sft.run.report import DatasetStatistics

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)


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
                "DatasetLoader needs a tokenizer to prepare the dataset: DatasetLoader(config, tokenizer)"
            )
        if self._chat is None or self._chat[0] is not self.tokenizer:
            model, kwargs = self.settings.model, self.settings.dataset.chat_template_kwargs
            chat = ChatTokenizer.from_transformers(self.tokenizer, model.name, kwargs, model.new_tokens or ())
            self._chat = (self.tokenizer, chat)
        return self._chat[1]
