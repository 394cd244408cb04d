"""What holds of values and between them, before anything heavy is imported.

Bounds and choices stand in the schema.
"""

from __future__ import annotations

import math
import re
import shlex
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from chatbot_sft import optimization
from chatbot_sft.config import sft_arguments
from chatbot_sft.config.key import Key, one_of
from chatbot_sft.config.precedence import RIVALS
from chatbot_sft.config.schema import (
    ALL_LINEAR,
    DIFFERENCES,
    DIRECTIONS,
    FORMATS,
    OUR_PACKAGE,
    PASSED,
    ROLES,
    SECTIONS,
    SOURCE_BOUNDS,
    Config,
    DatasetConfig,
    SweepConfig,
    TrainingConfig,
    keys,
)
from chatbot_sft.errors import UserError, did_you_mean

# Those of PEFT's `LoraConfig.init_lora_weights` that need nothing but the weights; pissa_niter_16 and the
# like are taken too.
LORA_INITS = (True, False, "gaussian", "orthogonal", "olora", "pissa", "loftq", "mica")
LORA_INITS_FROM_DATA = ("eva", "corda", "lora_ga")
OF_A_RUN = ("export", "evaluate", "verify", "replay")  # the tasks that are done to an earlier run


def check_values(config: Config) -> None:
    """The limits of single values, and the settings that must fit together.

    Raises:
        UserError: names the key, the value and what would be right.
    """
    for key in keys():
        _check_key(key, value_of(config, key))
    for name in SECTIONS:
        if target := getattr(getattr(config, name), "_target_", ""):
            check_target(f"{name}._target_={target}", target)
    for name, value in config.sft_arguments.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"training.{name}={value}: must be a finite number")
    _check_sources(config.dataset)
    _check_roles(config.dataset)
    check_lora(config)
    config.training.loggers  # noqa: B018 (raises for a name that is no logger)
    check_save(config)
    check_task(config)
    _check_names_of_transformers(config.training)
    optimization.check_arguments(config)
    _check_steps(config.training)
    _check_evaluation(config.training, config.dataset)
    _check_sweep(config)
    if config.model.token is not None:
        raise UserError(
            "model.token: leave it null and set the environment variable HF_TOKEN;"
            " a token in a config would be written to the run directory"
        )
    for first, second in RIVALS.items():
        one, other = getattr(config.training, first), getattr(config.training, second)
        if one is not None and other is not None:
            raise UserError(
                f"training.{first}={one:g} and training.{second}={other:g}: two values for one thing;"
                " set one of them to null"
            )
    if config.training.max_steps is None and config.training.num_train_epochs is None:
        raise UserError(
            "training.max_steps and training.num_train_epochs are both null: set one,"
            " for instance training.num_train_epochs=1"
        )
    if config.full_finetuning and config.model.load_in_4bit:
        raise UserError(
            "model.load_in_4bit=true with lora.r=0: 4-bit weights cannot be trained in full;"
            " set model.load_in_4bit=false or use a LoRA"
        )


def value_of(config: Config, key: Key) -> Any:
    """What `config` has for `key`."""
    return getattr(getattr(config, key.section) if key.section else config, key.name)


def _check_key(key: Key, value: Any) -> None:
    """The bounds and the choices of one key; null has its own rules."""
    if value is None:
        return
    refusal = key.about.bound and key.about.bound.refusal(value)
    if refusal:
        raise UserError(f"{key.path}={value}: {refusal}")
    if key.about.choices:
        one_of(key.path, value, key.about.choices)


def check_target(where: str, target: str) -> None:
    """Raises UserError where `target` has not the form of a `_target_`."""
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", target) or target.endswith(".py"):
        raise UserError(
            f"{where}: expected module.Class, for instance my_loader.CustomDatasetLoader for a class in"
            " my_loader.py"
        )


def _check_names_of_transformers(training: TrainingConfig) -> None:
    """The optimizer and the schedule.

    Reading transformers' sources takes part of a start, and the defaults are known to be right.
    """
    if training.optim != TrainingConfig.optim:
        optimizers = sft_arguments.enum_values("training_args.py", "OptimizerNames")
        one_of("training.optim", training.optim, optimizers)
    if training.lr_scheduler_type != TrainingConfig.lr_scheduler_type:
        schedules = sft_arguments.enum_values("trainer_utils.py", "SchedulerType")
        one_of("training.lr_scheduler_type", training.lr_scheduler_type, schedules)


def _check_steps(training: TrainingConfig) -> None:
    """Keys that are a number of steps, or a share of the run."""
    for name, steps, smallest in (
        ("save_steps", training.save_steps, "above 0"),
        ("logging_steps", training.logging_steps, "above 0"),
        ("warmup_steps", training.warmup_steps, "0 or more"),
    ):
        if steps is None:
            continue
        if steps < 0 or (steps == 0 and smallest == "above 0") or (steps > 1 and steps % 1 != 0):
            raise UserError(
                f"training.{name}={steps:g}: expected a number of optimizer steps, {smallest},"
                " or a share of the run below 1"
            )


def _check_sources(dataset: DatasetConfig) -> None:
    for source in dataset.mixture:
        for name, bound in SOURCE_BOUNDS.items():
            value = getattr(source, name)
            refusal = None if value is None else bound.refusal(value)
            if refusal:
                raise UserError(f"dataset.sources: {source.data_path}: {name}={value} {refusal}")
        one_of("dataset.format", source.format, FORMATS)
        if source.weight is not None and source.count is not None:
            raise UserError(f"dataset.sources: {source.data_path} has a weight and a count; give one of them")


def _check_roles(dataset: DatasetConfig) -> None:
    for roles in (dataset.roles, *(source.roles or {} for source in dataset.mixture)):
        words = [name.strip().lower() for name in roles]
        for name, role in roles.items():
            key = f"dataset.roles.{name}"
            if name in ROLES and role not in ROLES:
                raise UserError(
                    f"{key}={role}: the other way round: the file's word is the key, the role the value;"
                    f" write {shlex.quote(f'dataset.roles.{role}={name}')}"
                )
            one_of(key, role, ROLES)
            if words.count(name.strip().lower()) > 1:
                raise UserError(
                    f"{key}: it is there twice, in other capitals, which do not count; leave one out"
                )


def check_save(config: Config) -> None:
    """The part of `check_values` about exports."""
    save, methods = config.save, config.save.methods
    if not save.quantizations or (not methods and save.method != "none"):
        raise UserError(
            "save.method and save.gguf_quantization: an empty list; name one, or set save.method=none"
        )
    if config.full_finetuning and "lora" in methods:
        raise UserError(
            "save.method=lora with lora.r=0: a full fine-tune has no adapter; use save=merged_16bit"
        )
    if Path(save.save_path).suffix == ".gguf" and methods:
        if methods != ["gguf"]:
            raise UserError(
                f"save.save_path={save.save_path}: names a GGUF file, but save.method={save.method};"
                " name a folder"
            )
        if len(save.quantizations) > 1:
            raise UserError(
                f"save.save_path={save.save_path}: names one file for {len(save.quantizations)}"
                " quantizations; name a folder"
            )
        if save.push_to_hub:
            raise UserError(
                f"save.save_path={save.save_path}: names a file, and save.push_to_hub uploads a folder;"
                " name a folder"
            )
    if save.push_to_hub and not methods:
        raise UserError("save.push_to_hub=true with save.method=none: there is nothing to upload")
    if config.task == "export" and not methods:
        raise UserError("task=export with save.method=none: nothing to do; for instance save=gguf")


def check_task(config: Config) -> None:
    """The part of `check_values` about what each task is done to."""
    evaluation = config.evaluation
    if config.task == "export" and config.run is None:
        raise UserError("task=export needs run=DIR, the directory of a run")
    if config.task == "replay" and config.run is None:
        raise UserError("task=replay needs run=DIR, the directory of a run")
    for name in config.replay.allow:
        one_of("replay.allow", name, DIFFERENCES)
    if config.run is not None and config.task not in OF_A_RUN:
        raise UserError(f"run={config.run}: needs task=export, task=evaluate, task=verify or task=replay")
    if config.task == "verify" and (config.run is None or evaluation.url is None):
        raise UserError(
            "task=verify needs both run=DIR, the directory of a run, and url=http://HOST:PORT/v1, a server that has"
            " its model"
        )
    if config.task == "evaluate":
        if evaluation.golden is None:
            raise UserError("task=evaluate needs evaluation.golden=FILE, the cases, one JSON object a line")
        if config.run is not None and evaluation.url is not None:
            raise UserError(
                f"run={config.run} and evaluation.url={evaluation.url}: task=evaluate asks one of them; leave one out"
            )
        if config.run is None and evaluation.url is None:
            raise UserError(
                "task=evaluate needs one of run=PATH (a run, an export, an adapter or a .gguf file) and"
                " evaluation.url=http://HOST:PORT/v1 (a server)"
            )
    for name in ("url", "judge_url"):
        check_url(f"evaluation.{name}", getattr(evaluation, name))
    for name in ("api_key_variable", "judge_api_key_variable"):
        _check_variable(f"evaluation.{name}", getattr(evaluation, name))


def check_url(key: str, url: str | None) -> None:
    """The address of a server, without a secret in it: it is in every file of a run."""
    if url is None:
        return
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises where it is no number
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"{key}={url.rpartition('@')[2]}: not an address such as http://localhost:8000/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UserError(
            f"{key}: an address alone, without user, password or what follows a `?`; a key stands in an"
            f" environment variable that {key.removesuffix('url')}api_key_variable names"
        )


def _check_variable(key: str, name: str | None) -> None:
    """A name, which says that a secret is held: by that the secret is kept out of files. Never repeated: it may
    be the key itself.
    """
    if name is not None and not re.fullmatch(r"[A-Z][A-Z0-9_]*_(?:KEY|TOKEN|SECRET)", name):
        raise UserError(
            f"{key}: the name of an environment variable that holds the key, never the key itself; it ends in"
            " _KEY, _TOKEN or _SECRET: OPENAI_API_KEY"
        )


def check_lora(config: Config) -> None:
    """The part of `check_values` about target modules, initialisation and new tokens."""
    targets, init = config.lora.target_modules, config.lora.init_lora_weights
    if targets != ALL_LINEAR and not (
        isinstance(targets, list) and targets and all(isinstance(name, str) for name in targets)
    ):
        hint = f"; write lora.target_modules=[{targets}]" if isinstance(targets, str) else ""
        raise UserError(
            f"lora.target_modules={targets!r}: expected {ALL_LINEAR} or a list of module"
            f" names{did_you_mean(str(targets), [ALL_LINEAR])}{hint}"
        )
    if init in LORA_INITS_FROM_DATA:
        raise UserError(
            f"lora.init_lora_weights={init}: needs a pass over the data that this version does not make;"
            " pissa and olora need none"
        )
    if not re.fullmatch(r"pissa_niter_\d+", str(init)):
        one_of("lora.init_lora_weights", init, LORA_INITS)
    if config.lora_changes_base and config.model.load_in_4bit and not config.full_finetuning:
        why = (
            "LoftQ quantises the 16-bit weights itself"
            if init == "loftq"
            else "it changes the base weights, which 4 bits cannot hold"
        )
        raise UserError(
            f"lora.init_lora_weights={init} with model.load_in_4bit=true: {why}; set model.load_in_4bit=false"
        )
    if init == "orthogonal" and config.lora.r % 2:
        raise UserError(f"lora.r={config.lora.r} with lora.init_lora_weights=orthogonal: must be even")
    tokens = config.model.new_tokens or []
    for token in tokens:
        if not token.strip() or tokens.count(token) > 1:
            raise UserError(
                f"model.new_tokens: {token!r} is {'there twice' if token.strip() else 'empty'}; leave it out"
            )


def _check_evaluation(training: TrainingConfig, dataset: DatasetConfig) -> None:
    """What evaluations during training need."""
    steps = training.eval_steps
    if dataset.eval_on_training and (dataset.eval_fraction or dataset.eval_data_path):
        raise UserError(
            "dataset.eval_on_training=true holds nothing out:"
            " set dataset.eval_fraction=0 and dataset.eval_data_path=null"
        )
    if steps is None:
        for key, value in (
            ("early_stopping_patience", training.early_stopping_patience),
            ("load_best_model_at_end", training.load_best_model_at_end),
        ):
            if value:
                raise UserError(
                    f"training.{key}={str(value).lower()} needs evaluations during training:"
                    " set training.eval_steps, for instance 0.1"
                )
        return
    if steps <= 0 or (steps >= 1 and steps != int(steps)):
        raise UserError(
            f"training.eval_steps={steps:g}: must be a whole number of optimizer steps,"
            " or a share of the run between 0 and 1"
        )
    held_out = dataset.eval_fraction or dataset.eval_data_path is not None or dataset.eval_on_training
    if not held_out and dataset._target_.startswith(OUR_PACKAGE):
        raise UserError(
            f"training.eval_steps={steps:g}: nothing is held out;"
            " set dataset.eval_fraction or dataset.eval_data_path"
        )


def _check_sweep(config: Config) -> None:
    """What a sweep's settings ask of each other; what its points are is told in `sweep.points`."""
    sweep = config.sweep
    _check_metrics(sweep)
    if sweep.workers != "auto" and (type(sweep.workers) is not int or sweep.workers < 1):
        raise UserError(f"sweep.workers={sweep.workers}: expected a number of processes, 1 or more, or auto")
    if sweep.sampler and sweep.trials is None and sweep.timeout is None:
        raise UserError(
            f"sweep.sampler={sweep.sampler}: it would never end; set sweep.trials, for instance"
            " sweep.trials=20, or sweep.timeout"
        )
    for name in ("trials",) if sweep.sampler is None else ("zip", "points"):
        if value := getattr(sweep, name):
            why = (
                "needs sweep.sampler, for instance tpe; without one every combination runs"
                if name == "trials"
                else f"sweep.sampler={sweep.sampler} chooses the points itself; leave one of the two out"
            )
            raise UserError(f"sweep.{name}={value}: {why}")
    asked = config.training.golden_steps is not None
    if config.task == "train" and PASSED in sweep.metrics and not asked:
        raise UserError(
            f"sweep.metric={PASSED}: no job would ask them; set training.golden_steps, for instance 10,"
            " and evaluation.golden=FILE"
        )
    if sweep.pruner and not sweep.judged_by_answers and config.training.eval_steps is None:
        raise UserError(
            f"sweep.pruner={sweep.pruner} needs evaluations during training: set training.eval_steps,"
            " for instance 0.1"
        )
    if sweep.pruner and not sweep.judged_by_answers:
        _check_first_evaluation(sweep.pruner, config.training)
    if sweep.pruner == "hyperband" and config.training.max_steps is None:
        raise UserError(
            "sweep.pruner=hyperband shares out steps before any is taken, and training.num_train_epochs does not"
            " say how many there are; set training.max_steps, or sweep.pruner=halving"
        )
    if sweep.turn is not None and sweep.pruner is None:
        raise UserError(
            f"sweep.turn={sweep.turn} needs sweep.pruner: without one each job runs to its end at once"
        )


def _check_first_evaluation(pruner: str, training: TrainingConfig) -> None:
    """Raises UserError where no job could be ended: halving spares what has come to half of the run, and the others
    but hyperband want a second evaluation.
    """
    steps, last = training.eval_steps or 0, training.max_steps
    if steps >= 1 and last is None:
        return  # it is known when the data are
    share = steps / last if steps >= 1 and last else steps
    if share >= (1 if pruner == "hyperband" else 0.5):
        raise UserError(
            f"sweep.pruner={pruner}: the first evaluation comes too late to end any job"
            f" (training.eval_steps={steps:g}); evaluate more often, for instance training.eval_steps=0.1"
        )


def _check_metrics(sweep: SweepConfig) -> None:
    """One metric and its direction, or two for a sampler that weighs them."""
    metrics, directions = sweep.metrics, sweep.directions
    if not all(isinstance(name, str) and name.strip() for name in metrics) or not 1 <= len(metrics) <= 2:
        raise UserError(
            f"sweep.metric={sweep.metric}: expected a number of report.json, for instance training.eval_loss,"
            " or a list of two"
        )
    for direction in directions:
        one_of("sweep.direction", direction, DIRECTIONS)
    if len(directions) != len(metrics):
        raise UserError(
            f"sweep.direction={sweep.direction}: {len(directions)} directions for {len(metrics)}"
            f" metric{'s' if len(metrics) > 1 else ''} (sweep.metric={sweep.metric}); give as many"
        )
    if len(set(metrics)) < len(metrics):
        raise UserError(
            f"sweep.metric: {metrics[0]} is there twice; name it once, or another number beside it"
        )
    if len(metrics) > 1:
        if sweep.pruner:
            raise UserError(
                f"sweep.pruner={sweep.pruner} with two metrics: it judges by one held-out loss; leave one out"
            )
        if sweep.sampler in (None, "cmaes"):
            raise UserError("sweep.metric: two metrics need sweep.sampler=nsgaii")
