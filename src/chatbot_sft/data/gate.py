"""The gate's judgement and figures: may a run go on with what `encode` says is wrong with the rows, what does
the chat template do, how long are the rows, how many steps do they make.

`prepare` puts it together, before a model is loaded or a GPU is taken.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatbot_sft import distributed
from chatbot_sft.config import Config
from chatbot_sft.data.encode import CALL_LEFT_OUT, NO_TURNS, Encoder
from chatbot_sft.data.formats import MIXED_FORMATS
from chatbot_sft.data.labels import placeholder
from chatbot_sft.data.messages import BadRow
from chatbot_sft.data.template import ChatTokenizer
from chatbot_sft.errors import UserError
from chatbot_sft.report.words import amount
from chatbot_sft.run.report import DatasetStatistics

if TYPE_CHECKING:
    import numpy as np

LISTED = 100  # rows named per kind; all are counted
TOLERATED = 0.01  # share of bad rows that on_bad_row=auto leaves out instead of stopping


@dataclass
class Findings:
    """Rows by kind of problem: how many, and the first of them."""

    kinds: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, kind: str, file: str, row: int, detail: str = "") -> None:
        entry = self.kinds.setdefault(kind, {"count": 0, "rows": []})
        entry["count"] += 1
        if len(entry["rows"]) < LISTED:
            entry["rows"].append(
                {"file": file, "row": row, "detail": detail} if detail else {"file": file, "row": row}
            )

    def counts(self) -> str:
        return ", ".join(
            f"{kind} ({entry['count']:,})"
            for kind, entry in sorted(self.kinds.items(), key=lambda item: -item[1]["count"])
        )


# What to do where every row is bad, by the commonest kind.
WAYS_OUT = {
    CALL_LEFT_OUT: (
        "take a model whose chat template writes tool calls, or give it one that does with"
        " model.chat_template=FILE"
    ),
    NO_TURNS: "dataset.train_on=all trains all of each text",
    MIXED_FORMATS: "leave dataset.format out: the format is told from the content",
}


def verdict(
    settings: Config, statistics: DatasetStatistics, problems: Mapping[str, Any], tokenised: int
) -> str | None:
    """Why the run must not go on, in one line; None where it may. `tokenised` of the bad rows could be trained
    with on_bad_row=warn.
    """
    s, policy = statistics, settings.dataset.on_bad_row
    if error := refusal(s, problems, policy, tokenised):
        return error
    if s.rows_held_out and not s.rows_used:
        return (
            f"{s.path}: {s.rows_held_out} conversation(s) leave none to train on with"
            f" dataset.eval_fraction={settings.dataset.eval_fraction}; add conversations or set"
            " dataset.eval_fraction=0"
        )
    if not s.rows_used:
        return (
            f"{s.path}: no row has a trainable token within"
            f" model.max_seq_length={settings.model.max_seq_length}"
        )
    return None


def first_of(findings: Mapping[str, Any]) -> dict[str, Any]:
    """Where the first of them is, and what."""
    rows = (entry["rows"][0] for entry in findings.values())
    return min(rows, key=lambda place: (place["file"], place["row"]))


def refusal(
    statistics: DatasetStatistics, findings: Mapping[str, Any], policy: str, tokenised: int
) -> str | None:
    """Why it must not go on with that many bad rows; None where there are few enough."""
    rows, bad_rows, usable = statistics.rows, statistics.bad_rows, statistics.rows_used
    if not bad_rows or (policy == "drop" and usable):
        return None
    if usable and (policy == "warn" or (policy == "auto" and bad_rows <= TOLERATED * rows)):
        return None
    first = first_of(findings)
    what = f"{first['file']}: row {first['row']}: {first['detail']}"
    commonest = max(findings, key=lambda kind: findings[kind]["count"])
    if rows == bad_rows == 1:
        return f"{what}; {WAYS_OUT[commonest]}" if commonest in WAYS_OUT else what
    kinds = Findings(dict(findings)).counts()
    are = "is" if bad_rows == 1 else "are"
    share = f"{bad_rows:,} of {amount(rows, 'row')} {are} bad ({100 * bad_rows / rows:.1f}%): {kinds}"
    if usable:
        return f"{what}; {share}; mend them, or leave them out with dataset.on_bad_row=drop"
    as_they_are = (
        f"dataset.on_bad_row=warn trains on {tokenised:,} of them as they are"
        if tokenised and policy != "warn"
        else "mend them"
    )
    held_out = statistics.rows_held_out
    others = f"{held_out:,} {'is' if held_out == 1 else 'are'} held out, and " if held_out else ""
    return f"{what}; {share}; {others}none is left to train on: {WAYS_OUT.get(commonest, as_they_are)}"


def template_facts(tokenizer: ChatTokenizer, encoder: Encoder, given: str | None = None) -> dict[str, Any]:
    """What the chat template does that a user should know; `given` is the system prompt for rows without one."""
    ends = encoder.end_of_turn
    return {
        "system_prompt": _system_prompt(tokenizer, encoder, given),
        "end_of_turn": list(ends),
        "end_of_turn_stops_generation": bool(tokenizer.stop_ids.intersection(ends.values())),
        "writes_todays_date": tokenizer.template.dated,
        "leaves_thoughts_out": tokenizer.template.leaves_thoughts_out,
        "opens_thought": tokenizer.template.opens_thought,
    }


def _system_prompt(tokenizer: ChatTokenizer, encoder: Encoder, given: str | None) -> str:
    """What becomes of a system message, and of its absence, found by rendering placeholders."""
    said, asked, answered = (placeholder(index) for index in range(3))
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    try:
        text = tokenizer.template.render([{"role": "system", "content": said}, *turns])
    except BadRow:
        return "refused"
    if said not in text:
        return "left out"
    between = text.partition(said)[2].partition(asked)[0]
    place = (
        "a turn of its own"
        if any(token in between for token in tokenizer.special_tokens)
        else "joined to the first user message"
    )
    if given:
        return f"{place}; where a row has none, dataset.system_prompt stands in"
    before = tokenizer.template.render(turns).partition(asked)[0]
    own = before.removeprefix(tokenizer.template.tokens.get("bos_token", "")).removesuffix(
        encoder.finder.markers.user
    )
    for token in tokenizer.special_tokens:
        own = own.replace(token, " ")
    words = " ".join(own.split()).removeprefix("system ")
    return f"{place}; where a row has none, the template writes {words!r}" if words else place


def lengths(tokens: np.ndarray, limit: int) -> dict[str, Any]:
    """Percentiles of the rows' length in tokens before any cut, and how many are over `limit`."""
    import numpy as np

    points = (50, 90, 95, 99, 100)
    values = np.percentile(tokens, points, method="higher") if len(tokens) else [0] * len(points)
    return {
        **{f"p{point}": int(value) for point, value in zip(points, values, strict=True)},
        "over_max_seq_length": int((tokens > limit).sum()),
    }


def schedule(settings: Config, rows: int) -> dict[str, Any]:
    """Optimizer steps and epochs that the present settings make of `rows` training rows, whether some are never
    trained on though nobody chose that, and what looks wrong about them.
    """
    training, batch = settings.training, settings.effective_batch_size * distributed.processes()
    per_epoch = math.ceil(rows / batch)
    steps = (
        training.max_steps
        if training.max_steps is not None
        else math.ceil(per_epoch * (training.num_train_epochs or 0))
    )
    warning = None
    if training.warm_up >= steps:
        warning = (
            f"training.warmup_steps={training.warm_up:g} is not below the {amount(steps, 'step')} of the run: the"
            " learning rate never reaches its full value"
        )
    return {
        "effective_batch_size": batch,
        "steps_per_epoch": per_epoch,
        "steps": steps,
        "epochs": round(steps / per_epoch, 3) if per_epoch else 0,
        "some_never": steps < per_epoch and settings.usual_steps and not training.packing,
        "warning": warning,
    }


def none_held_out(settings: Config, statistics: DatasetStatistics, given: bool) -> str | None:
    """Why no conversation is held out although some should be; None where one is, or none should be. `given`
    says whether some were named for that.
    """
    s, share = statistics, settings.dataset.eval_fraction
    if s.rows_held_out or not s.rows_used:
        return None
    if s.leaked_rows:
        return (
            f"nothing is held out: each of the {amount(s.leaked_rows, 'conversation')} given for it is in"
            " the training data as well"
        )
    if given or not share:
        return None
    return (
        f"nothing is held out by dataset.eval_fraction={share:g}: conversations that say the same stay on one"
        " side, and each of these is repeated more often than that share allows; name others with"
        " dataset.eval_data_path"
    )


def write_report(report: Mapping[str, Any], target: Path) -> None:
    """data_report.json."""
    target.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


class BadData(UserError):
    """The gate's refusal."""
