"""`model.adapter`: an adapter that was trained before, and is trained on.

All of it is looked at before a model is loaded, without torch; `load_weights` then puts it into the model, as
an export of an earlier run does too.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from chatbot_sft.config import ALL_LINEAR, Config, LoraConfig
from chatbot_sft.errors import UserError, reason
from chatbot_sft.model import embedded
from chatbot_sft.model.base import ABOVE, content, known_base, moved, named
from chatbot_sft.model.hub import is_local
from chatbot_sft.model_files import refuse_pickles
from chatbot_sft.run.directory import Run, jobs, trains_nothing
from chatbot_sft.run.fingerprint import sha256

log = logging.getLogger(__name__)

IN_4BIT = "model.load_in_4bit"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Keys of `lora` that the adapter has decided.
SHAPE = ("r", "lora_alpha", "target_modules", "bias", "use_rslora", "use_dora", "modules_to_save")
# Keys of an adapter_config.json that this program does not train by.
NOT_OURS = (
    *("rank_pattern", "alpha_pattern", "layers_to_transform"),
    *("layer_replication", "target_parameters", "lora_bias"),
)
CHANGE_THE_BASE = ("pissa", "olora", "loftq", "corda")  # initialisations, by how they begin


def adopt(config: Mapping[str, Any] | Config, named: Collection[str] = ()) -> Config:
    """`config` with the `lora` section of the adapter that `model.adapter` names, and that adapter's own
    folder; unchanged where it names none. A run directory in `model.name` stands for its base and its adapter, held
    in memory as it was then, unless model.load_in_4bit is among the keys that the user has `named`.

    Raises:
        UserError: there is no adapter, it was trained on another base, it is one that cannot be trained on,
            or `lora` asks for another one.
    """
    settings = _with_reference(_from_run(Config.from_mapping(config), IN_4BIT not in named))
    if settings.model.adapter is None:
        return settings
    where = f"model.adapter={settings.model.adapter}"
    folder = _find(where, Path(settings.model.adapter).expanduser())
    adapter_config = _read(where, folder)
    _check_kind(where, adapter_config, settings)
    _check_weights(where, folder, adapter_config)
    _check_base(where, folder, adapter_config, settings)
    shape = {key: _plain(adapter_config.get(key, getattr(LoraConfig(), key))) for key in SHAPE}
    for key, decided in shape.items():
        asked = _plain(getattr(settings.lora, key))
        if asked not in (decided, _plain(getattr(LoraConfig(), key)), ALL_LINEAR):
            raise UserError(
                f"lora.{key}={asked}: the adapter that is gone on from has {decided}; leave lora.{key} out"
                f" ({where})"
            )
    changed = {"model": {**settings["model"], "adapter": str(folder)}, "lora": {**settings["lora"], **shape}}
    return Config.from_mapping({**settings, **changed})


def _from_run(settings: Config, as_then: bool) -> Config:
    """`settings` with what the run in `model.name` has left, where it names one: its base and its adapter, or the
    whole model that it trained; `as_then`: not in 4 bits where that run had it in 16.

    Raises:
        UserError: nothing is left of it.
    """
    model, place = settings.model, Path(settings.model.name).expanduser()
    if model.adapter is not None or not place.is_dir() or (place / "config.json").is_file():
        return settings
    report = Run(place).peek()
    if report is None or report.model is None:
        return settings
    where = f"model.name={model.name}"
    if as_then and model.load_in_4bit and not _was_in_4bit(place):
        log.info("model: %s was trained with model.load_in_4bit=false, and so is this", model.name)
        model = replace(model, load_in_4bit=False)
    exports = [Path(export.path) for export in report.save.kept] if report.save else []
    # In the run's own folder first: it may have moved, or be a copy.
    places = [place.joinpath(*export.parts[-depth:]) for export in exports for depth in (1, 2)] + exports
    whole = next((str(export) for export in places if (export / "config.json").is_file()), None)
    every_weight = report.model.trainable_parameters == report.model.parameters
    if every_weight and whole is None:
        raise UserError(f"{where}: a run that trained every weight, and no export of it is there")
    if whole is not None and (every_weight or not _has_adapter(where, place)):
        log.info("model: %s is a run, its export is trained on: %s", model.name, whole)
        return replace(settings, model=replace(model, name=whole))
    is_embedded = report.model.base.get("name") == embedded.NAME
    base = embedded.NAME if is_embedded else moved(place) or report.model.name
    log.info("model: %s is a run, its adapter is trained on, over %s", model.name, base)
    return replace(settings, model=replace(model, name=base, adapter=str(place)))


def _was_in_4bit(place: Path) -> bool:
    """Whether the run in `place` had its base in 4 bits; yes, the default, where nothing says."""
    try:
        return bool(Run(place).config()["model"].get("load_in_4bit", True))
    except UserError:  # one that was stopped has no config.yaml
        return True


def _with_reference(settings: Config) -> Config:
    """`settings` with the adapter's own folder in place of what `objective.reference` names.

    Raises:
        UserError: there is no adapter, or none of this base.
    """
    named_so = settings.objective.reference
    if named_so is None:
        return settings
    where = f"objective.reference={named_so}"
    if settings.full_finetuning or settings.training.shard:
        other = "lora.r=0" if settings.full_finetuning else "training.shard=true"
        raise UserError(
            f"{where} with {other}: it is an adapter beside the one that is trained; leave one out"
        )
    folder = _find(where, Path(named_so).expanduser(), "objective.reference=")
    adapter_config = _read(where, folder)
    _check_lora(where, adapter_config)
    _check_tokens(where, adapter_config, settings)
    _check_weights(where, folder, adapter_config)
    _check_base(where, folder, adapter_config, settings)
    return replace(settings, objective=replace(settings.objective, reference=str(folder)))


def check_tokenizer(settings: Config, tokenizer: str) -> None:
    """Hold `tokenizer`, its fingerprint, against that of the run that `objective.reference` is of, if it is of one.

    Raises:
        UserError: the reference learned other texts.
    """
    if settings.objective.reference is None:
        return
    folder = Path(settings.objective.reference)
    for place in (folder, *list(folder.parents)[:ABOVE]):
        if Run(place).lock_file.is_file() and Run(place).lock().tokenizer != tokenizer:
            raise UserError(
                f"objective.reference={folder}: the run in {place} had another tokenizer or chat template: what is"
                " trained here are other texts to it"
            )


def fingerprint(settings: Config) -> str | None:
    """Of the weights that `model.adapter` brings; None where it names none."""
    return _of_weights(settings.model.adapter)


def reference_fingerprint(settings: Config) -> str | None:
    """Of those of `objective.reference`."""
    return _of_weights(settings.objective.reference)


def _of_weights(folder: str | None) -> str | None:
    if folder is None:
        return None
    return sha256(Path(folder, WEIGHTS))[:16]


def load_weights(model: Any, folder: Path, where: str) -> None:
    """Put the adapter in `folder` into the adapter that `model` has already, of the same shape.

    Raises:
        UserError: it is of another shape.
    """
    from peft import load_peft_weights, set_peft_model_state_dict

    refuse_pickles(folder, where)
    try:
        loaded = set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"))
    except RuntimeError as error:  # torch's word for another size
        raise UserError(
            f"{where}: {folder} is not an adapter of this model: {reason(error)}; name the base it was trained on"
        ) from None
    missing = [name for name in loaded.missing_keys if ".lora_A." in name or ".lora_B." in name]
    if loaded.unexpected_keys or missing:
        surplus = loaded.unexpected_keys
        unlike = f"it has {surplus[0]}" if surplus else f"it has no {missing[0]}"
        raise UserError(f"{where}: {folder} is not an adapter of this model: {unlike}")


def _has_adapter(where: str, place: Path) -> bool:
    """Whether the run in `place` still has one; checkpoints may have been deleted."""
    try:
        _find(where, place)
    except UserError:
        return False
    return True


def _find(where: str, place: Path, key: str = "model.adapter=") -> Path:
    """The adapter in a run directory, an export or an adapter's own folder: of a run the weights that it
    ended with, else its last checkpoint. `key` is what it is named with.
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
    if nothing := trains_nothing(report):
        raise UserError(f"{where}: {nothing}")
    whole = "; it is a whole model: name it with model.name" if (place / "config.json").is_file() else ""
    hint = whole or jobs(place, key)
    raise UserError(f"{where}: no adapter in it ({CONFIG}){hint or '; name the folder of one'}")


def _read(where: str, folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        config = None
    if (
        not isinstance(config, dict)
        or not isinstance(config.get("r"), int)
        or not isinstance(config.get("base_model_name_or_path"), str)
    ):
        raise UserError(f"{where}: {folder / CONFIG} is damaged: it has no r and base_model_name_or_path")
    return config


def _check_kind(where: str, adapter_config: Mapping[str, Any], settings: Config) -> None:
    """Whether it is a LoRA of the kind that this program trains."""
    if settings.full_finetuning:
        raise UserError(f"{where} with lora.r=0: an adapter is trained on as an adapter; leave lora.r out")
    _check_lora(where, adapter_config)
    if settings.lora.init_lora_weights is not True:
        raise UserError(
            f"{where} with lora.init_lora_weights={settings.lora.init_lora_weights}: an adapter that is there"
            " is not initialised; leave it out"
        )
    odd = [key for key in NOT_OURS if adapter_config.get(key)]
    if odd or not isinstance(adapter_config.get("target_modules"), list):
        raise UserError(
            f"{where}: it uses {odd[0] if odd else 'a pattern for target_modules'}, which this program does"
            " not train; merge it into its base"
        )
    _check_tokens(where, adapter_config, settings)


def _check_lora(where: str, adapter_config: Mapping[str, Any]) -> None:
    """Whether it is a LoRA over a base as it was."""
    init = str(adapter_config.get("init_lora_weights"))
    if adapter_config.get("peft_type", "LORA") != "LORA":
        raise UserError(f"{where}: a {adapter_config['peft_type']} adapter; only LoRA can be trained on")
    if init.startswith(CHANGE_THE_BASE):
        raise UserError(
            f"{where}: its initialisation ({init}) changed the base, so it fits no other; export that run"
            " merged, and name it with model.name"
        )


def _check_tokens(where: str, adapter_config: Mapping[str, Any], settings: Config) -> None:
    tokens = bool(adapter_config.get("trainable_token_indices"))
    if tokens != bool(settings.model.new_tokens):
        raise UserError(
            f"{where}: it {'has' if tokens else 'was trained without'} new tokens; model.new_tokens has to"
            " name the same ones"
        )


def _check_weights(where: str, folder: Path, adapter_config: Mapping[str, Any]) -> None:
    """The header of the weights: all of the file is there, and its matrices have the adapter's rank."""
    file = folder / WEIGHTS
    refuse_pickles(folder, where)
    if not file.is_file():
        raise UserError(f"{where}: no {WEIGHTS} in {folder}; copy or export it again")
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length)) if length < size else {}
        tensors = {name: value for name, value in header.items() if name != "__metadata__"}
        whole = 8 + length + max(value["data_offsets"][1] for value in tensors.values()) == size
        ranks = {value["shape"][0] for name, value in tensors.items() if ".lora_A." in name}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        raise UserError(
            f"{where}: {file} is damaged: it is no safetensors file with LoRA matrices; copy or export it again"
        ) from None
    if not whole:
        raise UserError(
            f"{where}: {file} is cut or damaged: its size is not what its header says; copy or export it again"
        )
    if ranks != {adapter_config["r"]}:
        raise UserError(
            f"{where}: {file} has matrices of rank {', '.join(map(str, sorted(ranks))) or 'none'}, and"
            f" {CONFIG} says {adapter_config['r']}; they have to be of one export"
        )


def _check_base(where: str, folder: Path, adapter_config: Mapping[str, Any], settings: Config) -> None:
    """Whether it was trained on the model that `settings` name, wherever that lies now."""
    base, name = named(adapter_config["base_model_name_or_path"]), settings.model.name
    source = embedded.resolve(name)
    if base == source or (name == embedded.NAME and Path(base).name == Path(source).name):
        return
    if is_local(source):
        base_folder = Path(base).expanduser()
        held = (
            content(base_folder)
            if is_local(base) and (base_folder / "config.json").is_file()
            else known_base(folder).get("content")
        )
        if held == content(Path(source).expanduser()):
            return
    raise UserError(
        f"{where}: it was trained on {base}, not on model.name={name}; go on with model=local"
        f" model.name={base}"
    )


def _plain(value: Any) -> Any:
    """Lists in an order of their own: PEFT writes a set."""
    return sorted(value) if isinstance(value, list) else value
