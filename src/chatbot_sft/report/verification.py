"""Each export, held against the trained model, as a Markdown table: in report.md and in the model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from chatbot_sft.run.report import Export

HEAD = (
    "| export | size | written in | KL | of what training changed | prompts with the same ids | greedy tokens"
    " alike | answers that end |"
)


def verification_table(exports: Sequence[Export]) -> list[str]:
    """Lines of Markdown for the report's `save.exports`; none where nothing was verified."""
    rows = [_row(export, kind, check) for export in exports for kind, check in export.checks.items()]
    if not rows:
        return []
    how = (
        "Reloaded from disk and asked what the trained model was asked. KL:"
        " mean divergence from its probabilities, in nats per token."
    )
    return [how, "", HEAD, "|---|--:|--:|--:|--:|--:|--:|--:|", *rows]


def _row(export: Export, kind: str, check: Mapping[str, Any]) -> str:
    several = len(export.checks) > 1
    size = sum(size for name, size in export.weights.items() if not several or f"-{kind.upper()}." in name)
    share = "" if check["trained_share"] is None else f"{100 * check['trained_share']:.0f}%"
    name = f"gguf {kind}" if export.method == "gguf" else kind
    cells = [name, f"{size / 1e6:,.0f} MB", f"{export.seconds[kind]:.1f} s", f"{check['kl']:.2g}", share]
    return f"| {' | '.join(cells)} | {check['prompts']} | {check['greedy']} | {check['ended']} |"
