"""A page of training conversations that shows which tokens are trained, only context, or control tokens.

One HTML file without any reference to another: it opens from the disk, and nothing that the data holds can
run in it. What it is made of lies beside this module: preview.html (a `string.Template`), preview.css and
preview.js.
"""

from __future__ import annotations

import functools
import importlib.resources
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from string import Template

from chatbot_sft.report.hypertext import escaped, hash_of, said
from chatbot_sft.report.words import amount

HIDDEN = -1  # in place of the id of a token that is a part of a secret


@dataclass(frozen=True)
class PreviewToken:
    """`text` is the characters of this token, "" for the later tokens of a character that needs several.

    Of a secret, the first token's text is *** and the others' "", and all have the `id` HIDDEN.
    """

    text: str
    id: int
    trained: bool
    special: bool


@dataclass(frozen=True)
class PreviewRow:
    """One conversation. `length` is its tokens before any cut, `tokens` what is left of them.

    Of judged answers, `parts` says what the sequences in it are and how many of the tokens each has.
    """

    file: str
    row: int
    tokens: tuple[PreviewToken, ...]
    length: int
    truncated: bool
    held_out: bool
    problems: tuple[str, ...]
    parts: tuple[tuple[str, int], ...] = ()


def write_preview(
    path: Path, title: str, facts: Sequence[tuple[str, str]], rows: Sequence[PreviewRow]
) -> None:
    # Half of a surrogate pair has no UTF-8; for a reference a browser shows the replacement character.
    path.write_text(page(title, facts, rows), encoding="utf-8", errors="xmlcharrefreplace", newline="\n")


def page(title: str, facts: Sequence[tuple[str, str]], rows: Sequence[PreviewRow]) -> str:
    """The whole page. `facts` are (name, value) pairs for its head."""
    kinds = [kind for row in rows for kind in _kinds(row)]
    filters = [
        f"<label><input type=checkbox value={kind}>{name} <b>{kinds.count(kind)}</b></label>"
        for kind, name in _FILTERS.items()
        if kind in kinds
    ]
    script = "\n" + _part("js")
    return Template(_part("html")).substitute(
        # Only this very script may run: not one from the data, were it ever to get past the escaping.
        script_hash=hash_of(script),
        style=_part("css"),
        script=script,
        title=said(title),
        facts="".join(f"<div><dt>{said(name)}</dt><dd>{said(value)}</dd></div>" for name, value in facts),
        filters=f"<fieldset><legend>only</legend>{''.join(filters)}</fieldset>" if filters else "",
        count=len(rows),
        rows="\n".join(map(_row, rows)),
        empty="There are no rows." if not rows else "No row matches.",
        hidden="" if not rows else " hidden",
    )


@functools.cache
def _part(kind: str) -> str:
    """The package's file preview.`kind`."""
    return importlib.resources.files(__package__).joinpath(f"preview.{kind}").read_text(encoding="utf-8")


_FILTERS = {"problems": "with problems", "cut": "cut", "held": "held out"}


def _kinds(row: PreviewRow) -> list[str]:
    """Which of `_FILTERS` the row belongs to."""
    return [
        kind
        for kind, given in (("problems", row.problems), ("cut", row.truncated), ("held", row.held_out))
        if given
    ]


def _row(row: PreviewRow) -> str:
    shown, trained = len(row.tokens), sum(token.trained for token in row.tokens)
    missing = max(0, row.length - shown)
    size = f"{shown:,} of {row.length:,} tokens" if missing else amount(shown, "token")
    badges = ["<b>cut</b>"] if row.truncated else []
    if row.held_out:
        badges.append('<b title="measured on, not trained on">held out</b>')
    problems = "".join(f"<li>{said(problem)}</li>" for problem in row.problems)
    parts = (
        f'<article data-is="{" ".join(_kinds(row))}">',
        f"<header><h2>{said(row.file)}: <b>row {row.row}</b></h2>",
        f"<div>{size}, {trained:,} trained{''.join(badges)}</div></header>",
        f"<ul>{problems}</ul>" if problems else "",
        *_sequences(row, missing),
        f"<footer>cut here, {amount(missing, 'token')} left out</footer>" if missing else "",
        "</article>",
    )
    return "".join(parts)


def _sequences(row: PreviewRow, missing: int) -> Iterator[str]:
    """The tokens, each sequence of a pair under its name."""
    begin, parts = 0, row.parts or (("", len(row.tokens)),)
    for number, (kind, size) in enumerate(parts, 1):
        tokens = row.tokens[begin : begin + size]
        begin += size
        if kind:
            yield f"<h3 class={kind}>{kind}</h3>"
        yield _bar(tokens, missing if number == len(parts) else 0)
        yield f"<p>{_text(tokens)}</p>"


def _bar(tokens: Sequence[PreviewToken], missing: int) -> str:
    """The row as a strip: where in it the trained tokens are, and how much of it is cut off."""
    runs = ((trained, sum(1 for _ in run)) for trained, run in groupby(tokens, lambda token: token.trained))
    parts = [
        f"<b style=flex:{size}></b>" if trained else f"<s style=flex:{size}></s>" for trained, size in runs
    ]
    if missing:
        parts.append(f"<u style=flex:{missing}></u>")
    return f"<div class=bar aria-hidden=true>{''.join(parts)}</div>"


def _text(tokens: Sequence[PreviewToken]) -> str:
    # The tokens that make one piece of text: one, but for a character of several tokens.
    groups: list[list[PreviewToken]] = []
    for token in tokens:
        if not token.text and not token.special and groups and _kind(groups[-1][0]) == _kind(token):
            groups[-1].append(token)
        else:
            groups.append([token])
    runs = (
        (trained, "".join(map(_piece, run)))
        for trained, run in groupby(groups, lambda group: group[0].trained)
    )
    return "".join(f"<mark>{run}</mark>" if trained else run for trained, run in runs)


def _kind(token: PreviewToken) -> tuple[bool, bool]:
    return token.trained, token.special


def _piece(group: Sequence[PreviewToken]) -> str:
    # There are thousands of these, hence elements and attributes as short as they can be.
    token, text = group[0], escaped(group[0].text)
    ids = token.id if len(group) == 1 else f'"{" ".join(str(part.id) for part in group)}"'
    if token.trained:
        text = text.replace("\n", "<u></u>\n")  # a trained line break can be seen
    return f"<i{' class=s' if token.special else ''} title={ids}>{text}</i>"
