"""What the rows of a dataset look like by its `type`, as Axolotl's src/axolotl/prompt_strategies/ read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chatbot_sft.convert.rules import LEFT_EMPTY, OFF, Given, Kind, Line, unknown
from chatbot_sft.convert.sources import Source

CHAT_ROWS = "its rows are written by the chat template, not as ### Instruction: and ### Response:"


PREFERRED = "written by the chat template, with the system prompt as a turn of its own"


COMPLETION = "every token is trained, there too"


# type → our format, its columns, what is other.
ALPACA: dict[str, tuple[str, Mapping[str, str], str]] = {
    "alpaca": ("alpaca", {}, CHAT_ROWS),
    "alpaca_chat": ("alpaca", {}, CHAT_ROWS),
    "alpaca_chat.load_concise": ("alpaca", {}, CHAT_ROWS),
    "alpaca_chat.load_no_prompt": ("alpaca", {}, CHAT_ROWS),
    "alpaca_chat.load_qa": ("prompt_completion", {"prompt": "question", "completion": "answer"}, CHAT_ROWS),
    "alpaca_chat.load_camel_ai": (
        "prompt_completion",
        {"prompt": "message_1", "completion": "message_2"},
        CHAT_ROWS,
    ),
    "alpaca_w_system": ("alpaca", {"system": "system"}, CHAT_ROWS),
    "alpaca_w_system.load_open_orca": (
        "prompt_completion",
        {"prompt": "question", "completion": "response", "system": "system_prompt"},
        CHAT_ROWS,
    ),
    "gpteacher": ("alpaca", {"output": "response"}, CHAT_ROWS),
    "oasst": ("alpaca", {"instruction": "INSTRUCTION", "output": "RESPONSE"}, CHAT_ROWS),
    "context_qa.load_v2": (
        "alpaca",
        {"instruction": "context", "input": "question", "output": "answer"},
        CHAT_ROWS,
    ),
    "completion": ("text", {}, COMPLETION),
    "sharegpt": ("sharegpt", {}, "a type of Axolotl before 0.5"),
}


# Of preference training: the family (chatml, llama3 …) writes the text there, the chat template here.
PREFERENCE: dict[str, Mapping[str, str]] = {
    "intel": {"prompt": "question"},
    "icr": {"prompt": "input"},
    "prompt_pairs": {"prompt": "prompt"},
    "ultra": {},
    "argilla_chat": {},
    "argilla": {},
    "default": {},
}


# Of KTO: what is asked, and the answer with its label.
LABELLED: dict[str, Mapping[str, str]] = {
    "argilla": {"prompt": "instruction"},
    "argilla_chat": {},
    "intel": {"prompt": "question"},
    "prompt_pairs": {"prompt": "prompt"},
    "ultra": {"prompt": "prompt"},
}


# Of a type that is written out: theirs → our column.
FIELDS = {
    "field_instruction": "instruction", "field_input": "input", "field_output": "output", "field_system": "system",
    "field_prompt": "prompt", "field_chosen": "chosen", "field_rejected": "rejected",
    "field_completion": "completion", "field_label": "label",
}  # fmt: skip


WORDINGS = (
    "format", "no_input_format", "system_format", "prompt_format", "chosen_format", "rejected_format",
    "completion_format",
)  # fmt: skip


def read_type(inner: Given, entry: Mapping[str, Any], made: Source) -> None:
    objective = inner.get("rl")
    if isinstance(inner.value, Mapping):
        _written_out(inner, objective, made)
    elif objective in ("dpo", "ipo", "orpo", "kto", "simpo"):
        _judged(inner, str(inner.value), entry, objective, made)
    elif inner.value == "chat_template":
        made.add(Line(inner.key, Kind.CARRIED), {"format": "messages"})
    elif isinstance(inner.value, str) and (known := ALPACA.get(inner.value.split(":")[0])):
        form, columns, note = known
        part = {"format": form, **columns_of(columns)}
        kind = Kind.CHANGED if note in (CHAT_ROWS,) or form == "sharegpt" else Kind.CARRIED
        if form == "text":
            made.add(Line(inner.key, kind, note=note), part, train_on="all")
        else:
            made.add(Line(inner.key, kind, note=note), part)
    else:
        made.add(
            inner.not_carried(
                "a type that is not known here: dataset.format=auto tells it from the rows, if it can"
            )[0]
        )


def _judged(inner: Given, name: str, entry: Mapping[str, Any], objective: Any, made: Source) -> None:
    """Types of preference training: FAMILY.TRANSFORM."""
    family, _, transform = name.partition(".")
    table, form = (LABELLED, "unpaired_preference") if objective == "kto" else (PREFERENCE, "preference")
    columns = table.get(transform or "default")
    if columns is None:
        made.add(
            inner.not_carried("a type that is not known here: dataset.columns names prompt and answers")[0]
        )
        return
    if family == "chat_template" and transform in ("", "default") and objective != "orpo":
        columns = {"prompt": str(entry.get("field_messages") or "messages")}
        made.add(Line(inner.key, Kind.CARRIED), {"format": form, **columns_of(columns)})
        return
    made.add(Line(inner.key, Kind.CHANGED, note=PREFERRED), {"format": form, **columns_of(columns)})


def _written_out(inner: Given, objective: Any, made: Source) -> None:
    """`type: {field_instruction: …, format: …}`"""
    form = {"kto": "unpaired_preference", None: "alpaca"}.get(objective, "preference")
    made.add(
        Line(f"{inner.key}.*", Kind.CHANGED, note=CHAT_ROWS if form == "alpaca" else PREFERRED),
        {"format": form},
    )
    for name, value in inner.value.items():
        key = inner.of(f"{inner.key}.{name}", value)
        if value in OFF:
            made.add(key.not_needed(LEFT_EMPTY)[0])
        elif name in FIELDS:
            made.add(Line(key.key, Kind.CARRIED), columns_of({FIELDS[name]: str(value)}))
        elif name == "system_prompt":
            made.add(Line(key.key, Kind.CARRIED), system_prompt=value)
        elif name in WORDINGS:
            made.add(
                key.not_carried(
                    "the chat template writes the turns; a wording of its own: model.chat_template"
                )[0]
            )
        else:
            made.add(unknown(key.key, [*FIELDS, *WORDINGS, "system_prompt"], "Axolotl's datasets"))


def columns_of(columns: Mapping[str, str]) -> dict[str, Any]:
    return {f"columns.{ours}": theirs for ours, theirs in columns.items()}
