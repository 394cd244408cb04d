"""The `training` section as TRL's SFTConfig."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatbot_sft.errors import UserError, reason
from chatbot_sft.model.precision import autocast_dtype
from chatbot_sft.optimization import REPLACED
from chatbot_sft.report import loggers
from chatbot_sft.report.masking import masked

if TYPE_CHECKING:
    from chatbot_sft.config import Config
    from chatbot_sft.model.engine import Engine

log = logging.getLogger(__name__)

CPU_OPTIMIZER = "adamw_torch_fused"


def sft_arguments(settings: Config, engine: Engine, loop: str) -> Any:
    """A `trl.SFTConfig`, for either `loop`.

    Raises:
        UserError: TRL or transformers refuses the combination.
    """
    import torch
    import trl

    training = settings.training
    autocast = autocast_dtype(settings)
    optim = optimizer(settings)
    if optim != training.optim:
        log.info("optimizer: %s is for a GPU, %s takes its place", training.optim, optim)
    arguments: dict[str, Any] = {
        "output_dir": training.output_dir,
        # The native loop sees whole optimizer steps; the batch layout cuts them into micro-batches.
        "per_device_train_batch_size": settings.effective_batch_size,
        "gradient_accumulation_steps": 1,
        "per_device_eval_batch_size": (
            training.per_device_eval_batch_size or training.per_device_train_batch_size
        ),
        "max_steps": training.max_steps if training.max_steps is not None else -1,
        "num_train_epochs": training.num_train_epochs if training.num_train_epochs is not None else 1,
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": training.lr_scheduler_type,
        "warmup_steps": steps_or_share(training.warm_up),
        "weight_decay": training.weight_decay,
        "optim": optim,
        "logging_steps": steps_or_share(training.logging_steps),
        # report/loggers.py opens the rest.
        "report_to": [name for name in training.loggers if name in loggers.OTHERS] or "none",
        "run_name": loggers.run_name(Path(settings.paths.output_dir)),
        "project": loggers.PROJECT,
        "seed": settings.seed,
        "bf16": autocast == "bf16",
        "fp16": autocast == "fp16",
        "use_cpu": not torch.cuda.is_available(),
        "gradient_checkpointing": bool(engine.checkpointing(settings)),
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "padding_free": False,
        # It waits for the device after every micro-batch, and hides what should stop the run.
        "logging_nan_inf_filter": False,
        "max_length": settings.model.max_seq_length,
        "dataset_kwargs": {"skip_prepare_dataset": True},  # the rows come with input_ids and labels
        "remove_unused_columns": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "save_steps": training.save_steps,
        "save_total_limit": training.save_total_limit,
        "disable_tqdm": True,  # our own progress bar
        "logging_first_step": True,
    }
    if training.eval_steps is not None:
        arguments |= {
            "eval_strategy": "steps",
            "eval_steps": steps_or_share(training.eval_steps),
            "metric_for_best_model": "eval_loss",
        }
    if loop == "trl":
        arguments |= {
            "per_device_train_batch_size": training.per_device_train_batch_size,
            "gradient_accumulation_steps": training.gradient_accumulation_steps,
            "train_sampling_strategy": "sequential",  # `trl.Rows` has them in order
        }
    arguments |= settings.sft_arguments
    # Every logger shows these.
    arguments |= masked({name: arguments[name] for name in ("run_name", "project")})
    if training.load_best_model_at_end and arguments.get("save_strategy") == "no":
        arguments["save_strategy"] = "best"
    try:
        built = trl.SFTConfig(**arguments)
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(f"training: {reason(error)}; --help training lists its keys") from error
    # Set late: as an argument it demands save_steps to be a multiple of eval_steps. Each new best is saved
    # when it is found.
    built.load_best_model_at_end = training.load_best_model_at_end
    if loop == "trl":  # it is evaluated by our callback, which loads the best weights too
        built.eval_strategy = "no"
    return built


def steps_or_share(number: float) -> float:
    """`number` of optimizer steps as TRL takes it: whole, or below 1 a share of the run."""
    return number if 0 < number < 1 else int(number)


def optimizer(settings: Config) -> str:
    """`training.optim`, or the AdamW that takes another AdamW's place where there is no GPU."""
    import torch

    optim = settings.training.optim
    return CPU_OPTIMIZER if optim in REPLACED and not torch.cuda.is_available() else optim
