"""Of Axolotl: the machine, loggers, uploads."""

from __future__ import annotations

from chatbot_sft.convert import shared
from chatbot_sft.convert.rules import (
    OFF,
    SWITCHED_OFF,
    Given,
    Line,
    as_variable,
    belonging,
    made,
    same,
    switched,
    uncarried,
    unneeded,
)


def loggers(given: Given) -> list[Line]:
    """Those that are on, of `use_wandb` and its like; a project's name switches wandb on there."""
    on = [
        name for name in ("wandb", "mlflow", "tensorboard", "trackio") if given.get(f"use_{name}") not in OFF
    ]
    if given.get("use_comet") not in OFF:
        on.append("comet_ml")
    if given.get("wandb_project") not in OFF and "wandb" not in on:
        on.insert(0, "wandb")
    if given.value in OFF:
        return given.not_needed(SWITCHED_OFF)
    lines = given.carried({"training.report_to": on if len(on) > 1 else on[0]})
    if given.key == "wandb_project":
        lines = given.carried({**lines[0].settings, "training.project": str(given.value)})
    return lines


def run_name(given: Given) -> list[Line]:
    return given.carried({"training.run_name": str(given.value)})


def push(given: Given) -> list[Line]:
    return given.changed(
        {"save.push_to_hub": True, "save.hub_model_id": given.value},
        "once, at the end, privately, with HF_TOKEN",
    )


def sharded(given: Given) -> list[Line]:
    """deepspeed, fsdp."""
    frozen = given.get("adapter") not in OFF and given.get("load_in_4bit") is not True
    return shared.sharded(given, ("zero3",), frozen)


MACHINE = (
    made("deepspeed fsdp", sharded, "training.shard", "ZeRO-3 or FSDP, of an adapter over 16 bits"),
    unneeded(
        "fsdp_config fsdp_version fsdp_final_state_dict_type deepcompile fp32_norms fp32_norm_classes",
        shared.PROCESSES,
    ),
    uncarried(
        "dp_shard_size dp_replicate_size context_parallel_size sequence_parallel_degree tensor_parallel_size",
        shared.SHARDED,
        off=(1,),
    ),
    belonging("heads_k_stride ring_attn_func", "context_parallel_size", shared.SHARDED),
    unneeded(
        "device device_map max_memory gpu_memory_limit low_cpu_mem_usage world_size local_rank ddp ddp_timeout"
        " ddp_bucket_cap_mb ddp_broadcast_buffers ddp_find_unused_parameters accelerator_config"
        " experimental_skip_move_to_device",
        shared.PROCESSES,
    ),
    same("dataloader_num_workers", "training.dataloader_num_workers"),
    unneeded(
        "dataloader_pin_memory dataloader_prefetch_factor dataloader_drop_last remove_unused_columns",
        "the launcher's own sampler and loader make the steps",
    ),
    same("torch_empty_cache_steps", "training.torch_empty_cache_steps"),
    unneeded("gc_steps gc_collect_steps", "memory is looked after by the layout"),
    uncarried("use_ray", "several machines: docs/cluster.md"),
    belonging(
        "ray_run_name ray_num_workers resources_per_worker", "use_ray", "several machines: docs/cluster.md"
    ),
    unneeded(
        "strict debug axolotl_config_path total_num_tokens total_supervised_tokens",
        "Axolotl's own bookkeeping",
    ),
)


REPORTS = (
    made("use_wandb use_mlflow use_tensorboard use_trackio use_comet", loggers, "training.report_to"),
    made("wandb_project", loggers, "training.report_to training.project"),
    made("wandb_name mlflow_run_name trackio_run_name", run_name, "training.run_name"),
    same("trackio_project_name", "training.project"),
    same("trackio_space_id", "training.trackio_space_id"),
    as_variable("wandb_entity", "WANDB_ENTITY"),
    as_variable("wandb_run_id", "WANDB_RUN_ID"),
    as_variable("wandb_mode", "WANDB_MODE"),
    uncarried("wandb_watch wandb_log_model", "a logger gets figures and reports, no weights", off=("false",)),
    as_variable("mlflow_tracking_uri", "MLFLOW_TRACKING_URI"),
    as_variable("mlflow_experiment_name", "MLFLOW_EXPERIMENT_NAME"),
    uncarried("hf_mlflow_log_artifacts", "a logger gets figures and reports, no weights"),
    uncarried("comet_api_key", f"{shared.SECRET}: COMET_API_KEY"),
    as_variable("comet_workspace", "COMET_WORKSPACE"),
    as_variable("comet_project_name", "COMET_PROJECT_NAME"),
    uncarried(
        "comet_experiment_key comet_mode comet_online comet_experiment_config",
        "Comet's own settings: its configuration file",
    ),
    uncarried(
        "use_swanlab swanlab_project swanlab_experiment_name swanlab_description swanlab_mode swanlab_workspace"
        " swanlab_api_key swanlab_log_model swanlab_web_host swanlab_api_host swanlab_lark_webhook_url"
        " swanlab_lark_secret swanlab_log_completions swanlab_completion_log_interval swanlab_completion_max_buffer",
        "training.report_to=swanlab, with its SWANLAB_… variables in the environment",
    ),
    uncarried("use_otel_metrics", "training.report_to has loggers"),
    belonging("otel_metrics_host otel_metrics_port", "use_otel_metrics", "training.report_to has loggers"),
    made("hub_model_id", push, "save.push_to_hub save.hub_model_id"),
    same("hub_revision", "save.hub_revision"),
    uncarried("hub_strategy", "the export is uploaded once, at the end", off=("end",)),
    unneeded(
        "generate_samples num_generation_samples eval_table_size",
        "three held-out questions are answered at each evaluation: training.sample_prompts",
    ),
    same("generation_max_new_tokens eval_max_new_tokens", "training.sample_max_new_tokens"),
    unneeded(
        "generation_temperature generation_top_p generation_top_k generation_prompt_ratio generation_do_sample",
        "sample answers are greedy",
    ),
    switched("profiler_steps", "training.profile", True, "three steps"),
    unneeded(
        "profiler_steps_start include_tokens_per_second include_tkps", "the report has tokens per second"
    ),
    uncarried(
        "do_causal_lm_eval do_bench_eval", "questions of your own: evaluation.golden (docs/evaluation.md)"
    ),
    belonging("eval_causal_lm_metrics", "do_causal_lm_eval", "questions of your own: evaluation.golden"),
    belonging("bench_dataset bench_split", "do_bench_eval", "questions of your own: evaluation.golden"),
    unneeded(
        "gradio_title gradio_share gradio_server_name gradio_server_port gradio_max_new_tokens gradio_temperature",
        "to talk to a model: python -m chatbot_sft.chat",
    ),
)
