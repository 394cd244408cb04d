"""A page of training conversations that shows which tokens are trained, which are only context and where control tokens are.

One HTML file without any reference to another: it opens from the disk, and nothing that the data holds can run in it.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from string import Template

from chatbot_sft.report.masking import masked

HIDDEN = -1  # in place of the id of a token that is a part of a secret


@dataclass(frozen=True)
class PreviewToken:
    """`text` is the characters of this token, "" for the second and later tokens of a character that needs several.

    Of a secret, the first token's text is *** and the others' "", and all have the `id` HIDDEN.
    """

    text: str
    id: int
    trained: bool
    special: bool


@dataclass(frozen=True)
class PreviewRow:
    """One conversation. `length` is its tokens before any cut, `tokens` what is left of them."""

    file: str
    row: int
    tokens: tuple[PreviewToken, ...]
    length: int
    truncated: bool
    held_out: bool
    problems: tuple[str, ...]


def write_preview(path: Path, title: str, facts: Sequence[tuple[str, str]], rows: Sequence[PreviewRow]) -> None:
    # Half of a surrogate pair has no UTF-8; written as a reference, a browser shows the replacement character for it.
    path.write_text(page(title, facts, rows), encoding="utf-8", errors="xmlcharrefreplace", newline="\n")


def page(title: str, facts: Sequence[tuple[str, str]], rows: Sequence[PreviewRow]) -> str:
    """The whole page. `facts` are (name, value) pairs for its head."""
    kinds = [kind for row in rows for kind in _kinds(row)]
    filters = [
        f"<label><input type=checkbox value={kind}>{name} <b>{kinds.count(kind)}</b></label>" for kind, name in _FILTERS.items() if kind in kinds
    ]
    return _PAGE.substitute(
        # Only this very script may run: not one from the data, were it ever to get past the escaping.
        script_hash=base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode(),
        style=_STYLE,
        script=_SCRIPT,
        title=_said(title),
        facts="".join(f"<div><dt>{_said(name)}</dt><dd>{_said(value)}</dd></div>" for name, value in facts),
        filters=f"<fieldset><legend>only</legend>{''.join(filters)}</fieldset>" if filters else "",
        count=len(rows),
        rows="\n".join(map(_row, rows)),
        empty="There are no rows." if not rows else "No row matches.",
        hidden="" if not rows else " hidden",
    )


_FILTERS = {"problems": "with problems", "cut": "cut", "held": "held out"}


def _kinds(row: PreviewRow) -> list[str]:
    """Which of `_FILTERS` the row belongs to."""
    return [kind for kind, given in (("problems", row.problems), ("cut", row.truncated), ("held", row.held_out)) if given]


def _row(row: PreviewRow) -> str:
    shown, trained = len(row.tokens), sum(token.trained for token in row.tokens)
    missing = max(0, row.length - shown)
    size = f"{shown:,} of {row.length:,} tokens" if missing else _tokens(shown)
    badges = ["<b>cut</b>"] if row.truncated else []
    if row.held_out:
        badges.append('<b title="measured on, not trained on">held out</b>')
    problems = "".join(f"<li>{_said(problem)}</li>" for problem in row.problems)
    parts = (
        f'<article data-is="{" ".join(_kinds(row))}">',
        f"<header><h2>{_said(row.file)}: <b>row {row.row}</b></h2><div>{size}, {trained:,} trained{''.join(badges)}</div></header>",
        f"<ul>{problems}</ul>" if problems else "",
        _bar(row.tokens, missing),
        f"<p>{_text(row.tokens)}</p>",
        f"<footer>cut here, {_tokens(missing)} left out</footer>" if missing else "",
        "</article>",
    )
    return "".join(parts)


def _tokens(number: int) -> str:
    return f"{number:,} token{'' if number == 1 else 's'}"


def _bar(tokens: Sequence[PreviewToken], missing: int) -> str:
    """The row as a strip: where in it the trained tokens are, and how much of it is cut off."""
    runs = ((trained, sum(1 for _ in run)) for trained, run in groupby(tokens, lambda token: token.trained))
    parts = [f"<b style=flex:{size}></b>" if trained else f"<s style=flex:{size}></s>" for trained, size in runs]
    if missing:
        parts.append(f"<u style=flex:{missing}></u>")
    return f"<div class=bar aria-hidden=true>{''.join(parts)}</div>"


def _text(tokens: Sequence[PreviewToken]) -> str:
    groups: list[list[PreviewToken]] = []  # the tokens that make one piece of text: one, but for a character of several tokens
    for token in tokens:
        if not token.text and not token.special and groups and _kind(groups[-1][0]) == _kind(token):
            groups[-1].append(token)
        else:
            groups.append([token])
    runs = ((trained, "".join(map(_piece, run))) for trained, run in groupby(groups, lambda group: group[0].trained))
    return "".join(f"<mark>{run}</mark>" if trained else run for trained, run in runs)


def _kind(token: PreviewToken) -> tuple[bool, bool]:
    return token.trained, token.special


def _piece(group: Sequence[PreviewToken]) -> str:
    # There are thousands of these, hence elements and attributes as short as they can be.
    token, text = group[0], _escape(group[0].text)
    ids = token.id if len(group) == 1 else f'"{" ".join(str(part.id) for part in group)}"'
    if token.trained:
        text = text.replace("\n", "<u></u>\n")  # a trained line break can be seen
    return f"<i{' class=s' if token.special else ''} title={ids}>{text}</i>"


# What a browser would drop, or what would turn the text after it around, is shown as a sign of its own.
_CONTROLS = {*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)} - {ord("\t"), ord("\n")}
_VISIBLE = {code: f"[U+{code:04X}]" for code in _CONTROLS}


def _escape(text: str) -> str:
    return html.escape(text.translate(_VISIBLE))


def _said(text: str) -> str:
    """What stands around the conversations, without secrets."""
    return _escape(masked(text))


_STYLE = """
:root {
  color-scheme: light dark;
  --page: light-dark(#f5f5f1, #111316); --card: light-dark(#fff, #191c20); --line: light-dark(#e2e2dc, #2a2f35);
  --ink: light-dark(#1d2125, #e7e9eb); --muted: light-dark(#5f666f, #98a1ab); --tick: light-dark(#0002, #fff2);
  --trained: light-dark(#d6f0e1, #15402f); --trained-ink: light-dark(#0a3725, #d2f5e3); --trained-edge: light-dark(#2c8a62, #4fb88b);
  --strong: light-dark(#a8dcc1, #1f664a); --chip: light-dark(#eff0f2, #292e34); --chip-edge: light-dark(#cfd3d8, #434a52);
  --warn: light-dark(#fdeedd, #38260f); --warn-ink: light-dark(#8a3b07, #ffbd80);
  --mono: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
* { box-sizing: border-box; margin: 0 }
[hidden] { display: none !important }
body { background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, "Segoe UI", Roboto, "Noto Sans", sans-serif;
  padding: 0 clamp(.75rem, 3vw, 2rem) 5rem }
body > * { max-width: 58rem; margin-inline: auto }
h1 { font-size: 1.5rem; line-height: 1.25; font-weight: 650; letter-spacing: -.015em; padding: 2.25rem 0 1rem; overflow-wrap: anywhere }
dl { display: flex; flex-wrap: wrap; gap: .75rem 2.25rem; padding-bottom: 1.25rem }
dt { color: var(--muted); font-size: .8125rem }
dd { overflow-wrap: anywhere; font-variant-numeric: tabular-nums }

nav { position: sticky; top: 0; z-index: 1; background: var(--page); padding: .75rem 0; border-bottom: 1px solid var(--line); margin-bottom: 1.25rem;
  display: flex; flex-wrap: wrap; align-items: center; gap: .5rem .75rem; font-size: .875rem }
nav input[type=search] { flex: 1 1 14rem; min-width: 0; font: inherit; font-size: 1rem; color: inherit; background: var(--card);
  border: 1px solid var(--chip-edge);
  border-radius: .5rem; padding: .375rem .75rem }
output { color: var(--muted); font-variant-numeric: tabular-nums }
:focus-visible { outline: 2px solid var(--trained-edge); outline-offset: 1px }
fieldset { border: 0; padding: 0; min-width: 0; display: flex; flex-wrap: wrap; align-items: center; gap: .375rem }
fieldset legend { float: left; color: var(--muted); padding: 0 }
label { display: inline-flex; align-items: center; gap: .375rem; border: 1px solid var(--chip-edge); border-radius: 2rem; padding: .125rem .625rem;
  cursor: pointer; white-space: nowrap }
label b { font-weight: 400; color: var(--muted); font-variant-numeric: tabular-nums }
label:has(:checked) { background: var(--strong); border-color: var(--trained-edge); color: var(--trained-ink) }
label:has(:checked) b { color: inherit }
label:has(:focus-visible) { outline: 2px solid var(--trained-edge); outline-offset: 1px }
label input { appearance: none; position: absolute }
nav .key { flex-basis: 100%; display: flex; flex-wrap: wrap; gap: .25rem 1.125rem; color: var(--muted) }

article { background: var(--card); border: 1px solid var(--line); border-radius: .75rem; margin-bottom: 1rem;
  padding: 1rem clamp(.875rem, 2.5vw, 1.5rem) 1.25rem;
  content-visibility: auto; contain-intrinsic-size: auto 24rem }
header { display: flex; flex-wrap: wrap; justify-content: space-between; align-items: baseline; gap: .125rem 1rem; font-size: .875rem }
h2 { font-size: inherit; font-weight: 400; color: var(--muted); overflow-wrap: anywhere }
h2 b { color: var(--ink); font-weight: 600; white-space: nowrap }
header div { color: var(--muted); font-variant-numeric: tabular-nums }
header div b { margin-left: .5rem; padding: .0625rem .5rem; border: 1px solid var(--chip-edge); border-radius: 2rem; font-weight: 400;
  font-size: .8125rem }
ul { list-style: none; padding: 0; margin-top: .5rem; display: grid; gap: .25rem; justify-items: start }
li { background: var(--warn); color: var(--warn-ink); border-radius: .375rem; padding: .125rem .625rem; font-size: .875rem; overflow-wrap: anywhere }
.bar { display: flex; height: 4px; border-radius: 2px; overflow: hidden; margin: .75rem 0 .875rem; background: var(--chip) }
.bar > * { min-width: 1px }
.bar b { background: var(--trained-edge) }
.bar u { background: repeating-linear-gradient(135deg, var(--chip-edge) 0 2px, transparent 2px 5px) }
/* `plaintext`: each line runs as its own script does, from the right for Arabic or Hebrew. */
p { color: var(--muted); line-height: 1.8; white-space: pre-wrap; overflow-wrap: anywhere; tab-size: 4; unicode-bidi: plaintext }
mark { color: var(--trained-ink); background: var(--trained); padding-block: .2em; border-radius: .2em; box-decoration-break: clone;
  -webkit-box-decoration-break: clone }
i { font-style: normal }
p i { background: linear-gradient(var(--tick) 0 0) 0 100% / 1px .35em no-repeat }
i.s { font: .8125em/1 var(--mono); color: var(--ink); background: var(--chip); box-shadow: inset 0 0 0 1px var(--chip-edge); border-radius: .3em;
  padding: .125em .4em; margin-inline: 2px; vertical-align: .08em;
  box-decoration-break: clone; -webkit-box-decoration-break: clone }
mark i.s { color: var(--trained-ink); background: var(--strong); box-shadow: inset 0 0 0 1px var(--trained-edge) }
p i:hover { outline: 1.5px solid var(--trained-edge); outline-offset: -1px; border-radius: .2em }
p u { text-decoration: none }
p u::before { content: "↵"; opacity: .5 }
i:empty::before { content: "·"; opacity: .5 }
footer { margin-top: .75rem; padding-top: .5rem; border-top: 1px dashed var(--chip-edge); color: var(--muted); font-size: .8125rem }
.none { text-align: center; color: var(--muted); padding: 3rem 0 }
#tip { position: fixed; left: 50%; bottom: 1rem; transform: translateX(-50%); max-width: calc(100vw - 1.5rem); width: max-content; z-index: 2;
  pointer-events: none;
  background: var(--ink); color: var(--page); border-radius: .5rem; padding: .375rem .75rem; font-size: .8125rem; overflow-wrap: anywhere }
#tip code { font-family: var(--mono) }
@media (max-width: 34rem) { h1 { padding: 1.25rem 0 .75rem } nav { position: static } nav .key { gap: .25rem .75rem } }
@media print { nav { position: static } article { break-inside: avoid } body { print-color-adjust: exact } }
"""

_SCRIPT = """
const all = (what, where = document) => [...where.querySelectorAll(what)]
const box = document.querySelector('[type=search]'), checks = all('[type=checkbox]'), rows = all('article')
const plain = text => text.normalize('NFC').toLowerCase().trim()
const texts = rows.map(row => plain(all('h2, li, p', row).map(part => part.textContent).join('\\n')))
const show = () => {
  const word = plain(box.value), only = checks.filter(check => check.checked).map(check => '[data-is~=' + check.value + ']').join('')
  rows.forEach((row, n) => { row.hidden = !texts[n].includes(word) || !row.matches('article' + only) })
  const shown = rows.filter(row => !row.hidden).length
  document.querySelector('output').textContent = shown + ' of ' + rows.length + ' rows'
  document.querySelector('.none').hidden = shown > 0
}
// The filter is in the address, so that a link or a reload keeps it: #q=beer&only=problems,cut
const read = () => {
  const asked = new URLSearchParams(location.hash.slice(1).replaceAll('+', '%2B')), only = (asked.get('only') || '').split(',')
  box.value = asked.get('q') || ''
  checks.forEach(check => { check.checked = only.includes(check.value) })
  show()
}
const changed = () => {
  const only = checks.filter(check => check.checked).map(check => check.value).join()
  const parts = [box.value && 'q=' + encodeURIComponent(box.value), only && 'only=' + only].filter(Boolean)
  history.replaceState(null, '', location.href.split('#')[0] + (parts.length ? '#' + parts.join('&') : ''))
  show()
}
box.addEventListener('input', changed)
checks.forEach(check => check.addEventListener('change', changed))
addEventListener('hashchange', read)
addEventListener('keydown', event => { if (event.key === '/' && document.activeElement !== box) { event.preventDefault(); box.focus() } })
read()

// The token under the pointer or the finger, said at the foot of the window; its title, which serves where no script runs, would say it twice.
const tip = document.getElementById('tip')
const count = row => {
  let n = 0
  for (const token of all('p i', row)) {
    token.ids = token.title.split(' ')
    token.number = n + 1
    n += token.ids.length
    token.removeAttribute('title')
  }
  row.count = n
}
addEventListener('pointerover', event => {
  const token = event.target.closest('p i')
  tip.hidden = !token
  if (!token) return
  const row = token.closest('article')
  if (!row.count) count(row)
  const last = token.number + token.ids.length - 1
  tip.firstChild.textContent = JSON.stringify(token.textContent)
  tip.lastChild.textContent = [
    '', (token.ids.length > 1 ? 'ids ' : 'id ') + token.ids.join(' '),
    (last > token.number ? 'tokens ' + token.number + '–' + last : 'token ' + last) + ' of ' + row.count,
    token.closest('mark') ? 'trained' : 'context', token.matches('.s') && 'special',
  ].filter(part => part !== false).join(' · ')
})
"""

_PAGE = Template("""<!doctype html>
<html lang=en>
<meta charset=utf-8>
<meta http-equiv=Content-Security-Policy content="default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-$script_hash'">
<meta name=viewport content="width=device-width, initial-scale=1">
<title>$title</title>
<style>$style</style>
<h1>$title</h1>
<dl>$facts</dl>
<nav>
<input type=search placeholder="Search rows" aria-label="Search text, files, row numbers and problems" autocomplete=off spellcheck=false>
<output>$count of $count rows</output>
$filters
<div class=key>
<span><mark>trained</mark></span><span>context</span><span><i class=s>special</i></span><span><mark><i class=s>special, trained</i></mark></span>
</div>
</nav>
<main>
$rows
<div class=none$hidden>$empty</div>
</main>
<div id=tip hidden><code> </code><span> </span></div>
<script>$script</script>
</html>
""")
