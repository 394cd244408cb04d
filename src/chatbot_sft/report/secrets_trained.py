"""Secrets of the environment that would become a part of the model."""

from __future__ import annotations

import logging

from chatbot_sft.config import Config
from chatbot_sft.errors import UserError, listed
from chatbot_sft.report.masking import by_name

log = logging.getLogger(__name__)


def check_secrets(settings: Config) -> None:
    """Say that a secret in the system prompt is trained into the model.

    Raises:
        UserError: one in a new token, whose text would be in the tokenizer of every checkpoint and export.
    """
    if by_name(settings.model.new_tokens) != settings.model.new_tokens:
        raise UserError(
            f"model.new_tokens: {listed(by_name(settings.model.new_tokens))}: a token's text is in every file"
            " of the model; name another"
        )
    if by_name(settings.dataset.system_prompt) != settings.dataset.system_prompt:
        log.warning(
            "dataset.system_prompt: the secret in it is trained into the model, and stands in no file; an"
            " export's chat asks without it"
        )
