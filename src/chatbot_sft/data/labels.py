"""Which characters of a rendered conversation the assistant wrote, and so which tokens are trained.

The spans come from the structure: the template renders the conversation a second time with each assistant text replaced by a placeholder, and
what stands around the placeholders is the same in both. Nothing is searched for that a user could have typed. Where a text was not made by the
template (a user's own formatting function, ready-made text) the template's turn markers are looked for instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from chatbot_sft.data.messages import Message

IGNORED = -100  # torch's cross entropy skips labels of this value
Span = tuple[int, int]
Render = Callable[[Sequence[Message], bool], str]  # (messages, add_generation_prompt) -> text


@dataclass(frozen=True)
class TurnMarkers:
    """What a template writes before a turn: `<|im_start|>user\\n` and `<|im_start|>assistant\\n` in ChatML."""

    user: str
    assistant: str


def placeholder(index: int) -> str:
    """A text that no conversation contains and no template changes: private-use characters around a number."""
    return f"\ue000{index}\ue001"


def structural_spans(text: str, messages: Sequence[Message], render: Render) -> list[Span] | None:
    """Character spans of each assistant turn in `text`: what it says and its end of turn. None where `text` is not the template's rendering.

    A span starts where the template's generation prompt ends, and ends with what the template writes after the last turn (`<|im_end|>\\n`).
    """
    assistant = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    masked = [{**m, "content": placeholder(i)} if i in assistant else m for i, m in enumerate(messages)]
    skeleton = render(masked, False)
    generation_prompt = render(masked, True)[len(skeleton) :]
    pieces, rest = [], skeleton
    for index in assistant:
        before, found, rest = rest.partition(placeholder(index))
        if not found:
            return None
        pieces.append(before)
    pieces.append(rest)
    spans: list[Span] = []
    position = 0
    for number, index in enumerate(assistant):
        header, after = pieces[number], pieces[number + 1]
        if not text.startswith(header, position):
            return None
        start = position + (header.rindex(generation_prompt) + len(generation_prompt) if generation_prompt in header else len(header))
        content = _content_at(text, position + len(header), messages[index]["content"])
        if content is None:
            return None
        position = content
        closing = (
            after if number == len(assistant) - 1 and messages[-1] is messages[index] else _shared_start(after, _closing(render, messages[index]))
        )
        spans.append((start, position + len(closing)))
    return spans if text[position:] == pieces[-1] else None


def _content_at(text: str, position: int, content: str) -> int | None:
    """The end of `content` at `position` as templates write it: unchanged, or stripped."""
    for form in (content, content.strip()):
        if text.startswith(form, position):
            return position + len(form)
    return None


def _shared_start(first: str, second: str) -> str:
    """The longest text both begin with."""
    length = next((index for index, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second)))
    return first[:length]


def _closing(render: Render, message: Message) -> str:
    """What the template writes after the last assistant turn of a conversation."""
    probe = [{"role": "user", "content": "?"}, {**message, "content": placeholder(0)}]
    return render(probe, False).partition(placeholder(0))[2]


def turn_markers(render: Render) -> TurnMarkers:
    """The template's turn markers, read off a rendering of a conversation of placeholders."""
    user, assistant, again = placeholder(0), placeholder(1), placeholder(2)
    turns = [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}, {"role": "user", "content": again}]
    text = render(turns, False)
    between_turns = text.partition(assistant)[2].partition(again)[0]
    header = text.partition(user)[2].partition(assistant)[0]
    closing = _closing(render, turns[1])
    user_turn_end = render(turns, False).partition(again)[2]
    return TurnMarkers(
        user=between_turns[len(_shared_start(between_turns, closing)) :], assistant=header[len(_shared_start(header, user_turn_end)) :]
    )


def marker_spans(text: str, markers: TurnMarkers) -> list[Span]:
    """Character spans from each assistant marker to the next user marker or the end of `text`."""
    spans = []
    position = 0
    while markers.assistant and (start := text.find(markers.assistant, position)) >= 0:
        start += len(markers.assistant)
        end = text.find(markers.user, start) if markers.user else -1
        position = end if end >= 0 else len(text)
        spans.append((start, position))
    return spans


def token_labels(input_ids: Sequence[int], offsets: Sequence[Span], spans: Sequence[Span]) -> list[int]:
    """Labels of shape (tokens,): the token's id where its first character lies in a span, `IGNORED` elsewhere.

    `offsets` are the character ranges of the tokens, ascending, as fast tokenizers give them.
    """
    labels: list[int] = []
    turn = 0
    for token, (start, _) in zip(input_ids, offsets, strict=True):
        while turn < len(spans) and start >= spans[turn][1]:
            turn += 1
        trained = turn < len(spans) and spans[turn][0] <= start
        labels.append(int(token) if trained else IGNORED)
    return labels


def renderer(tokenizer: Any) -> Render:
    """The tokenizer's chat template as a plain function."""

    def render(messages: Sequence[Message], add_generation_prompt: bool) -> str:
        return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=add_generation_prompt)

    return render
