"""Of LLaMA-Factory: the machine, loggers, uploads."""

from __future__ import annotations

from chatbot_sft.convert import shared
from chatbot_sft.convert.llama_factory.model import has_adapter
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


def sharded(given: Given) -> list[Line]:
    """deepspeed, fsdp."""
    frozen = has_adapter(given) and given.get("quantization_bit") in OFF
    return shared.sharded(given, ("z3", "zero3"), frozen)


def loggers(given: Given) -> list[Line]:
    if given.value in (*OFF, ["none"]):
        return given.not_needed("none is the default")
    return given.carried({"training.report_to": given.value})


def swanlab(given: Given) -> list[Line]:
    if given.value in OFF:
        return given.not_needed(SWITCHED_OFF)
    others = given.get("report_to", [])
    if others not in (*OFF, ["none"]):
        return given.not_carried("give it with the others: training.report_to=[…,swanlab]")
    return given.carried({"training.report_to": "swanlab"})


def pushed(given: Given) -> list[Line]:
    if given.value in OFF:
        return given.not_needed(SWITCHED_OFF)
    return given.changed({"save.push_to_hub": True}, "once, at the end, privately, with HF_TOKEN")


MACHINE = (
    made("deepspeed fsdp", sharded, "training.shard", "ZeRO-3 or FSDP, of an adapter over 16 bits"),
    unneeded(
        "fsdp_config accelerator_config parallelism_config local_rank log_on_each_node"
        " ray_init_kwargs master_addr master_port",
        shared.PROCESSES,
    ),
    unneeded(
        "ddp_timeout ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers"
        " ddp_static_graph ddp_backend average_tokens_across_devices",
        shared.PROCESSES,
    ),
    uncarried("use_ray ray_num_workers", "several machines: docs/cluster.md", off=(1,)),
    uncarried("use_mca use_megatron_bridge use_hyper_parallel", shared.SHARDED),
    belonging("megatron_bridge_args", "use_megatron_bridge", shared.SHARDED),
    belonging("hyper_parallel_args hyper_parallel_cp_size", "use_hyper_parallel", shared.SHARDED),
    same("dataloader_num_workers", "training.dataloader_num_workers"),
    unneeded(
        "dataloader_drop_last dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor"
        " dataloader_multiprocessing_context dataloader_in_order remove_unused_columns label_names"
        " length_column_name",
        "the launcher's own sampler and loader make the steps",
    ),
    uncarried(
        "train_sampling_strategy", "the order is random, or the file's: dataset.shuffle", off=("random",)
    ),
    unneeded(
        "group_by_length auto_find_batch_size torch_empty_cache_steps use_cache skip_memory_metrics",
        shared.LAYOUT,
    ),
    uncarried("use_cpu", "CUDA_VISIBLE_DEVICES= in the environment hides the GPUs"),
    unneeded(
        "bf16_full_eval fp16_full_eval eval_do_concat_batches eval_use_gather_object"
        " eval_accumulation_steps include_for_metrics batch_eval_metrics",
        "evaluation scores every trained token itself",
    ),
)


REPORTS = (
    same("logging_steps", "training.logging_steps"),
    same("logging_first_step", "training.logging_first_step"),
    unneeded(
        "logging_strategy logging_nan_inf_filter log_level log_level_replica disable_tqdm logging_dir debug",
        "the run shows its steps itself",
    ),
    unneeded(
        "include_num_input_tokens_seen include_tokens_per_second include_effective_tokens_per_second",
        "the report has tokens per second",
    ),
    made("report_to", loggers, "training.report_to"),
    same("run_name", "training.run_name"),
    same("project", "training.project"),
    same("trackio_space_id", "training.trackio_space_id"),
    same("trackio_bucket_id", "training.trackio_bucket_id"),
    same("trackio_static_space_id", "training.trackio_static_space_id"),
    made("use_swanlab", swanlab, "training.report_to", "swanlab"),
    as_variable("swanlab_project", "SWANLAB_PROJECT"),
    uncarried("swanlab_workspace", "SwanLab's own settings: swanlab login"),
    same("swanlab_run_name", "training.run_name"),
    as_variable("swanlab_mode", "SWANLAB_MODE"),
    as_variable("swanlab_logdir", "SWANLAB_LOG_DIR"),
    uncarried(
        "swanlab_api_key swanlab_lark_webhook_url swanlab_lark_secret", f"{shared.SECRET}: SWANLAB_API_KEY"
    ),
    made("push_to_hub", pushed, "save.push_to_hub"),
    same("hub_model_id", "save.hub_model_id"),
    same("hub_private_repo", "save.hub_private"),
    same("hub_revision", "save.hub_revision"),
    unneeded("hub_strategy hub_always_push", "the export is uploaded once, at the end"),
    switched("enable_torch_profiler", "training.profile", True, "three steps"),
    unneeded(
        "profiler_output_dir profiler_wait_steps profiler_warmup_steps profiler_active_steps profiler_repeat"
        " profiler_record_shapes profiler_profile_memory profiler_with_stack profile_modules",
        "of enable_torch_profiler",
    ),
)
