"""Of Axolotl: which rows, how they are written, and what is learnt of them."""

from __future__ import annotations

from pathlib import Path

from chatbot_sft.convert import shared
from chatbot_sft.convert.axolotl import datasets
from chatbot_sft.convert.rules import (
    Given,
    Line,
    as_ours,
    belonging,
    made,
    same,
    uncarried,
    unneeded,
    words,
)


def chat_template(given: Given) -> list[Line]:
    """By its name; `jinja` is a file."""
    if given.value == "tokenizer_default":
        return given.not_needed("the model's own is taken")
    if given.value == "jinja":
        return given.not_needed("chat_template_jinja says it")
    if isinstance(given.value, str) and given.value.startswith("tokenizer_default_fallback_"):
        return given.not_needed(
            "the model's own is taken; where it has none, name a file: model.chat_template"
        )
    if not isinstance(given.value, str):
        return given.not_carried(shared.TEMPLATE)
    return given.changed({}, shared.TEMPLATE)


def chat_template_file(given: Given) -> list[Line]:
    if isinstance(given.value, str) and "{" not in given.value and Path(given.value).suffix:
        return given.carried({"model.chat_template": given.value})
    return given.not_carried(
        "a template in the file; save it as a Jinja file and name that: model.chat_template"
    )


def share(given: Given) -> list[Line]:
    """`val_set_size`; beside test_datasets it is none, and need not be said."""
    if given.get("test_datasets") and given.file.get("val_set_size") is None:
        return []
    return given.carried({"dataset.eval_fraction": as_ours("dataset.eval_fraction", given.value)})


def packed(given: Given) -> list[Line]:
    return given.carried({"training.packing": given.value}, shared.PACKED if given.value is True else "")


def method(given: Given) -> list[Line]:
    """`rl`"""
    if given.value in ("dpo", "orpo", "kto"):
        return shared.learning_from(given, given.value)
    if given.value == "ipo":
        return shared.learning_from(given, "dpo", loss_type="ipo")
    if given.value == "simpo":
        return given.not_carried(
            "docs/objectives.md has SimPO as a class of your own; else objective=dpo or orpo"
        )
    return given.not_carried(shared.GENERATING)


def trl(given: Given) -> list[Line]:
    """The settings of TRL's trainers: beta alone is one of preference training."""
    if not isinstance(given.value, dict):
        return given.not_carried("keys and values were expected")
    lines = []
    for name, value in given.value.items():
        inner = given.of(f"trl.{name}", value)
        lines += (
            inner.carried({"objective.beta": value})
            if name == "beta"
            else inner.not_carried(shared.GENERATING)
        )
    return lines


def odds_ratio_weight(given: Given) -> list[Line]:
    """rpo_alpha of DPO, as TRL has it since: two losses."""
    return given.changed(
        {"objective.loss_type": ["sigmoid", "sft"], "objective.loss_weights": [1, given.value]},
        "the mean of the answers' loss is over the tokens of the whole step",
    )


DATA = (
    made("datasets", datasets.training, "dataset.data_path dataset.sources", "see [datasets](#datasets)"),
    made("test_datasets", datasets.held_out, "dataset.eval_data_path", "one of them"),
    made("val_set_size", share, "dataset.eval_fraction", default=0.0),
    same("shuffle_merged_datasets", "dataset.shuffle"),
    uncarried(
        "shuffle_before_merging_datasets curriculum_sampling", "dataset.shuffle=false keeps the files' order"
    ),
    uncarried(
        "dataset_exact_deduplication",
        "dataset.on_near_duplicate=drop leaves copies out, and what is nearly one",
    ),
    same("sequence_len", "model.max_seq_length", default=512),
    words("excess_length_strategy", "dataset.overflow", {"raise": "error"}, default="drop"),
    words("train_on_inputs", "dataset.train_on", {True: "all", False: "assistant"}),
    made("sample_packing", packed, "training.packing", shared.PACKED),
    unneeded(
        "eval_sample_packing sample_packing_group_size sample_packing_bin_size sample_packing_sequentially"
        " sample_packing_mp_start_method sample_packing_eff_est multipack_real_batches batch_flattening"
        " pad_to_sequence_len pad_to_multiple_of group_by_length dpo_padding_free auto_find_batch_size",
        shared.LAYOUT,
    ),
    unneeded(
        "dataset_prepared_path dataset_processes dataset_num_proc dataset_keep_in_memory"
        " num_dataset_shards_to_save skip_prepare_dataset is_preprocess preprocess_iterable",
        shared.CACHED,
    ),
    made("chat_template", chat_template, "model.chat_template", shared.TEMPLATE),
    made("chat_template_jinja", chat_template_file, "model.chat_template"),
    same("chat_template_kwargs", "dataset.chat_template_kwargs"),
    same("default_system_message", "dataset.system_prompt"),
    uncarried("eot_tokens", shared.ENDING),
    uncarried("eval_sequence_len min_sample_len max_prompt_len", "model.max_seq_length bounds every row"),
    uncarried("dataset_shard_num dataset_shard_idx", "dataset.max_rows takes a part of the rows"),
    uncarried(
        "pretraining_dataset streaming streaming_multipack_buffer_size pretrain_multipack_buffer_size"
        " pretraining_sample_concatenation",
        "pretraining from a stream is not here; dataset.format=text trains on whole texts",
    ),
    belonging("pretrain_multipack_attn", "pretraining_dataset", "pretraining from a stream is not here"),
    uncarried("push_dataset_to_hub", "rows go nowhere"),
    unneeded("hf_use_auth_token", "HF_TOKEN in the environment is used where it is set"),
    uncarried(
        "use_pose pose_split_on_token_ids pose_max_context_len pose_num_chunks", "contexts are not lengthened"
    ),
    uncarried(
        "image_size image_resize_algorithm role_boundaries processor_type processor_kwargs freeze_mm_modules",
        shared.TEXT_ALONE,
    ),
)


OBJECTIVE = (
    made("rl", method, "objective objective.loss_type", "dpo, ipo, orpo, kto"),
    same("rl_beta dpo_beta orpo_alpha", "objective.beta"),
    made("trl", trl, "objective.beta", "of its keys beta"),
    same("dpo_loss_type", "objective.loss_type"),
    same("dpo_loss_weights", "objective.loss_weights"),
    same("dpo_label_smoothing", "objective.label_smoothing"),
    made("rpo_alpha", odds_ratio_weight, "objective.loss_type objective.loss_weights"),
    same("kto_desirable_weight", "objective.desirable_weight"),
    same("kto_undesirable_weight", "objective.undesirable_weight"),
    unneeded(
        "precompute_ref_log_probs",
        "the reference's log-probabilities are computed once, before the first step",
    ),
    unneeded("dpo_use_liger_kernel dpo_use_logits_to_keep", shared.KERNELS),
    unneeded("dpo_generate_during_eval", "sample answers are shown at each evaluation"),
    uncarried(
        "dpo_use_weighting dpo_norm_loss simpo_gamma cpo_alpha", "objective.loss_type has TRL's others"
    ),
    uncarried("reward_model process_reward_model center_rewards_coefficient num_labels", shared.REWARD),
    uncarried("vllm ebft", shared.GENERATING),
    uncarried("use_eaft", shared.LOSS),
    belonging("eaft_alpha eaft_k", "use_eaft", shared.LOSS),
)
