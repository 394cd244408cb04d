"""The keys of TRL's SFTConfig that `training` passes through, known without importing TRL or torch.

The installed sources are parsed instead: importing them takes seconds, and a typo has to be named at once.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Mapping
from typing import Any

from chatbot_sft.errors import UserError
from chatbot_sft.installed import folder_of

# Keys that this training loop has no use for, or sets itself: each with what to use instead, or why there is
# none.
STEPS = "a step is cut by the batch layout: set training.batch_layout"
ROWS = "rows come tokenised from the data gate: set dataset.* and model.max_seq_length"
HUB = "set save.push_to_hub and save.hub_*"
CHECKPOINTS = (
    "a run goes on from whole checkpoints alone: set training.resume,"
    " training.save_steps and training.save_total_limit"
)
LOADER = (
    "the launcher's own sampler and loader make the steps; leave it out,"
    " or set training.dataloader_num_workers"
)
ONE_MACHINE = "several GPUs of one machine train as DDP, started by torchrun; leave it out"
METRICS = (
    "evaluation scores every trained token itself:"
    " set training.eval_steps and training.per_device_eval_batch_size"
)
OWN = "the launcher sets this itself; leave it out"
MANAGED = {
    "output_dir": "set training.output_dir",
    "seed": "set seed",
    "data_seed": "set seed",
    # precision and memory
    **dict.fromkeys(("bf16", "fp16", "bf16_full_eval", "fp16_full_eval"), "set model.dtype"),
    **dict.fromkeys(("gradient_checkpointing", "gradient_checkpointing_kwargs", "activation_offloading"),
    "set lora.use_gradient_checkpointing"),
    **dict.fromkeys(("padding_free", "auto_find_batch_size", "pad_to_multiple_of",
    "average_tokens_across_devices"), STEPS),
    **dict.fromkeys(("use_liger_kernel", "liger_kernel_config"),
    "set model.engine=unsloth, whose kernels take their place"),
    **dict.fromkeys(("torch_compile", "torch_compile_backend", "torch_compile_mode"),
    "set model.engine=unsloth, which compiles its layers"),
    **dict.fromkeys(("use_cpu", "use_cache", "skip_memory_metrics"), OWN),
    # data and order
    "max_length": "set model.max_seq_length",
    "dataset_text_field": "set dataset.text_field",
    "truncation_mode": "set dataset.overflow",
    "packing_strategy": "set training.packing=true, which is best fit without cuts",
    "eval_packing": METRICS,
    **dict.fromkeys(("shuffle_dataset", "train_sampling_strategy"), "set dataset.shuffle"),
    **dict.fromkeys(("dataset_kwargs", "dataset_num_proc", "length_column_name", "label_names",
    "remove_unused_columns"), ROWS),
    **dict.fromkeys(("chat_template_path", "eos_token", "pad_token"),
    "the tokenizer of model.name decides this; leave it out"),
    "dataloader_drop_last": "every conversation of an epoch is trained; leave it out",
    **dict.fromkeys(
        (
            "dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_prefetch_factor",
            "dataloader_multiprocessing_context",
            "dataloader_in_order", "accelerator_config",
        ),
        LOADER,
    ),
    # loss
    **dict.fromkeys(("assistant_only_loss", "completion_only_loss"), "set training.response_only"),
    "loss_type": "the loss is the mean negative log likelihood of the trained tokens, in both engines; leave it out",
    "router_aux_loss_coef": "the model's own config.json decides this; leave it out",
    # model
    **dict.fromkeys(("model_init_kwargs", "trust_remote_code"), "set model.*"),
    # logs, evaluation
    "logging_strategy": "set training.logging_steps",
    **dict.fromkeys(("log_level", "log_level_replica", "disable_tqdm", "logging_nan_inf_filter",
    "include_num_input_tokens_seen"), OWN),
    "debug": "set training.stop_on_divergence",
    **dict.fromkeys(("eval_strategy", "eval_on_start"), "set training.eval_steps"),
    **dict.fromkeys(
        (
            "eval_do_concat_batches", "eval_use_gather_object", "eval_accumulation_steps",
            "prediction_loss_only", "include_for_metrics",
            "batch_eval_metrics",
        ),
        METRICS,
    ),
    **dict.fromkeys(("metric_for_best_model", "greater_is_better"),
    "the held-out loss decides: set training.load_best_model_at_end"),
    **dict.fromkeys(("do_train", "do_eval", "do_predict"), "set task"),
    # checkpoints and hub
    "resume_from_checkpoint": "set training.resume",
    **dict.fromkeys(("save_only_model", "ignore_data_skip", "restore_callback_states_from_checkpoint"),
    CHECKPOINTS),
    "enable_jit_checkpoint": "SIGTERM and SIGUSR1 always save a checkpoint; leave it out",
    "hub_token": "set HF_TOKEN in the environment",
    **dict.fromkeys(("push_to_hub", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push",
    "hub_revision"), HUB),
    # machines
    **dict.fromkeys(
        ("local_rank", "fsdp", "fsdp_config", "deepspeed", "parallelism_config", "log_on_each_node",
        "save_on_each_node"), ONE_MACHINE
    ),
}  # fmt: skip
# Keys that are passed on, each with what it changes.
PASSED = {
    **dict.fromkeys(
        ("lr_scheduler_kwargs", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"), "the losses"
    ),
    **dict.fromkeys(("neftune_noise_alpha", "label_smoothing_factor"), "the losses"),
    **dict.fromkeys(("optim_args", "optim_target_modules"), "the optimizer, where it reads them"),
    **dict.fromkeys(("tf32", "torch_empty_cache_steps"), "a GPU's speed and memory"),
    "full_determinism": "torch's choice of kernels",
    "dataloader_num_workers": "speed",
    **dict.fromkeys(("logging_first_step", "run_name", "project"), "what is logged"),
    **dict.fromkeys(
        ("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"), "where Trackio writes"
    ),
    "eval_delay": "when the run evaluates",
    "save_strategy": "when the run saves",
    **dict.fromkeys(
        ("ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph"),
        "DDP",
    ),
    **dict.fromkeys(("ddp_backend", "ddp_timeout"), "DDP"),
}
# Aside of the result.
ASIDE = {
    key
    for key, effect in PASSED.items()
    if effect in ("speed", "what is logged", "where Trackio writes", "when the run saves")
}
SOURCES = (
    ("transformers", "training_args.py", "TrainingArguments"),
    ("trl", "trainer/base_config.py", "_BaseConfig"),
    ("trl", "trainer/sft_config.py", "SFTConfig"),
)


@functools.cache
def known() -> dict[str, str]:
    """Name → type annotation (source text) of every SFTConfig field that may be passed through."""
    annotations: dict[str, str] = {}
    for package, file, class_name in SOURCES:
        if importlib.util.find_spec(package) is None:
            continue
        path = folder_of(package) / file
        if not path.is_file():
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and node.name == class_name:
                annotations.update(
                    {
                        line.target.id: ast.unparse(line.annotation)
                        for line in node.body
                        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
                    }
                )
    return annotations


@functools.cache
def enum_values(file: str, class_name: str) -> tuple[str, ...]:
    """The values of a string enumeration in one of transformers' source files."""
    path = folder_of("transformers") / file
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == class_name:
            return tuple(
                line.value.value
                for line in node.body
                if isinstance(line, ast.Assign)
                and isinstance(line.value, ast.Constant)
                and isinstance(line.value.value, str)
            )
    raise LookupError(f"{path} has no {class_name}")


def check(arguments: Mapping[str, Any]) -> None:
    """Refuse what the launcher sets itself and values of a plainly wrong type.

    Raises:
        UserError: names the key and what to use instead.
    """
    for key, value in arguments.items():
        if key in MANAGED:
            raise UserError(f"training.{key}: {MANAGED[key]}")
        if key not in PASSED:
            raise UserError(
                f"training.{key}: a key of this version of TRL that chatbot_sft does not know; leave it out"
            )
        annotation = known()[key]
        if not _fits(value, annotation):
            raise UserError(f"training.{key}={value!r}: expected {annotation}")


def _fits(value: Any, annotation: str) -> bool:
    names = {node.id for node in ast.walk(ast.parse(annotation)) if isinstance(node, ast.Name)}
    if value is None or not names <= {"int", "float", "bool", "str", "None", "Optional", "Union"}:
        return value is not None or "None" in annotation or "Optional" in annotation
    allowed: tuple[type, ...] = tuple(
        {"int": int, "float": float, "bool": bool, "str": str}[name]
        for name in names & {"int", "float", "bool", "str"}
    )
    if isinstance(value, bool):
        return bool in allowed
    if isinstance(value, int):
        return int in allowed or float in allowed
    return isinstance(value, allowed)
