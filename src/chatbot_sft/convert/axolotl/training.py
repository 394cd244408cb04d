"""Of Axolotl: batch, length, schedule, optimizer, evaluations, checkpoints."""

from __future__ import annotations

from collections.abc import Callable

from chatbot_sft.convert import shared
from chatbot_sft.convert.rules import (
    OFF,
    Given,
    Line,
    as_number,
    belonging,
    made,
    same,
    uncarried,
    unneeded,
    words,
)

# Named by Axolotl's `optimizer`, and none of transformers' own.
OPTIMIZERS = (
    "optimi_adamw", "ao_adamw_4bit", "ao_adamw_8bit", "ao_adamw_fp8", "adopt_adamw", "came_pytorch", "muon", "dion",
    "sinkgd", "flash_adamw", "flash_adam", "flash_sgd", "flash_sgdw", "flash_lion", "q_galore_adamw8bit",
)  # fmt: skip


# Kernels and losses that say the same: nothing is lost without them.
PLUGINS = (
    "axolotl.integrations.liger.",
    "axolotl.integrations.cut_cross_entropy.",
    "axolotl.integrations.kernels.",
)


def batch_size(given: Given) -> list[Line]:
    """Micro-batch × accumulation; there are two of the three in a file."""
    size, micro = as_number(given.value), as_number(given.get("micro_batch_size", 1))
    if given.get("gradient_accumulation_steps") is not None and given.get("micro_batch_size") is not None:
        return given.not_needed("micro_batch_size × gradient_accumulation_steps says it")
    if given.get("micro_batch_size") is None:
        accumulated = as_number(given.get("gradient_accumulation_steps"))
        if not size or not accumulated or size < accumulated:
            return given.not_carried("expected to be micro_batch_size × gradient_accumulation_steps")
        return given.changed(
            {"training.per_device_train_batch_size": int(size // accumulated)}, "divided by the accumulation"
        )
    if not size or not micro or size < micro:
        return given.not_carried("expected to be micro_batch_size × gradient_accumulation_steps")
    return given.changed(
        {"training.gradient_accumulation_steps": int(size // micro)}, "divided by the micro-batch"
    )


def part_of_step(ours: str, other: str) -> Callable[[Given], list[Line]]:
    """micro_batch_size and gradient_accumulation_steps, whose default is 1 unless batch_size and `other` say it."""

    def becomes(given: Given) -> list[Line]:
        if given.file.get(given.key) is None and given.get("batch_size") and given.get(other):
            return []
        return given.changed(
            {ours: given.value}, f"its product with {other} is a step; the layout cuts it as is fastest"
        )

    return becomes


def epochs(given: Given) -> list[Line]:
    if given.get("max_steps") is not None:
        return given.not_needed("max_steps says how long, there too")
    return given.carried({"training.num_train_epochs": given.value})


def warm_up(given: Given) -> list[Line]:
    """Where neither key is there it is a share."""
    if given.file.get("warmup_steps") is not None:
        return given.carried({"training.warmup_steps": given.value})
    if given.get("warmup_ratio") is not None:
        return []
    return given.changed({"training.warmup_steps": given.value}, "at most 100 steps there")


def schedule(given: Given) -> list[Line]:
    if given.get("cosine_min_lr_ratio") is not None and given.value == "cosine":
        return given.not_needed("cosine_min_lr_ratio says it")
    if given.value in ("one_cycle", "rex", "log_sweep"):
        return given.not_carried("none of transformers' schedules: training.lr_scheduler_type=cosine, say")
    return given.carried({"training.lr_scheduler_type": given.value})


def lowest_rate(given: Given) -> list[Line]:
    return given.changed(
        {
            "training.lr_scheduler_type": "cosine_with_min_lr",
            "training.lr_scheduler_kwargs": {"min_lr_rate": given.value},
        },
        "transformers' schedule of that kind",
    )


def optimizer(given: Given) -> list[Line]:
    if given.value in OPTIMIZERS:
        return given.not_carried(shared.OPTIMIZER)
    return given.carried({"training.optim": given.value})


def optimizer_arguments(given: Given) -> list[Line]:
    if isinstance(given.value, dict):
        pairs = ",".join(f"{name}={value}" for name, value in given.value.items())
        return given.carried({"training.optim_args": pairs})
    return given.carried({"training.optim_args": given.value})


def none_held_out(given: Given) -> bool:
    return not as_number(given.get("val_set_size", 0)) and not given.get("test_datasets")


def evaluations(given: Given) -> list[Line]:
    """eval_steps, evals_per_epoch, eval_strategy."""
    at_the_end = "before and after training it is evaluated anyway"
    strategy = given.key in ("eval_strategy", "evaluation_strategy")
    if strategy and given.value != "epoch":
        return given.not_needed(at_the_end if given.value in OFF else "eval_steps says it")
    each = 1.0 if strategy else as_number(given.value) if given.key == "evals_per_epoch" else None
    if given.key == "evals_per_epoch" and each is None:
        return given.not_carried("a number was expected; training.eval_steps=0.1, say")
    found = shared.steps_or_share(given, "training.eval_steps", each, given.get("num_epochs", 1), at_the_end)
    return shared.held_out(given, found, none_held_out(given))


def checkpoints(given: Given) -> list[Line]:
    """save_steps, saves_per_epoch, save_strategy."""
    at_the_end = "the last checkpoint is written anyway"
    if given.key == "save_strategy" and given.value != "epoch":
        if given.value in OFF:
            return given.carried({"training.save_strategy": "no"})
        if given.value == "best":
            return given.changed(
                {"training.load_best_model_at_end": True}, "the best checkpoint is kept, and taken"
            )
        return given.not_needed("save_steps says it")
    each = (
        1.0
        if given.key == "save_strategy"
        else as_number(given.value)
        if given.key == "saves_per_epoch"
        else None
    )
    if given.key == "saves_per_epoch" and each is None:
        return given.not_carried("a number was expected; training.save_steps=0.1, say")
    return shared.steps_or_share(given, "training.save_steps", each, given.get("num_epochs", 1), at_the_end)


def patience(given: Given) -> list[Line]:
    return shared.held_out(
        given, given.carried({"training.early_stopping_patience": given.value}), none_held_out(given)
    )


def best_model(given: Given) -> list[Line]:
    """Settings that need evaluations during training."""
    return shared.held_out(
        given, given.carried({"training.load_best_model_at_end": given.value}), none_held_out(given)
    )


def measure(given: Given) -> list[Line]:
    if given.value in ("eval_loss", "loss"):
        return given.not_needed("the held-out loss decides")
    return given.not_carried("the held-out loss decides")


def plugins(given: Given) -> list[Line]:
    if not isinstance(given.value, list):
        return given.not_carried("a list was expected")
    others = [name for name in given.value if not str(name).startswith(PLUGINS)]
    if others:
        return given.not_carried(
            "plugins of Axolotl are not read; those of Liger and Cut Cross Entropy change no figure"
        )
    return given.not_needed(shared.KERNELS)


TRAINING = (
    made(
        "micro_batch_size",
        part_of_step("training.per_device_train_batch_size", "gradient_accumulation_steps"),
        "training.per_device_train_batch_size",
        "the layout cuts a step as is fastest",
        default=1,
    ),
    made(
        "gradient_accumulation_steps",
        part_of_step("training.gradient_accumulation_steps", "micro_batch_size"),
        "training.gradient_accumulation_steps",
        "the layout cuts a step as is fastest",
        default=1,
    ),
    made("batch_size", batch_size, "training.gradient_accumulation_steps", "divided by the micro-batch"),
    same("eval_batch_size", "training.per_device_eval_batch_size"),
    same("learning_rate", "training.learning_rate"),
    made("lr_scheduler", schedule, "training.lr_scheduler_type", default="cosine"),
    same("lr_scheduler_kwargs", "training.lr_scheduler_kwargs"),
    made("cosine_min_lr_ratio", lowest_rate, "training.lr_scheduler_type training.lr_scheduler_kwargs"),
    uncarried(
        "cosine_constant_lr_ratio lr_quadratic_warmup lr_div_factor",
        "training.lr_scheduler_type has transformers' schedules",
    ),
    made("optimizer", optimizer, "training.optim", default="adamw_torch_fused"),
    made("optim_args", optimizer_arguments, "training.optim_args"),
    same("optim_target_modules", "training.optim_target_modules"),
    same("adam_beta1", "training.adam_beta1"),
    same("adam_beta2", "training.adam_beta2"),
    same("adam_epsilon", "training.adam_epsilon"),
    uncarried(
        "adam_epsilon2 adam_beta3 torchdistx_path dion_lr dion_momentum dion_rank_fraction dion_rank_multiple_of"
        " qgalore_rank qgalore_update_proj_gap qgalore_scale qgalore_proj_type qgalore_proj_quant qgalore_proj_bits"
        " qgalore_proj_group_size qgalore_cos_threshold qgalore_gamma_proj qgalore_queue_size",
        shared.OPTIMIZER,
    ),
    same("weight_decay", "training.weight_decay", default=0.0),
    same("max_grad_norm", "training.max_grad_norm"),
    made("num_epochs", epochs, "training.num_train_epochs", default=1.0),
    same("max_steps", "training.max_steps"),
    same("warmup_ratio", "training.warmup_ratio"),
    made(
        "warmup_steps",
        warm_up,
        "training.warmup_steps",
        "without either key 3% of the run, at most 100 steps there",
        default=0.03,
    ),
    same("seed", "seed", default=42),
    same("neftune_noise_alpha noisy_embedding_alpha", "training.neftune_noise_alpha"),
    made(
        "eval_steps evals_per_epoch", evaluations, "training.eval_steps", "per epoch: as a share of the run"
    ),
    made("eval_strategy evaluation_strategy", evaluations, "training.eval_steps"),
    made(
        "save_steps saves_per_epoch", checkpoints, "training.save_steps", "per epoch: as a share of the run"
    ),
    made("save_strategy", checkpoints, "training.save_steps"),
    same("save_total_limit", "training.save_total_limit"),
    same("logging_steps", "training.logging_steps"),
    made(
        "early_stopping_patience",
        patience,
        "training.early_stopping_patience",
    ),
    made("load_best_model_at_end", best_model, "training.load_best_model_at_end"),
    made("metric_for_best_model", measure, "", "the held-out loss decides"),
    unneeded("greater_is_better", "the held-out loss decides"),
    unneeded(
        "loss_watchdog_threshold loss_watchdog_patience",
        "training.stop_on_divergence watches the loss, and undoes the step",
    ),
    unneeded(
        "save_only_model save_first_step save_safetensors dynamic_checkpoint",
        "checkpoints are whole, and safetensors; Ctrl-C writes one",
    ),
    uncarried("resume_from_checkpoint", shared.CHECKPOINT),
    words("auto_resume_from_checkpoints", "training.resume", {True: "auto", False: "never"}),
    made("output_dir", shared.run_directory, "hydra.run.dir", shared.RUN_DIRECTORY),
    unneeded(
        "gradient_checkpointing gradient_checkpointing_kwargs selective_checkpointing", shared.CHECKPOINTING
    ),
    unneeded("activation_offloading layer_offloading", shared.CHECKPOINTING),
    unneeded(
        "xformers_attention sdp_attention flex_attention flex_attn_compile_kwargs flash_attention flash_optimum"
        " sage_attention eager_attention attn_implementation gemma4_hybrid_attn_impl large_head_attention"
        " flash_attn_d512 sdpa_varlen flash_attn_cross_entropy flash_attn_fuse_mlp flash_attn_rms_norm"
        " fused_attn_kernel",
        shared.ATTENTION,
    ),
    unneeded(
        "liger_rope liger_rms_norm liger_rms_norm_gated liger_layer_norm liger_swiglu liger_glu_activation"
        " liger_cross_entropy liger_fused_linear_cross_entropy cut_cross_entropy chunked_cross_entropy"
        " chunked_cross_entropy_num_chunks tiled_mlp tiled_mlp_num_shards tiled_mlp_use_original_mlp use_kernels"
        " torch_compile torch_compile_backend torch_compile_mode torch_compile_options unsloth_cross_entropy_loss"
        " unsloth_lora_mlp unsloth_lora_qkv unsloth_lora_o unsloth_rms_norm unsloth_rope",
        shared.KERNELS,
    ),
    uncarried("liger_use_token_scaling", shared.LOSS),
    made("plugins", plugins, "", "those of Liger and Cut Cross Entropy are not needed"),
    uncarried(
        "kd_trainer kd_ce_alpha kd_alpha kd_temperature kd_beta kd_normalize_topk kd_online_server_base_url"
        " kd_online_topk kd_online_server kd_online_timeout kd_temperature_min spectrum_top_fraction"
        " spectrum_model_name lm_eval_tasks lm_eval_batch_size lm_eval_post_train lm_eval_model grokfast_alpha"
        " grokfast_lamb dense_mixer expert_parallel_size diffusion hatchery llmcompressor mora nemo_gym_enabled"
        " expert_backend nonexpert_quantization moe_grouped_backend use_scattermoe use_sonicmoe",
        "plugins of Axolotl are not read",
        off=(1,),
    ),
    uncarried("trainer_cls", "training._target_ names a class of yours"),
    uncarried("scaling_softmax s2_attention", "attention is the model's own"),
    belonging(
        "scaling_softmax_factor scaling_softmax_bias", "scaling_softmax", "attention is the model's own"
    ),
    uncarried("experts_implementation llama4_linearized_experts", shared.EXPERTS),
    uncarried("max_packed_sequence_len", "model.max_seq_length bounds every row"),
)
