"""Axolotl's `datasets`: each entry names a file and a type, which says what its rows look like."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chatbot_sft.config.aliases import plain
from chatbot_sft.convert import shared
from chatbot_sft.convert.axolotl.types_of_rows import columns_of, read_type
from chatbot_sft.convert.rules import LEFT_EMPTY, OFF, Given, Kind, Line, unknown
from chatbot_sft.convert.sources import Source, may_be_named, settled
from chatbot_sft.data.messages import MARKS, THOUGHTS, canonical_role
from chatbot_sft.data_names import is_url

KNOWN = (
    "path", "split", "type", "input_transform", "shards", "shards_idx", "preprocess_shards", "conversation",
    "chat_template", "chat_template_jinja", "data_files", "input_format", "name", "ds_type", "field", "field_human",
    "field_model", "field_messages", "field_tools", "field_thinking", "template_thinking_key", "message_field_role",
    "message_field_content", "message_property_mappings", "message_field_training",
    "message_field_training_detail", "split_thinking", "logprobs_field", "temperature", "roles_to_train",
    "train_on_eos", "train_on_eot", "roles", "drop_system_message", "trust_remote_code", "revision",
    "field_chosen", "field_rejected", "step_separator", "max_completion_length", "train_on_last_step_only",
)  # fmt: skip
NOT_HERE = {
    "shards": "dataset.max_rows takes a part of the rows",
    "shards_idx": "dataset.max_rows takes a part of the rows",
    "message_field_training_detail": "a message is trained whole or not at all",
    "logprobs_field": "no distillation from another model's probabilities",
    "temperature": "no distillation from another model's probabilities",
    "input_transform": "the files hold the text as it is trained",
    "input_format": "the files hold the text as it is trained",
    "drop_system_message": "a row's system prompt is trained with it",
    "step_separator": shared.REWARD,
    "max_completion_length": shared.REWARD,
    "train_on_last_step_only": shared.REWARD,
    "field_human": "name the columns: dataset.columns",
    "field_model": "name the columns: dataset.columns",
}
NOT_ASKED = {
    "ds_type": "what a file is, its content says",
    "preprocess_shards": shared.CACHED,
    "split_thinking": "a <think>…</think> that an answer begins with is its reasoning",
    "template_thinking_key": "reasoning goes into the field that the template reads",
    "trust_remote_code": "no code of a dataset is run",
}


def training(given: Given) -> list[Line]:
    """All entries; what cannot be read as a list of mappings is said."""
    entries = given.value if isinstance(given.value, list) else [given.value]
    if not all(isinstance(entry, Mapping) and entry for entry in entries):
        return given.not_carried("a list of entries with a path was expected; dataset.data_path=FILE")
    return settled(
        [source for number, entry in enumerate(entries) for source in _sources(given, number, entry)]
    )


def held_out(given: Given) -> list[Line]:
    """`test_datasets`: one file of their own."""
    entries = given.value if isinstance(given.value, list) else [given.value]
    if len(entries) != 1 or not isinstance(entries[0], Mapping):
        return given.not_carried("held-out conversations are one file or folder: dataset.eval_data_path")
    trained = given.get("datasets") or [{}]
    first = trained[0] if isinstance(trained, list) and isinstance(trained[0], Mapping) else {}
    lines = []
    for name, value in entries[0].items():
        inner = given.of(f"{given.key}[0].{name}", value)
        if name == "path":
            lines += inner.carried({"dataset.eval_data_path": _path(inner, entries[0])})
        elif name == "split":
            same = value in (first.get("split"), "train")
            why = "a hub id is read with one split: dataset.split; name a file of its own"
            lines += inner.not_needed("as in datasets") if same else inner.not_carried(why)
        elif value == first.get(name) or name in ("ds_type", "data_files"):
            lines += inner.not_needed("as in datasets")
        else:
            lines += inner.changed({}, "its rows are read as those of datasets, or told from their content")
    return lines


def _sources(given: Given, number: int, entry: Mapping[str, Any]) -> list[Source]:
    """What one entry names: a source, or one for each of `data_files`."""
    files = entry.get("data_files")
    made = Source()
    for name, value in entry.items():
        inner = given.of(f"{given.key}[{number}].{name}", value)
        _key(inner, str(name), entry, made)
    if isinstance(files, list) and len(files) > 1:
        others = [Source([], [], []) for _ in files[1:]]
        parts = {name: value for part in made.parts for name, value in part.items()}
        for other, file in zip(others, files[1:], strict=True):
            key = f"{given.key}[{number}].data_files[{files.index(file)}]"
            other.add(Line(key, Kind.CARRIED), {**parts, "data_path": str(file)})
        return [made, *others]
    return [made]


def _key(inner: Given, name: str, entry: Mapping[str, Any], made: Source) -> None:
    """One key of an entry, into `made`."""
    value = inner.value
    if name not in KNOWN:
        made.add(unknown(inner.key, list(KNOWN), "Axolotl's datasets"))
    elif name == "roles_to_train":
        _roles_to_train(inner, entry, made)
    elif value in OFF:
        made.add(inner.not_needed(LEFT_EMPTY)[0])
    elif name == "path":
        path = _path(inner, entry)
        said = "a URL is not read: download it" if is_url(path) else ""
        made.add(Line(inner.key, Kind.CHANGED if said else Kind.CARRIED, note=said), {"data_path": path})
    elif name in ("split", "name", "revision"):
        ours = {"name": "config_name"}.get(name, name)
        _of_the_hub(inner, ours, entry, made)
    elif name == "type":
        read_type(inner, entry, made)
    elif name in READ:
        READ[name](inner, entry, made)
    elif name in NOT_ASKED:
        made.add(inner.not_needed(NOT_ASKED[name])[0])
    else:
        made.add(inner.not_carried(NOT_HERE.get(name, shared.TEMPLATE))[0])


def _path(inner: Given, entry: Mapping[str, Any]) -> str:
    """Where the rows are: `path: json` with data_files is the files."""
    files = entry.get("data_files")
    first = files[0] if isinstance(files, list) and files else files
    if isinstance(first, str):
        folder = Path(str(entry.get("path")))
        return str(folder / first) if folder.is_dir() else first
    return str(inner.value)


def _of_the_hub(inner: Given, ours: str, entry: Mapping[str, Any], made: Source) -> None:
    """split, config and revision: a file has none."""
    path = str(entry.get("path"))
    local = Path(path).exists() or Path(path).suffix or entry.get("ds_type") or entry.get("data_files")
    if local and (ours != "split" or inner.value == "train"):
        made.add(inner.not_needed("a file is read whole")[0])
    elif local:
        made.add(inner.not_carried("a file is read whole: name the file of that split")[0])
    else:
        made.add(Line(inner.key, Kind.CARRIED), {ours: inner.value})


def _messages(inner: Given, entry: Mapping[str, Any], made: Source) -> None:
    """field_messages: of conversations the column; of pairs the prompt's, which `type` has."""
    if inner.get("rl") is not None:
        made.add(Line(inner.key, Kind.CARRIED, note="the prompt's column"))
    else:
        made.add(Line(inner.key, Kind.CARRIED), columns_of({"messages": str(inner.value)}))


def _properties(inner: Given, entry: Mapping[str, Any], made: Source) -> None:
    """message_property_mappings, and the two keys that it had before."""
    given = inner.value
    if inner.key.endswith(("message_field_role", "message_field_content")):
        given = {inner.key.rpartition("_")[2]: given}
    if not isinstance(given, Mapping):
        made.add(inner.not_carried("names and values were expected; dataset.columns.role=…")[0])
        return
    ours = {name: theirs for name, theirs in given.items() if name in ("role", "content")}
    others = [f"{name}: {theirs}" for name, theirs in given.items() if name not in ours and name != theirs]
    columns = columns_of({name: str(theirs) for name, theirs in ours.items() if name != theirs})
    if others:
        why = f"of a message role and content may be called otherwise, not {', '.join(map(plain, others))}"
        made.add(Line(inner.key, Kind.CHANGED, note=why), columns)
    else:
        made.add(Line(inner.key, Kind.CARRIED, note="" if columns else "as they are called here"), columns)


def _column(ours: str) -> Any:
    def read(inner: Given, entry: Mapping[str, Any], made: Source) -> None:
        columns = {} if inner.value == ours else {ours: str(inner.value)}
        made.add(
            Line(inner.key, Kind.CARRIED, note="" if columns else "as it is called here"), columns_of(columns)
        )

    return read


def _text_column(inner: Given, entry: Mapping[str, Any], made: Source) -> None:
    made.add(Line(inner.key, Kind.CARRIED), columns_of({"text": str(inner.value)}))


def _thinking(inner: Given, entry: Mapping[str, Any], made: Source) -> None:
    if inner.value in THOUGHTS:
        made.add(inner.not_needed(f"{inner.value} is read as reasoning")[0])
    else:
        made.add(inner.not_carried(f"reasoning is read from {', '.join(THOUGHTS)}: rename it in the file")[0])


def _mark(inner: Given, entry: Mapping[str, Any], made: Source) -> None:
    if inner.value in MARKS:
        made.add(inner.not_needed(f"{inner.value} of a message is read so")[0])
    else:
        made.add(
            inner.not_carried(f"such a mark is called {' or '.join(MARKS[:3])} here: rename it in the file")[
                0
            ]
        )


def _roles(inner: Given, entry: Mapping[str, Any], made: Source) -> None:
    """Names of roles: those that are read as the same here need no word."""
    if not isinstance(inner.value, Mapping):
        made.add(inner.not_carried("roles and their names were expected")[0])
        return
    other = {
        name: canonical_role(role)
        for role, names in inner.value.items()
        for name in (names if isinstance(names, list) else [names])
        if canonical_role(name) != canonical_role(role)
    }
    lost = [f"{name} for {role}" for name, role in other.items() if not may_be_named(name, role)]
    if lost:
        made.add(
            inner.not_carried(f"not read as a role: {', '.join(map(plain, lost))}; rename it in the file")[0]
        )
    elif other:
        made.add(Line(inner.key, Kind.CARRIED), {f"roles.{name}": role for name, role in other.items()})
    else:
        made.add(inner.not_needed("these names are read as the same roles")[0])


def _roles_to_train(inner: Given, entry: Mapping[str, Any], made: Source) -> None:
    """Left empty with train_on_eos empty too, Axolotl trains the last message alone."""
    roles = inner.value
    if roles in OFF:
        marks = entry.get("message_field_training") or entry.get("message_field_training_detail")
        last = "train_on_eos" in entry and entry["train_on_eos"] in OFF and not marks
        if last:
            made.add(Line(inner.key, Kind.CARRIED), train_on="last_assistant")
        else:
            made.add(inner.not_carried("an answer is trained unless its own mark says no")[0])
        return
    names = (
        {canonical_role(role) for role in roles}
        if isinstance(roles, list) and all(isinstance(role, str) for role in roles)
        else set()
    )
    if names == {"assistant"}:
        made.add(Line(inner.key, Kind.CARRIED), train_on="assistant")
    elif names >= {"assistant", "user", "system"}:
        made.add(
            Line(inner.key, Kind.CHANGED, note="what the template writes between the turns too"),
            train_on="all",
        )
    else:
        made.add(inner.not_carried("dataset.train_on is assistant, last_assistant or all")[0])


def _ends(inner: Given, entry: Mapping[str, Any], made: Source) -> None:
    if inner.value == "turn":
        made.add(inner.not_needed("the end of each trained turn is trained")[0])
    else:
        made.add(inner.not_carried("the end of each trained turn is trained, and no other")[0])


def _template(inner: Given, entry: Mapping[str, Any], made: Source) -> None:
    if inner.value == "tokenizer_default":
        made.add(inner.not_needed("the model's own is taken")[0])
    else:
        made.add(inner.changed({}, shared.TEMPLATE)[0])


def _files(inner: Given, entry: Mapping[str, Any], made: Source) -> None:
    path = str(entry.get("path") or "")
    hub = "/" in path and not Path(path).exists() and not entry.get("ds_type")
    if hub:
        made.add(
            inner.not_carried(f"files of a hub id are not chosen by their names: download them from {path}")[
                0
            ]
        )
    elif "path" in entry:
        made.add(inner.not_needed("path says it")[0])
    else:
        made.add(Line(inner.key, Kind.CARRIED), {"data_path": _path(inner, entry)})


READ: dict[str, Any] = {
    "field_messages": _messages,
    "message_property_mappings": _properties,
    "message_field_role": _properties,
    "message_field_content": _properties,
    "field_tools": _column("tools"),
    "field_chosen": _column("chosen"),
    "field_rejected": _column("rejected"),
    "field": _text_column,
    "field_thinking": _thinking,
    "message_field_training": _mark,
    "roles": _roles,
    "train_on_eos": _ends,
    "train_on_eot": _ends,
    "chat_template": _template,
    "data_files": _files,
}
