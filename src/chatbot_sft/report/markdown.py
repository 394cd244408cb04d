"""report.md: the run for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def write_markdown(report: dict[str, Any], folder: Path) -> Path:
    """Write report.md from what report.json holds."""
    target = folder / "report.md"
    target.write_text(markdown(report, picture=(folder / "loss.png").exists()), encoding="utf-8")
    return target


def markdown(report: dict[str, Any], picture: bool) -> str:
    """The report as Markdown; parts that a run did not reach are left out."""
    lines = [f"# {'Data check' if report['task'] == 'check' else 'Fine-tuning run'}: {report['status']}", "", f"    {report['command']}", ""]
    if report["error"]:
        lines += [f"**{report['error']}**", ""]
    if picture:
        lines += ["![loss](loss.png)", ""]
    lines += ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in _figures(report)), ""]
    if report["samples"]:
        lines += ["## Answers before and after", ""]
        for sample in report["samples"]:
            lines += [f"**{sample['prompt']}**", "", *_quote("before", sample["before"]), "", *_quote("after", sample["after"]), ""]
    if report["save"].get("files"):
        lines += [f"## Saved ({report['save']['method']})", "", f"`{report['save']['path']}`", ""]
        lines += [f"- {name} ({size / 1e6:,.1f} MB)" for name, size in report["save"]["files"].items()]
        lines.append("")
    lines += ["## Versions", "", ", ".join(f"{name} {version}" for name, version in report["versions"].items()), ""]
    return "\n".join(lines)


def _figures(report: dict[str, Any]) -> list[tuple[str, str]]:
    model, data, training, memory = (report[part] for part in ("model", "dataset", "training", "memory"))
    rows = [("started", f"{report['started']}, finished {report['finished']}"), ("seed", str(report["seed"]))]
    if model:
        trained = f"{model['trainable_parameters'] / 1e6:,.2f}M trained ({100 * model['trainable_parameters'] / model['parameters']:.2f}%)"
        rows.append(("model", f"{model['name']}, {model['parameters'] / 1e6:,.0f}M parameters, {trained}, {model['dtype']}"))
        rows.append(("engine", model["engine"]))
    if data.get("tokens"):
        split = f"{data['rows_used']:,} trained, {data['rows_held_out']:,} held out"
        rows.append(("data", f"{data['path']}: {data['rows']:,} conversations, {split}"))
        share = f"{100 * data['trainable_tokens'] / data['tokens']:.0f}% of them trained"
        rows.append(("tokens", f"{data['tokens']:,}, {share}; longest {data['max_length']:,}, {data['truncated_rows']:,} cut"))
        bad = f"{data['bad_rows']:,} bad, {data['duplicates']:,} exact duplicates"
        rows.append(("checked", f"{bad}; [every token of some rows](data_preview.html), [all findings](data_report.json)"))
    if "seconds" in training:
        steps = f"{training['steps']:,} steps of {training['effective_batch_size']} ({training['batch_layout']})"
        rows.append(("training", f"{steps} in {training['seconds']:,.0f} s, {training['tokens_per_second']:,.0f} tokens/s"))
        rows.append(("training loss", f"{training['loss_first']:.3f} → {training['loss_last']:.3f}"))
    for entry in training.get("resumes", []):
        rows.append(("resumed", f"from step {entry['step']:,} at {entry['time']}"))
    if training.get("eval_loss") is not None:
        rows.append(("held-out loss", f"{training['eval_loss_before']:.3f} → {training['eval_loss']:.3f}"))
    if memory:
        added = f"{memory['training_gb']:.2f} GB of it added by training"
        rows.append(("memory", f"{memory['peak_gb']:.2f} GB at peak, {added} ({memory['device']})"))
    return rows


def _quote(name: str, text: str) -> list[str]:
    return [f"{name}:", "", *(f"> {line}" for line in (text or "(nothing)").splitlines())]
