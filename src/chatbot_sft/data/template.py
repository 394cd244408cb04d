"""A model's tokenizer and chat template without transformers: `tokenizers` and `jinja2` import no torch."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatbot_sft.config.schema import ROLES
from chatbot_sft.data.messages import THOUGHTS, BadRow, Message
from chatbot_sft.data.rendering import (
    BYTES,
    LONGEST,
    SECONDS,
    OutOfBounds,
    bounded,
    refuse_precision,
    refuse_product,
)
from chatbot_sft.errors import UserError, did_you_mean, reason
from chatbot_sft.model_files import read_json, read_text

if TYPE_CHECKING:
    import jinja2
    from tokenizers import AddedToken, Tokenizer

PROBE = "\ue000probe\ue001"  # stands for a text, to see whether a template writes it
NO_TEMPLATE = (
    "model.name={name}: its tokenizer has no chat template, as base models have none; name an instruct model,"
    " or give one with model.chat_template=FILE, a Jinja file"
)
UNUSABLE = "name another with model.chat_template"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)

NAMED_TEMPLATES = "additional_chat_templates"  # the folder of those beside chat_template.jinja

_date: ContextVar[datetime | None] = ContextVar("date", default=None)


def render_as_of(date: datetime) -> None:
    """From now on templates write `date` for today: that of a run's first start, for one resumed next day."""
    _date.set(date)


def kept() -> Callable[[], None]:
    """The date that templates write now; returns what makes it so again."""
    date = _date.get()

    def again() -> None:
        _date.set(date)

    return again


def today() -> datetime:
    """What templates write for today."""
    return _date.get() or datetime.now()


def strftime_now(form: str) -> str:
    """The template function of that name."""
    return today().strftime(form)


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja chat template with what transformers gives it: the special tokens and `chat_template_kwargs`."""

    source: str
    tokens: Mapping[str, str] = field(default_factory=dict)  # bos_token, eos_token, …
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    control: tuple[str, ...] = ()  # the tokenizer's special tokens
    # The template named tool_use, where there are several: transformers takes it for rows with tools.
    tool_source: str | None = None

    @classmethod
    def of_transformers(cls, tokenizer: Any, kwargs: Mapping[str, Any]) -> ChatTemplate:
        """That of a tokenizer that transformers has loaded."""
        source, tokens = tokenizer.chat_template, tokenizer.special_tokens_map
        if not isinstance(source, dict):
            return cls(source, tokens, kwargs)
        return cls(source.get("default", ""), tokens, kwargs, tool_source=source.get("tool_use"))

    @functools.cached_property
    def control_pattern(self) -> re.Pattern[str] | None:
        """Matches any control token; None where the tokenizer has none."""
        longest_first = sorted(self.control, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    @functools.cached_property
    def _compiled(self) -> jinja2.Template:
        return compile_template(self.source)

    @functools.cached_property
    def _compiled_for_tools(self) -> jinja2.Template:
        return self._compiled if self.tool_source is None else compile_template(self.tool_source)

    def render(
        self, messages: Sequence[Message], add_generation_prompt: bool = False, tools: list[Any] | None = None
    ) -> str:
        """The text of `messages`.

        Raises:
            BadRow: the template refuses them, or fails on them.
            UserError: it takes too long, or too much memory.
        """
        given = {
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            **self.tokens,
            **self.kwargs,
        }
        try:
            with bounded():
                template = self._compiled if tools is None else self._compiled_for_tools
                text = template.render(messages=list(messages), **given)
        except (OutOfBounds, MemoryError) as error:
            raise UserError(
                f"the chat template takes over {_bound(error)} for one conversation; {UNUSABLE}"
            ) from None
        except Exception as error:  # templates raise through raise_exception, or fail in any way Python can
            raise BadRow("template refuses", f"the chat template refuses it: {reason(error)}") from None
        if len(text) > LONGEST:
            raise UserError(
                f"the chat template writes {len(text):,} characters for one conversation; {UNUSABLE}"
            )
        return text

    @functools.cached_property
    def thinking_field(self) -> str | None:
        """The message field this template reads an answer's reasoning from; None where it is in the text.

        It may be read before calls of tools alone. gpt-oss reads `thinking`, Qwen3 `reasoning_content`.
        """
        call = {"type": "function", "function": {"name": "f", "arguments": {}}}
        answers: list[Message] = [{"content": "!"}, {"content": "", "tool_calls": [call]}]
        names = [name for name in THOUGHTS if name in self.source]
        return next(
            (name for answer in answers for name in names if self._writes({**answer, name: PROBE})), None
        )

    @functools.cached_property
    def leaves_thoughts_out(self) -> bool:
        """Whether no thought of an answer is written, however it is given."""
        inline = {"content": f"<think>\n{PROBE}\n</think>\n\n!"}
        return self.thinking_field is None and not self._writes(inline)

    @functools.cached_property
    def opens_thought(self) -> bool:
        """Whether the prompt ends with <think>: the model is asked to go on inside a thought."""
        try:
            prompt = self.render([{"role": "user", "content": "?"}], add_generation_prompt=True)
            return prompt.rstrip().endswith("<think>")
        except BadRow:
            return False

    @functools.cached_property
    def writes_tools(self) -> bool:
        """Whether the definitions of a row's tools come into the prompt."""
        parameters = {"type": "object", "properties": {}, "required": []}
        return self._writes(
            {"content": "!"},
            [{"type": "function", "function": {"name": PROBE, "description": "?", "parameters": parameters}}],
        )

    def _writes(self, answer: Message, tools: list[Any] | None = None) -> bool:
        """Whether the text has the `PROBE` that stands in `answer` or `tools`."""
        try:
            turns = [{"role": "user", "content": "?"}, {"role": "assistant", **answer}]
            return PROBE in self.render(turns, False, tools)
        except BadRow:
            return False

    @functools.cached_property
    def names_of(self) -> frozenset[str]:
        """The roles of whose messages the `name` is written."""
        if "name" not in self.source + (self.tool_source or ""):
            return frozenset()
        return frozenset(role for role in ROLES if self._writes_name(role))

    def _writes_name(self, role: str) -> bool:
        """Whether a message of `role` is written with its `name`; True where the template refuses the question."""
        call = {"type": "function", "function": {"name": "f", "arguments": {}}}
        said: list[Message] = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
        if role == "system":
            said.insert(0, {"role": "system", "content": "!"})
        if role == "tool":
            said[1:1] = [
                {"role": "assistant", "content": "", "tool_calls": [call]},
                {"role": "tool", "content": "!"},
            ]
        named = [{**message, "name": PROBE} if message["role"] == role else message for message in said]
        tool = {
            "type": "function",
            "function": {
                "name": "f",
                "description": "?",
                "parameters": {"type": "object", "properties": {}, "required": []},
            },
        }
        try:
            return any(PROBE in self.render(named, False, tools) for tools in (None, [tool]))
        except BadRow:
            return True

    @property
    def dated(self) -> bool:
        """Whether the rendering depends on today's date, as Llama 3.2's does unless `date_string` is given."""
        return "strftime_now" in self.source and "date_string" not in self.kwargs


def check_kwargs(sources: Sequence[str], kwargs: Mapping[str, Any], name: str) -> None:
    """Refuse `dataset.chat_template_kwargs` that none of a model's templates reads.

    Raises:
        UserError: names the key, and the nearest name that a template reads; or a template is not Jinja.
    """
    import jinja2.meta

    trees = [compile_template(source).environment.parse(source) for source in sources]
    read = {variable for tree in trees for variable in jinja2.meta.find_undeclared_variables(tree)}
    for key in kwargs:
        if key not in read:
            hint = did_you_mean(str(key), read)
            raise UserError(
                f"dataset.chat_template_kwargs.{key}: the chat template of {name} never reads it{hint};"
                " leave it out"
            )


@functools.cache
def compile_template(source: str) -> jinja2.Template:
    """Compiled as transformers does it (`chat_template_utils.py`): sandboxed, the same filters and globals.

    Raises:
        UserError: a syntax error.
    """
    import jinja2
    import jinja2.ext
    import jinja2.filters
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Sandbox(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset({"*", "**"})

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            refuse_product(operator, left, right)
            return super().call_binop(context, operator, left, right)

    class Generation(jinja2.ext.Extension):
        """`{% generation %}` marks answers for TRL; here it only passes its body on."""

        tags = {"generation"}  # noqa: RUF012 (jinja2 declares it as an instance's)

        def parse(self, parser: Any) -> list[Any]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: Any = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    def rounded(value: Any, precision: int = 0, method: Any = "common") -> Any:
        refuse_precision(precision)
        return jinja2.filters.do_round(value, precision, method)

    environment = Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters |= {"tojson": tojson, "round": rounded}
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    try:
        with bounded():  # what is constant in it is evaluated now
            return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(
            f"the chat template is not Jinja: {error.message}; mend its line {error.lineno}"
        ) from None
    except OutOfBounds as error:
        raise UserError(f"the chat template takes over {_bound(error)} to compile; {UNUSABLE}") from None
    except (RecursionError, MemoryError, OverflowError):
        raise UserError("model.chat_template: nested too deeply, or too large; name another") from None


def _bound(error: BaseException) -> str:
    """Which one ended it."""
    return f"{SECONDS:.0f} seconds" if isinstance(error, OutOfBounds) else f"{BYTES >> 30} GB of memory"


@dataclass(repr=False, eq=False)
class Backend:
    """A tokenizer of the library `tokenizers` that nothing changes any more, and what every run asks of all of it:
    runs may share one.
    """

    tokenizer: Tokenizer

    @classmethod
    def from_folder(cls, folder: Path, name: str, new_tokens: Sequence[str] = ()) -> Backend | None:
        """From a model folder, `new_tokens` added; None where it has no tokenizer.json.

        Raises:
            UserError: that file is no tokenizer; a new token that is there already.
        """
        from tokenizers import Tokenizer

        where, file = f"model.name={name}", folder / "tokenizer.json"
        if not file.exists():
            return None
        read_json(file, where)
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the tokenizers library raises no other type
            raise UserError(
                f"{where}: tokenizer.json is no tokenizer ({reason(error)}); download it again"
            ) from None
        tokenizer.add_special_tokens(added_tokens(new_tokens, tokenizer, name))
        return cls.plain(tokenizer)

    @classmethod
    def plain(cls, tokenizer: Tokenizer) -> Backend:
        """Of `tokenizer`, which is changed."""
        tokenizer.no_truncation()
        tokenizer.no_padding()
        # Templates write their own special tokens; and some post-processors trim the offsets.
        tokenizer.post_processor = None
        return cls(tokenizer)

    @functools.cached_property
    def digest(self) -> Any:
        """SHA-256 of all of it, to be copied and gone on with."""
        return hashlib.sha256(self.tokenizer.to_str().encode())

    @functools.cached_property
    def last(self) -> int:
        """The highest id, but for added tokens."""
        return max(self.tokenizer.get_vocab(with_added_tokens=False).values(), default=0)


@dataclass(repr=False)
class ChatTokenizer:
    """Text to ids and messages to text, for one model."""

    whole: Backend
    template: ChatTemplate
    # What generation stops at: eos of the tokenizer and of generation_config.json.
    stop_ids: frozenset[int] = frozenset()
    new_tokens: tuple[str, ...] = ()  # model.new_tokens: special tokens that conversations do contain

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        name: str,
        kwargs: Mapping[str, Any],
        new_tokens: Sequence[str] = (),
        template: str | None = None,
        backend: Backend | None = None,
    ) -> ChatTokenizer | None:
        """From a model folder, `new_tokens` added; None where it has no tokenizer.json.

        `template`, where it is given, takes the place of the folder's own; `backend` is the folder's, where that
        has been read.

        Raises:
            UserError: a file that is not what its name says; no chat template, or one that is not Jinja; a
                new token that is there already.
        """
        where = f"model.name={name}"
        backend = backend or Backend.from_folder(folder, name, new_tokens)
        if backend is None:
            return None
        config = read_json(folder / "tokenizer_config.json", where)
        tokens = _special_tokens({**read_json(folder / "special_tokens_map.json", where), **config})
        named = {file.stem: file for file in sorted(folder.glob(f"{NAMED_TEMPLATES}/*.jinja"))}
        files = {"default": folder / "chat_template.jinja", **named}
        source = (
            template
            or {key: read_text(file, where) for key, file in files.items() if file.exists()}
            or config.get("chat_template")
        )
        ends = read_json(folder / "generation_config.json", where).get("eos_token_id")
        return cls._built(backend, source, tokens, ends, name, kwargs, new_tokens)

    @classmethod
    def from_transformers(
        cls, tokenizer: Any, name: str, kwargs: Mapping[str, Any], new_tokens: Sequence[str] = ()
    ) -> ChatTokenizer:
        """From a fast tokenizer that transformers has loaded, with the `new_tokens` in it.

        Raises:
            UserError: a slow tokenizer, or one without a chat template.
        """
        if not tokenizer.is_fast:
            raise UserError(
                f"model.name={name}: its tokenizer is a slow one, without character offsets;"
                " labels need a fast tokenizer (tokenizer.json)"
            )
        special = tokenizer.special_tokens_map.items()
        tokens = _special_tokens(
            {key: str(value) for key, value in special if not isinstance(value, (list, dict))}
        )
        own = Backend.plain(copied(tokenizer.backend_tokenizer))  # the user's stays as it is
        return cls._built(own, tokenizer.chat_template, tokens, None, name, kwargs, new_tokens)

    @classmethod
    def _built(
        cls,
        whole: Backend,
        source: Any,
        tokens: dict[str, str],
        ends: Any,
        name: str,
        kwargs: Mapping[str, Any],
        new_tokens: Sequence[str],
    ) -> ChatTokenizer:
        tool_source = None
        if isinstance(source, list):  # several named templates
            source = {
                entry["name"]: entry["template"]
                for entry in source
                if isinstance(entry, dict) and {"name", "template"} <= set(entry)
            }
        if isinstance(source, dict):
            source, tool_source = source.get("default"), source.get("tool_use")
        if not source:
            raise UserError(NO_TEMPLATE.format(name=name))
        if not isinstance(source, str):
            raise UserError(f"model.name={name}: its chat template is {source!r}, expected text")
        backend = whole.tokenizer
        eos = backend.token_to_id(tokens["eos_token"]) if "eos_token" in tokens else None
        stops = {eos, *(ends if isinstance(ends, list) else [ends])} - {None}
        check_kwargs([template for template in (source, tool_source) if template], kwargs, name)
        added = backend.get_added_tokens_decoder().values()
        control = tuple(token.content for token in added if token.special)
        return cls(
            whole,
            ChatTemplate(source, tokens, dict(kwargs), control, tool_source),
            frozenset(stops),
            tuple(new_tokens),
        )

    @property
    def backend(self) -> Tokenizer:
        return self.whole.tokenizer

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides which ids a conversation gets, today's date too where it does."""
        template = self.template
        day = strftime_now("%Y-%m-%d") if template.dated else ""
        parts = [
            "",
            template.source,
            json.dumps([dict(template.tokens), dict(template.kwargs)], sort_keys=True, default=str),
            day,
        ]
        parts += [*self.new_tokens, *filter(None, [template.tool_source])]
        digest = self.whole.digest.copy()
        digest.update("\0".join(parts).encode())
        return digest.hexdigest()

    @functools.cached_property
    def special_tokens(self) -> dict[str, int]:
        """Control tokens by their text: what a conversation must not contain.

        Tokens such as Qwen3's <think> are text, not control.
        """
        added = self.backend.get_added_tokens_decoder()
        return {token.content: number for number, token in added.items() if token.special}

    @property
    def bos_id(self) -> int | None:
        bos = self.template.tokens.get("bos_token")
        return self.backend.token_to_id(bos) if bos else None


def copied(tokenizer: Tokenizer) -> Tokenizer:
    """What `tokenizer` would be if it were written and read again. The model in it, vocabulary and merges, is the
    very same one: with 152,000 tokens that would take half a second.
    """
    from tokenizers import Tokenizer, models

    rest = Tokenizer(models.BPE())
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        if (value := getattr(tokenizer, part)) is not None:
            setattr(rest, part, value)
    if tokenizer.truncation:
        rest.enable_truncation(**tokenizer.truncation)
    if tokenizer.padding:
        rest.enable_padding(**tokenizer.padding)
    copy = Tokenizer.from_str(rest.to_str())
    copy.model = tokenizer.model
    copy.add_tokens([token for _, token in sorted(tokenizer.get_added_tokens_decoder().items())])
    return copy


def added_tokens(new_tokens: Sequence[str], backend: Tokenizer, name: str) -> list[AddedToken]:
    """`model.new_tokens` for `tokenizers` and transformers alike: special, and matched as they are written.

    Raises:
        UserError: the tokenizer `backend` has one of them.
    """
    from tokenizers import AddedToken

    for token in new_tokens:
        number = backend.token_to_id(token)
        if number is not None:
            raise UserError(
                f"model.new_tokens: {token} is already a token of {name} (id {number}); leave it out"
            )
    return [AddedToken(token, special=True, normalized=False) for token in new_tokens]


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """bos_token, eos_token, … as strings; transformers writes them as strings or as {"content": …}."""
    tokens = {
        key: value["content"] if isinstance(value, dict) else value
        for key, value in config.items()
        if key.endswith("_token")
    }
    return {key: token for key, token in tokens.items() if isinstance(token, str)}
