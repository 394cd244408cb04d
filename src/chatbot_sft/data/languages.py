"""Answers in another language than their question, by py3langid."""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Callable, Sequence

from chatbot_sft.data.messages import Message
from chatbot_sft.data.plain import spoken, without_code
from chatbot_sft.errors import UserError
from chatbot_sft.extras import install

LETTERS = 40  # of a question and of an answer; the language of less is guessed
CERTAIN = 0.9  # how probable both languages are
READ = 400  # characters of each text: more make it no surer
# A question that names a language may ask for another one, or for a text about it.
NAMED = re.compile(
    r"translat|\bdịch\b|\btiếng (?!nói|ồn|động|tăm|vang|kêu)\w+|übersetz|tradui|traduc|перев|翻译|翻訳"
    r"|\b(?:english|vietnamese|french|german|spanish|chinese|japanese|korean|italian|portuguese|russian)\b",
    re.IGNORECASE,
)
Classify = Callable[[str], tuple[str, float]]


def available() -> bool:
    """Whether py3langid is installed; without loading its model, which takes a second."""
    return importlib.util.find_spec("py3langid") is not None


def other_language(messages: Sequence[Message]) -> tuple[str, str] | None:
    """(the question's, the answer's) of the first answer of a row that is in another language.

    Raises:
        UserError: py3langid is not installed.
    """
    question = ""
    for message in messages:
        text = _readable(spoken(message))
        if message["role"] == "user":
            question = text
        elif message["role"] == "assistant" and _enough(question) and _enough(text):
            asked, answered = _language(question), _language(text)
            if asked and answered and asked != answered and not NAMED.search(question):
                return asked, answered
    return None


def _readable(text: str) -> str:
    return without_code(text[: 8 * READ])[:READ]


def _enough(text: str) -> bool:
    return len(text) >= LETTERS and sum(map(str.isalpha, text)) >= LETTERS


def _language(text: str) -> str | None:
    """Its code, None where that is not certain."""
    code, probability = _classifier()(text)
    return code if probability >= CERTAIN else None


@functools.cache
def _classifier() -> Classify:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise UserError(f"dataset.on_language_mismatch needs py3langid: {install('data')}") from None
    classify: Classify = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True).classify
    return classify
