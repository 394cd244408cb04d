"""Of Axolotl: the model, its tokens, its precision, and the adapter on it."""

from __future__ import annotations

from chatbot_sft.convert import shared
from chatbot_sft.convert.rules import (
    OFF,
    Given,
    Line,
    belonging,
    made,
    same,
    switched,
    uncarried,
    unneeded,
)


def adapter(given: Given) -> list[Line]:
    """lora, qlora; left empty it is full fine-tuning."""
    return shared.method(given, OFF, ("lora", "qlora"))


def load_in_4bit(given: Given) -> list[Line]:
    if given.get("adapter") in OFF and given.value is True:
        return given.not_carried("without an adapter every weight is trained, and 4-bit weights cannot be")
    if given.get("adapter") == "qlora" and given.file.get("load_in_4bit") is None:
        return given.carried({"model.load_in_4bit": True})
    return given.carried({"model.load_in_4bit": given.value})


def target_modules(given: Given) -> list[Line]:
    if given.get("lora_target_linear") is True:
        return given.not_needed("lora_target_linear takes all linear layers")
    if given.value == "all-linear":
        return given.carried({"lora.target_modules": "all-linear"})
    if not isinstance(given.value, list):
        return given.not_carried("a pattern; name the modules: lora.target_modules=[q_proj,v_proj]")
    return given.carried({"lora.target_modules": given.value})


def target_linear(given: Given) -> list[Line]:
    if given.value in OFF:
        return given.not_needed("lora_target_modules names them")
    return given.carried({"lora.target_modules": "all-linear"})


def peft(given: Given) -> list[Line]:
    """`peft: {loftq_config: {loftq_bits: 4}}`"""
    loftq = given.value.get("loftq_config") if isinstance(given.value, dict) else None
    bits = loftq.get("loftq_bits", 4) if isinstance(loftq, dict) else None
    if bits is None or set(given.value) != {"loftq_config"}:
        return given.not_carried("of it loftq_config alone is known: lora.init_lora_weights=loftq")
    return given.carried({"lora.init_lora_weights": "loftq", "lora.loftq_bits": bits})


def config_of(given: Given) -> list[Line]:
    """tokenizer_config, base_model_config."""
    if given.value == given.get("base_model"):
        return given.not_needed("the same as base_model")
    return given.not_carried(
        shared.TOKENIZER if given.key == "tokenizer_config" else "config.json is the model's own"
    )


def special_tokens(given: Given) -> list[Line]:
    if not isinstance(given.value, dict):
        return given.not_carried("keys and values were expected")
    lines = []
    for name, value in given.value.items():
        inner = given.of(f"special_tokens.{name}", value)
        if value in OFF:
            lines += inner.not_needed("left empty")
        elif name == "additional_special_tokens":
            lines += added_tokens(inner)
        elif name == "pad_token":
            lines += inner.not_needed("padding is masked, whatever its token")
        elif name == "eos_token":
            lines += inner.not_carried(shared.ENDING)
        else:
            lines += inner.not_carried(shared.TOKENIZER)
    return lines


def added_tokens(given: Given) -> list[Line]:
    """`tokens`, with what `special_tokens` adds: ours are one list."""
    special, tokens = given.get("special_tokens", {}), given.get("tokens", [])
    others = special.get("additional_special_tokens") or [] if isinstance(special, dict) else []
    if not isinstance(tokens, list) or not isinstance(others, list):
        return given.not_carried("a list of tokens was expected; model.new_tokens=[…]")
    every = [
        token for number, token in enumerate([*others, *tokens]) if token not in [*others, *tokens][:number]
    ]
    return shared.new_tokens(given, every)


MODEL = (
    same("base_model", "model.name"),
    made("model_revision revision_of_model", shared.revision, "model.revision"),
    made("trust_remote_code", shared.remote_code, "model.trust_remote_code", shared.CODE),
    made("tokenizer_config base_model_config", config_of, "", shared.TOKENIZER),
    unneeded("model_type type_of_model cls_model_config", "config.json says what the model is"),
    unneeded(
        "tokenizer_type tokenizer_use_fast tokenizer_legacy tokenizer_save_jinja_files", shared.TOKENIZER
    ),
    uncarried("tokenizer_use_mistral_common added_tokens_overrides fix_untrained_tokens", shared.TOKENIZER),
    unneeded(
        "is_falcon_derived_model is_llama_derived_model is_mistral_derived_model is_qwen_derived_model",
        "config.json says what the model is",
    ),
    made("load_in_4bit", load_in_4bit, "model.load_in_4bit", default=False),
    uncarried("load_in_8bit", shared.QUANTISED),
    uncarried(
        "gptq gptq_groupsize gptq_model_v1 gptq_disable_exllama bnb_config_kwargs"
        " model_quantization_config model_quantization_config_kwargs use_onebitllms"
        " quantize_moe_experts",
        "a base is quantised as bitsandbytes' nf4 alone: model.load_in_4bit",
    ),
    uncarried(
        "model_config overrides_of_model_config model_kwargs overrides_of_model_kwargs rope_scaling",
        "config.json is the model's own: change it there",
    ),
    uncarried("reinit_weights", "weights of a model that is there are trained on"),
    made(
        "special_tokens",
        special_tokens,
        "model.new_tokens",
        "additional_special_tokens; the others are the tokenizer's",
    ),
    made("tokens", added_tokens, "model.new_tokens", shared.NEW_TOKENS),
    unneeded(
        "resize_token_embeddings_to_32x mean_resizing_embeddings shrink_embeddings embeddings_skip_upcast",
        "embeddings grow by the new tokens; they begin as the mean of the others",
    ),
    made("bf16", shared.precision("bfloat16"), "model.dtype", "auto is null"),
    made("bfloat16", shared.precision("bfloat16"), "model.dtype"),
    made("fp16 float16", shared.precision("float16"), "model.dtype"),
    made("float32", shared.precision("float32"), "model.dtype"),
    switched("tf32", "training.tf32", True),
    uncarried(
        "fp8 fp8_enable_fsdp_float8_all_gather",
        "model.load_in_fp8=true has the frozen base's products in float8",
    ),
    uncarried("qat quantization", "exports are quantised when they are written: save=gguf"),
)


ADAPTER = (
    made("adapter", adapter, "lora save.method", "left empty: lora=none", default=None, null=True),
    same("lora_model_dir", "model.adapter", "its rank and its modules are kept"),
    same("lora_r", "lora.r"),
    same("lora_alpha", "lora.lora_alpha"),
    same("lora_dropout", "lora.lora_dropout"),
    made("lora_target_modules", target_modules, "lora.target_modules"),
    made("lora_target_linear", target_linear, "lora.target_modules", "true is `all-linear`"),
    same("lora_modules_to_save", "lora.modules_to_save"),
    same("peft_use_dora", "lora.use_dora"),
    same("peft_use_rslora", "lora.use_rslora"),
    same("peft_init_lora_weights", "lora.init_lora_weights"),
    made("peft", peft, "lora.init_lora_weights lora.loftq_bits"),
    unneeded(
        "lora_fan_in_fan_out lora_on_cpu peft_autocast_adapter_dtype qlora_sharded_model_loading",
        shared.LOADING,
    ),
    unneeded("lora_mlp_kernel lora_qkv_kernel lora_o_kernel lora_embedding_kernel", shared.KERNELS),
    unneeded("merge_lora merge_method", "`axolotl merge-lora`: here save=merged_16bit, or task=export later"),
    uncarried(
        "lora_target_parameters lora_rank_pattern lora_alpha_pattern peft_layers_to_transform peft_layers_pattern"
        " peft_layer_replication peft_trainable_token_indices peft_ensure_weight_tying lora_exclude_modules",
        "one rank for all layers: lora.target_modules says which",
    ),
    uncarried("loraplus_lr_ratio embedding_lr embedding_lr_scale lr_groups", shared.GROUPS),
    belonging("loraplus_lr_embedding", "loraplus_lr_ratio", shared.GROUPS),
    uncarried("relora", "an adapter is trained in one go"),
    belonging(
        "relora_prune_ratio relora_prune_method relora_cpu_offload",
        "relora",
        "an adapter is trained in one go",
    ),
    uncarried(
        "jagged_restart_steps jagged_restart_warmup_steps jagged_restart_anneal_steps lisa_n_layers"
        " lisa_step_interval",
        "every step trains all of the adapter",
    ),
    belonging("lisa_layers_attribute", "lisa_n_layers", "every step trains all of the adapter"),
    uncarried("unfrozen_parameters", "an adapter (lora.target_modules), or every weight (lora=none)"),
)
