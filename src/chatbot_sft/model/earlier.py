"""`model.adapter`: an adapter that was trained before, and is trained on.

All of it is looked at before a model is loaded, without torch; `load_weights` then puts it into the model, as
an export of an earlier run does too.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chatbot_sft.config import ALL_LINEAR, Config, LoraConfig
from chatbot_sft.errors import UserError
from chatbot_sft.model import embedded
from chatbot_sft.model.base import content, known_base, named
from chatbot_sft.model.hub import is_local
from chatbot_sft.run.directory import Run

log = logging.getLogger(__name__)

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
SHAPE = (
    "r",
    "lora_alpha",
    "target_modules",
    "bias",
    "use_rslora",
    "use_dora",
    "modules_to_save",
)  # keys of `lora` that the adapter has decided
NOT_OURS = (
    "rank_pattern",
    "alpha_pattern",
    "layers_to_transform",
    "layer_replication",
    "target_parameters",
    "lora_bias",
)
CHANGE_THE_BASE = ("pissa", "olora", "loftq", "corda")  # initialisations, by how they begin


def adopt(config: Mapping[str, Any] | Config) -> Config:
    """`config` with the `lora` section of the adapter that `model.adapter` names, and that adapter's own
    folder; unchanged where it names none.

    Raises:
        UserError: there is no adapter, it was trained on another base, it is one that cannot be trained on,
            or `lora` asks for another one.
    """
    settings = Config.from_mapping(config)
    if settings.model.adapter is None:
        return settings
    where = f"model.adapter={settings.model.adapter}"
    folder = _find(where, Path(settings.model.adapter).expanduser())
    found = _read(where, folder)
    _check_kind(where, found, settings)
    _check_weights(where, folder, found)
    _check_base(where, folder, found, settings)
    shape = {key: _plain(found.get(key, getattr(LoraConfig(), key))) for key in SHAPE}
    for key, theirs in shape.items():
        ours = _plain(getattr(settings.lora, key))
        if ours not in (theirs, _plain(getattr(LoraConfig(), key)), ALL_LINEAR):
            raise UserError(
                f"lora.{key}={ours}: the adapter that is gone on from has {theirs}; leave lora.{key} out"
                f" ({where})"
            )
    changed = {"model": {**settings["model"], "adapter": str(folder)}, "lora": {**settings["lora"], **shape}}
    return Config.from_mapping({**settings, **changed})


def fingerprint(settings: Config) -> str:
    """Of the weights that `model.adapter` brings."""
    with Path(settings.model.adapter, WEIGHTS).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]


def load_weights(model: Any, folder: Path, where: str) -> None:
    """Put the adapter in `folder` into the adapter that `model` has already, of the same shape.

    Raises:
        UserError: it is of another shape.
    """
    from peft import load_peft_weights, set_peft_model_state_dict

    try:
        loaded = set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"))
    except RuntimeError as error:  # torch's word for another size
        raise UserError(
            f"{where}: {folder} is not an adapter of this model: {' '.join(str(error).split())[:300]}"
        ) from None
    missing = [name for name in loaded.missing_keys if ".lora_A." in name or ".lora_B." in name]
    if loaded.unexpected_keys or missing:
        what = f"it has {loaded.unexpected_keys[0]}" if loaded.unexpected_keys else f"it has no {missing[0]}"
        raise UserError(f"{where}: {folder} is not an adapter of this model: {what}")


def _find(where: str, place: Path) -> Path:
    """The adapter in a run directory, an export or an adapter's own folder: of a run the weights that it
    ended with, else its last checkpoint.
    """
    from chatbot_sft.run import checkpoints

    if not place.is_dir():
        raise UserError(f"{where}: no such folder; name a run directory, an exported adapter or a checkpoint")
    run = Run(place)
    report = run.peek()
    step = report.training.weights_of_step if report and report.training else None
    for folder in (place, run.checkpoints / f"checkpoint-{step}", *run.adapters(), place / "lora"):
        if not (folder / CONFIG).is_file():
            continue
        try:
            if (folder / checkpoints.RECORD).exists():
                checkpoints.verified(folder)
        except checkpoints.Damaged as error:
            if folder == place:
                raise UserError(f"{where}: {error}; name another checkpoint") from None
            log.warning("adapter: %s is passed over: %s", folder, error)
            continue
        return folder.resolve()
    last = checkpoints.last_verified(run.checkpoints) or checkpoints.last_verified(place)
    if last and (last.folder / CONFIG).is_file():
        return last.folder.resolve()
    hint = "; it is a whole model: name it with model.name" if (place / "config.json").is_file() else ""
    raise UserError(f"{where}: no adapter in it ({CONFIG}){hint}")


def _read(where: str, folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        found = None
    if (
        not isinstance(found, dict)
        or not isinstance(found.get("r"), int)
        or not isinstance(found.get("base_model_name_or_path"), str)
    ):
        raise UserError(f"{where}: {folder / CONFIG} is damaged: it has no r and base_model_name_or_path")
    return found


def _check_kind(where: str, found: Mapping[str, Any], settings: Config) -> None:
    """Whether it is a LoRA of the kind that this program trains."""
    init = str(found.get("init_lora_weights"))
    if settings.full_finetuning:
        raise UserError(f"{where} with lora.r=0: an adapter is trained on as an adapter; leave lora.r out")
    if found.get("peft_type", "LORA") != "LORA":
        raise UserError(f"{where}: a {found['peft_type']} adapter; only LoRA can be trained on")
    if init.startswith(CHANGE_THE_BASE):
        raise UserError(
            f"{where}: its initialisation ({init}) changed the base, so it fits no other; export that run"
            " merged, and name it with model.name"
        )
    if settings.lora.init_lora_weights is not True:
        raise UserError(
            f"{where} with lora.init_lora_weights={settings.lora.init_lora_weights}: an adapter that is there"
            " is not initialised; leave it out"
        )
    odd = [key for key in NOT_OURS if found.get(key)]
    if odd or not isinstance(found.get("target_modules"), list):
        raise UserError(
            f"{where}: it uses {odd[0] if odd else 'a pattern for target_modules'}, which this program does"
            " not train; merge it into its base"
        )
    tokens = bool(found.get("trainable_token_indices"))
    if tokens != bool(settings.model.new_tokens):
        raise UserError(
            f"{where}: it {'has' if tokens else 'was trained without'} new tokens; model.new_tokens has to"
            " name the same ones"
        )


def _check_weights(where: str, folder: Path, found: Mapping[str, Any]) -> None:
    """The header of the weights: all of the file is there, and its matrices have the rank that the adapter
    says.
    """
    file = folder / WEIGHTS
    if not file.is_file():
        raise UserError(f"{where}: no {WEIGHTS} in {folder}")
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length)) if length < size else None
        tensors = {name: value for name, value in header.items() if name != "__metadata__"}
        whole = 8 + length + max(value["data_offsets"][1] for value in tensors.values()) == size
        ranks = {value["shape"][0] for name, value in tensors.items() if ".lora_A." in name}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        raise UserError(f"{where}: {file} is damaged: it is no safetensors file with LoRA matrices") from None
    if not whole:
        raise UserError(f"{where}: {file} is cut or damaged: its size is not what its header says")
    if ranks != {found["r"]}:
        raise UserError(
            f"{where}: {file} has matrices of rank {', '.join(map(str, sorted(ranks))) or 'none'}, and"
            f" {CONFIG} says {found['r']}"
        )


def _check_base(where: str, folder: Path, found: Mapping[str, Any], settings: Config) -> None:
    """Whether it was trained on the model that `settings` name, wherever that lies now."""
    theirs, name = named(found["base_model_name_or_path"]), settings.model.name
    ours = embedded.resolve(name)
    if theirs == ours or (name == embedded.NAME and Path(theirs).name == Path(ours).name):
        return
    if is_local(ours):
        there = Path(theirs).expanduser()
        held = (
            content(there)
            if is_local(theirs) and (there / "config.json").is_file()
            else known_base(folder).get("content")
        )
        if held == content(Path(ours).expanduser()):
            return
    raise UserError(
        f"{where}: it was trained on {theirs}, not on model.name={name}; go on with model=local"
        f" model.name={theirs}"
    )


def _plain(value: Any) -> Any:
    """Lists in an order of their own: PEFT writes a set."""
    return sorted(value) if isinstance(value, list) else value
