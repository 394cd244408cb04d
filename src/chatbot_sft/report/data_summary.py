"""What the gate found, in words: for the terminal, the preview's head and the run's own remarks."""

from __future__ import annotations

import itertools
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatbot_sft.data.encode import CUT, JUDGED_CUT, THINKING_LEFT_OUT, THOUGHT_MISSING, TOOLS_LEFT_OUT
from chatbot_sft.data.personal.detector import KINDS
from chatbot_sft.data.personal.rows import counted
from chatbot_sft.data.preferences import CONVERSATIONS, NO_COUNTERPART, NO_THUMB
from chatbot_sft.data.split import DUPLICATE
from chatbot_sft.errors import listed
from chatbot_sft.extras import install
from chatbot_sft.report.found import share
from chatbot_sft.report.not_read import sentence
from chatbot_sft.report.plain import shown_line
from chatbot_sft.report.words import amount

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

# Notes that are said however few rows they touch, and what they come to.
SAID = {
    TOOLS_LEFT_OUT: "the model learns to call tools that its prompt does not describe",
    THINKING_LEFT_OUT: "answers are trained without their reasoning",
    THOUGHT_MISSING: (
        "a trained model will be asked to go on inside a thought, and has learned to answer without one"
    ),
    CUT: "trained without its end; raise model.max_seq_length, or set dataset.overflow=drop or split",
    JUDGED_CUT: "a part of it is compared, and its end is not learned; raise model.max_seq_length",
    NO_THUMB: None,
}
UNBROKEN = 10_000  # characters of a line in a pipe or a file: nothing there is as narrow as a terminal
SHOWN = 5  # rows that are named in a line
MOST = 0.5  # share of the rows from which any other note is said in the run


def show(report: Mapping[str, Any], files: Sequence[Path], named: Collection[str] = ()) -> None:
    """Print the gate's report as a table, and the `files` with the whole of it and the preview. `named` are the keys
    that the user wrote on the command line.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    pipe = not console.is_terminal and "COLUMNS" not in os.environ
    if pipe:
        console.width = UNBROKEN
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts(report, named):
        table.add_row(name, Text(shown_line(value)))
    _print(console, table, pipe)
    rows = [(kind, tally, "red") for kind, tally in report["problems"].items()]
    rows += [(kind, tally, "yellow") for kind, tally in report["notes"].items()]
    if personal := report["personal_data"]:
        rows += [(kind, tally, "yellow") for kind, tally in personal["kinds"].items()]
    if rows:
        files_named = {row["file"] for _, tally, _ in rows for row in tally["rows"]}
        one_file = len(report["sources"]) == 1 and len(files_named) == 1
        short = short_names(files_named)
        problems = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        problems.add_column("found", no_wrap=True)
        problems.add_column("rows", justify="right")
        problems.add_column("the first", overflow="fold")
        for kind, tally, colour in sorted(rows, key=lambda row: (row[2], -row[1]["count"])):
            first = tally["rows"][0]
            detail = f": {first['detail']}" if "detail" in first else ""
            where = f"row {first['row']}" if one_file else f"{short[first['file']]} row {first['row']}"
            place = Text(shown_line(where + detail))
            shown = f"{kind}, left out of training" if tally.get("left_out") else kind
            problems.add_row(Text(shown, style=colour), share(tally), place)
        console.print()
        _print(console, problems, pipe)
    console.print()
    console.print(Text("\n".join(map(str, files)), style="dim"), soft_wrap=True)


def _print(console: Console, table: Table, pipe: bool) -> None:
    """In a pipe without the blanks that fill a line up."""
    if not pipe:
        console.print(table)
        return
    with console.capture() as drawn:
        console.print(table)
    print("\n".join(line.rstrip() for line in drawn.get().splitlines()), file=console.file)


def short_names(files: Iterable[str]) -> dict[str, str]:
    """File → its name, with as many of the folders above it as tell it from the others."""
    parts = {file: Path(file).parts for file in files}
    short = {}
    for file, own in parts.items():
        alike = (other for other in parts if other != file)
        same = [sum(1 for _ in _from_the_end(own, parts[other])) for other in alike]
        short[file] = str(Path(*own[-1 - max(same, default=0) :]))
    return short


def _from_the_end(one: Sequence[str], other: Sequence[str]) -> Iterable[str]:
    """The last parts that both have."""
    pairs = zip(reversed(one), reversed(other), strict=False)
    return (a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def facts(report: Mapping[str, Any], named: Collection[str] = ()) -> list[tuple[str, str]]:
    """(name, value) pairs of the report in words; `named` are the keys that the user wrote on the command line."""
    lengths, template, training = report["lengths"], report["template"], report["training"]
    sources = ", ".join(
        f"{source['path']} ({source['format']}{_columns(source)}{_taken(source)})"
        for source in report["sources"]
    )
    unit = report["unit"]
    table = [
        ("data", sources),
        (unit, _accounts(report)),
        ("tokens", f"{report['tokens']:,}, {100 * report['trainable_share']:.0f}% of them trained"),
        (
            "length",
            "no row became tokens"
            if not lengths["p100"]
            else f"median {lengths['p50']:,}, 95% up to {lengths['p95']:,}, longest {lengths['p100']:,} tokens;"
            f" {lengths['over_max_seq_length']:,} over model.max_seq_length",
        ),
        (
            "training",
            f"{amount(training['steps'], 'step')} of"
            f" {amount(training['effective_batch_size'], unit.removesuffix('s'))}:"
            f" {amount(training['epochs'], 'epoch', 'g')}",
        ),
        (
            "template",
            f"system prompt: {template['system_prompt']};"
            f" an answer ends with {' '.join(template['end_of_turn']) or 'no control token'}"
            + ("; the prompt ends with <think>" if template["opens_thought"] else "")
            + ("; thoughts are left out" if template["leaves_thoughts_out"] else ""),
        ),
        *_nothing_personal(report),
    ]
    if judged := report["judgement"]:
        table.insert(2, ("judged", _judged(judged)))
    missing = [f"not looked for: {why}: {install('data')}" for why in report["not_looked_for"]]
    return table + [("note", text) for text in (*remarks(report), *missing, *of_schedule(training, named))]


def of_schedule(training: Mapping[str, Any], named: Collection[str]) -> list[str]:
    """What looks wrong about the steps of a run."""
    lines = [training["warning"]] if training["warning"] else []
    if training["some_never"] and "training.max_steps" not in named:
        steps, epochs = amount(training["steps"], "step"), amount(training["epochs"], "epoch", "g")
        lines.append(
            f"{steps}, a default, are {epochs}: part of the data is never trained on;"
            " training.num_train_epochs=3 trains on all of it, three times"
        )
    return lines


def remarks(report: Mapping[str, Any]) -> list[str]:
    """What is not wrong with any one row, but worth a look."""
    template = report["template"]
    lines = [f"not read: {sentence(report['not_read'])}"] if report["not_read"] else []
    if absent := _roles_of_no_row(report):
        lines.append(f"dataset.roles: no row read has {listed(absent)}")
    for kind, note in report["notes"].items():
        if kind in report["found"]:
            continue
        if kind == NO_COUNTERPART:
            lines.append(
                f"{amount(note['count'], 'answer')} {kind}; objective=kto learns from single answers"
            )
        elif kind in SAID or note["count"] > MOST * report["rows"]:
            meaning = f": {SAID[kind]}" if SAID.get(kind) else ""
            lines.append(f"{kind} in {note['count']:,} of {amount(report['rows'], 'row')}{meaning}")
    if copies := report["duplicates"]:
        drop = "; dataset.on_near_duplicate=drop leaves them out" if report["unit"] == CONVERSATIONS else ""
        lines.append(f"{amount(copies, DUPLICATE)} trained all the same{drop}")
    if report["judgement"] and report["judgement"]["remark"]:
        lines.append(report["judgement"]["remark"])
    if report["system_prompts_given"] == 0:
        lines.append("dataset.system_prompt does nothing here: no row is without a system prompt of its own")
    if report["none_held_out"]:
        lines.append(report["none_held_out"])
    if template["end_of_turn"] and not template["end_of_turn_stops_generation"]:
        lines.append(
            f"{' '.join(template['end_of_turn'])} is no end token of the tokenizer or of"
            " generation_config.json: generation may run on after it"
        )
    if template["system_prompt"] == "left out":
        lines.append("the chat template leaves system prompts out")
    if template["writes_todays_date"]:
        lines.append(
            "the chat template writes today's date into every prompt;"
            " dataset.chat_template_kwargs={date_string: …} fixes it"
        )
    if (personal := report["personal_data"]) and personal["rows"]:
        lines.append(f"personal data: {personal_data(personal, report['rows'])}")
    return lines


def _roles_of_no_row(report: Mapping[str, Any]) -> list[str]:
    """The names of `dataset.roles` that none of the files has."""
    counts = [source.get("roles", {}) for source in report["sources"]]
    return [role for role in dict.fromkeys(itertools.chain(*counts)) if not any(c.get(role) for c in counts)]


def _accounts(report: Mapping[str, Any]) -> str:
    """Where the rows of the files went; the figures add up to them, unless a row becomes several judged answers, or
    two become a pair.
    """
    rows, accounts, bad = f"{report['rows']:,}", report["accounts"], report["bad_rows_used"]
    left_out = accounts["left_out"]
    whys = ", ".join(f"{why}: {count:,}" for why, count in left_out.items())
    rest = f", {sum(left_out.values()):,} left out ({whys})" if left_out else ""
    rest += f", {accounts['bad']:,} bad" if accounts["bad"] else ""
    rest += (
        f" ({bad['count']:,} of those used {'is' if bad['count'] == 1 else 'are'} bad{_named(bad)})"
        if bad["count"]
        else ""
    )
    trained, held_out = report["rows_used"], report["rows_held_out"]
    if report["unit"] != "conversations" and (accounts["trained"], accounts["held_out"]) != (
        trained,
        held_out,
    ):
        return f"{trained:,} trained, {held_out:,} held out, of {amount(report['rows'], 'row')}{rest}"
    again = f" (as {trained:,}: pieces, or more than once)" if trained != accounts["trained"] else ""
    return f"{rows}: {accounts['trained']:,} trained{again}, {accounts['held_out']:,} held out{rest}"


def _judged(judged: Mapping[str, Any]) -> str:
    """How many answers of each kind, and how long they are."""
    kinds = (f"{count:,} {kind}" for kind, count in judged["kinds"].items())
    lengths = " to ".join(f"{length:,}" for length in judged["lengths"].values())
    return f"{', '.join(kinds)}; an answer's median length {lengths} tokens"


def _nothing_personal(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """That nothing was found, where it was looked for; what was found is a remark."""
    personal = report["personal_data"]
    return (
        [("personal data", personal_data(personal, report["rows"]))]
        if personal and not personal["rows"]
        else []
    )


def personal_data(found: Mapping[str, Any], rows: int) -> str:
    """How much of it there is, and what becomes of it."""
    if len(found["looked_for"]) < len(KINDS):
        looked = f"; looked for {listed(found['looked_for'])} alone; for all: {install('data')}"
    else:
        looked = ""
    if not found["rows"]:
        return f"none found{looked}"
    becomes = {
        "note": "they are trained on; dataset.personal_data=redact trains on placeholders",
        "error": "refused, as dataset.personal_data=error says",
        "drop": "these rows are left out",
        "redact": "they are trained as placeholders",
    }[found["policy"]]
    return f"{counted(found)} in {found['rows']:,} of {amount(rows, 'row')}: {becomes}{looked}"


def _named(bad: Mapping[str, Any]) -> str:
    """Which rows are bad and used all the same, as dataset.on_bad_row=warn has it."""
    rows = ", ".join(str(place["row"]) for place in bad["rows"][:SHOWN])
    more = f" and {bad['count'] - SHOWN:,} more" if bad["count"] > SHOWN else ""
    return f": row{'s' if bad['count'] > 1 else ''} {rows}{more}"


def _taken(source: Mapping[str, Any]) -> str:
    """How many of its rows a mixture or dataset.max_rows takes."""
    return f", {source['taken']:,} of {amount(source['available'], 'row')}" if "available" in source else ""


def _columns(source: Mapping[str, Any]) -> str:
    """Which of the file's columns were taken for the format's, where the configuration did not say so."""
    return "".join(f", {field}={column}" for field, column in source.get("columns", {}).items())
