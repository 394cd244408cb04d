"""A model folder as it comes from a stranger, looked at without torch: is it whole, is it what it says?"""

from __future__ import annotations

import json
import stat
from collections.abc import Hashable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from chatbot_sft.errors import UserError, beside, did_you_mean, from_here
from chatbot_sft.installed import folder_of
from chatbot_sft.text_files import decoded

LFS_POINTER = b"version https://git-lfs"
ZIP, PICKLE = b"PK\x03\x04", b"\x80"  # what torch.save writes, now and long ago
LARGEST_HEADER = 100 << 20  # bytes; safetensors' own limit
LARGEST_JSON = 64 << 20  # bytes
PICKLED_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
# Positive whole numbers of config.json, and the largest that makes sense of each.
SIZES = {
    "hidden_size": 1 << 20, "intermediate_size": 1 << 22, "num_hidden_layers": 1000,
    "num_attention_heads": 1 << 12, "num_key_value_heads": 1 << 12,
    "head_dim": 1 << 14, "vocab_size": 1 << 24, "max_position_embeddings": 1 << 30,
}  # fmt: skip


def check_folder(name: str, trust_remote_code: bool, allow_pickle: bool = False) -> None:
    """`name`, a path, is a Hugging Face model folder whose files are whole.

    Raises:
        UserError: names the file, and the key where there is one.
    """
    folder = Path(name).expanduser()
    where = f"model.name={name}"
    if folder.is_file():
        why = (
            "a GGUF file cannot be trained; name the model that it was made from"
            if folder.suffix == ".gguf"
            else "is a file; name the model's folder"
        )
        raise UserError(f"{where}: {why}")
    if not folder.is_dir():
        hint = did_you_mean(folder.name, beside(folder)) or from_here(folder)
        raise UserError(f"{where}: no such folder{hint}")
    if not (folder / "config.json").exists():
        raise UserError(
            f"{where}: no config.json in it, so it is not a Hugging Face model folder"
            f"{_what_instead(folder) or '; name the one with the weights'}"
        )
    _check_links(folder, where)
    config = read_json(folder / "config.json", where)
    _check_config(config, where, trust_remote_code)
    if (folder / "adapter_config.json").exists():
        base = read_json(folder / "adapter_config.json", where).get("base_model_name_or_path")
        raise UserError(
            f"{where}: it also holds an adapter (adapter_config.json, for {base}),"
            " which would be loaded with it; move that out of the folder"
        )
    _check_weights(folder, where)
    if not allow_pickle:
        refuse_pickles(folder, where)


def refuse_pickles(folder: Path, where: str) -> None:
    """A pickle may run code as it is loaded, so weights are safetensors.

    Raises:
        UserError: all weights of the model or adapter in `folder` are pickles; with what allows them, or converts
            them.
    """
    pickled = sorted(file for file in folder.glob("*") if file.suffix in PICKLED_SUFFIXES)
    if not pickled or any(folder.glob("*.safetensors")):
        return
    name = pickled[0].name
    if (folder / "adapter_config.json").exists():
        instead = (
            'convert it once in its folder: python -c "import torch; from safetensors.torch import save_file;'
            f" save_file(torch.load('{name}', weights_only=True), 'adapter_model.safetensors')\""
        )
    else:
        instead = (
            "model.allow_pickle=true loads them with PyTorch's loader for weights alone, and every export is"
            " safetensors"
        )
    raise UserError(
        f"{where}: {name} is a pickle, which may hold code, and there are no *.safetensors; {instead}"
    )


def _check_links(folder: Path, where: str) -> None:
    """Whoever made the folder may have made links in it, to what only its user may read: what is read through them
    comes into exports. Weights may lie elsewhere, but for those that an index names.
    """
    for file in sorted(folder.iterdir()):
        if file.suffix not in (".safetensors", *PICKLED_SUFFIXES):
            _check_inside(file, folder, where)


def _check_inside(file: Path, folder: Path, where: str) -> None:
    """Raises UserError where `file` is a link out of `folder`. A snapshot of the hub's cache has links to the blobs
    beside it.
    """
    if not file.is_symlink():
        return
    repository = folder.resolve().parent.parent if folder.resolve().parent.name == "snapshots" else folder
    if not file.resolve().is_relative_to(repository.resolve()):
        raise UserError(
            f"{where}: {file.name} is a link to {file.resolve()}, outside the folder; put the file itself there"
        )


def read_json(file: Path, where: str) -> dict[str, Any]:
    """The JSON object in `file`; empty where there is no such file.

    Raises:
        UserError: it is something else.
    """
    if not file.exists():
        return {}
    _check_regular(file, where)
    if file.stat().st_size > LARGEST_JSON:
        raise UserError(f"{where}: {file.name} has {file.stat().st_size >> 20} MB; that is no such file")
    text = file.read_bytes()
    _check_pointer(text, file, where)
    try:
        value = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        why = "nested too deeply" if isinstance(error, RecursionError) else error
        raise UserError(
            f"{where}: {file.name} is not JSON in UTF-8 ({why}); copy or download it again"
        ) from None
    if not isinstance(value, dict):
        content = "a list" if isinstance(value, list) else json.dumps(value)[:40]
        raise UserError(f"{where}: {file.name} holds {content}, expected an object")
    return value


def read_text(file: Path, where: str) -> str:
    """The text of a chat template.

    Raises:
        UserError: it is none.
    """
    _check_regular(file, where)
    text = file.read_bytes()
    _check_pointer(text, file, where)
    return decoded(text, f"{where}: {file.name}")


def state(folder: Path) -> Hashable:
    """Of its files, and of chat templates a folder below: another one as soon as any of them is written."""
    files = [file for file in (*folder.glob("*"), *folder.glob("*/*.jinja")) if file.is_file()]
    stats = [(str(file), file.stat()) for file in sorted(files)]
    return tuple((name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in stats)


def _what_instead(folder: Path) -> str:
    if (folder / "adapter_config.json").is_file():
        return "; this is a LoRA adapter, name its base model, and this with model.adapter to go on from it"
    below = [*sorted(folder.glob("*/config.json")), *sorted(folder.glob("snapshots/*/config.json"))]
    return f"; did you mean {below[0].parent}?" if below else ""


def _check_config(config: Mapping[str, Any], where: str, trust_remote_code: bool) -> None:
    where = f"{where}: config.json"
    kind = config.get("model_type")
    if "auto_map" in config and not trust_remote_code:
        raise UserError(
            f"{where}: auto_map names Python code of the model's own; model.trust_remote_code=true runs it,"
            " if you trust where it comes from"
        )
    if not isinstance(kind, str) or not kind:
        raise UserError(
            f"{where}: model_type is {kind!r}, expected the name of an architecture such as llama"
        )
    if f'"{kind}"' not in _known_architectures() and not (trust_remote_code and "auto_map" in config):
        own = (
            "; it brings Python code of its own,"
            " which model.trust_remote_code=true runs if you trust where it comes from"
        )
        hint = own if "auto_map" in config else "; a newer transformers may know it"
        raise UserError(f"{where}: model_type {kind!r} is unknown to the installed transformers{hint}")
    for part, keys in [
        ("", config),
        *((f"{name}.", config[name]) for name in ("text_config", "quantization_config") if name in config),
    ]:
        if keys is None:
            continue
        if not isinstance(keys, dict):
            raise UserError(f"{where}: {part.removesuffix('.')} is {keys!r}, expected an object")
        for key, largest in SIZES.items():
            value = keys.get(key)
            if value is not None and (type(value) is not int or not 0 < value <= largest):
                raise UserError(
                    f"{where}: {part}{key} is {value!r}, expected a whole number from 1 to {largest:,}"
                )
        _check_heads(keys, f"{where}: {part}")


def _check_heads(config: Mapping[str, Any], where: str) -> None:
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    shared = config.get("num_key_value_heads")
    if hidden and heads and not config.get("head_dim") and hidden % heads:
        raise UserError(
            f"{where}hidden_size {hidden} cannot be divided among num_attention_heads {heads}; download it again"
        )
    if heads and shared and heads % shared:
        raise UserError(
            f"{where}num_attention_heads {heads} cannot be divided among num_key_value_heads {shared};"
            " download it again"
        )


def _known_architectures() -> str:
    """The source text in which transformers names its architectures; read, not imported."""
    folder = folder_of("transformers") / "models" / "auto"
    return "".join(
        file.read_text(encoding="utf-8")
        for file in (folder / "configuration_auto.py", folder / "auto_mappings.py")
        if file.is_file()
    )


def _check_weights(folder: Path, where: str) -> None:
    """Every weights file is a regular file and whole; every one that an index names is in `folder`."""
    files = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
    if not files:
        raise UserError(f"{where}: no weights in it (*.safetensors); is the download complete?")
    for index in INDEXES:
        shards = read_json(folder / index, where).get("weight_map", {})
        if not isinstance(shards, dict):
            raise UserError(f"{where}: {index}: weight_map is no object; download it again")
        for shard in sorted({str(shard) for shard in shards.values()}):
            if PurePosixPath(shard).is_absolute() or ".." in PurePosixPath(shard).parts:
                raise UserError(
                    f"{where}: {index} names {shard}, a file outside the folder, which is not read;"
                    " name weights beside it"
                )
            _check_inside(folder / shard, folder, f"{where}: {index}")
            if not (folder / shard).exists():
                raise UserError(
                    f"{where}: {index} names {shard}, which is not there; is the download complete?"
                )
    for file in sorted(files):
        _check_regular(file, where)
        with file.open("rb") as stream:
            start = stream.read(64)
        _check_pointer(start, file, where)
        if file.suffix == ".safetensors":
            _check_safetensors(file, where)
        elif not start.startswith((ZIP, PICKLE)):
            raise UserError(
                f"{where}: {file.name} is not a file of PyTorch weights; copy or download it again"
            )


def _check_safetensors(file: Path, where: str) -> None:
    """Its header is JSON, and its tensors end where the file does (huggingface/safetensors, "Format")."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(LARGEST_HEADER, size - 8):
            raise UserError(
                f"{where}: {file.name} is not a whole safetensors file ({size:,} bytes);"
                " copy or download it again"
            )
        try:
            header = json.loads(stream.read(length))
            ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
            expected = 8 + length + max(ends, default=0)
        except (ValueError, RecursionError, AttributeError, KeyError, IndexError, TypeError):
            raise UserError(
                f"{where}: {file.name} is not a safetensors file: its header cannot be read;"
                " copy or download it again"
            ) from None
    if expected != size:
        raise UserError(
            f"{where}: {file.name} has {size:,} bytes, its header tells of {expected:,};"
            " copy or download it again"
        )


def _check_regular(file: Path, where: str) -> None:
    """A pipe or a device would be waited for."""
    try:
        mode = file.stat().st_mode
    except OSError as error:
        raise UserError(f"{where}: {file.name}: {error.strerror}") from None
    if not stat.S_ISREG(mode):
        raise UserError(f"{where}: {file.name} is not a regular file; copy it there")


def _check_pointer(start: bytes, file: Path, where: str) -> None:
    if start.startswith(LFS_POINTER):
        raise UserError(
            f"{where}: {file.name} is a Git LFS pointer, not the file itself;"
            " run `git lfs pull` in that folder, or download it"
        )
