"""Settings that do nothing beside others.

What would train, hold out or save something else than was meant is refused; the rest is said in the run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatbot_sft.errors import UserError

if TYPE_CHECKING:
    from chatbot_sft.config import Config

Needs = tuple[str, Callable[["Config"], bool], str]  # the key, whether it counts here, and what it needs


def _a_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or Path(name).exists()


def _hub_model(config: Config) -> bool:
    return config.model.name != "smollm2" and not _a_path(config.model.name)


def _hub_data(config: Config) -> bool:
    """Whether data may come from the hub; a class of the user's own may read these keys as it likes."""
    paths = [source.data_path for source in config.dataset.mixture] + [config.dataset.eval_data_path or ""]
    ids = [path for path in paths if re.fullmatch(r"[\w.-]+/[\w.-]+", path) and not _a_path(path)]
    return bool(ids) or not config.dataset._target_.startswith("chatbot_sft.")


def _evaluates(config: Config) -> bool:
    dataset = config.dataset
    return bool(dataset.eval_fraction or dataset.eval_data_path or dataset.eval_on_training)


def _draws(config: Config) -> bool:
    dataset = config.dataset
    chooses = dataset.max_rows or any(source.weight or source.count for source in dataset.mixture)
    return bool(chooses or (dataset.eval_fraction and dataset.eval_data_path is None))


REFUSED: tuple[Needs, ...] = (
    ("model.revision", _hub_model, "a hub id in model.name: a folder has no revisions"),
    ("dataset.split", _hub_data, "a dataset of the hub: a file is read whole; name the file of that split"),
    ("dataset.config_name", _hub_data, "a dataset of the hub; name the file itself"),
    ("dataset.revision", _hub_data, "a dataset of the hub; name the file itself"),
    (
        "dataset.train_on",
        lambda c: c.training.response_only or c.dataset.train_on == "all",
        "training.response_only=true: without it every token is trained",
    ),
    ("lora.loftq_bits", lambda c: c.lora.init_lora_weights == "loftq", "lora.init_lora_weights=loftq"),
    ("lora.loftq_iter", lambda c: c.lora.init_lora_weights == "loftq", "lora.init_lora_weights=loftq"),
    (
        "save.gguf_quantization",
        lambda c: "gguf" in c.save.methods,
        "save.method=gguf, for instance save=gguf",
    ),
    ("save.llama_cpp_dir", lambda c: "gguf" in c.save.methods, "save.method=gguf, for instance save=gguf"),
    (
        "training.early_stopping_threshold",
        lambda c: c.training.early_stopping_patience is not None,
        "training.early_stopping_patience",
    ),
    ("training.eval_delay", lambda c: c.training.eval_steps is not None, "training.eval_steps"),
    (
        "training.sample_prompts",
        lambda c: c.training.sample_max_new_tokens > 0,
        "training.sample_max_new_tokens above 0",
    ),
    *(
        (f"objective.{key}", lambda c: not c.objective.is_sft, "objective=dpo, orpo or kto")
        for key in ("beta", "loss_weights")
    ),
    *(
        (f"objective.{key}", lambda c: c.objective.name == "kto", "objective=kto")
        for key in ("desirable_weight", "undesirable_weight")
    ),
    ("training.golden_steps", lambda c: c.evaluation.golden is not None, "evaluation.golden"),
    *(
        (f"evaluation.{key}", lambda c: c.task == "evaluate", "task=evaluate")
        for key in ("against", "minimum", "judge_url")
    ),
    ("evaluation.url", lambda c: c.task in ("evaluate", "verify"), "task=evaluate or task=verify"),
    ("evaluation.format", lambda c: c.task == "verify", "task=verify"),
    ("replay.allow", lambda c: c.task == "replay", "task=replay"),
    *(
        (f"evaluation.{key}", lambda c: c.evaluation.url is not None, "evaluation.url")
        for key in ("model", "api_key_variable")
    ),
    *(
        (f"evaluation.{key}", lambda c: c.evaluation.judge_url is not None, "evaluation.judge_url")
        for key in ("judge_model", "judge_api_key_variable")
    ),
    *(
        (
            f"training.trackio_{key}_id",
            lambda c: "trackio" in c.training.loggers,
            "training.report_to=trackio",
        )
        for key in ("space", "bucket", "static_space")
    ),
)
SAID: tuple[Needs, ...] = (
    *(
        (f"save.hub_{key}", lambda c: c.save.push_to_hub, "save.push_to_hub=true")
        for key in ("model_id", "private", "revision")
    ),
    *(
        (f"lora.{key}", lambda c: not c.full_finetuning, "lora.r above 0")
        for key in (
            "lora_alpha",
            "lora_dropout",
            "target_modules",
            "bias",
            "use_rslora",
            "use_dora",
            "modules_to_save",
            "init_lora_weights",
        )
    ),
    ("dataset.split_seed", _draws, "rows that are drawn: dataset.eval_fraction, dataset.max_rows, a mixture"),
    ("dataset.eval_fraction", lambda c: c.dataset.eval_data_path is None, "no dataset.eval_data_path"),
    ("training.per_device_eval_batch_size", _evaluates, "held-out conversations"),
    ("training.memory_margin", lambda c: c.training.batch_layout == "auto", "training.batch_layout=auto"),
    (
        "training.warmup_steps",
        lambda c: c.training.lr_scheduler_type not in ("constant", "greedy", "reduce_lr_on_plateau"),
        "a schedule with a warm-up",
    ),
    (
        "training.warmup_ratio",
        lambda c: c.training.lr_scheduler_type not in ("constant", "greedy", "reduce_lr_on_plateau"),
        "a schedule with a warm-up",
    ),
    (
        "training.save_steps",
        lambda c: c.sft_arguments.get("save_strategy", "steps") == "steps",
        "training.save_strategy=steps",
    ),
    ("training.save_total_limit", lambda c: c.sft_arguments.get("save_strategy") != "no", "checkpoints"),
    ("save.overwrite", lambda c: bool(c.save.methods), "save.method"),
    *(
        (f"training.ddp_{key}", lambda c: _processes() > 1, "more than one process")
        for key in (
            "find_unused_parameters",
            "bucket_cap_mb",
            "broadcast_buffers",
            "static_graph",
            "backend",
            "timeout",
        )
    ),
)


def _processes() -> int:
    from chatbot_sft import distributed

    return distributed.processes()


def without_effect(
    config: Config, table: tuple[Needs, ...], named: Collection[str] = ()
) -> list[tuple[str, Any, str]]:
    """(key, value, what it needs) of the settings in `table` that are given and do nothing here.

    Given is what is not the default, and the keys in `named`: those that the user wrote on the command line.
    """
    given = [(key, _given(config, key, key in named), counts, needs) for key, counts, needs in table]
    return [
        (key, value, needs) for key, value, counts, needs in given if value is not None and not counts(config)
    ]


def refuse(config: Config, named: Collection[str] = ()) -> None:
    """Raises UserError for the first setting of REFUSED that does nothing here.

    Asked where a run begins, not of every Config: a saver may be given another method than the
    configuration's, and an export an older run.
    """
    for key, value, needs in without_effect(config, REFUSED, named):
        raise UserError(f"{key}={_shown(value)} has no effect here: it needs {needs}; or leave it out")


def said(config: Config, named: Collection[str] = ()) -> list[str]:
    """One phrase for each setting of SAID that does nothing here."""
    inert = without_effect(config, SAID, named)
    return [f"{key}={_shown(value)} (needs {needs})" for key, value, needs in inert]


def _given(config: Config, key: str, named: bool) -> Any:
    """The value of `key`; None where it is not given: the schema's default, and not `named`."""
    section, _, name = key.partition(".")
    part = getattr(config, section)
    if name not in {field.name for field in fields(part)}:
        return config.sft_arguments.get(name)
    value = getattr(part, name)
    return value if named or value != getattr(type(part)(), name) else None


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
