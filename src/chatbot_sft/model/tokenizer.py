"""The tokenizer of a base: for the data gate from its files alone, for training as transformers loads it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatbot_sft import text_files
from chatbot_sft.config import Config
from chatbot_sft.data.template import NO_TEMPLATE, Backend, ChatTokenizer, compile_template, copied
from chatbot_sft.errors import UserError, from_here
from chatbot_sft.logs import quiet
from chatbot_sft.model import embedded
from chatbot_sft.model.hub import folder_of, is_local, readable_errors
from chatbot_sft.model.tokens import add_tokens
from chatbot_sft.model_files import read_json, read_text

if TYPE_CHECKING:
    from chatbot_sft.warm import Loan

log = logging.getLogger(__name__)


def chat_template(settings: Config) -> str | None:
    """The text of `model.chat_template`; None where the tokenizer's own is used.

    Raises:
        UserError: no such file, or one that is not Jinja.
    """
    given = settings.model.chat_template
    if given is None:
        return None
    file, where = Path(given).expanduser(), f"model.chat_template={given}"
    if not file.exists():
        raise UserError(f"{where}: no such file{from_here(file)}")
    # A byte order mark would stand at the head of every prompt.
    source = read_text(file, where).removeprefix(text_files.MARK)
    compile_template(source)
    return source


def chat_tokenizer(settings: Config, loan: Loan | None = None) -> ChatTokenizer | None:
    """The base's tokenizer and template: no engine, no torch, and of a hub model nothing but these files. None
    where it has no tokenizer.json, which only transformers can make up for. What another run has read is taken,
    where `loan` has it.

    Raises:
        UserError: it cannot be had, or has no chat template.
    """
    name, revision, new = settings.model.name, settings.model.revision, settings.model.new_tokens or ()
    source = embedded.resolve(name)
    folder = folder_of(source, revision)
    kwargs, template = settings.dataset.chat_template_kwargs, chat_template(settings)

    def read() -> Backend | None:
        return Backend.from_folder(folder, name, new)

    backend = loan.read(settings, "backend", folder, read) if loan else read()
    tokenizer = ChatTokenizer.from_folder(folder, name, kwargs, new, template, backend)
    if tokenizer:
        _check_vocabulary(tokenizer, read_json(folder / "config.json", f"model.name={name}"), name)
    return tokenizer


def load_tokenizer(settings: Config, source: str, loan: Loan | None = None) -> Any:
    """The tokenizer in `source` as transformers loads it, with `model.new_tokens`, the same for both engines;
    after the engine was loaded. Of one that is there already, where `loan` has it, a copy.

    Raises:
        UserError: it cannot be loaded, has no chat template, or has one of the new tokens.
    """
    from transformers import AutoTokenizer

    model = settings.model

    def load() -> Any:
        with quiet(progress=not is_local(source)), readable_errors(model.name):
            return AutoTokenizer.from_pretrained(
                source, revision=model.revision, trust_remote_code=model.trust_remote_code
            )

    if loan:
        folder = folder_of(source, model.revision)
        tokenizer = _copy(loan.read(settings, "tokenizer", folder, load))
    else:
        tokenizer = load()
    if template := chat_template(settings):
        own = "the tokenizer's own" if tokenizer.chat_template else "none"
        log.info("chat template: %s, in place of %s", model.chat_template, own)
        tokenizer.chat_template = template
    if not tokenizer.chat_template:
        raise UserError(NO_TEMPLATE.format(name=model.name))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if model.new_tokens:
        add_tokens(tokenizer, model.new_tokens, model.name)
    return tokenizer


def _copy(tokenizer: Any) -> Any:
    """One that may be changed, all but the model in its backend."""
    backend = tokenizer.backend_tokenizer if tokenizer.is_fast else None
    copy = deepcopy(tokenizer, {id(backend): copied(backend)} if backend else {})
    if backend:
        copy.backend_tokenizer.encode_special_tokens = backend.encode_special_tokens  # it is written nowhere
    return copy


def _check_vocabulary(tokenizer: ChatTokenizer, config: Mapping[str, Any], name: str) -> None:
    """Raises UserError where a token of `tokenizer` has no row in the model's embeddings, or its end of
    sequence is none: it is another model's.

    Other added tokens are not judged: Gemma 3 1B has one for images beyond its rows.
    """
    rows = (config.get("text_config") or config).get("vocab_size")
    last = tokenizer.whole.last
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
                f" (vocab_size {rows}); mend it there"
            )
