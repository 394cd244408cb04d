"""Of LLaMA-Factory: which rows, how they are written, and what is learnt of them."""

from __future__ import annotations

from collections.abc import Callable

from chatbot_sft.convert import shared
from chatbot_sft.convert.llama_factory import dataset_info
from chatbot_sft.convert.rules import (
    OFF,
    SWITCHED_OFF,
    Given,
    Line,
    as_number,
    belonging,
    made,
    same,
    switched,
    uncarried,
    unneeded,
)


def template(given: Given) -> list[Line]:
    if given.value == "empty":
        return given.not_carried(
            "rows are written by a chat template; dataset.format=text takes ready-made text"
        )
    return given.changed({}, shared.TEMPLATE)


def thinking(given: Given) -> list[Line]:
    return given.changed(
        {"dataset.chat_template_kwargs.enable_thinking": given.value},
        "the chat template decides what that means; no empty <think></think> is added to answers",
    )


def kept_thoughts(given: Given) -> list[Line]:
    if given.value is True:
        return given.carried({"dataset.thinking": "keep"})
    return given.not_needed("the chat template leaves earlier thoughts out, or dataset.thinking=last does")


def whole_prompt(given: Given) -> list[Line]:
    """train_on_prompt, mask_history."""
    if given.value in OFF:
        return given.not_needed(SWITCHED_OFF)
    return given.carried({"dataset.train_on": "all" if given.key == "train_on_prompt" else "last_assistant"})


def packing(given: Given) -> list[Line]:
    if given.value in OFF:
        return given.not_needed(SWITCHED_OFF)
    if given.key == "neat_packing":
        return given.carried({"training.packing": True}, shared.PACKED)
    if given.get("neat_packing") not in OFF:
        return given.not_needed("neat_packing says it")
    return given.changed({"training.packing": True}, "conversations in one sequence do not see each other")


def stage(given: Given) -> list[Line]:
    """`stage`, with `pref_loss`: there ORPO is a loss of DPO's."""
    loss = given.get("pref_loss", "sigmoid")
    if given.value == "sft":
        return given.not_needed("objective=sft is the default")
    if given.value == "pt":
        return given.changed(
            {}, "whole texts, every token trained: dataset.format=text, dataset.train_on=all"
        )
    if given.value == "kto":
        return shared.learning_from(given, "kto")
    if given.value == "dpo" and loss == "orpo":
        return shared.learning_from(given, "orpo")
    if given.value == "dpo" and loss in ("sigmoid", "hinge", "ipo"):
        return shared.learning_from(given, "dpo")
    if given.value == "dpo":
        return given.not_carried(
            "docs/objectives.md has SimPO as a class of your own; else objective=dpo or orpo"
        )
    return given.not_carried(shared.REWARD if given.value == "rm" else shared.GENERATING)


def _stage_is(given: Given, *names: str) -> bool:
    return given.get("stage", "sft") in names


def preference_loss(given: Given) -> list[Line]:
    if not _stage_is(given, "dpo"):
        return given.not_needed("of stage: dpo")
    if given.value == "orpo":
        return given.not_needed("stage says it: objective=orpo")
    if given.value in ("sigmoid", "hinge", "ipo") and not as_number(given.get("pref_ftx", 0)):
        return given.carried({"objective.loss_type": given.value})
    if given.value in ("sigmoid", "hinge", "ipo"):
        return given.not_needed("pref_ftx has it in its list of losses")
    return given.not_carried("objective.loss_type has TRL's others; SimPO: docs/objectives.md")


def answers_weight(given: Given) -> list[Line]:
    """`pref_ftx`: the chosen answers' own loss beside the preference."""
    weight, loss = as_number(given.value), given.get("pref_loss", "sigmoid")
    if not weight or not _stage_is(given, "dpo") or loss not in ("sigmoid", "hinge", "ipo"):
        return given.not_needed("off, or not of this stage")
    return given.changed(
        {"objective.loss_type": [loss, "sft"], "objective.loss_weights": [1, weight]},
        "the mean of the answers' loss is over the tokens of the whole step",
    )


def beta(given: Given) -> list[Line]:
    if not _stage_is(given, "dpo", "kto"):
        return given.not_needed("of stage: dpo and kto")
    return given.carried({"objective.beta": given.value})


def weight_of(ours: str) -> Callable[[Given], list[Line]]:
    def becomes(given: Given) -> list[Line]:
        if not _stage_is(given, "kto"):
            return given.not_needed("of stage: kto")
        return given.carried({ours: given.value})

    return becomes


def smoothing(given: Given) -> list[Line]:
    if given.value in OFF:
        return given.not_needed(SWITCHED_OFF)
    return given.not_carried(
        "cDPO's smoothing is not here; the nearest is objective.loss_type=robust objective.label_smoothing"
    )


DATA = (
    made(
        "dataset",
        dataset_info.training,
        "dataset.data_path dataset.sources",
        "see [dataset_info.json](#dataset_infojson)",
    ),
    unneeded("dataset_dir", "dataset says what stands in it"),
    made("eval_dataset", dataset_info.held_out, "dataset.eval_data_path", "one of them"),
    made(
        "val_size",
        dataset_info.share,
        "dataset.eval_fraction",
        "a share; a number of rows is not carried",
        default=0.0,
    ),
    made("max_samples", dataset_info.at_most, "dataset.max_rows", "of one dataset"),
    made("mix_strategy", dataset_info.mixed, "dataset.sources", "concat"),
    made("interleave_probs", dataset_info.proportions, "dataset.sources", "weight of each"),
    same("cutoff_len", "model.max_seq_length", default=2048),
    made("template", template, "model.chat_template", shared.TEMPLATE),
    same("default_system", "dataset.system_prompt"),
    made("enable_thinking", thinking, "dataset.chat_template_kwargs"),
    made("preserve_thinking", kept_thoughts, "dataset.thinking"),
    uncarried("tool_format", "tools and calls are written by the chat template"),
    made("train_on_prompt mask_history", whole_prompt, "dataset.train_on", "all, last_assistant"),
    made("packing neat_packing", packing, "training.packing"),
    uncarried("streaming", "files are streamed as they are tokenised, and kept in the cache"),
    belonging("buffer_size", "streaming", "rows are drawn from all of the data"),
    unneeded(
        "overwrite_cache preprocessing_batch_size preprocessing_num_workers tokenized_path data_shared_file_system",
        shared.CACHED,
    ),
    unneeded("ignore_pad_token_for_loss", "padding is masked, whatever its token"),
    unneeded("media_dir", shared.TEXT_ALONE),
    uncarried("eval_on_each_dataset", "held-out conversations are one set: dataset.eval_data_path"),
    switched("disable_shuffling", "dataset.shuffle", False),
)


OBJECTIVE = (
    made("stage", stage, "objective", "sft, dpo, kto; with pref_loss: orpo it is objective=orpo"),
    made("pref_loss", preference_loss, "objective.loss_type"),
    made("pref_beta", beta, "objective.beta"),
    made("pref_ftx", answers_weight, "objective.loss_type objective.loss_weights"),
    made("dpo_label_smoothing", smoothing, ""),
    made("kto_chosen_weight", weight_of("objective.desirable_weight"), "objective.desirable_weight"),
    made("kto_rejected_weight", weight_of("objective.undesirable_weight"), "objective.undesirable_weight"),
    same("ref_model_adapters", "objective.reference"),
    uncarried(
        "ref_model ref_model_quantization_bit",
        "the reference is the model as training begins, or an earlier adapter: objective.reference",
    ),
    uncarried("pref_bco_weight ld_alpha", "objective.loss_type has TRL's losses"),
    unneeded("simpo_gamma", "of pref_loss: simpo"),
    unneeded("ppo_buffer_size ppo_epochs ppo_score_norm ppo_target ppo_whiten_rewards", "of stage: ppo"),
    uncarried("reward_model reward_model_adapters reward_model_quantization_bit", shared.REWARD),
    unneeded("reward_model_type", "of stage: ppo"),
    uncarried("use_dft_loss use_asft_loss use_eaft_loss", shared.LOSS),
    belonging("asft_alpha", "use_asft_loss", shared.LOSS),
    belonging("eaft_alpha", "use_eaft_loss", shared.LOSS),
    same("label_smoothing_factor", "training.label_smoothing_factor"),
)
