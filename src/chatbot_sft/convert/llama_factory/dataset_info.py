"""LLaMA-Factory's `dataset`: names, which dataset_info.json in `dataset_dir` explains."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chatbot_sft import text_files
from chatbot_sft.config.aliases import plain
from chatbot_sft.convert.rules import OFF, Given, Kind, Line, as_number, unknown
from chatbot_sft.convert.sources import Source, may_be_named, settled
from chatbot_sft.data.messages import canonical_role, decoded
from chatbot_sft.data.sources import read_rows
from chatbot_sft.errors import UserError, did_you_mean, listed

INFO = "dataset_info.json"
JOINED = "the input stands under the instruction after an empty line; there after a line's end"
TOOLS = "tools and calls are written by the chat template"
# Roles as they are called there where `tags` does not say → what they are here.
TAGS = {
    "user_tag": ("human", "user"),
    "assistant_tag": ("gpt", "assistant"),
    "observation_tag": ("observation", "tool"),
    "function_tag": ("function_call", "assistant"),
    "system_tag": ("system", "system"),
}
COLUMNS = (
    "prompt", "query", "response", "history", "messages", "system", "tools", "images", "videos", "audios", "chosen",
    "rejected", "kto_tag",
)  # fmt: skip
KNOWN = (
    "file_name", "hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name", "formatting", "ranking",
    "subset", "split", "folder", "num_samples", "columns", "tags",
)  # fmt: skip
ELSEWHERE = {
    "ms_hub_url": "ModelScope is not read: download the files",
    "om_hub_url": "Modelers is not read: download the files",
    "script_url": "a script is code, and none of a dataset is run: save its rows as a file",
    "cloud_file_name": "a cloud's file is not read: download it",
    "folder": "of a hub id all files are read: download that folder",
}
# Our names of an alpaca row's columns: those that are there where `columns` is silent, and all.
ALPACA = {"prompt": "instruction", "query": "input", "response": "output"}


def training(given: Given) -> list[Line]:
    """A line for the names, and one for each entry of dataset_info.json that was looked at."""
    names = _names(given.value)
    if not names:
        return given.not_carried("names with commas between them were expected; dataset.data_path=FILE")
    info, where = _info(given)
    if info is None:
        return given.not_carried(f"{where}; convert where it is, or set dataset.data_path=FILE")
    lines: list[Line] = []
    sources = []
    for name in names:
        entry = info.get(name) if info else {"hf_hub_url": name}
        if not isinstance(entry, Mapping):
            lines += given.not_carried(f"{_no_entry(name, info, where)}; set dataset.data_path=FILE")
            continue
        sources.append(_source(given, name, entry, Path(where).parent))
    if lines:  # a mixture without one of its parts would be another
        return lines[:1]
    _weighted(given, sources)
    _counted(given, sources)
    found = settled(sources)
    about = [line for line in found if line.key == given.key]
    inside = [line for line in found if line.key != given.key]
    about[0].settings = {path: value for line in about for path, value in line.settings.items()}
    about[0].shown = ", ".join(filter(None, (line.shown for line in about)))
    return [about[0], *inside]


def held_out(given: Given) -> list[Line]:
    """`eval_dataset`: one of them."""
    names = _names(given.value)
    info, where = _info(given)
    if info is None or len(names) != 1:
        why = where if info is None else "held-out conversations are one file or folder"
        return given.not_carried(f"{why}: dataset.eval_data_path=FILE")
    entry = info.get(names[0]) if info else {"hf_hub_url": names[0]}
    if not isinstance(entry, Mapping):
        return given.not_carried(f"{_no_entry(names[0], info, where)}; dataset.eval_data_path=FILE")
    hub, file = entry.get("hf_hub_url"), entry.get("file_name")
    if not isinstance(hub or file, str):
        return given.not_carried(f"{where} names no file for it: dataset.eval_data_path=FILE")
    return given.changed(
        {"dataset.eval_data_path": hub or str(Path(where).parent / str(file))},
        "its rows are read as those of the training data, or told from their content",
    )


def _no_entry(name: str, info: Mapping[str, Any], where: str) -> str:
    """What is wrong with what dataset_info.json has of `name`, where that is none of its entries."""
    if name in info:
        return f"{where}: {name!r} is {plain(info[name])}, and an entry is an object with file_name or hf_hub_url"
    return f"{where} has no {name!r}{did_you_mean(name, info)}"


def _names(value: Any) -> list[str]:
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else []
    return [name for part in parts if (name := str(part).strip())]


def _info(given: Given) -> tuple[Mapping[str, Any] | None, str]:
    """(what the file says, its path); (nothing, its path) where names are hub ids; (None, why) without one."""
    folder = given.get("dataset_dir", "data")
    if isinstance(folder, Mapping):
        return folder, INFO
    if folder == "ONLINE":
        return {}, INFO
    if not isinstance(folder, str) or folder.startswith("REMOTE:"):
        return None, f"dataset_dir={plain(folder)} is not read"
    places = [Path(folder) / INFO, given.folder / folder / INFO]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        return None, f"there is no {places[0]}, which would say what it is"
    try:
        info = decoded(text_files.read(file))
    except (OSError, ValueError, UserError) as error:
        raise UserError(f"{file}: not read: {error}; mend it there") from None
    if not isinstance(info, Mapping):
        raise UserError(f"{file}: expected names and what they are, found {type(info).__name__}")
    return info, str(file)


def _source(given: Given, name: str, entry: Mapping[str, Any], folder: Path) -> Source:
    """The lines of one entry: the file under the name of the key, the rest under the entry's own."""
    made = Source()
    path = entry.get("hf_hub_url") or entry.get("file_name")
    if isinstance(path, str):
        where = path if entry.get("hf_hub_url") else str(folder / path)
        made.add(Line(given.key, Kind.CARRIED, note=f"{name}, as {INFO} has it"), {"data_path": where})
    else:
        why = next((note for key, note in ELSEWHERE.items() if key in entry), f"{INFO} names no file for it")
        made.add(Line(given.key, Kind.NOT_CARRIED, note=f"{name}: {why}"))
    for key, value in entry.items():
        inner = given.of(f"{INFO}: {name}.{key}", value)
        if key not in KNOWN:
            made.add(unknown(inner.key, list(KNOWN), f"LLaMA-Factory's {INFO}"))
        elif key in ELSEWHERE:
            if key == "folder" and value not in OFF:
                made.add(inner.not_carried(ELSEWHERE[key])[0])
        elif key == "subset" and value not in OFF and entry.get("hf_hub_url"):
            made.add(Line(inner.key, Kind.CARRIED), {"config_name": value})
        elif key == "split" and value != "train" and entry.get("hf_hub_url"):
            made.add(Line(inner.key, Kind.CARRIED), {"split": value})
        elif key == "num_samples" and value not in OFF:
            made.add(Line(inner.key, Kind.CARRIED), {"count": value})
    _rows(given, name, entry, made)
    return made


def _rows(given: Given, name: str, entry: Mapping[str, Any], made: Source) -> None:
    """formatting, ranking, columns and tags: what a row looks like."""
    columns = entry.get("columns")
    tags = entry.get("tags")
    columns = columns if isinstance(columns, Mapping) else None
    tags = tags if isinstance(tags, Mapping) else {}
    said = columns or {}
    formatting = entry.get("formatting") or "alpaca"
    label = f"{INFO}: {name}"
    for column in ("images", "videos", "audios"):
        if said.get(column):
            made.add(Line(f"{label}.columns.{column}", Kind.NOT_CARRIED, note="text alone is trained here"))
    for column in said:
        if column not in COLUMNS:
            made.add(unknown(f"{label}.columns.{column}", list(COLUMNS), f"LLaMA-Factory's {INFO}"))
    if formatting not in ("alpaca", "sharegpt", "openai"):
        made.add(
            Line(f"{label}.formatting", Kind.NOT_CARRIED, note="alpaca, sharegpt or openai was expected")
        )
        return
    judged = {
        ours: said[theirs]
        for ours, theirs in (("chosen", "chosen"), ("rejected", "rejected"))
        if said.get(theirs)
    }
    about = {ours: said[ours] for ours in ("system", "tools") if said.get(ours)}
    if formatting == "alpaca":
        form, mine, note = _alpaca(given, entry, said if columns is not None else None, judged)
    else:
        form, mine, note = _talk(formatting, entry, said, tags, judged)
        for tag, (usual, role) in TAGS.items():
            word = tags.get(tag, usual if tags.get("role_tag", "from") == "from" else None)
            if word is not None and canonical_role(word) != role:
                key = f"{label}.tags.{tag}"
                if tag != "function_tag" and may_be_named(word, role):
                    made.add(Line(key, Kind.CARRIED), {f"roles.{word}": role})
                else:  # a role that says that its content is a call is read by its usual name alone
                    why = f"{plain(word)} is not read as {role}: rename it in the file"
                    made.add(Line(key, Kind.NOT_CARRIED, note=why))
    part = {"format": form, **{f"columns.{ours}": str(theirs) for ours, theirs in {**mine, **about}.items()}}
    kind = Kind.CHANGED if note else Kind.CARRIED
    made.add(
        Line(f"{label} ({formatting})", kind, note=note),
        part,
        **({"train_on": "all"} if form == "text" else {}),
    )


def _alpaca(
    given: Given, entry: Mapping[str, Any], said: Mapping[str, Any] | None, judged: dict[str, Any]
) -> tuple[str, dict[str, Any], str]:
    """(format, columns, what is other); where `columns` is there, those that it leaves out are not read."""
    read = (
        ALPACA
        if said is None
        else {name: said[name] for name in ("prompt", "query", "response", "history") if said.get(name)}
    )
    if given.get("stage") == "pt":
        return (
            "text",
            {"text": read.get("prompt", "instruction")},
            "every token is trained; texts are not cut into equal pieces",
        )
    ours = {"prompt": "instruction", "query": "input", "response": "output", "history": "history"}
    if entry.get("ranking"):
        asked = {"prompt": read.get("prompt", "instruction")} | (
            {"input": read["query"]} if said and "query" in read else {}
        )
        return "preference", {**asked, **judged}, JOINED if "input" in asked else ""
    if said and said.get("kto_tag"):
        pairs = {
            "prompt": read.get("prompt", "instruction"),
            "completion": read.get("response", "output"),
            "label": said["kto_tag"],
        }
        return "unpaired_preference", pairs, ""
    columns = {ours[name]: column for name, column in read.items() if ours[name] != column}
    return "alpaca", columns, JOINED if "query" in read else ""


def _talk(
    formatting: str,
    entry: Mapping[str, Any],
    said: Mapping[str, Any],
    tags: Mapping[str, Any],
    judged: dict[str, Any],
) -> tuple[str, dict[str, Any], str]:
    """The same of conversations."""
    turns = said.get("messages", "conversations")
    role, content = tags.get("role_tag", "from"), tags.get("content_tag", "value")
    plainly = (role, content) == ("role", "content")
    named = {} if plainly or (role, content) == ("from", "value") else {"role": role, "content": content}
    note = TOOLS if formatting == "openai" or said.get("tools") else ""
    if entry.get("ranking"):
        return "preference", {"prompt": turns, **judged, **named}, note
    if said.get("kto_tag"):
        return "unpaired_preference", {"completion": turns, "label": said["kto_tag"], **named}, note
    if plainly:
        return "messages", {} if turns == "messages" else {"messages": turns}, note
    own = {} if not named else {"from": role, "value": content}
    return "sharegpt", {**({} if turns == "conversations" else {"conversations": turns}), **own}, note


def _weighted(given: Given, sources: list[Source]) -> None:
    """interleave_probs as weights of the mixture."""
    weights = [as_number(part) for part in str(given.get("interleave_probs", "")).split(",")]
    if len(sources) > 1 and len(weights) == len(sources) and all(weight and weight > 0 for weight in weights):
        for source, weight in zip(sources, weights, strict=True):
            source.parts[0]["weight"] = weight


def _counted(given: Given, sources: list[Source]) -> None:
    """max_samples as the count of each source that has more rows, where there are several."""
    parts = [source.parts[0] for source in sources]
    for part, more in zip(parts, have_more(parts, given.get("max_samples")), strict=True):
        if more:
            part["count"] = given.get("max_samples")


def have_more(sources: Sequence[Mapping[str, Any]], most: Any) -> list[bool | None]:
    """Of each of several sources whether it has more rows than `most`: a count of more than it has would repeat
    them. None of all where one cannot be counted here, or weights say how many are taken.
    """
    unknown: list[bool | None] = [None] * len(sources)
    if len(sources) < 2 or not isinstance(most, int) or any("weight" in source for source in sources):
        return unknown
    found = [_has_more(source.get("data_path"), most) for source in sources]
    return unknown if None in found else found


def _has_more(path: Any, most: int) -> bool | None:
    if not isinstance(path, str) or most < 1 or not Path(path).exists():
        return None
    try:
        return sum(1 for _ in itertools.islice(read_rows(path), most + 1)) > most
    except UserError:
        return None


def proportions(given: Given) -> list[Line]:
    """`interleave_probs`: said here, written by `dataset`."""
    names = _names(given.get("dataset"))
    weights = [as_number(part) for part in str(given.value).split(",")]
    if len(names) < 2 or len(weights) != len(names) or not all(weight and weight > 0 for weight in weights):
        return given.not_carried("a number above 0 for each dataset was expected: dataset.sources, weight")
    return given.changed(
        {}, "weight of each source: the mixture is as large as it gets without repeating a row"
    )


def mixed(given: Given) -> list[Line]:
    """`mix_strategy`"""
    if given.value == "concat":
        return given.not_needed("all rows of all sources, here too")
    return given.not_carried("rows are drawn at random from all sources; weights are interleave_probs")


def at_most(given: Given) -> list[Line]:
    """`max_samples`: of each dataset."""
    names = _names(given.get("dataset"))
    if len(names) > 1:
        told = training(given.of("dataset", given.get("dataset")))
        more = have_more(told[0].settings.get("dataset.sources", []), given.value)
        if more and None not in more:
            whole = [name for name, has_more in zip(names, more, strict=True) if not has_more]
            all_rows = f"; all rows of {listed(whole)}, no more than that today" if whole else ""
            return given.changed(
                {}, f"count of each source that has more: drawn with the seed, there the first{all_rows}"
            )
        return given.not_carried(
            "of each dataset there, and not all of them are here to be counted, or have weights instead: a count in"
            " each of dataset.sources, or dataset.max_rows of all"
        )
    return given.changed({"dataset.max_rows": given.value}, "drawn with the seed; there the first")


def share(given: Given) -> list[Line]:
    """`val_size`; beside eval_dataset it is none, and need not be said."""
    if given.get("eval_dataset") and given.file.get("val_size") is None:
        return []
    size = as_number(given.value)
    if size is not None and size >= 1:
        return given.not_carried("a number of rows there: dataset.eval_fraction is a share of them")
    return given.carried({"dataset.eval_fraction": size if size is not None else given.value})


def none_held_out(given: Given) -> bool:
    return not as_number(given.get("val_size", 0)) and not given.get("eval_dataset")
