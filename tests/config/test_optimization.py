"""Optimizers and schedules that lack a package or an argument are refused before a model is loaded."""

import importlib.util

import pytest
from conftest import only_error

from chatbot_sft import UserError, optimization
from chatbot_sft.config import Config
from chatbot_sft.config.sft_arguments import enum_values
from chatbot_sft.report import loggers


@pytest.mark.parametrize(
    ("training", "message"),
    [
        (
            {"lr_scheduler_type": "cosine_with_min_lr"},
            "training.lr_scheduler_type=cosine_with_min_lr: needs min_lr or min_lr_rate in training.lr_sched",
        ),
        (
            {
                "lr_scheduler_type": "cosine_with_min_lr",
                "lr_scheduler_kwargs": {"min_lr": 1e-5, "min_lr_rate": 0.1},
            },
            "training.lr_scheduler_type=cosine_with_min_lr: needs min_lr or min_lr_rate",
        ),
        (
            {"lr_scheduler_type": "cosine_warmup_with_min_lr"},
            "training.lr_scheduler_type=cosine_warmup_with_min_lr: needs min_lr or min_lr_rate",
        ),
        (
            {"lr_scheduler_type": "warmup_stable_decay"},
            "training.lr_scheduler_type=warmup_stable_decay: needs num_decay_steps in",
        ),
        (
            {"lr_scheduler_type": "reduce_lr_on_plateau"},
            (
                "training.lr_scheduler_type=reduce_lr_on_plateau: it steps after evaluations; set"
                " training.eval_s"
            ),
        ),
        ({"lr_scheduler_type": "greedy"}, "training.lr_scheduler_type=greedy: it steps after evaluations"),
        # huggingface/open-muse issue 144: eta_min given to cosine
        (
            {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"eta_min": 1e-6}},
            (
                "training.lr_scheduler_kwargs.eta_min: training.lr_scheduler_type=cosine does not read it; it"
                " takes num_cycles"
            ),
        ),
        (
            {
                "lr_scheduler_type": "cosine_with_min_lr",
                "lr_scheduler_kwargs": {"min_lr": 1e-6, "num_cycle": 2},
            },
            (
                "training.lr_scheduler_kwargs.num_cycle: training.lr_scheduler_type=cosine_with_min_lr does"
                " not read it; it takes num_"
            ),
        ),
        (
            {"lr_scheduler_type": "constant_with_warmup", "lr_scheduler_kwargs": {"min_lr": 1e-6}},
            (
                "training.lr_scheduler_kwargs.min_lr: training.lr_scheduler_type=constant_with_warmup does"
                " not read it; it takes none"
            ),
        ),
        (
            {"lr_scheduler_kwargs": '{"min_lr": 1e-6}'},
            "training.lr_scheduler_kwargs='{\"min_lr\": 1e-6}': expected keys and values",
        ),
        ({"optim": "galore_adamw"}, "training.optim=galore_adamw: needs training.optim_target_modules"),
        ({"optim": "apollo_adamw"}, "training.optim=apollo_adamw: needs training.optim_target_modules"),
        (
            {"optim_target_modules": "all-linear"},
            "training.optim_target_modules: training.optim=adamw_8bit does not read it",
        ),
        ({"optim_args": "momentum=0.9"}, "training.optim_args: training.optim=adamw_8bit does not read it"),
        ({"optim": "sgd", "adam_beta1": 0.5}, "training.adam_beta1: training.optim=sgd does not read it"),
    ],
)
def test_arguments_that_are_missing_or_not_read(training, message):
    with pytest.raises(UserError) as caught:
        Config.from_mapping({"training": training})
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("schedule", enum_values("trainer_utils.py", "SchedulerType"))
def test_every_schedule_is_known(schedule):
    optimization.schedule_arguments(schedule)
    given = {
        "lr_scheduler_kwargs": (
            {"min_lr_rate": 0.1}
            if "min_lr" in schedule
            else {"num_decay_steps": 2}
            if "stable" in schedule
            else {}
        )
    }
    Config.from_mapping({"training": {"lr_scheduler_type": schedule, "eval_steps": 0.5, **given}})


@pytest.mark.parametrize("optim", enum_values("training_args.py", "OptimizerNames"))
def test_optimizers_without_their_package(optim, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    built_in = ("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop")
    if optim in optimization.REPLACED:
        optimization.check_packages(optim, gpu=False)
    if optim in built_in:
        optimization.check_packages(optim, gpu=True)
        return
    with pytest.raises(
        UserError, match=rf"^training\.optim={optim}: \w+ is not installed; pip install [\w-]+, or take"
    ):
        optimization.check_packages(optim, gpu=True)


def test_a_missing_optimizer_is_refused_at_the_start(launch, tiny):
    if importlib.util.find_spec("lomo_optim") is not None:
        pytest.skip("it is installed here")
    process = launch(*tiny, "training.optim=adalomo")
    assert (
        only_error(process)
        == "training.optim=adalomo: lomo_optim is not installed; pip install lomo-optim, or take"
        " training.optim=adamw_torch_fused"
    )
    assert "engine:" not in process.stderr


def test_loggers_that_cannot_start(monkeypatch):
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in ("azureml.core", "mlflow") else True
    )
    with pytest.raises(UserError, match=r"azureml\.core is not installed; pip install azureml-sdk"):
        loggers.check(["azure_ml"])
    with pytest.raises(UserError, match=r"^training\.report_to=dagshub: mlflow is not installed"):
        loggers.check(["dagshub"])
    monkeypatch.delenv("NEPTUNE_PROJECT", raising=False)
    monkeypatch.setenv("NEPTUNE_API_TOKEN", "x")
    with pytest.raises(
        UserError, match=r"^training\.report_to=neptune: set NEPTUNE_PROJECT in the environment"
    ):
        loggers.check(["neptune"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setenv("DISABLE_MLFLOW_INTEGRATION", "TRUE")
    with pytest.raises(UserError, match="DISABLE_MLFLOW_INTEGRATION"):
        loggers.check(["mlflow"])
