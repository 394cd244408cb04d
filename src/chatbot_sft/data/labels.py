"""Which characters of a rendered conversation the assistant wrote, and so which tokens are trained.

The spans come from the structure. The template renders the conversation again with texts replaced by
placeholders; what stands around the placeholders is the template's own, so nothing is searched for that a
user could have typed. Where a text was not made by the template (a user's own formatting function, ready-made
text) the template's turn markers are looked for instead.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chatbot_sft.data.messages import BadRow, Message
from chatbot_sft.data.template import ChatTemplate, ChatTokenizer

IGNORED = -100  # torch's cross entropy skips labels of this value
LONGEST_LEAD = 64  # characters between a control token and a turn's beginning: a header, not somebody's text
Span = tuple[int, int]


@dataclass(frozen=True)
class TurnMarkers:
    """What a template writes before a turn: `<|im_start|>user\\n` and `<|im_start|>assistant\\n` in ChatML."""

    user: str
    assistant: str


@dataclass(frozen=True)
class Layout:
    """What a template writes around the contents of conversations with one sequence of roles.

    `pieces` has one text before each content and one after the last; `answers[i]` is where in `pieces[i]` an
    assistant's turn begins, and where in `pieces[i + 1]` it has ended. None for the other roles.
    """

    pieces: tuple[str, ...]
    answers: tuple[Span | None, ...]


class SpanFinder:
    """Finds the character spans of assistant turns in what `template` renders.

    Layouts are worked out once per sequence of roles.
    """

    def __init__(self, template: ChatTemplate) -> None:
        self.template = template
        self._layouts: dict[tuple[str, ...], Layout | None] = {}
        self._markers: TurnMarkers | None = None
        self._closing: str | None = None

    def spans(
        self, text: str, messages: Sequence[Message], tools: list[Any] | None = None
    ) -> list[Span] | None:
        """A span per assistant message: all that the model has to generate there, its end of turn included.

        It starts where the prompt for that turn ends and stops with the end-of-sequence token, as generation
        does, or where that comes in no turn (Gemma's `<end_of_turn>`), with all that the template writes
        behind an answer. None where `text` is not its rendering of `messages`.
        """
        if tools is None and all(len(message) == 2 for message in messages):
            roles = tuple(message["role"] for message in messages)
            if roles not in self._layouts:
                self._layouts[roles] = self._layout(roles)
            layout = self._layouts[roles]
            spans = _matched(text, messages, layout) if layout else None
            if spans is not None:
                return spans
        return self._compared(text, messages, tools)

    @property
    def closing(self) -> str:
        """What the template writes after a last answer: the end of turn, perhaps a line break."""
        if self._closing is None:
            mark = placeholder(0)
            turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": mark}]
            self._closing = self.template.render(turns).partition(mark)[2]
        return self._closing

    def until_eos(self, text: str) -> str:
        """`text` up to its first end-of-sequence token: what stands behind that is never generated."""
        eos = self.template.tokens.get("eos_token")
        return "".join(text.partition(eos)[:2]) if eos else text

    @property
    def markers(self) -> TurnMarkers:
        """The template's turn markers, read off a rendering of placeholders."""
        if self._markers is None:
            user, assistant, again = placeholder(0), placeholder(1), placeholder(2)
            turns = [_turn("user", user), _turn("assistant", assistant), _turn("user", again)]
            text = self.template.render(turns)
            between = text.partition(assistant)[2].partition(again)[0]
            header = text.partition(user)[2].partition(assistant)[0]
            ended = self._shared_start(header, text.partition(again)[2])
            behind = header[len(ended) :]
            self._markers = TurnMarkers(
                user=between[len(self._shared_start(between, self.closing)) :],
                # Mistral's answers follow [/INST] with no header.
                assistant=behind if behind.strip() else ended,
            )
        return self._markers

    def _layout(self, roles: tuple[str, ...]) -> Layout | None:
        masked = [_turn(role, placeholder(index)) for index, role in enumerate(roles)]
        try:
            skeleton = self.template.render(masked)
        except BadRow:
            return None
        pieces, rest = [], skeleton
        for index in range(len(roles)):
            piece, mark, rest = rest.partition(placeholder(index))
            if not mark:
                return None
            pieces.append(piece)
        pieces.append(rest)
        if any("\ue000" in piece for piece in pieces):
            return None
        answers: list[Span | None] = []
        written = 0
        for index, role in enumerate(roles):
            if role == "assistant":
                start = self._prompt_end(masked, index, skeleton, written, pieces[index])
                last = index == len(roles) - 1
                after = pieces[-1] if last else self._shared_start(pieces[index + 1], self.closing)
                answers.append((start, len(self.until_eos(after))))
            else:
                answers.append(None)
            written += len(pieces[index]) + len(placeholder(index))
        return Layout(tuple(pieces), tuple(answers))

    def _prompt_end(self, masked: list[Message], index: int, skeleton: str, written: int, header: str) -> int:
        """Where in `header`, which begins at `written` in `skeleton`, the prompt for turn `index` ends."""
        prompt = self._prompt(masked[:index], None)
        if prompt is not None and skeleton.startswith(prompt) and 0 <= len(prompt) - written <= len(header):
            return len(prompt) - written
        opening = self._opening(masked[:index], None)
        if opening is not None and header.startswith(opening):
            return len(opening)
        generation_prompt = self._generation_prompt(masked[: index + 1])
        at = header.rfind(generation_prompt)
        return at + len(generation_prompt) if generation_prompt and at >= 0 else len(header)

    def _prompt(self, messages: Sequence[Message], tools: list[Any] | None) -> str | None:
        """What the model sees before it answers `messages`; None where the template refuses them."""
        return self._rendered(messages, tools, True)

    def _rendered(
        self, messages: Sequence[Message], tools: list[Any] | None, add_generation_prompt: bool = False
    ) -> str | None:
        try:
            return self.template.render(messages, add_generation_prompt, tools)
        except BadRow:
            return None

    def _opening(self, before: Sequence[Message], tools: list[Any] | None) -> str | None:
        """What the prompt has after the last text of `before`; None where it does not have that."""
        if not before:
            return None
        mark = placeholder(len(before) - 1)
        prompt = self._prompt([*before[:-1], {**before[-1], "content": mark}], tools)
        return prompt.rpartition(mark)[2] if prompt is not None and mark in prompt else None

    def _generation_prompt(self, messages: Sequence[Message], tools: list[Any] | None = None) -> str:
        prompt = self.template.render(messages, True, tools)
        return prompt[len(self._shared_start(prompt, self.template.render(messages, False, tools))) :]

    def _compared(self, text: str, messages: Sequence[Message], tools: list[Any] | None) -> list[Span] | None:
        """Spans from more renderings per answer, one text replaced in each: what differs is that text."""
        if text != self.template.render(messages, False, tools):
            return None
        spans = []
        for index, message in enumerate(messages):
            if message["role"] == "assistant":
                start = self._start(text, messages, index, tools)
                span = self._replaced(text, messages, index, tools, start) or self._alone(
                    text, messages, index, tools, start
                )
                if span is None:
                    return None
                spans.append(span)
        return spans

    def _start(
        self, text: str, messages: Sequence[Message], index: int, tools: list[Any] | None
    ) -> int | None:
        """Where in `text` the prompt for answer `index` ends, be it known from the message before alone."""
        prompt = self._prompt(messages[:index], tools)
        if prompt is not None and text.startswith(prompt):
            return len(prompt)
        opening = self._opening(messages[:index], tools)
        if opening is None:
            return None
        mark = placeholder(index - 1)
        marked = {**messages[index - 1], "content": mark}
        other = self._rendered([*messages[: index - 1], marked, *messages[index:]], tools)
        if other is None or mark not in other:
            return None
        behind = other.rpartition(mark)[2]
        fits = text.endswith(behind) and behind.startswith(opening)
        return len(text) - len(behind) + len(opening) if fits else None

    def _replaced(
        self, text: str, messages: Sequence[Message], index: int, tools: list[Any] | None, start: int | None
    ) -> Span | None:
        """The span of answer `index` from a rendering with another answer there; None where there is none."""
        mark = placeholder(index)
        other = self._rendered([*messages[:index], _turn("assistant", mark), *messages[index + 1 :]], tools)
        if other is None or mark not in other:
            return None
        at = other.index(mark)
        before = min(_shared_length(text, other), at)
        behind = _shared_length(text[before:][::-1], other[at + len(mark) :][::-1])
        stop = len(text) - behind
        if start is None or start > stop:
            generation_prompt = self._generation_prompt(messages[: index + 1], tools)
            at = text.rfind(generation_prompt, 0, before)
            start = at + len(generation_prompt) if generation_prompt and at >= 0 else before
        after = text[stop:] if index == len(messages) - 1 else self._shared_start(text[stop:], self.closing)
        return start, stop + len(self.until_eos(after))

    def _alone(
        self, text: str, messages: Sequence[Message], index: int, tools: list[Any] | None, start: int | None
    ) -> Span | None:
        """The span of answer `index` from a rendering that ends with it.

        Mistral's tool calls can only be followed by their results.
        """
        opening = self._opening(messages[:index], tools)
        if start is None or opening is None:
            return None
        mark = placeholder(index - 1)
        marked = {**messages[index - 1], "content": mark}
        rendered = self._rendered([*messages[: index - 1], marked, messages[index]], tools)
        if rendered is None:
            return None
        written = rendered.rpartition(mark)[2].removeprefix(opening)
        return (start, start + len(written)) if written and text.startswith(written, start) else None

    def _shared_start(self, first: str, second: str) -> str:
        """What both texts begin with, no control token cut in two.

        `<|end|>\\n` of `<|end|>\\n<|user|>` and `<|end|>\\n<|endoftext|>`.
        """
        length = _shared_length(first, second)
        pattern = self.template.control_pattern
        if pattern is None:
            return first[:length]
        for text in (first, second):
            for token in pattern.finditer(text):
                if token.end() > length:
                    length = min(length, token.start())
                    break
        return first[:length]


def placeholder(index: int) -> str:
    """A text that no conversation contains and no template changes: private-use characters around a number."""
    return f"\ue000{index}\ue001"


def _turn(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _matched(text: str, messages: Sequence[Message], layout: Layout) -> list[Span] | None:
    """Spans where `text` is exactly the layout's pieces and the contents, each as it is or stripped."""
    spans: list[Span] = []
    at = 0
    for index, message in enumerate(messages):
        piece, content = layout.pieces[index], message["content"]
        if not text.startswith(piece, at):
            return None
        begin = at
        at += len(piece)
        following = layout.pieces[index + 1]
        if not (text.startswith(content, at) and text.startswith(following, at + len(content))):
            content = content.strip()
            if not text.startswith(content, at):
                return None
        at += len(content)
        if (answer := layout.answers[index]) is not None:
            spans.append((begin + answer[0], at + answer[1]))
    return spans if text[at:] == layout.pieces[-1] else None


def _shared_length(first: str, second: str) -> int:
    """How many characters both begin with, by bisection: slices are compared in C, characters in Python."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def marker_spans(text: str, finder: SpanFinder) -> list[Span]:
    """Character spans from each assistant marker to the end of that turn.

    That is its end-of-sequence token, the next user marker, or the end of `text`.
    """
    markers = finder.markers
    spans = []
    position = 0
    while markers.assistant and (start := text.find(markers.assistant, position)) >= 0:
        start += len(markers.assistant)
        end = text.find(markers.user, start) if markers.user else -1
        position = end if end >= 0 else len(text)
        spans.append((start, start + len(finder.until_eos(text[start:position]))))
    return spans


def token_spans(starts: Sequence[int], spans: Sequence[Span]) -> list[Span]:
    """Character spans as ranges of tokens: those whose first character lies inside.

    `starts` are the tokens' first characters, ascending.
    """
    return [(bisect_left(starts, begin), bisect_left(starts, end)) for begin, end in spans]


class TokenAligner:
    """Character positions to token positions without the tokenizer's offsets, which take as long as the ids.

    The n-th `<|im_start|>` of the text is the n-th of the ids. From there to a turn's beginning there is only
    what the template writes (`assistant\\n`); where the ids that follow are exactly the ids of that, the
    boundary lies behind them. Where anything does not fit, the offsets decide.
    """

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self.tokenizer = tokenizer
        self._leads: dict[tuple[str, str], list[int]] = {}

    def ranges(self, text: str, ids: list[int], spans: Sequence[Span]) -> list[Span]:
        """`spans` of characters as ranges of tokens: those whose first character lies inside."""
        control = {token: number for token, number in self.tokenizer.special_tokens.items() if token in text}
        if all(text.count(token) == ids.count(number) for token, number in control.items()):
            places = [self._place(text, ids, at, control) for span in spans for at in span]
            aligned = [place for place in places if place is not None]
            if len(aligned) == len(places):
                return list(zip(aligned[::2], aligned[1::2], strict=True))
        offsets = self.tokenizer.backend.encode(text, add_special_tokens=False).offsets
        return token_spans([start for start, _ in offsets], spans)

    def _place(self, text: str, ids: list[int], at: int, control: Mapping[str, int]) -> int | None:
        """The number of tokens before character `at`; None where no token ends there, or that cannot be told."""
        if at in (0, len(text)):
            return len(ids) if at else 0
        begin, token = max(((text.rfind(token, 0, at), token) for token in control), default=(-1, ""))
        if begin < 0:
            return None
        place = -1
        for _ in range(text.count(token, 0, begin + len(token))):
            place = ids.index(control[token], place + 1)
        lead = text[begin + len(token) : at]
        if len(lead) > LONGEST_LEAD:
            return None
        if (token, lead) not in self._leads:
            encoding = self.tokenizer.backend.encode(token + lead, add_special_tokens=False)
            self._leads[token, lead] = encoding.ids
        end = place + len(self._leads[token, lead])
        return end if ids[place:end] == self._leads[token, lead] else None


def token_labels(input_ids: Sequence[int], ranges: Sequence[Span]) -> list[int]:
    """Labels of shape (tokens,): the token's own id inside the token `ranges`, `IGNORED` elsewhere."""
    labels = [IGNORED] * len(input_ids)
    for begin, end in ranges:
        labels[begin:end] = input_ids[begin:end]
    return labels
