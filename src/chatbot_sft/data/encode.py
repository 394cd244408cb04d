"""Conversations to token ids and labels, as a stream: a batch is tokenised in Rust while the next one renders."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from chatbot_sft.data.labels import Span, SpanFinder, TokenAligner, marker_spans, token_labels
from chatbot_sft.data.messages import INLINE_THOUGHT, BadRow, Conversation, Message, repeated_role
from chatbot_sft.data.template import ChatTokenizer
from chatbot_sft.errors import UserError

BATCH = 512
BATCH_CHARACTERS = 4_000_000
# Characters that are tokenised at once: a tokenizer takes a hundred times and more of that in bytes.
PIECE = 200_000
AROUND = 200  # characters on each side of a cut that have to become the same tokens with and without it
SPACE = re.compile(r"(?<=\S)\s(?=\S)")
THINK_TAGS = ("<think>", "</think>")
# Kinds of bad rows that another setting makes good ones.
CALL_LEFT_OUT = "tool call left out"
NO_TURNS = "no turns in the text"
# Notes on what a template makes of a row.
TOOLS_LEFT_OUT = "tools left out by the template"
THINKING_LEFT_OUT = "thinking left out by the template"
THOUGHT_MISSING = "no thought, where the prompt ends with <think>"
# Notes on answers that model.max_seq_length cuts.
CUT = "an answer cut in two"
JUDGED_CUT = "a judged answer cut in two"
OPENING = 16  # characters beside the beginning of an answer in which its <think> stands
Texts = Callable[[list[Conversation]], list[str]]  # a user's own formatting function over a batch


@dataclass(frozen=True)
class Part:
    """One sequence of a row: a prompt and an answer. `length` is its tokens before any cut."""

    kind: str
    tokens: int
    trained: int
    characters: int  # of the row's text
    length: int


@dataclass
class EncodedRow:
    """One training row, cut to length.

    `trained` are the ranges of tokens with a label; `problems` are (kind, detail) for the gate. Several sequences
    may stand in it, end to end: its `parts`.
    """

    file: str
    row: int
    text: str
    input_ids: list[int]
    trained: list[Span]
    opening: list[Message] = field(default_factory=list)  # the messages before the first answer
    messages: list[Message] = field(default_factory=list)  # all of them; none of ready-made text
    uses: int = 1
    dialogue: int = 0  # see `dialogue_hash`; the pieces of a split conversation share it
    length: int = 0  # tokens before any cut
    truncated: bool = False
    kept: bool = True  # False: left out because of its length
    problems: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # kinds of them: no reason to leave the row out
    part: str = ""  # how this answer was judged
    parts: list[Part] = field(default_factory=list)  # none: the row is one sequence, a conversation
    said: int = 0  # hash of what the parts say, each as what it is
    opposite: int = 0  # the same hash, had everything been judged the other way round

    @property
    def labels(self) -> list[int]:
        """One entry a token: its id where it is trained, -100 elsewhere."""
        return token_labels(self.input_ids, self.trained)


@dataclass
class Refused:
    """A row that cannot become tokens at all; without `fault`, one that is none for this objective."""

    file: str
    row: int
    kind: str
    detail: str
    part: str = ""
    fault: bool = True


@dataclass
class _Rendered:
    conversation: Conversation
    text: str
    spans: list[Span]
    dialogue: int
    problems: list[tuple[str, str]]
    notes: list[str]


class Encoder:
    """Turns conversations into rows for one tokenizer, as `train_on`, `overflow` and `max_seq_length` say."""

    def __init__(
        self,
        tokenizer: ChatTokenizer,
        max_seq_length: int,
        train_on: str,
        overflow: str,
        texts: Texts | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.max_seq_length = max_seq_length
        self.train_on = train_on
        self.overflow = overflow
        self.texts = texts
        self.finder = SpanFinder(tokenizer.template)
        self.aligner = TokenAligner(tokenizer)

    @property
    def end_of_turn(self) -> dict[str, int]:
        """Special tokens that the template writes after an answer, by their text."""
        pattern = self.tokenizer.template.control_pattern
        return {
            token: self.tokenizer.special_tokens[token]
            for token in (pattern.findall(self.finder.closing) if pattern else ())
        }

    def rows(self, conversations: Iterable[Conversation | Refused]) -> Iterator[EncodedRow | Refused]:
        """A row per conversation, in order; what cannot become one is handed on, or comes, as `Refused`.

        With `overflow="split"` there may be several of one, with "drop" one that is too long is not `kept`.

        Raises:
            UserError: `overflow="error"` and a row is too long; names it.
        """
        ends = frozenset(self.end_of_turn.values())
        stream = iter(conversations)
        batches = in_batches(stream, BATCH, _characters)
        with ThreadPoolExecutor(1) as encoding:
            pending = None
            for batch in batches:
                rendered = self._render_batch(batch)
                texts = [item.text for item in rendered if isinstance(item, _Rendered)]
                job = encoding.submit(self._tokenised, texts)
                if pending:
                    yield from self._finish(*pending, ends)
                pending = (rendered, job)
            if pending:
                yield from self._finish(*pending, ends)

    def _tokenised(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text. Without offsets: `TokenAligner` does without them, at half the time."""
        short = [text for text in texts if len(text) <= PIECE]
        encodings = iter(self.tokenizer.backend.encode_batch_fast(short, add_special_tokens=False))
        return [next(encodings).ids if len(text) <= PIECE else self._in_pieces(text) for text in texts]

    def _in_pieces(self, text: str) -> list[int]:
        """The ids of a long text, piece by piece, cut where that changes no token."""
        ids: list[int] = []
        begin = 0
        while len(text) - begin > PIECE and (cut := self._cut(text, begin + PIECE // 2, begin + PIECE)):
            ids += self._ids(text[begin:cut])
            begin = cut
        return ids + self._ids(text[begin:])

    def _cut(self, text: str, first: int, last: int) -> int | None:
        """Where between `first` and `last` the tokens are the same with and without a cut; None for nowhere."""
        spaces = (space.start() for space in SPACE.finditer(text, first, last))
        for cut in itertools.chain(itertools.islice(spaces, 20), range(first, first + 20)):
            before, after = text[cut - AROUND : cut], text[cut : cut + AROUND]
            if self._ids(before) + self._ids(after) == self._ids(before + after):
                return cut
        return None

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer.backend.encode_batch_fast([text], add_special_tokens=False)[0].ids

    def _render_batch(self, batch: list[Conversation | Refused]) -> list[_Rendered | Refused]:
        if self.texts is None:
            return [item if isinstance(item, Refused) else self._render(item, None) for item in batch]
        given = iter(self.texts([item for item in batch if not isinstance(item, Refused)]))
        return [item if isinstance(item, Refused) else self._render(item, next(given)) for item in batch]

    def _render(self, item: Conversation, text: str | None) -> _Rendered | Refused:
        """`text` is what a user's own function made of it, None to let the template render."""
        try:
            problems = self._contents(item)
            written = self._written(item) if text is None else text
            for number, message in enumerate(item.messages or (), 1):
                names = (call["function"]["name"] for call in message.get("tool_calls", ()))
                lost = next((name for name in names if name not in written), None)
                if lost is not None:
                    detail = f"message {number}: the chat template does not write its call of {lost}"
                    raise BadRow(CALL_LEFT_OUT, detail)
            if item.messages is None:
                item.text = written
            if not _utf8(written):
                raise BadRow(
                    "invalid unicode", "the text has half of a surrogate pair, which is no character"
                )
            spans, notes = self._spans(written, item)
        except BadRow as bad:
            return Refused(item.file, item.row, bad.kind, bad.detail, item.part)
        return _Rendered(item, written, spans, item.dialogue or dialogue_hash(item), problems, notes)

    def _written(self, item: Conversation) -> str:
        """The template's rendering, or the ready-made text."""
        if item.messages is None:
            return item.text
        return self.tokenizer.template.render(item.messages, False, item.tools)

    def _contents(self, item: Conversation) -> list[tuple[str, str]]:
        """What is wrong with the messages themselves."""
        problems = []
        if item.messages is None:
            return [("invalid unicode", "the text has a NUL character")] if "\0" in item.text else []
        whole = "\n".join(
            message["content"] if len(message) == 2 else all_said(message) for message in item.messages
        )
        if item.tools:
            whole += f"\n{_json('the tools', item.tools)}"
        if "\0" in whole:
            problems.append(("invalid unicode", "a message has a NUL character"))
        if not _utf8(whole):
            raise BadRow("invalid unicode", "a message has half of a surrogate pair, which is no character")
        allowed = (*THINK_TAGS, *self.tokenizer.new_tokens)
        tokens = (token for token in self.tokenizer.special_tokens if token not in allowed)
        control = next((token for token in tokens if token in whole), None)
        if control:
            places = (
                f"message {number} ({message['role']})"
                for number, message in enumerate(item.messages, 1)
                if control in all_said(message)
            )
            where = next(places, "a tool's definition")
            detail = f"{where} contains {control}, which is a control token of this model"
            problems.append(("special token in text", detail))
        if number := repeated_role(item.messages):
            role = item.messages[number - 1]["role"]
            problems.append(("repeated role", f"messages {number - 1} and {number} are both by {role}"))
        return problems

    def _spans(self, text: str, item: Conversation) -> tuple[list[Span], list[str]]:
        """Trained character spans, as `train_on` and the row's own marks say, and notes."""
        template = self.tokenizer.template
        notes = ["replacement character"] if "\ufffd" in text else []
        if item.tools and not template.writes_tools:
            notes.append(TOOLS_LEFT_OUT)
        messages = item.messages
        spans = None if messages is None else self.finder.spans(text, messages, item.tools)
        if messages is None or spans is None:
            spans = marker_spans(text, self.finder)
            if not spans and self.train_on != "all":
                raise BadRow(
                    NO_TURNS,
                    "no assistant text found in it by the chat template's turn markers,"
                    " so nothing of it would be trained",
                )
            answers = [True] * len(spans)
            if messages is not None and item.part:
                answers = _answers_trained(item, messages)
                if len(answers) != len(spans):
                    raise BadRow(NO_TURNS, "the judged answer is not found in what the chat template writes")
        else:
            if any(thought.strip() not in text for thought in self._thoughts(messages)):
                notes.append(THINKING_LEFT_OUT)
            openings = (text[max(0, begin - OPENING) : begin + OPENING] for begin, _ in spans)
            if template.opens_thought and not all("<think>" in opening for opening in openings):
                notes.append(THOUGHT_MISSING)
            answers = _answers_trained(item, messages)
        if self.train_on == "all":
            self._refuse_marked_questions(item)
            holes = [span for span, allowed in zip(spans, answers, strict=True) if not allowed]
            return _without((0, len(text)), holes), notes
        if self.train_on == "last_assistant":
            answers = [False] * (len(answers) - 1) + answers[-1:]
        return [span for span, allowed in zip(spans, answers, strict=True) if allowed], notes

    def _refuse_marked_questions(self, item: Conversation) -> None:
        """Raises BadRow where a message that is no answer is to be left out: only answers are found again."""
        for number, (allowed, message) in enumerate(zip(item.trained, item.messages or (), strict=False), 1):
            if not allowed and message["role"] != "assistant":
                raise BadRow(
                    "bad weight",
                    f"message {number} ({message['role']}) is not to be trained,"
                    " but with dataset.train_on=all it would be",
                )

    def _thoughts(self, messages: Sequence[Message]) -> Iterator[str]:
        """What the assistant thinks, in a field of its own or at the beginning of an answer."""
        for message in messages:
            if message["role"] == "assistant":
                if thought := message.get(self.tokenizer.template.thinking_field or ""):
                    yield thought
                elif inline := INLINE_THOUGHT.match(message["content"]):
                    yield inline.group(1)

    def _finish(
        self, rendered: list[_Rendered | Refused], job: Any, ends: frozenset[int]
    ) -> Iterator[EncodedRow | Refused]:
        tokenised = iter(job.result())
        for item in rendered:
            if isinstance(item, Refused):
                yield item
            else:
                yield from self._encoded(item, next(tokenised), ends)

    def _encoded(
        self, item: _Rendered, ids: list[int], ends: frozenset[int]
    ) -> Iterator[EncodedRow | Refused]:
        limit = self.max_seq_length
        conversation = item.conversation
        over = len(ids) > limit
        if over and self.overflow == "error":
            raise UserError(
                f"{conversation.file}: row {conversation.row} has {len(ids):,} tokens, over"
                f" model.max_seq_length={limit}; raise it, or set dataset.overflow=truncate, drop or split"
            )
        splits = over and self.overflow == "split" and self.texts is None
        if splits and conversation.messages is not None:
            pieces = self._split(conversation, conversation.messages)
            if len(pieces) > 1:
                for piece in pieces:
                    rendered = self._render(piece, None)
                    if isinstance(rendered, Refused):
                        yield rendered
                        continue
                    rendered.dialogue = item.dialogue
                    row = self._row(rendered, self._in_pieces(rendered.text), ends)
                    row.notes.append("split")
                    yield row
                return
        row = self._row(item, ids, ends)
        if over and self.overflow == "drop":
            row.kept = False
            row.notes.append("too long: left out")
        yield row

    def _row(self, item: _Rendered, ids: list[int], ends: frozenset[int]) -> EncodedRow:
        conversation, limit = item.conversation, self.max_seq_length
        problems, notes = list(item.problems), list(item.notes)
        trained = [
            (begin, end) for begin, end in self.aligner.ranges(item.text, ids, item.spans) if end > begin
        ]
        if not trained:
            problems.append(("no trainable token", "no token of it would be trained"))
        elif self.train_on != "all" and not all(ends.intersection(ids[begin:end]) for begin, end in trained):
            end = " or ".join(self.end_of_turn) or "any end token"
            detail = f"an answer ends without {end}: the model would not learn to stop"
            problems.append(("end of turn not trained", detail))
        elif (
            self.train_on == "all"
            and conversation.messages is None
            and not (ends | self.tokenizer.stop_ids).intersection(ids[-3:])
        ):
            end = " or ".join(self.end_of_turn) or "an end token"
            detail = f"the text does not end with {end}: the model would not learn to stop"
            problems.append(("end of turn not trained", detail))
        bos = self.tokenizer.bos_id
        if bos is not None and ids[:2] == [bos, bos]:
            problems.append(("doubled BOS", "it begins with two begin-of-sequence tokens"))
        if len(ids) > limit and self.overflow != "drop":
            if trained and not any(begin < limit for begin, _ in trained):
                detail = f"every answer lies beyond model.max_seq_length={limit}"
                size = f"the row has {len(ids):,} tokens"
                problems.append(("no answer before the cut", f"{detail}: {size}"))
            elif any(begin < limit < end for begin, end in trained):
                notes.append(JUDGED_CUT if conversation.part else CUT)
        messages = conversation.messages or []
        first = next((index for index, message in enumerate(messages) if message["role"] == "assistant"), 0)
        return EncodedRow(
            conversation.file,
            conversation.row,
            item.text,
            ids[:limit],
            [(begin, min(end, limit)) for begin, end in trained if begin < limit],
            opening=messages[:first],
            messages=messages,
            uses=conversation.uses,
            dialogue=item.dialogue,
            length=len(ids),
            truncated=len(ids) > limit,
            problems=problems,
            notes=notes,
            part=conversation.part,
        )

    def _split(self, item: Conversation, messages: list[Message]) -> list[Conversation]:
        """`item` cut before user messages into conversations that fit, each with its system prompt.

        One exchange that is too long alone stays whole.
        """
        head = 1 if messages[0]["role"] == "system" else 0
        begins = [
            i
            for i in range(head, len(messages))
            if messages[i]["role"] == "user" and (i == head or messages[i - 1]["role"] != "user")
        ]
        begins = begins if begins[:1] == [head] else [head, *begins]
        exchanges = [range(start, stop) for start, stop in itertools.pairwise([*begins, len(messages)])]
        pieces: list[list[int]] = [[]]
        for exchange in exchanges:
            longer = [*pieces[-1], *exchange]
            chosen = [messages[i] for i in (*range(head), *longer)]
            if pieces[-1] and self._tokens(chosen, item.tools) > self.max_seq_length:
                pieces.append(list(exchange))
            else:
                pieces[-1] = longer
        return [
            _part(item, messages, [*range(head), *piece])
            for piece in pieces
            if any(messages[i]["role"] == "assistant" for i in piece)
        ]

    def _tokens(self, messages: Sequence[Message], tools: list[Any] | None) -> int:
        return len(self._in_pieces(self.tokenizer.template.render(messages, False, tools)))


def _answers_trained(item: Conversation, messages: Sequence[Message]) -> list[bool]:
    """Of each answer whether the row allows it to be trained."""
    return [
        allowed
        for allowed, message in zip(item.trained, messages, strict=True)
        if message["role"] == "assistant"
    ]


def _part(item: Conversation, messages: Sequence[Message], indices: Sequence[int]) -> Conversation:
    """Some messages of `item` as a conversation of their own."""
    return Conversation(
        item.file,
        item.row,
        [messages[i] for i in indices],
        [item.trained[i] for i in indices],
        item.tools,
        uses=item.uses,
        values=item.values,
    )


def in_batches(items: Iterable[Any], most: int, characters: Callable[[Any], int]) -> Iterator[list[Any]]:
    """Lists of at most `most` items, and no more than `BATCH_CHARACTERS` but for the last of each.

    A row may be as long as `dataset.max_row_mb`.
    """
    batch: list[Any] = []
    size = 0
    for item in items:
        batch.append(item)
        size += characters(item)
        if len(batch) == most or size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _characters(item: Conversation | Refused) -> int:
    if isinstance(item, Refused):
        return 0
    if item.messages is None:
        return len(item.text)
    return sum(len(message["content"]) for message in item.messages)


def all_said(message: Message) -> str:
    """All that a message has for the template to write, its reasoning and calls too."""
    calls = [_json("the arguments of a call", message["tool_calls"])] if "tool_calls" in message else []
    texts = [value for key, value in message.items() if isinstance(value, str) and key != "role"]
    return "\n".join([*texts, *calls])


def _json(label: str, value: Any) -> str:
    """The JSON that templates write of it.

    Raises:
        BadRow: it has none.
    """
    try:
        return json.dumps(value, ensure_ascii=False)
    except (ValueError, RecursionError):
        raise BadRow(
            "nested too deeply", f"{label}: nested too deeply, or with a number of thousands of digits"
        ) from None


def _utf8(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _without(whole: Span, holes: Sequence[Span]) -> list[Span]:
    """`whole` cut into what lies between `holes`."""
    edges = [whole[0], *itertools.chain.from_iterable(holes), whole[1]]
    return [(begin, end) for begin, end in zip(edges[::2], edges[1::2], strict=True) if end > begin]


def text_hash(text: str) -> int:
    """64 bits of BLAKE2b."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def dialogue_hash(item: Conversation) -> int:
    """Equal for two conversations that say the same, whatever their system prompts, case and white space."""
    text = item.text
    if item.messages is not None:
        text = "\0".join([message["content"] for message in item.messages if message["role"] != "system"])
    return text_hash(" ".join(text.casefold().split()))
