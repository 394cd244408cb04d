"""report.md: the run for people."""

from __future__ import annotations

import math
import os
import urllib.parse
from collections.abc import Mapping
from typing import Any

from chatbot_sft.report.found import sentences
from chatbot_sft.report.markup import cell, inline, quoted
from chatbot_sft.report.not_read import sentence
from chatbot_sft.report.plain import plain_line
from chatbot_sft.report.terminal import planned_time
from chatbot_sft.report.verification import verification_table
from chatbot_sft.report.words import amount, number
from chatbot_sft.run.directory import Run
from chatbot_sft.run.report import Replay, Report, SaveResult, Training

TITLES = {
    "train": "Fine-tuning run",
    "check": "Data check",
    "plan": "Training plan",
    "export": "Export of an earlier run",
    "evaluate": "Evaluation",
    "verify": "Verification of a server",
    "replay": "Replay of an earlier run",
}


def data_links(data: Run, beside: Run) -> dict[str, str]:
    """Label → address, from the folder of `beside`, of what the data gate of the run `data` wrote."""
    files = {"every token of some rows": data.preview_file, "all findings": data.data_report_file}
    return {
        label: urllib.parse.quote(os.path.relpath(file, beside.folder))
        for label, file in files.items()
        if file.is_file()
    }


def markdown(report: Report, picture: bool, links: Mapping[str, str] | None = None) -> str:
    """The report as Markdown; parts that a run did not reach are left out. `links` are `data_links`."""
    lines = [f"# {TITLES[report.task]}: {report.status}", "", f"    {plain_line(report.command)}", ""]
    if report.error:
        lines += [f"**{inline(report.error)}**", ""]
    if picture:
        lines += ["![loss](loss.png)", ""]
    warnings = report.training.warnings if report.training else []
    lines += [
        "| | |",
        "|---|---|",
        *(f"| {cell(name)} | {cell(value)} |" for name, value in _figures(report, links or {})),
        "",
    ]
    lines += [line for text in warnings for line in (f"**Warning: {inline(text)}**", "")]
    lines += _replay(report.replay) if report.replay else []
    lines += _evaluations(report)
    if report.samples:
        lines += ["## Answers before and after", ""]
        for sample in report.samples:
            lines += [
                f"**{inline(sample.prompt)}**",
                "",
                *_quote("before", sample.before),
                "",
                *_quote("after", sample.after),
                "",
            ]
            lines += _on_the_way(sample.prompt, report.evaluations)
    lines += _saved(report.save) if report.save else []
    lines += [
        "## Versions",
        "",
        ", ".join(f"{name} {version}" for name, version in report.versions.items()),
        "",
    ]
    return "\n".join(lines)


def _replay(replay: Replay) -> list[str]:
    """What came of holding the two trainings against each other."""
    lines = [
        f"## Replay: {replay.verdict}",
        "",
        f"`{replay.run}`",
        "",
        "| figure | how many | |",
        "|---|--:|---|",
    ]
    lines += [f"| {cell(one['what'])} | {one['count']:,} | {cell(one['said'])} |" for one in replay.compared]
    lines += ["", "Different here:" if replay.changes else "Nothing is different here.", ""]
    for one in replay.changes:
        decides = "" if one["decides"] else " (decides nothing)"
        lines.append(
            f"- {inline(one['of'])}: {inline(one['what'])} {inline(one['before'])} → {inline(one['after'])}{decides}"
        )
    return [*lines, ""]


def _saved(save: SaveResult) -> list[str]:
    """What there is, and what was found of an export that was not kept."""
    lines = []
    if exports := save.kept:
        lines += [f"## Saved ({', '.join(export.method for export in exports)})", "", f"`{save.path}`", ""]
        lines += [f"- {inline(name)} ({size / 1e6:,.1f} MB)" for name, size in save.files.items()]
        lines += ["", *verification_table(exports), ""]
        bases = dict.fromkeys(export.base for export in exports if export.base)
        lines += [f"The adapter was merged into {base}.\n" for base in bases]
    for export in save.exports:
        if export.verified is False:
            lines += [f"## Not kept ({export.method})", "", *verification_table([export]), ""]
    return lines


def _figures(report: Report, links: Mapping[str, str]) -> list[tuple[str, str]]:
    model, data, training, memory = report.model, report.dataset, report.training, report.memory
    rows = [("started", f"{report.started}, finished {report.finished}"), ("seed", str(report.seed))]
    if model:
        trained = (
            f"{model.trainable_parameters / 1e6:,.2f}M trained"
            f" ({100 * model.trainable_parameters / model.parameters:.2f}%)"
        )
        size = f"{model.parameters / 1e6:,.0f}M parameters"
        rows.append(("model", f"{inline(model.name)}, {size}, {trained}, {model.dtype}"))
        if model.adapter:
            rows.append(("goes on from", inline(model.adapter)))
        rows.append(("engine", model.engine))
    if report.settings:
        given = {name: value for name, value in report.settings.items() if value is not None}
        rows.append(("settings", ", ".join(f"{name} {value}" for name, value in given.items())))
    if data and data.system_prompt:
        rows.append(("system prompt", inline(data.system_prompt)))
    if data and data.tokens:
        split = f"{data.rows_used:,} trained, {data.rows_held_out:,} held out"
        rows.append(("data", f"{inline(data.path)}: {data.size}, {split}"))
        share = f"{100 * data.trainable_tokens / data.tokens:.0f}% of them trained"
        rows.append(
            ("tokens", f"{data.tokens:,}, {share}; longest {data.max_length:,}, {data.truncated_rows:,} cut")
        )
        bad = f"{data.bad_rows:,} bad, {amount(data.duplicates, 'exact duplicate')}"
        linked = ", ".join(f"[{label}]({address})" for label, address in links.items())
        rows.append(("checked", f"{bad}; {linked}" if linked else bad))
        if data.found:
            rows.append(("found in the data", "; ".join(sentences(data.found)).replace("|", "\\|")))
        if data.not_read:
            rows.append(("not read", sentence(data.not_read).replace("|", "\\|")))
        if data.personal_rows:
            kinds = ", ".join(f"{kind} ({count:,})" for kind, count in data.personal_data.items())
            rows.append(("personal data", f"{kinds} in {data.personal_rows:,} of {amount(data.rows, 'row')}"))
    if found := report.evaluation:
        if not model:
            rows.append(("model", inline(found.model)))
        rows.append(("golden file", f"{inline(found.golden)}: {amount(found.cases, 'case')}"))
        shares = (("before", found.before), ("earlier", found.earlier), ("after", found.passed))
        known = [f"{name} {passed:.1%}" for name, passed in shares if passed is not None]
        rows.append(("golden cases passed", ", ".join(known)))
        if found.steps:
            by_step = [f"{one['step']:,}: {one['passed']:.1%}" for one in found.steps]
            rows.append(("passed at step", ", ".join(by_step)))
        if found.page:
            rows.append(("case by case", f"[evaluation.html]({urllib.parse.quote(found.page)})"))
    if report.plan:
        parts = ", ".join(f"{name} {size:.2f}" for name, size in report.plan.memory_gb.items())
        rows.append(("memory (GB)", f"{parts}; {report.plan.device} has {report.plan.device_gb:.1f}"))
        rows.append(("batch layout", report.plan.layout))
        rows.append(("time", planned_time(report.plan)))
    measured = report.plan.layouts if report.plan else training.batch_layouts if training else []
    for layout in measured:
        took = f"{layout['milliseconds']:,.0f} ms a step" if layout["milliseconds"] else layout["why_not"]
        peak = f", peak {layout['peak_gb']:.1f} GB" if layout["peak_gb"] else ""
        rows.append((f"layout {layout['layout']}", f"{took}{peak}"))
    if training:
        steps = (
            f"{amount(training.steps, 'step')} of {training.effective_batch_size} ({training.batch_layout})"
        )
        starts, half = (" over all starts", " of the last start") if training.resumes else ("", "")
        speed = (
            ""
            if training.tokens_per_second is None
            else f", {training.tokens_per_second:,.0f} tokens/s in the later half{half}"
        )
        rows.append(("training", f"{steps} in {training.seconds:,.0f} s{starts}{speed}"))
        if training.seconds_to_first_step is not None:
            rows.append(("first step", _first_step(training)))
        if cost := training.rounding:
            rows.append(
                (
                    "float8 base",
                    f"loss {cost.loss_exact:.4f} → {cost.loss:.4f}, KL divergence {cost.kl_divergence:.3g} nats per"
                    f" token, before training ({amount(cost.conversations, 'conversation')})",
                )
            )
        rows.append(("training loss", f"{number(training.loss_first)} → {number(training.loss_last)}"))
    if training and training.rows_loss_before is not None:
        losses = f"{number(training.rows_loss_before)} → {number(training.rows_loss)}"
        rows.append(("loss of trained conversations", losses))
    for entry in training.resumes if training else []:
        rows.append(("resumed", f"from step {entry['step']:,} at {entry['time']}"))
    if training and training.eval_loss is not None:
        rows.append(("held-out loss", f"{number(training.eval_loss_before)} → {number(training.eval_loss)}"))
        before = number(training.eval_perplexity_before, ",.1f")
        rows.append(("perplexity", f"{before} → {number(training.eval_perplexity, ',.1f')}"))
        before = number(training.eval_token_accuracy_before, ".1%")
        right = f"{before} → {number(training.eval_token_accuracy, '.1%')}"
        everything = data and data.tokens and data.tokens == data.trainable_tokens
        name = "tokens right" if everything else "answer tokens right"
        rows.append((name, f"{right} (the likeliest token, given all before it)"))
        if training.best_step is not None:
            early = f"; stopped early at step {training.steps:,}" if training.stopped_early else ""
            ends = f"the weights kept are those of step {training.weights_of_step:,}"
            lowest = f"{training.best_eval_loss:.3f} at step {training.best_step:,}"
            rows.append(("lowest held-out loss", f"{lowest}; {ends}{early}"))
    if training:
        for name, value in training.figures.items():
            began = training.figures_before.get(name)
            rows.append((name, number(value) if began is None else f"{number(began)} → {number(value)}"))
    if memory:
        added = f"{memory.training_gb:.2f} GB of it added by training"
        since = ", since the process was started" if memory.peak_since == "process" else ""
        rows.append(("memory", f"{memory.peak_gb:.2f} GB at peak{since}, {added} ({memory.device})"))
    return rows


def _first_step(training: Training) -> str:
    """When it had ended, and what was waited for until then."""
    parts = [
        f"{part.replace('_', ' ')} {seconds:.1f}"
        for part, seconds in training.seconds_to_first_step_by_part.items()
    ]
    after = f"after {training.seconds_to_first_step:,.0f} s"
    return f"{after}: {', '.join(parts)}" if parts else after


def _evaluations(report: Report) -> list[str]:
    """The held-out conversations step by step, the lowest loss in bold; nothing where there are only two."""
    records = [record for record in report.evaluations if record["loss"] is not None]
    if len(records) < 3:
        return []
    best = min(records, key=lambda record: (math.isnan(record["loss"]), record["loss"]))
    lines = [
        "## Held-out conversations",
        "",
        "| step | loss | perplexity | tokens right | evaluated in (s) |",
        "|--:|--:|--:|--:|--:|",
    ]
    for record in records:
        bold = "**" if record is best else ""
        cells = [
            f"{record['step']:,}",
            f"{bold}{number(record['loss'])}{bold}",
            number(record["perplexity"], ",.1f"),
            number(record["token_accuracy"], ".1%"),
            f"{record['seconds']:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _on_the_way(prompt: str, evaluations: list[dict[str, Any]]) -> list[str]:
    """The answers to `prompt` at each evaluation, folded away; nothing where there are only two."""
    answers = [
        (record["step"], sample["answer"])
        for record in evaluations
        for sample in record["samples"]
        if sample["prompt"] == prompt
    ]
    if len(answers) < 3:
        return []
    steps = [line for step, answer in answers for line in (*_quote(f"step {step:,}", answer), "")]
    return ["<details><summary>at each evaluation</summary>", "", *steps, "</details>", ""]


def _quote(name: str, text: str) -> list[str]:
    return [f"{name}:", "", *quoted(text)]
