"""The rows of one source as conversations, by the format and the columns that its first rows show."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from chatbot_sft.config import DatasetConfig, SourceConfig
from chatbot_sft.config.schema import ROLES
from chatbot_sft.data import unread
from chatbot_sft.data.encode import Refused, in_batches
from chatbot_sft.data.formats import JUDGED, Reading, check_columns, check_used, detect, to_conversation
from chatbot_sft.data.messages import BadRow, Conversation, role_word
from chatbot_sft.data.preferences import (
    NO_THUMB,
    PAIRS,
    UNITS,
    check_fits,
    judged,
    judged_format,
    paired,
)
from chatbot_sft.data.sources import Row
from chatbot_sft.data.template import ChatTemplate
from chatbot_sft.errors import UserError

LOOKED_AT = 100  # rows of a source from which its format and columns are told


def conversations(
    rows: Iterator[Row],
    source: SourceConfig,
    dataset: DatasetConfig,
    template: ChatTemplate,
    own_text: bool,
    uses: dict[int, int] | None,
    objective: str,
    about: dict[str, Any],
    not_read: dict[str, int],
) -> Iterator[Conversation | Refused]:
    """The `rows` of `source`, as the objective takes them. `uses` says which and how often (None: all, once). Fills
    in `about`, counts in `not_read`.

    With `own_text` a function of the user's own writes the text: it gets the messages whole, and rows that
    have none as they are.

    Raises:
        UserError: a column that was named is not there, no format fits, or one of another objective.
    """
    given = source.columns or {}
    columns = {"messages": dataset.message_field, "text": dataset.text_field, **given}
    names_of = frozenset(ROLES) if own_text else template.names_of
    roles = {role_word(word): role for word, role in (source.roles or {}).items()}
    reading = Reading(
        columns, dataset.thinking, template.thinking_field, dataset.system_prompt, names_of, roles
    )
    begin = next(in_batches(rows, LOOKED_AT, lambda row: len(repr(row.values))), [])
    named = {ours: theirs for ours, theirs in columns.items() if ours != theirs or ours in given}
    check_columns(source.data_path, begin, named)
    name: str | None = source.format
    unit = UNITS[objective]
    if not own_text and name in ("auto", "json", *JUDGED):
        found, told_columns = judged_format(begin, reading, unit) or (name, reading.columns)
        if name in ("auto", "json", found):
            name, reading = found, replace(reading, columns=told_columns)
    if name in ("auto", "json"):
        if own_text:
            name = _format_or_none(begin, reading)
        else:
            name, told = detect(begin, reading)
            reading = replace(reading, columns=told)
    if name and not own_text:
        check_used(source.data_path, name, named, reading)
        check_fits(source.data_path, name, begin, reading, objective)
    about |= {"format": name or "the formatting function's own", "rows": 0}
    if others := {ours: theirs for ours, theirs in reading.columns.items() if columns.get(ours) != theirs}:
        about["columns"] = others
    if roles:
        about["roles"] = dict.fromkeys(roles, 0)  # in how many rows
    made = _made(itertools.chain(begin, rows), name, reading, unit, own_text, uses, about, not_read)
    yield from paired(made) if unit == PAIRS else made


def _made(
    rows: Iterator[Row],
    name: str | None,
    reading: Reading,
    unit: str,
    own_text: bool,
    uses: dict[int, int] | None,
    about: dict[str, Any],
    not_read: dict[str, int],
) -> Iterator[Conversation | Refused]:
    """Row by row, what the format `name` makes of it."""
    for index, row in enumerate(rows):
        if uses is not None and index not in uses:
            continue
        about["rows"] += 1
        if row.fault:
            yield Refused(row.file, row.number, *row.fault)
            continue
        try:
            if name in JUDGED:
                several = judged(row, name, reading, unit)
            elif name:
                several = [to_conversation(row, name, reading)]
            else:
                several = [Conversation(row.file, row.number, None, text="", values=row.values)]
            if not several:
                yield Refused(row.file, row.number, NO_THUMB, "", fault=False)
            for role in {role for made in several for role in made.named}:
                about["roles"][role] += 1
            for number, made in enumerate(several):
                made.uses = 1 if uses is None else uses[index]
                # What a function of the user's own makes of the columns is seen when it is called; the messages
                # it gets are checked ones.
                inside = [key for key in made.unread if "[]" in key]
                if not number:
                    unread.count(inside if own_text else made.unread, not_read)
                yield made
        except BadRow as bad:
            yield Refused(row.file, row.number, bad.kind, bad.detail)


def _format_or_none(rows: Sequence[Row], reading: Reading) -> str | None:
    """The format of rows that a user's own function will write out; None where they have one of its own."""
    try:
        return detect(rows, reading)[0]
    except UserError:
        return None
