"""Of LLaMA-Factory: batch, length, schedule, optimizer, evaluations, checkpoints."""

from __future__ import annotations

from collections.abc import Callable

from chatbot_sft.convert import shared
from chatbot_sft.convert.llama_factory.dataset_info import none_held_out
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

OTHER_OPTIMIZERS = ("use_galore", "use_apollo", "use_badam", "use_adam_mini", "use_muon")


def steps(given: Given) -> list[Line]:
    if given.value == -1:
        return given.not_needed("num_train_epochs says how long")
    return given.carried({"training.max_steps": given.value})


def epochs(given: Given) -> list[Line]:
    if given.get("max_steps", -1) != -1:
        return given.not_needed("max_steps says how long, there too")
    return given.carried({"training.num_train_epochs": given.value})


def warm_up(given: Given) -> list[Line]:
    """The share counts only where there are no steps, there too."""
    ratio = given.get("warmup_ratio")
    if given.key == "warmup_ratio":
        if as_number(given.get("warmup_steps", 0)):
            return given.not_needed("warmup_steps counts before it, there too")
        return given.carried({"training.warmup_ratio": given.value})
    if not as_number(given.value) and ratio is not None:
        return given.not_needed("warmup_ratio says it") if given.file.get("warmup_steps") is not None else []
    return given.carried({"training.warmup_steps": given.value})


def optimizer(given: Given) -> list[Line]:
    if any(given.get(name) not in OFF for name in OTHER_OPTIMIZERS):
        return given.not_carried(shared.OPTIMIZER)
    return given.carried({"training.optim": given.value})


def evaluations(given: Given) -> list[Line]:
    """eval_strategy, with eval_steps."""
    at_the_end = "before and after training it is evaluated anyway"
    if given.key == "eval_steps":
        if given.get("eval_strategy", "no") != "steps":
            return given.not_needed("of eval_strategy: steps")
        found = shared.steps_or_share(given, "training.eval_steps", None, 1, at_the_end)
    elif given.value == "epoch":
        found = shared.steps_or_share(
            given, "training.eval_steps", 1.0, given.get("num_train_epochs", 3), at_the_end
        )
    elif given.value == "steps":
        found = given.not_needed("eval_steps says how often")
    else:
        found = given.not_needed(at_the_end)
    return shared.held_out(given, found, none_held_out(given))


def checkpoints(given: Given) -> list[Line]:
    """save_strategy, with save_steps."""
    if given.key == "save_steps":
        if given.get("save_strategy", "steps") != "steps":
            return given.not_needed("of save_strategy: steps")
        return shared.steps_or_share(given, "training.save_steps", None, 1, "")
    if given.value == "epoch":
        epochs_ = given.get("num_train_epochs", 3)
        return shared.steps_or_share(
            given, "training.save_steps", 1.0, epochs_, "the last checkpoint is written anyway"
        )
    if given.value in OFF:
        return given.carried({"training.save_strategy": "no"})
    return given.not_needed("save_steps says how often")


def needs_evaluations(ours: str) -> Callable[[Given], list[Line]]:
    def becomes(given: Given) -> list[Line]:
        if given.value in OFF:
            return given.not_needed(SWITCHED_OFF)
        return shared.held_out(given, given.carried({ours: given.value}), none_held_out(given))

    return becomes


def overwritten(given: Given) -> list[Line]:
    if given.value in OFF:
        return given.not_needed(SWITCHED_OFF)
    return given.changed(
        {"training.resume": "never", "save.overwrite": True},
        "starts afresh in the same folder, and replaces our export there",
    )


def trained(given: Given) -> list[Line]:
    """`do_train`"""
    if given.value in OFF:
        return given.not_carried(
            "a run trains; a model is asked by task=evaluate, data are looked at by task=check"
        )
    return given.not_needed("a run trains")


TRAINING = (
    same("per_device_train_batch_size", "training.per_device_train_batch_size", default=8),
    same("gradient_accumulation_steps", "training.gradient_accumulation_steps", default=1),
    same("per_device_eval_batch_size", "training.per_device_eval_batch_size"),
    same("learning_rate", "training.learning_rate", default=5e-5),
    same("lr_scheduler_type", "training.lr_scheduler_type"),
    same("lr_scheduler_kwargs", "training.lr_scheduler_kwargs"),
    made("num_train_epochs", epochs, "training.num_train_epochs", default=3.0),
    made("max_steps", steps, "training.max_steps"),
    made("warmup_steps warmup_ratio", warm_up, "training.warmup_steps training.warmup_ratio", default=0),
    same("weight_decay", "training.weight_decay", default=0.0),
    made("optim", optimizer, "training.optim", default="adamw_torch_fused"),
    same("optim_args", "training.optim_args"),
    same("optim_target_modules", "training.optim_target_modules"),
    same("adam_beta1", "training.adam_beta1"),
    same("adam_beta2", "training.adam_beta2"),
    same("adam_epsilon", "training.adam_epsilon"),
    same("max_grad_norm", "training.max_grad_norm"),
    same("neftune_noise_alpha", "training.neftune_noise_alpha"),
    same("seed", "seed", default=42),
    uncarried(
        "data_seed", "one seed for order, adapter and dropout; dataset.split_seed for the held-out rows"
    ),
    same("full_determinism", "training.full_determinism"),
    uncarried("use_galore use_apollo use_badam use_adam_mini use_muon", shared.OPTIMIZER),
    belonging(
        "galore_target galore_rank galore_update_interval galore_scale galore_proj_type galore_layerwise",
        "use_galore",
        shared.OPTIMIZER,
    ),
    belonging(
        "apollo_target apollo_rank apollo_update_interval apollo_scale apollo_proj"
        " apollo_proj_type apollo_scale_type apollo_layerwise apollo_scale_front",
        "use_apollo",
        shared.OPTIMIZER,
    ),
    belonging(
        "badam_mode badam_start_block badam_switch_mode badam_switch_interval badam_update_ratio"
        " badam_mask_mode badam_verbose",
        "use_badam",
        shared.OPTIMIZER,
    ),
    made("eval_strategy eval_steps", evaluations, "training.eval_steps", "epoch: as a share of the run"),
    same("eval_delay", "training.eval_delay"),
    made("save_strategy save_steps", checkpoints, "training.save_steps", "epoch: as a share of the run"),
    same("save_total_limit", "training.save_total_limit"),
    unneeded("save_only_model save_on_each_node enable_jit_checkpoint", shared.SAVED_TWICE),
    made(
        "early_stopping_steps",
        needs_evaluations("training.early_stopping_patience"),
        "training.early_stopping_patience",
    ),
    made(
        "load_best_model_at_end",
        needs_evaluations("training.load_best_model_at_end"),
        "training.load_best_model_at_end",
    ),
    uncarried("metric_for_best_model", "the held-out loss decides", off=("eval_loss", "loss")),
    unneeded("greater_is_better", "the held-out loss decides"),
    unneeded("compute_accuracy", "the share of tokens that are right is in every evaluation"),
    made("do_train", trained, "", "a run trains"),
    unneeded(
        "do_eval eval_on_start prediction_loss_only", "before and after training it is evaluated anyway"
    ),
    uncarried(
        "do_predict predict_with_generate", "questions of your own: task=evaluate (docs/evaluation.md)"
    ),
    unneeded(
        "do_sample temperature top_p top_k num_beams max_length max_new_tokens repetition_penalty length_penalty"
        " skip_special_tokens eval_num_beams generation_max_length generation_num_beams generation_config"
        " sortish_sampler",
        "of predicting: sample answers are greedy (training.sample_max_new_tokens)",
    ),
    made("output_dir", shared.run_directory, "hydra.run.dir", shared.RUN_DIRECTORY),
    made("overwrite_output_dir", overwritten, "training.resume save.overwrite"),
    uncarried("resume_from_checkpoint", shared.CHECKPOINT),
    unneeded(
        "ignore_data_skip restore_callback_states_from_checkpoint", "a run goes on from whole checkpoints"
    ),
    unneeded("plot_loss", "loss.png is always drawn"),
)
