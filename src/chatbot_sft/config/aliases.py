"""What newcomers call our keys: words of Axolotl, LLaMA-Factory, TRL, PEFT, Unsloth, and everyday speech.

They are not read, they are answered: `training.lr: no such key; did you mean training.learning_rate?`
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from chatbot_sft.errors import squash

# Ours: theirs, with the same values.
SAME_VALUE = {
    "model.name": (
        "base_model model_name_or_path model_name model_id model_path pretrained_model_name_or_path pretrained_model hf_model base_model_name"
    ),
    "model.max_seq_length": (
        "sequence_len cutoff_len max_seq_len max_length max_len model_max_length context_length context_len context_size ctx_len max_tokens "
        "block_size seq_len seq_length sequence_length max_model_len max_context"
    ),
    "model.revision": "model_revision revision_of_model base_model_revision",
    "model.load_in_4bit": "use_4bit qlora load_4bit in_4bit quantize_4bit four_bit",
    "model.load_in_fp8": "fp8 use_fp8 load_fp8 float8 load_in_float8",
    "model.new_tokens": "add_tokens additional_special_tokens add_special_tokens new_special_tokens extra_tokens",
    "model.engine": "backend framework trainer_backend",
    "lora.r": "lora_r lora_rank rank lora_dim qlora_r peft_r adapter_rank",
    "lora.lora_alpha": "alpha qlora_alpha scaling_alpha",
    "lora.lora_dropout": "dropout qlora_dropout",
    "lora.target_modules": "lora_target_modules lora_modules targets linear_layers",
    "lora.modules_to_save": "lora_modules_to_save additional_target trainable_modules",
    "lora.use_rslora": "peft_use_rslora rslora use_rs_lora rank_stabilized",
    "lora.use_dora": "peft_use_dora dora",
    "lora.init_lora_weights": "peft_init_lora_weights init_weights lora_init",
    "lora.use_gradient_checkpointing": "gradient_checkpointing grad_checkpointing activation_checkpointing checkpoint_activations",
    "lora.bias": "lora_bias",
    "dataset.data_path": (
        "dataset_name dataset_path dataset_name_or_path data_file data_files data train_file train_files train_path train_data train_dataset "
        "training_data training_file dataset_file custom_train_dataset_path dataset_id"
    ),
    "dataset.config_name": "dataset_config dataset_config_name",
    "dataset.split": "dataset_train_split train_split",
    "dataset.eval_data_path": (
        "eval_dataset eval_file eval_path eval_data val_dataset val_data val_file valid_path valid_file validation_file validation_data "
        "validation_dataset test_file test_data test_path test_datasets dev_file"
    ),
    "dataset.text_field": "dataset_text_field text_column",
    "dataset.message_field": "field_messages messages_field message_column messages_column",
    "dataset.max_rows": "max_samples max_train_samples num_samples n_samples max_examples num_examples sample_size limit",
    "dataset.format": "data_format dataset_format dataset_type ds_type formatting data_type",
    "dataset.system_prompt": "system_message default_system default_system_prompt system_instruction",
    "dataset.shuffle": "shuffle_dataset dataset_shuffle shuffle_data shuffle_merged_datasets",
    "dataset.thinking": "reasoning think",
    "dataset.chat_template_kwargs": "template_kwargs chat_template_args",
    "dataset.columns": "column_mapping columns_map field_mapping",
    "training.learning_rate": "lr learn_rate lrate base_lr peak_lr",
    "training.lr_scheduler_type": "lr_scheduler scheduler scheduler_type lr_schedule schedule learning_rate_schedule",
    "training.num_train_epochs": "epochs num_epochs n_epochs max_epochs epoch train_epochs nepochs",
    "training.max_steps": (
        "steps num_steps n_steps train_steps max_train_steps num_train_steps total_steps num_training_steps iters iterations max_iters"
    ),
    "training.per_device_train_batch_size": (
        "batch_size micro_batch_size train_batch_size per_gpu_train_batch_size train_micro_batch_size_per_gpu per_device_batch_size mini_batch_size "
        "batch bs bsz"
    ),
    "training.per_device_eval_batch_size": "eval_batch_size val_batch_size per_gpu_eval_batch_size eval_micro_batch_size",
    "training.gradient_accumulation_steps": (
        "grad_accum grad_accum_steps gradient_accumulation grad_accumulation accumulate_grad_batches accumulation_steps grad_acc_steps"
    ),
    "training.optim": "optimizer optimiser optimizer_type optimizer_name",
    "training.warmup_steps": "warmup num_warmup_steps lr_warmup_steps warm_up_steps",
    "training.weight_decay": "wd decay",
    "training.max_grad_norm": "grad_clip gradient_clipping clip_grad_norm max_norm gradient_clip_val grad_norm_clip",
    "training.logging_steps": "log_steps log_every log_interval logging_interval log_every_n_steps print_every",
    "training.save_steps": "save_every save_interval save_freq checkpoint_steps checkpoint_interval checkpoint_every save_every_n_steps",
    "training.save_total_limit": "max_checkpoints keep_checkpoints save_limit checkpoints_total_limit",
    "training.eval_steps": "eval_every eval_interval evaluation_steps eval_freq eval_frequency val_check_interval validation_steps",
    "training.early_stopping_patience": "patience early_stopping early_stop",
    "training.packing": "sample_packing pack packed neat_packing pack_sequences",
    "training.response_only": "train_on_responses_only assistant_only_loss completion_only_loss train_on_completions_only loss_on_response_only",
    "training.report_to": "logger log_with tracker trackers loggers log_to",
    "training.neftune_noise_alpha": "neftune neftune_alpha noisy_embedding_alpha",
    "training.load_best_model_at_end": "load_best_model load_best save_best keep_best",
    "seed": "random_seed rand_seed random_state manual_seed data_seed",
    "hydra.run.dir": "output_dir out_dir output run_dir save_dir output_path work_dir logging_dir",
    "save.save_path": "export_dir export_path save_to merged_dir",
    "save.method": "save_method save_format export_format output_format export_method",
    "save.gguf_quantization": "quantization_method quantization gguf_type gguf_quant quantization_type quant_method outtype quant",
    "save.hub_model_id": "hub_id repo_id hub_repo hub_repo_id export_hub_model_id hub_model_name repo_name",
    "save.hub_private": "hub_private_repo private",
    "save.overwrite": "overwrite_output_dir overwrite_output",
}  # fmt: skip

# Words that say too little without the section they came with.
IN_SECTION = {
    "model": {"path": "model.name", "id": "model.name", "length": "model.max_seq_length",
    "max_seq": "model.max_seq_length"},
    "lora": {"modules": "lora.target_modules", "target": "lora.target_modules",
    "layers": "lora.target_modules", "use": "lora.r"},
    "dataset": {
        "path": "dataset.data_path", "file": "dataset.data_path", "files": "dataset.data_path",
        "name": "dataset.data_path",
        "type": "dataset.format", "dataset": "dataset.data_path", "train": "dataset.data_path",
        "eval": "dataset.eval_data_path",
        "test": "dataset.eval_data_path", "validation": "dataset.eval_data_path",
        "field": "dataset.text_field", "system": "dataset.system_prompt",
        "datasets": "dataset.sources", "weights": "dataset.sources",
    },
    "training": {"resume_from": "training.resume", "checkpoint": "training.resume",
    "log": "training.report_to", "clip": "training.max_grad_norm"},
    "save": {
        "format": "save.method", "type": "save.method", "path": "save.save_path", "dir": "save.save_path",
        "folder": "save.save_path",
        "output_dir": "save.save_path", "output": "save.save_path", "save_dir": "save.save_path",
        "name": "save.hub_model_id",
        "repo": "save.hub_model_id", "hub": "save.push_to_hub", "push": "save.push_to_hub",
    },
}  # fmt: skip

_TRUE, _FALSE, _ANY = "true", "false", ""

# Theirs: their value → our setting with its value; "" is any other value, {value} what they gave.
OTHER_VALUE: dict[str, dict[str, str]] = {
    "bits": {"4": "model.load_in_4bit=true", "16": "model.load_in_4bit=false", "32": "model.load_in_4bit=false"},
    "quantization_bit": {"4": "model.load_in_4bit=true", "null": "model.load_in_4bit=false"},
    "load_in_16bit": {_TRUE: "model.load_in_4bit=false"},
    "bf16": {_TRUE: "model.dtype=bfloat16", _FALSE: "model.dtype=null", "auto": "model.dtype=null"},
    "pure_bf16": {_TRUE: "model.dtype=bfloat16"},
    "fp16": {_TRUE: "model.dtype=float16", _FALSE: "model.dtype=null"},
    "fp32": {_TRUE: "model.dtype=float32"},
    "use_unsloth": {_TRUE: "model.engine=unsloth", _FALSE: "model.engine=transformers"},
    "use_unsloth_gc": {_TRUE: "lora.use_gradient_checkpointing=unsloth",
    _FALSE: "lora.use_gradient_checkpointing=true"},
    "disable_gradient_checkpointing": {_TRUE: "lora.use_gradient_checkpointing=false",
    _FALSE: "lora.use_gradient_checkpointing=true"},
    "lora_target": {"all": "lora.target_modules=all-linear", _ANY: "lora.target_modules=[{value}]"},
    "lora_target_linear": {_TRUE: "lora.target_modules=all-linear"},
    "pissa_init": {_TRUE: "lora.init_lora_weights=pissa"},
    "use_loftq": {_TRUE: "lora=loftq"},
    "adapter": {"lora": "model.load_in_4bit=false", "qlora": "model.load_in_4bit=true", "null": "lora=none",
    "none": "lora=none"},
    "finetuning_type": {"full": "lora=none", "lora": "lora=default"},
    "full_finetuning": {_TRUE: "lora=none", _FALSE: "lora=default"},
    "full_finetune": {_TRUE: "lora=none", _FALSE: "lora=default"},
    "use_peft": {_TRUE: "lora=default", _FALSE: "lora=none"},
    "use_lora": {_TRUE: "lora=default", _FALSE: "lora=none"},
    "enable_thinking": {_ANY: "dataset.chat_template_kwargs={{enable_thinking: {value}}}"},
    "train_on_inputs": {_TRUE: "training.response_only=false", _FALSE: "training.response_only=true"},
    "train_on_prompt": {_TRUE: "training.response_only=false", _FALSE: "training.response_only=true"},
    "mask_history": {_TRUE: "dataset.train_on=last_assistant", _FALSE: "dataset.train_on=assistant"},
    "excess_length_strategy": {"raise": "dataset.overflow=error", _ANY: "dataset.overflow={value}"},
    "truncation": {_TRUE: "dataset.overflow=truncate", _FALSE: "dataset.overflow=error"},
    "field_instruction": {_ANY: "dataset.columns={{instruction: {value}}}"},
    "field_input": {_ANY: "dataset.columns={{input: {value}}}"},
    "field_output": {_ANY: "dataset.columns={{output: {value}}}"},
    "prompt_column": {_ANY: "dataset.columns={{prompt: {value}}}"},
    "completion_column": {_ANY: "dataset.columns={{completion: {value}}}"},
    "response_column": {_ANY: "dataset.columns={{completion: {value}}}"},
    "resume_from_checkpoint": {_TRUE: "training.resume=auto", _FALSE: "training.resume=never",
    "null": "training.resume=auto",
                               _ANY: "training.resume={value}"},
    "auto_resume_from_checkpoints": {_TRUE: "training.resume=auto", _FALSE: "training.resume=never"},
    "evaluation_strategy": {"no": "training.eval_steps=null", _FALSE: "training.eval_steps=null",
    _ANY: "training.eval_steps=0.1"},
    "do_eval": {_TRUE: "training.eval_steps=0.1", _FALSE: "training.eval_steps=null"},
    "do_train": {_TRUE: "task=train", _FALSE: "task=check"},
    "dry_run": {_TRUE: "task=check"},
    "use_wandb": {_TRUE: "training.report_to=wandb", _FALSE: "training.report_to=none"},
    "use_tensorboard": {_TRUE: "training.report_to=tensorboard", _FALSE: "training.report_to=none"},
    "use_mlflow": {_TRUE: "training.report_to=mlflow", _FALSE: "training.report_to=none"},
    "merge_lora": {_TRUE: "save=merged_16bit", _FALSE: "save=lora"},
    "merge_adapter": {_TRUE: "save=merged_16bit", _FALSE: "save=lora"},
}  # fmt: skip
for _word in (
    "torch_dtype",
    "model_dtype",
    "compute_dtype",
    "bnb_4bit_compute_dtype",
    "infer_dtype",
    "precision",
):
    OTHER_VALUE[_word] = {"bf16": "model.dtype=bfloat16", "fp16": "model.dtype=float16",
    "fp32": "model.dtype=float32", "auto": "model.dtype=null",
                          _ANY: "model.dtype={value}"}  # fmt: skip

SHARES = [
    "val_set_size", "val_size", "eval_size", "test_size", "validation_size", "validation_split",
    "val_split", "eval_split", "eval_ratio", "val_ratio",
    "test_split", "split_dataset_ratio", "validation_ratio",
]  # fmt: skip

HF_TOKEN = (
    "set the environment variable HF_TOKEN; a token in a configuration would be written to the run directory"
)
ATTENTION = "the engine takes the fastest attention there is; leave it out"
CACHED = "rows are tokenised once, on all cores, and kept in the cache; leave it out"
DEVICES = (
    "several GPUs: torchrun --nproc-per-node 2 -m chatbot_sft …; certain ones:"
    " the environment variable CUDA_VISIBLE_DEVICES"
)
TEMPLATE = "the chat template is the model's own"

# Theirs, where we have no such setting: what to do.
NOTES = {
    "load_in_8bit": "there is no training in 8 bits; did you mean model.load_in_4bit=true, or model.load_in_4bit=false for 16 bits?",
    "chat_template": TEMPLATE, "template": TEMPLATE, "chat_template_jinja": TEMPLATE,
    "chat_template_path": TEMPLATE, "conversation": TEMPLATE,
    "hf_token": HF_TOKEN, "hub_token": HF_TOKEN, "hf_hub_token": HF_TOKEN, "use_auth_token": HF_TOKEN,
    "auth_token": HF_TOKEN,
    "access_token": HF_TOKEN,
    "wandb_project": "set the environment variable WANDB_PROJECT",
    "wandb_entity": "set the environment variable WANDB_ENTITY",
    "wandb_name": "set the environment variable WANDB_NAME",
    "wandb_run_id": "set the environment variable WANDB_RUN_ID",
    "wandb_api_key": "set the environment variable WANDB_API_KEY",
    "wandb_mode": "set the environment variable WANDB_MODE",
    "mlflow_tracking_uri": "set the environment variable MLFLOW_TRACKING_URI",
    "mlflow_experiment_name": "set the environment variable MLFLOW_EXPERIMENT_NAME",
    "flash_attention": ATTENTION, "flash_attn": ATTENTION, "use_flash_attention": ATTENTION,
    "use_flash_attention_2": ATTENTION,
    "attn_implementation": ATTENTION, "xformers_attention": ATTENTION, "sdp_attention": ATTENTION,
    "attention": ATTENTION,
    "dataset_num_proc": CACHED, "preprocessing_num_workers": CACHED, "dataset_processes": CACHED,
    "num_proc": CACHED, "tokenized_path": CACHED,
    "dataset_prepared_path": CACHED, "overwrite_cache": CACHED, "streaming": CACHED,
    "device_map": DEVICES, "device": DEVICES, "gpus": DEVICES, "num_gpus": DEVICES, "n_gpu": DEVICES,
    "gpu_ids": DEVICES, "num_processes": DEVICES,
    "local_rank": "torchrun says it in the environment: torchrun --nproc-per-node 2 -m chatbot_sft …",
    "datasets": "a mixture is dataset.sources=[{data_path: a.json, weight: 0.7}, {data_path: b.csv, weight: 0.3}]",
    "interleave_probs": "a mixture is dataset.sources=[{data_path: a.json, weight: 0.7}, {data_path: b.csv, weight: 0.3}]",
    "mix_strategy": "a mixture is dataset.sources=[{data_path: a.json, weight: 0.7}, {data_path: b.csv, weight: 0.3}]",
    "dataset_dir": "the path stands in dataset.data_path",
    "stage": "this is supervised fine-tuning alone; leave it out",
    "rl": "this is supervised fine-tuning alone; leave it out",
    "model_type": "the model's own config.json says it; leave it out",
    "tokenizer_type": "the model's own files say it; leave it out",
    "tokenizer_name": "the tokenizer is that of model.name", "tokenizer": "the tokenizer is that of model.name",
    "roles_to_train": "dataset.train_on is assistant, last_assistant or all",
    "saves_per_epoch": "training.save_steps=0.1 is ten in a run",
    "evals_per_epoch": "training.eval_steps=0.1 is ten in a run",
    "save_safetensors": "weights are always safetensors; leave it out",
}  # fmt: skip

# Sections of other tools.
SECTIONS = {
    "data": "dataset", "datasets": "dataset", "data_args": "dataset", "dataset_args": "dataset",
    "train": "training", "trainer": "training",
    "training_args": "training", "training_arguments": "training", "sft": "training",
    "sft_config": "training", "args": "training",
    "hyperparameters": "training", "hparams": "training", "optimizer": "training", "optim": "training",
    "scheduler": "training",
    "model_args": "model", "base_model": "model", "peft": "lora", "peft_config": "lora",
    "lora_config": "lora", "adapter": "lora", "qlora": "lora",
    "output": "save", "export": "save", "saving": "save", "golden": "evaluation",
}  # fmt: skip

# Ours, for values of other tools.
VALUES: dict[str, dict[str, str]] = {
    "sweep.direction": {"minimize": "minimise", "min": "minimise", "lower": "minimise",
    "maximize": "maximise", "max": "maximise", "higher": "maximise"},
    "sweep.sampler": {"grid": "null", "bayes": "tpe", "bayesian": "tpe", "cma": "cmaes", "nsga2": "nsgaii"},
    "sweep.pruner": {"asha": "halving", "sha": "halving", "successivehalving": "halving", "none": "null",
    "patience": "patient"},
    "task": {"sft": "train", "finetune": "train", "fit": "train", "validate": "check", "preview": "check",
    "merge": "export", "save": "export", "eval": "evaluate", "test": "evaluate", "benchmark": "evaluate"},
    "model.engine": {"hf": "transformers", "huggingface": "transformers", "trl": "transformers",
    "peft": "transformers"},
    "model.dtype": {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32",
    "float": "float32", "auto": "null"},
    "dataset.format": {
        "jsonl": "auto", "csv": "auto", "parquet": "auto", "arrow": "auto", "chatml": "messages",
        "openai": "messages", "chat_template": "messages",
        "chat": "messages", "conversational": "messages", "instruction": "alpaca", "instruct": "alpaca",
        "completion": "prompt_completion",
        "input_output": "prompt_completion", "raw": "text", "pretrain": "text",
    },
    "dataset.overflow": {"raise": "error", "cut": "truncate", "right": "truncate"},
    "dataset.train_on": {"responses": "assistant", "completion": "assistant", "last": "last_assistant",
    "everything": "all"},
    "training.optim": {"adam": "adamw_torch", "adamw": "adamw_torch", "paged_adamw": "paged_adamw_32bit",
    "lion": "lion_32bit"},
    "training.lr_scheduler_type": {"cosine_annealing": "cosine", "none": "constant",
    "warmup": "constant_with_warmup"},
    "training.report_to": {"tb": "tensorboard"},
    "lora.target_modules": {"all": "all-linear", "linear": "all-linear"},
    "save.method": {
        "merged": "merged_16bit", "merge": "merged_16bit", "16bit": "merged_16bit", "full": "merged_16bit",
        "safetensors": "merged_16bit",
        "4bit": "merged_4bit", "merged_4bit_forced": "merged_4bit", "adapter": "lora", "peft": "lora",
        "ollama": "gguf", "llama_cpp": "gguf",
    },
    "save.gguf_quantization": {
        "fast_quantized": "q8_0", "quantized": "q4_k_m", "not_quantized": "f16", "q4": "q4_k_m",
        "q4_k": "q4_k_m", "q5": "q5_k_m", "q5_k": "q5_k_m",
        "q3_k": "q3_k_m", "q6": "q6_k", "q8": "q8_0", "int8": "q8_0", "4bit": "q4_k_m", "8bit": "q8_0",
        "fp16": "f16", "fp32": "f32",
    },
}  # fmt: skip

_SAME = {squash(word): ours for ours, words in SAME_VALUE.items() for word in words.split()}
_SECTION = {
    (section, squash(word)): ours for section, words in IN_SECTION.items() for word, ours in words.items()
}
_OTHER = {squash(word): values for word, values in OTHER_VALUE.items()}
_SHARES = {squash(word) for word in SHARES}
_NOTES = {squash(word): note for word, note in NOTES.items()}
_VALUES = {key: {squash(word): ours for word, ours in words.items()} for key, words in VALUES.items()}
WORDS = sorted(
    {*SHARES, *OTHER_VALUE, *NOTES, *(word for words in SAME_VALUE.values() for word in words.split())}
)


@dataclass(frozen=True)
class Meant:
    """Our setting for a word of another tool, its value too where that is another; or a sentence of its own."""

    setting: str = ""
    note: str = ""

    def written_out(self, value: Any) -> str:
        """`training.learning_rate=1e-4`"""
        return self.setting if "=" in self.setting else f"{self.setting}={plain(value)}"


def look_up(section: str, word: str, value: Any = None) -> Meant | None:
    """What `word` of another tool is called here; `section` is the one it came with, or empty."""
    key = squash(word)
    if (section, key) in _SECTION:
        return Meant(_SECTION[section, key])
    if key in _SAME:
        return Meant(_SAME[key])
    if key in _SHARES:
        return _share(value)
    if key in _OTHER:
        values, given = _OTHER[key], plain(value)
        setting = values.get(given.lower(), values.get(_ANY))
        return (
            Meant(setting.format(value=given))
            if setting
            else Meant(note=f"here it is {' or '.join(dict.fromkeys(values.values()))}")
        )
    return Meant(note=_NOTES[key]) if key in _NOTES else None


def value_of(key: str, value: Any) -> str | None:
    """What `value` of our `key` is called here, where another tool calls it that."""
    return _VALUES.get(key, {}).get(squash(str(value).removeprefix("torch.")))


def plain(value: Any) -> str:
    """`value` as it is written on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {plain(inner)}" for key, inner in value.items()) + "}"
    return "[" + ",".join(map(plain, value)) + "]" if isinstance(value, (list, tuple)) else str(value)


def _share(value: Any) -> Meant:
    """A held-out part; with LLaMA-Factory a number from 1 on is one of rows."""
    try:
        share = float(value)
    except (TypeError, ValueError):
        return Meant("dataset.eval_fraction")
    if 0 <= share < 1:
        return Meant(f"dataset.eval_fraction={plain(value)}")
    return Meant(
        note="dataset.eval_fraction is a share such as 0.1; rows of their own are dataset.eval_data_path"
    )
