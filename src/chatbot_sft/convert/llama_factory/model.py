"""Of LLaMA-Factory: the model, its tokens, its precision, and the adapter on it."""

from __future__ import annotations

from chatbot_sft.convert import shared
from chatbot_sft.convert.rules import (
    OFF,
    SWITCHED_OFF,
    Given,
    Line,
    as_number,
    belonging,
    made,
    same,
    uncarried,
    unneeded,
)


def added_tokens(given: Given) -> list[Line]:
    """Two keys, with commas; ours are one list."""
    both = [given.get(key, "") for key in ("add_special_tokens", "add_tokens")]
    return shared.new_tokens(given, ",".join(part for part in map(str, both) if part))


def has_adapter(given: Given) -> bool:
    return given.get("finetuning_type", "lora") not in ("full", "freeze", "oft")


def method(given: Given) -> list[Line]:
    """`finetuning_type`"""
    return shared.method(given, ("full",), ("lora",))


def quantised(given: Given) -> list[Line]:
    """`quantization_bit`; left out, the base is in 16 bits."""
    if given.value in OFF:
        return given.carried({"model.load_in_4bit": False})
    if given.value == 4 and given.get("finetuning_type", "lora") == "lora":
        return given.carried({"model.load_in_4bit": True})
    return given.not_carried(shared.QUANTISED)


def rank(given: Given) -> list[Line]:
    return (
        given.carried({"lora.r": given.value})
        if has_adapter(given)
        else given.not_needed("of finetuning_type: lora")
    )


def alpha(given: Given) -> list[Line]:
    """Left out it is twice the rank."""
    if not has_adapter(given):
        return given.not_needed("of finetuning_type: lora")
    if given.value is not None:
        return given.carried({"lora.lora_alpha": given.value})
    r = as_number(given.get("lora_rank", 8))
    return given.carried({"lora.lora_alpha": int(2 * r)}, "twice lora_rank") if r else []


def targets(given: Given) -> list[Line]:
    if not has_adapter(given):
        return given.not_needed("of finetuning_type: lora")
    names = given.value.split(",") if isinstance(given.value, str) else given.value
    if not isinstance(names, list) or not names:
        return given.not_carried(
            "names with commas between them were expected: lora.target_modules=[q_proj,v_proj]"
        )
    names = [name.strip() if isinstance(name, str) else name for name in names]
    if names == ["all"]:
        return given.carried({"lora.target_modules": "all-linear"})
    return given.carried({"lora.target_modules": names})


def also_trained(given: Given) -> list[Line]:
    names = given.value.split(",") if isinstance(given.value, str) else given.value
    names = (
        [name.strip() if isinstance(name, str) else name for name in names]
        if isinstance(names, list)
        else names
    )
    return given.carried({"lora.modules_to_save": names})


def pissa(given: Given) -> list[Line]:
    if given.value in OFF:
        return given.not_needed(SWITCHED_OFF)
    rounds = as_number(given.get("pissa_iter", 16))
    init = "pissa" if rounds is None or rounds < 0 else f"pissa_niter_{int(rounds)}"
    return given.carried({"lora.init_lora_weights": init})


def earlier_adapter(given: Given) -> list[Line]:
    if given.get("create_new_adapter") or not isinstance(given.value, str) or "," in given.value:
        return given.not_carried(
            "one adapter is gone on from (model.adapter); merge the others into the base before"
        )
    if given.get("stage") in ("dpo", "kto"):
        return given.changed(
            {"model.adapter": given.value},
            "measured from that adapter, as training begins; there from the base without it",
        )
    return given.carried({"model.adapter": given.value}, "its rank and its modules are kept")


def engine(given: Given) -> list[Line]:
    if given.value in OFF:
        return given.not_needed("model.engine=auto takes what trains fastest")
    return given.carried({"model.engine": "unsloth"})


MODEL = (
    same("model_name_or_path", "model.name"),
    made("model_revision", shared.revision, "model.revision"),
    made("trust_remote_code", shared.remote_code, "model.trust_remote_code", shared.CODE),
    made("adapter_name_or_path", earlier_adapter, "model.adapter", "one of them"),
    uncarried("adapter_folder", "the adapter's whole path: model.adapter"),
    belonging("create_new_adapter", "adapter_name_or_path", "merge the earlier adapter into the base before"),
    made(
        "quantization_bit",
        quantised,
        "model.load_in_4bit",
        "4; other numbers are not carried",
        default=None,
        null=True,
    ),
    uncarried("quantization_method", shared.QUANTISED, off=("bnb",)),
    uncarried("quantization_type", shared.QUANTISED, off=("nf4",)),
    unneeded("double_quantization quantization_device_map", "nf4 with double quantisation"),
    unneeded("cache_dir", "the environment variable HF_HOME says where the hub's files are kept"),
    unneeded("use_fast_tokenizer resize_vocab low_cpu_mem_usage offload_folder", shared.LOADING),
    made("add_special_tokens add_tokens", added_tokens, "model.new_tokens", shared.NEW_TOKENS),
    uncarried(
        "new_special_tokens_config split_special_tokens",
        "new tokens begin as the mean of the others: model.new_tokens",
    ),
    belonging(
        "init_special_tokens", "new_special_tokens_config", "new tokens begin as the mean of the others"
    ),
    uncarried(
        "rope_scaling mixture_of_depths shift_attn train_from_scratch", "the model is trained as it is"
    ),
    uncarried("moe_aux_loss_coef", shared.EXPERTS),
    made("use_unsloth", engine, "model.engine"),
    unneeded(
        "use_unsloth_gc disable_gradient_checkpointing use_reentrant_gc gradient_checkpointing"
        " gradient_checkpointing_kwargs",
        shared.CHECKPOINTING,
    ),
    unneeded("flash_attn", shared.ATTENTION),
    unneeded(
        "enable_liger_kernel use_liger_kernel liger_kernel_config use_v1_kernels torch_compile"
        " torch_compile_backend torch_compile_mode",
        shared.KERNELS,
    ),
    unneeded("upcast_layernorm upcast_lmhead_output", "norms and loss are computed in float32"),
    made("bf16", shared.precision("bfloat16"), "model.dtype"),
    made("fp16", shared.precision("float16"), "model.dtype"),
    made("pure_bf16", shared.precision("bfloat16", "the adapter stays in float32"), "model.dtype"),
    unneeded("compute_dtype device_map model_max_length block_diag_attn", "derived there from other keys"),
    uncarried("fp8", "model.load_in_fp8=true has the frozen base's products in float8"),
    belonging(
        "fp8_backend fp8_enable_fsdp_float8_all_gather",
        "fp8",
        "model.load_in_fp8=true has the frozen base's products in float8",
    ),
    same("tf32", "training.tf32"),
    uncarried("hf_hub_token ms_hub_token om_hub_token hub_token", f"{shared.SECRET}: HF_TOKEN"),
    unneeded(
        "infer_backend infer_dtype use_kv_cache vllm_maxlen vllm_gpu_util vllm_enforce_eager"
        " vllm_max_lora_rank vllm_config"
        " sglang_maxlen sglang_mem_fraction sglang_tp_size sglang_config sglang_lora_backend",
        "of `llamafactory-cli chat` and `api`: here python -m chatbot_sft.chat, or any server",
    ),
    unneeded(
        "export_dir export_size export_device export_quantization_bit export_quantization_dataset"
        " export_quantization_nsamples export_quantization_maxlen export_legacy_format export_hub_model_id",
        "of `llamafactory-cli export`: here save=merged_16bit or gguf, in the run or by task=export later",
    ),
    uncarried("use_kt", shared.EXPERTS),
    belonging(
        "kt_cpu_activation kt_weight_path kt_non_expert_weight_path kt_expert_checkpoint_path kt_use_lora_experts"
        " kt_lora_expert_num kt_lora_expert_intermediate_size",
        "use_kt",
        shared.EXPERTS,
    ),
    unneeded(
        "image_max_pixels image_min_pixels image_do_pan_and_scan crop_to_patches video_max_pixels video_min_pixels"
        " video_fps video_maxlen use_audio_in_video audio_sampling_rate freeze_vision_tower"
        " freeze_multi_modal_projector",
        shared.TEXT_ALONE,
    ),
    uncarried("freeze_language_model", shared.TEXT_ALONE),
    unneeded("print_param_status", "the run says how many weights are trained"),
)


ADAPTER = (
    made("finetuning_type", method, "lora save.method", "full is lora=none", default="lora"),
    made("lora_rank", rank, "lora.r", default=8),
    made(
        "lora_alpha",
        alpha,
        "lora.lora_alpha",
        "twice lora_rank where it is left out",
        default=None,
        null=True,
    ),
    same("lora_dropout", "lora.lora_dropout"),
    made("lora_target", targets, "lora.target_modules", "all is `all-linear`", default="all"),
    made("additional_target", also_trained, "lora.modules_to_save"),
    same("use_rslora", "lora.use_rslora"),
    same("use_dora", "lora.use_dora"),
    made("pissa_init", pissa, "lora.init_lora_weights"),
    belonging(
        "pissa_convert", "pissa_init", "the adapter is saved as it was trained: merged, it is as any other"
    ),
    unneeded("pissa_iter", "of pissa_init, which has it"),
    uncarried("loraplus_lr_ratio", shared.GROUPS),
    belonging("loraplus_lr_embedding", "loraplus_lr_ratio", shared.GROUPS),
    unneeded("module_dropout oft_rank oft_block_size oft_target", "of finetuning_type: oft"),
    unneeded(
        "freeze_trainable_layers freeze_trainable_modules freeze_extra_modules", "of finetuning_type: freeze"
    ),
    uncarried("use_llama_pro", "layers are not added"),
)
