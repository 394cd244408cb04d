"""The native loop and TRL's: the same numbers, which one trains, and what each does with what is asked of it."""

import logging
from pathlib import Path

import pytest
from conftest import conversations, only_error, report_of, write_json

from chatbot_sft.config import Config
from chatbot_sft.config.sft_arguments import enum_values
from chatbot_sft.errors import UserError
from chatbot_sft.optimization import built_by_native
from chatbot_sft.run import checkpoints
from chatbot_sft.run.lock import MACHINE
from chatbot_sft.train import resume
from chatbot_sft.train.choice import chosen


@pytest.fixture(scope="module")
def build(tiny_llama, tmp_path_factory):
    """`build(lora={…}, **training)`: a wrapper around the tiny model in float32, set up: eleven conversations
    in steps of 2 × 2.
    """
    from chatbot_sft import DatasetLoader, ModelLoader, SFTTrainerWrapper

    rows = conversations(14)
    for number, row in enumerate(rows):  # of different lengths: there is padding, and packing
        row["messages"][1]["content"] += " dài" * (3 * number % 7)
    data = write_json(tmp_path_factory.mktemp("data") / "chats.json", rows)

    def made(lora=None, origin=None, model=None, **training):
        plain = {
            "name": str(tiny_llama),
            "engine": "transformers",
            "load_in_4bit": False,
            "dtype": "float32",
            "max_seq_length": 256,
        }
        config = {
            "model": {**plain, **(model or {})},
            "dataset": {"data_path": str(data), "eval_fraction": 0.2},
            "lora": lora or {},
            "training": {
                "output_dir": str(tmp_path_factory.mktemp("loops")), "max_steps": 4, "learning_rate": 1e-2, "warmup_steps": 1,
                "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "batch_layout": "as_configured", "sample_max_new_tokens": 0,
                **training,
            },
            "save": {"method": "none"},
        }  # fmt: skip
        model, tokenizer = ModelLoader(config).load_and_configure()
        dataset = DatasetLoader(config, tokenizer)
        wrapper = SFTTrainerWrapper(config, model, tokenizer, dataset.prepare_dataset(), dataset.eval_dataset)
        wrapper.origin = origin or wrapper.origin
        wrapper.setup()
        return wrapper

    return made


def figures(wrapper):
    """(loss, gradient norm, learning rate) of each step, held-out losses by step, and the trained weights."""
    steps = [
        (entry["loss"], entry["grad_norm"], entry["learning_rate"])
        for entry in wrapper.state.log_history
        if "loss" in entry
    ]
    held_out = {record["step"]: record["loss"] for record in wrapper.evaluations.records}
    return (
        steps,
        held_out,
        [parameter.detach().clone() for parameter in wrapper.model.parameters() if parameter.requires_grad],
    )


CASES = {
    "adapter": {},
    "an epoch's last step": {"max_steps": None, "num_train_epochs": 2},
    "dropout": {"lora": {"lora_dropout": 0.3}, "max_steps": 6},
    "every weight": {"lora": {"r": 0}, "weight_decay": 0.5},
    "packing": {"packing": True},
    "clipping": {"max_grad_norm": 0.05, "optim": "sgd", "lr_scheduler_type": "cosine"},
    "label smoothing": {"label_smoothing_factor": 0.2},
    "noise on the embeddings": {"neftune_noise_alpha": 5},
    "evaluated": {"eval_steps": 2, "lr_scheduler_type": "reduce_lr_on_plateau"},
}


@pytest.mark.parametrize("case", CASES)
def test_the_native_loop_gives_the_numbers_of_trls_own_trainer(case, build):
    """To the bit: TRL's SFTTrainer, the same rows, the same machine."""
    import torch
    import trl

    wrappers = []
    for loop in ("native", "trl"):  # one after the other: creating a trainer sets the seed
        wrappers.append(build(**CASES[case], loop=loop))
        wrappers[-1].evaluate()  # before training, as a run does
        wrappers[-1].train()
    (native, held_out, ours), (published, their_held_out, theirs) = map(figures, wrappers)
    assert type(wrappers[1].trainer).__mro__[1] is trl.SFTTrainer  # the engine's, for a CPU
    assert len(native) >= 4
    assert native == published
    assert held_out == their_held_out
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert wrappers[0].output.training_loss == pytest.approx(wrappers[1].output.training_loss)


@pytest.mark.parametrize(
    ("what", "steps"),
    [
        ({"lora": {"lora_dropout": 0.3}}, (2, 3, 4)),  # three steps are an epoch
        ({"lora": {"lora_dropout": 0.3}, "loop": "trl"}, (2, 3, 4)),
        ({"lora": {"r": 0}}, (4,)),
        ({"lora": {"modules_to_save": ["embed_tokens"]}}, (4,)),
        ({"model": {"new_tokens": ["<|note|>"]}}, (4,)),
        (
            {
                "lora": {"use_dora": True},
                "optim": "adafactor",
                "lr_scheduler_type": "reduce_lr_on_plateau",
                "eval_steps": 1,
            },
            (4,),
        ),
    ],
)
def test_a_resumed_run_ends_as_if_it_had_never_stopped(what, steps, build):
    import torch

    shared = {"max_steps": 7, "save_steps": 1, "save_total_limit": None, **what}
    whole = build(**shared)
    whole.train()
    for step in steps:
        folder = Path(whole.settings.training.output_dir) / f"checkpoint-{step}"
        again = build(**shared, origin=resume.Origin(checkpoint=checkpoints.verified(folder)))
        again.train()
        (expected, _, ours), (found, _, theirs) = figures(whole), figures(again)
        assert found == expected
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_trls_trainer_is_built_when_it_is_asked_for_and_then_trains(build, caplog):
    import trl
    from transformers import TrainerCallback

    class Counts(TrainerCallback):
        steps = 0

        def on_step_end(self, args, state, control, **kwargs):
            Counts.steps += 1

    wrapper = build()
    assert wrapper.loop == "native"
    with caplog.at_level(logging.INFO):
        wrapper.trainer.add_callback(Counts())
    assert isinstance(wrapper.trainer, trl.SFTTrainer)
    assert "loop: trl (SFTTrainerWrapper.trainer was asked for)" in caplog.text
    assert wrapper.train().global_step == Counts.steps == 4


def test_the_native_loop_takes_callbacks_and_the_state_is_trls(build):
    from transformers import TrainerCallback

    class Stops(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 3

    wrapper = build(loop="native", save_strategy="no")
    wrapper.job.add_callback(Stops())
    assert wrapper.train().global_step == 3
    assert wrapper.trainer.state.log_history == wrapper.state.log_history
    assert [entry["step"] for entry in wrapper.state.log_history if "loss" in entry] == [1, 2, 3]


@pytest.mark.parametrize(
    ("training", "key"),
    [
        ({}, None),
        ({"optim": "paged_lion_8bit", "neftune_noise_alpha": 5, "report_to": ["wandb", "mlflow"]}, None),
        ({"optim": "stable_adamw"}, "training.optim=stable_adamw"),
        ({"optim": "galore_adamw", "optim_target_modules": "all-linear"}, "training.optim=galore_adamw"),
        ({"report_to": ["tensorboard", "clearml"]}, "training.report_to=clearml"),
        ({"ddp_bucket_cap_mb": 5}, "training.ddp_bucket_cap_mb=5"),
    ],
)
def test_auto_takes_trls_loop_for_a_key_that_is_its_own_and_names_it(training, key, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2" if "ddp_bucket_cap_mb" in training else "1")

    def made(loop):
        return Config.from_mapping({"training": {**training, "loop": loop}})

    assert chosen(made("auto")) == (("trl", f"for {key}") if key else ("native", "auto"))
    assert chosen(made("trl")) == ("trl", "as configured")
    if key is None:
        assert chosen(made("native")) == ("native", "as configured")
        return
    with pytest.raises(UserError, match=f"training.loop=native: it has no {key}; leave one of the two out"):
        chosen(made("native"))


def test_a_key_that_the_loop_does_not_have_is_refused_before_a_model_is_loaded(launch, tiny):
    alone = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    process = launch(*tiny, "training.loop=native", "training.ddp_bucket_cap_mb=5", env=alone)
    assert only_error(process).startswith(
        "training.loop=native: it has no training.ddp_bucket_cap_mb=5; leave one of the two out"
    )
    assert "engine:" not in process.stderr


def test_a_loop_that_is_none_is_refused():
    with pytest.raises(
        UserError, match=r"training\.loop=natve: not one of auto, native, trl; did you mean native"
    ):
        Config.from_mapping({"training": {"loop": "natve"}})


def test_the_loop_is_part_of_what_a_run_was_trained_with():
    checkpoint = checkpoints.Checkpoint(
        None, {"identity": dict(zip(MACHINE, ("unsloth", "float32", "sgd", "native"), strict=True))}
    )
    with pytest.raises(UserError, match=r"training\.loop native → trl"):
        resume.refuse_changes(
            resume.Origin(checkpoint=checkpoint),
            dict(zip(MACHINE, ("unsloth", "float32", "sgd", "trl"), strict=True)),
            whole=False,
        )


@pytest.mark.slow
@pytest.mark.parametrize("optim", filter(built_by_native, enum_values("training_args.py", "OptimizerNames")))
def test_the_native_loop_builds_the_optimizer_that_transformers_does(optim, tmp_path):
    import torch
    from transformers import Trainer, TrainingArguments

    from chatbot_sft.train.optimizer import build_optimizer

    model = torch.nn.Sequential(torch.nn.Linear(70, 60), torch.nn.LayerNorm(60))
    args = TrainingArguments(
        output_dir=str(tmp_path),
        optim=optim,
        learning_rate=0.3,
        weight_decay=0.2,
        adam_beta2=0.9,
        use_cpu=True,
        report_to="none",
    )
    args.optim = optim  # Unsloth, where it was imported, changes what is meant for a GPU
    if optim in ("sgd", "rmsprop"):
        args.optim_args = "momentum=0.5"
    theirs = Trainer(model, args).create_optimizer()
    ours = build_optimizer(args, model, None)
    assert isinstance(ours, type(theirs))
    assert ours.defaults == theirs.defaults
    for group, other in zip(ours.param_groups, theirs.param_groups, strict=True):
        assert [id(parameter) for parameter in group.pop("params")] == [
            id(parameter) for parameter in other.pop("params")
        ]
        assert group == other


@pytest.mark.slow
@pytest.mark.parametrize(
    "optim", ["adamw_bnb_8bit", "lion_8bit", "ademamix_8bit", "rmsprop_bnb_8bit", "lion_32bit"]
)
def test_an_optimizer_of_bitsandbytes_moves_weights_as_it_does_and_does_not_wait(
    optim, tmp_path, monkeypatch
):
    """Some parameters are too small for 8 bits, one has no gradient."""
    import torch
    from transformers import Trainer, TrainingArguments

    from chatbot_sft.train.optimizer import build_optimizer

    args = TrainingArguments(
        output_dir=str(tmp_path), optim=optim, learning_rate=0.3, use_cpu=True, report_to="none"
    )
    moved, waits = {}, []
    monkeypatch.setattr("bitsandbytes.optim.optimizer.sync_gpu", waits.append)
    for whose in ("theirs", "ours"):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(70, 60), torch.nn.LayerNorm(60), torch.nn.Linear(60, 3))
        optimizer = (
            build_optimizer(args, model, None) if whose == "ours" else Trainer(model, args).create_optimizer()
        )
        for _ in range(3):
            optimizer.zero_grad()
            model[:2](torch.ones(2, 70)).square().sum().backward()
            optimizer.step()
        moved[whose] = [parameter.detach().clone() for parameter in model.parameters()]
        assert bool(waits) == (whose == "theirs")
        waits.clear()
    torch.testing.assert_close(moved["ours"], moved["theirs"], rtol=0, atol=0)


def test_a_whole_run_in_trls_loop(launch, tiny, tmp_path):
    """Evaluated, stopped early with the best weights, its checkpoints whole; with a learning rate that ruins
    the model.
    """
    process = launch(
        *tiny, "training.loop=trl", "training.max_steps=40", "training.learning_rate=3", "training.lr_scheduler_type=constant", "save=lora",
        "training.warmup_steps=0", "training.eval_steps=2", "training.early_stopping_patience=2", "training.load_best_model_at_end=true",
        "training.stop_on_divergence=false", "model.dtype=float32", "hydra.run.dir=run",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert "loop: trl (as configured)" in process.stderr
    report = report_of(tmp_path)
    training, evaluations = report["training"], report["evaluations"]
    best = min(
        (record for record in evaluations[1:] if record["loss"] is not None),
        key=lambda record: record["loss"],
    )
    assert training["stopped_early"]
    assert training["weights_of_step"] == best["step"] == training["steps"] - 4
    assert training["eval_loss"] == pytest.approx(best["loss"], abs=1e-6)
    kept = checkpoints.verified(tmp_path / "run" / "checkpoints" / f"checkpoint-{best['step']}").folder
    name = "adapter_model.safetensors"
    assert (tmp_path / "run" / "model" / name).read_bytes() == (kept / name).read_bytes()
