"""The Ollama Modelfile of a GGUF export.

Ollama writes prompts with Go's text/template, transformers and llama.cpp with Jinja. What the model's Jinja
template writes around the texts of a conversation is read off renderings of placeholders, has to give the
Jinja template's own text again, and only then becomes a Go template.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from chatbot_sft.data.labels import SpanFinder, placeholder
from chatbot_sft.data.messages import BadRow, Message
from chatbot_sft.data.template import ChatTemplate

AS_TRAINED = "PARAMETER repeat_penalty 1"  # Ollama's own is 1.1: other answers than those that were trained
ROLES = ("user", "assistant", "user")
QUESTIONS = (1, 2, 3)  # the derived pieces are checked on conversations of so many


@dataclass(frozen=True)
class Modelfile:
    """The `text` of the file; `problem` says what is missing in it, None where it is complete."""

    text: str
    problem: str | None = None

    @property
    def complete(self) -> bool:
        return self.problem is None


class Place(Enum):
    """Where a template puts a system message: in a turn of its own before all others, or into the first or
    last question's turn.
    """

    TURN = "turn"
    FIRST = "first"
    LAST = "last"


@dataclass(frozen=True)
class SystemPieces:
    """What stands around a system message. In a question's turn (`Place.FIRST`, `Place.LAST`) that takes the
    place of the turn's own beginning.
    """

    before: str
    after: str
    place: Place


@dataclass(frozen=True)
class Pieces:
    """What a template writes around texts of a conversation: `user` and `assistant` are (before, after).

    `opening` comes first where no system message stands there: nothing, or a system turn of the template's
    own. `prompt` follows the last question's turn, and the answer follows it. `system` is None where the
    template leaves system messages out or refuses them.
    """

    opening: str
    user: tuple[str, str]
    assistant: tuple[str, str]
    prompt: str
    system: SystemPieces | None

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt after `messages` (a system message first or nowhere, a question last), as in Go."""
        text, system_turn, carrier = self.opening, "", None  # carrier: the turn that begins with the system's
        turns = [message for message in messages if message["role"] != "system"]
        if self.system and messages[0]["role"] == "system" and messages[0]["content"]:
            place = self.system.place
            system_turn = f"{self.system.before}{messages[0]['content']}{self.system.after}"
            text = {Place.TURN: system_turn, Place.FIRST: "", Place.LAST: self.opening}[place]
            carrier = {Place.TURN: None, Place.FIRST: 0, Place.LAST: len(turns) - 1}[place]
        for index, message in enumerate(turns):
            before, after = self.user if message["role"] == "user" else self.assistant
            text += (system_turn if index == carrier else before) + message["content"] + after
        return text + self.prompt


class NotDerivable(Exception):
    """Why a Jinja template has no counterpart in Go that could be read off it."""


def modelfile(
    files: Sequence[str],
    template: ChatTemplate,
    stops: Sequence[str],
    system_prompt: str | None,
    bos: str | None = None,
) -> Modelfile:
    """The Modelfile beside the GGUF `files`, the first of which is taken.

    Generation ends at each of `stops`. `bos` is a text that the tokenizer of the GGUF file writes by itself
    and the template therefore must not.
    """
    problems, pieces = [], None
    try:
        pieces = derive(template, bos)
    except NotDerivable as error:
        problems.append(f"no TEMPLATE, so Ollama looks for one that resembles the file's own: {error}")
    system, default = quoted(system_prompt) if system_prompt else None, ""
    if system_prompt and pieces and not pieces.system:
        system = None
        problems.append("no SYSTEM: the chat template takes no system message")
    elif system_prompt and pieces and not system:
        default = system_prompt
    elif system_prompt and not system:
        problems.append(
            "no SYSTEM: the system prompt has triple quotes at the end of a line, or characters that Ollama"
            " drops"
        )
    problems += [
        f"no PARAMETER stop for {stop!r}: it has such quotes or characters"
        for stop in stops
        if not quoted(stop)
    ]

    lines = [
        "# ollama create NAME -f Modelfile",
        f"FROM ./{files[0]}",
        *(f"# FROM ./{name}" for name in files[1:]),
        "",
    ]
    lines += [f"# {problem}" for problem in problems]
    if pieces and template.dated:
        lines.append(
            "# The date in the template is that of this export: Go's templates have none in its form."
        )
    if pieces:
        lines.append(f'TEMPLATE """\n{go_template(pieces, default)}"""')
    if system:
        lines.append(f"SYSTEM {system}")
    lines += [f"PARAMETER stop {quoted(stop)}" for stop in stops if quoted(stop)]
    lines.append(AS_TRAINED)
    return Modelfile("\n".join(lines) + "\n", "; ".join(problems) or None)


def derive(template: ChatTemplate, bos: str | None = None) -> Pieces:
    """What `template` writes around the texts of a conversation, without `bos` at its beginning.

    Raises:
        NotDerivable: the template refuses plain conversations, or what it writes around a text depends on
            more than its role and place.
    """
    try:
        pieces = _read_off(template, bos or "")
        for messages in _conversations(with_system=pieces.system is not None):
            wanted = template.render(messages, add_generation_prompt=True).removeprefix(bos or "")
            if pieces.render(messages) != wanted:
                roles = ", ".join(message["role"] for message in messages)
                raise NotDerivable(
                    f"the chat template makes the prompt for {roles} of other pieces than those of its"
                    " placeholders"
                )
    except BadRow as error:
        raise NotDerivable(error.detail) from None
    return pieces


def _read_off(template: ChatTemplate, bos: str) -> Pieces:
    order, texts = _around(template, ROLES)
    if order != [0, 1, 2]:
        raise NotDerivable("the chat template leaves texts out, or writes them in another order")
    begin, answered, asked, end = texts
    begin = begin.removeprefix(bos)
    markers = SpanFinder(template).markers
    # Llama 2 has a beginning of text in it, and the first one is `bos`.
    user = markers.user if begin.endswith(markers.user) else begin
    closing = answered.removesuffix(markers.assistant)
    if not end.startswith(closing):  # Mistral's prompts end with [/INST]; a space begins its answers
        closing = ""
    return Pieces(
        opening=begin.removesuffix(user),
        user=(user, closing),
        assistant=(answered.removeprefix(closing), asked.removesuffix(user)),
        prompt=end.removeprefix(closing),
        system=_system(template, bos, user, asked.removesuffix(user)),
    )


def _system(template: ChatTemplate, bos: str, user: str, answer_end: str) -> SystemPieces | None:
    try:
        order, texts = _around(template, ("system", *ROLES))
    except BadRow:
        return None
    if order == [1, 2, 3]:
        return None
    if order == [0, 1, 2, 3]:
        before, after = texts[0].removeprefix(bos), texts[1]
        if after.endswith(user):
            return SystemPieces(before, after.removesuffix(user), Place.TURN)
        return SystemPieces(before, after, Place.FIRST)
    if order == [1, 2, 0, 3]:
        return SystemPieces(texts[2].removeprefix(answer_end), texts[3], Place.LAST)
    raise NotDerivable(
        "the chat template writes the system message neither before the first question nor before the last"
    )


def _around(template: ChatTemplate, roles: Sequence[str]) -> tuple[list[int], list[str]]:
    """The order of a conversation's texts in the prompt after it, and what stands around each of them."""
    marks = [placeholder(index) for index in range(len(roles))]
    messages = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
    parts = re.split(f"({'|'.join(marks)})", template.render(messages, add_generation_prompt=True))
    return [marks.index(mark) for mark in parts[1::2]], parts[::2]


def _conversations(with_system: bool) -> list[list[Message]]:
    """Conversations that end with a question, without a system message and, where asked for, with one."""
    systems = ["", "system text"] if with_system else [""]
    return [
        [{"role": "system", "content": system}] * bool(system)
        + [
            {"role": ROLES[turn % 2], "content": f"{ROLES[turn % 2]} text {turn}"}
            for turn in range(2 * questions - 1)
        ]
        for system, questions in itertools.product(systems, QUESTIONS)
    ]


def go_template(pieces: Pieces, default_system: str = "") -> str:
    """`pieces` as Ollama's template: `.Messages` with `.Role` and `.Content`, and `.System`, or
    `default_system` where that is empty.

    Every text is a Go string, and every line's `{{-` takes the line break before it, so that no white space
    is written but the strings'. A conversation that ends with an answer goes on in it, as Ollama's users
    expect.
    """
    (user, user_end), (assistant, assistant_end), system = pieces.user, pieces.assistant, pieces.system
    lines = []
    if system:
        default = f"or .System {go_string(default_system)}" if default_system else ".System"
        lines.append(_line(f"$system := {default}"))
    start = opening = _written(pieces.opening)
    question = _written(user)
    if system:
        message = [*_written(system.before), "$system", *_written(system.after)]
        if system.place is Place.TURN:
            start = ["if $system", *message, *(["else", *opening] if opening else []), "end"]
        elif system.place is Place.FIRST:
            start = ["$told := false", *(["if not $system", *opening, "end"] if opening else [])]
            question = ["if and $system (not $told)", "$told = true", *message, "else", *question, "end"]
        else:
            question = ["if and $system $last", *message, "else", *question, "end"]
    lines += [
        _line(*start),
        _line("range $i, $_ := .Messages"),
        _line("$last := eq (len (slice $.Messages $i)) 1"),
        _line('if eq .Role "user"'),
        _line(*question, ".Content", *_written(user_end)),
        _line("if $last", *_written(pieces.prompt), "end") if pieces.prompt else "",
        _line('else if eq .Role "assistant"'),
        _line(
            *_written(assistant),
            ".Content",
            *(["if not $last", *_written(assistant_end), "end"] if assistant_end else []),
        ),
        _line("end"),
        _line("end"),
    ]
    return "\n".join(filter(None, lines))


def _line(*actions: str) -> str:
    return "".join(f"{{{{{'' if index else '-'} {action} }}}}" for index, action in enumerate(actions))


def _written(text: str) -> list[str]:
    """The action that writes `text`; none for no text."""
    return [go_string(text)] if text else []


def go_string(text: str) -> str:
    """`text` as an interpreted string literal of Go, in one line, quotes inside it escaped."""
    return '"' + "".join(map(_go_character, text)) + '"'


def _go_character(character: str) -> str:
    if character in '\\"':
        return f"\\{character}"
    if character.isprintable():
        return character
    return "\\n" if character == "\n" else f"\\U{ord(character):08x}"


def quoted(text: str) -> str | None:
    """`text` as a value in a Modelfile; None where its syntax, which has no escapes, cannot hold it.

    A value in triple quotes ends with the first line that ends with such quotes, and Ollama drops characters
    that are not printed.
    """
    if any(not (character.isprintable() or character in "\n\r\t") for character in text):
        return None
    if not re.search(r'["\n\r]', text):
        return f'"{text}"'
    if any(line.rstrip().endswith('"""') for line in re.split(r"[\n\r]", text)):
        return None
    return f'"""{text}"""'
