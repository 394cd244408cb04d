"""The schema: every key and value checked, in one line that names the nearest right one."""

import dataclasses

import pytest
from conftest import SEED
from omegaconf import OmegaConf

from chatbot_sft import ConfigLoader, UserError
from chatbot_sft.config import Config, TrainingConfig, sft_arguments


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"training": {"max_stpes": 3}}, "training.max_stpes: no such key; did you mean training.max_steps?"),
        (
            {"lora": {"learning_rate": 1e-4}},
            "lora.learning_rate: no such key; did you mean training.learning_rate?",
        ),
        (
            {"training": {"weight_deca": 0.1}},
            "training.weight_deca: no such key; did you mean training.weight_decay?",
        ),
        (
            {"training": {"neftune_noise_alfa": 5}},
            "training.neftune_noise_alfa: no such key; did you mean training.neftune_noise_alpha?",
        ),
        ({"max_steps": 2}, "max_steps: no such key; did you mean training.max_steps?"),
        ({"experiment": {}}, "experiment: an overlay has to begin with the line `# @package _global_`"),
        ({"training": {"optim": "adamw8bit"}}, "training.optim=adamw8bit: not one of"),
        ({"training": {"lr_scheduler_type": "cosin"}}, "training.lr_scheduler_type=cosin: not one of"),
        (
            {"training": {"padding_free": True}},
            "training.padding_free: a step is cut by the batch layout: set training.batch_layout",
        ),
        (
            {"lora": {"target_modules": "q_proj"}},
            (
                "lora.target_modules='q_proj': expected all-linear or a list of module names; write"
                " lora.target_modules=[q_proj]"
            ),
        ),
        (
            {"lora": {"target_modules": "all-liner"}},
            (
                "lora.target_modules='all-liner': expected all-linear or a list of module names; did you mean"
                " all-linear?"
            ),
        ),
        (
            {"lora": {"target_modules": []}},
            "lora.target_modules=[]: expected all-linear or a list of module names",
        ),
        (
            {"lora": {"init_lora_weights": "gausian"}},
            (
                "lora.init_lora_weights=gausian: not one of true, false, gaussian, orthogonal, olora, pissa,"
                " loftq, mica; did"
            ),
        ),
        (
            {"lora": {"init_lora_weights": "eva"}},
            "lora.init_lora_weights=eva: needs a pass over the data that this version does not make",
        ),
        (
            {"lora": {"init_lora_weights": "loftq"}},
            (
                "lora.init_lora_weights=loftq with model.load_in_4bit=true: LoftQ quantises the 16-bit"
                " weights itself; set"
            ),
        ),
        (
            {"lora": {"init_lora_weights": "pissa_niter_4"}},
            "lora.init_lora_weights=pissa_niter_4 with model.load_in_4bit=true: it changes the base",
        ),
        ({"lora": {"loftq_bits": 2}}, "lora.loftq_bits=2: not one of 4, 8"),
        ({"sweep": {"sampler": "tpe"}}, "sweep.sampler=tpe: it would never end; set sweep.trials"),
        (
            {"sweep": {"sampler": "grid"}},
            "sweep.sampler=grid: not one of random, tpe, cmaes, nsgaii; did you mean null?",
        ),
        ({"sweep": {"trials": 5}}, "sweep.trials=5: needs sweep.sampler, for instance tpe"),
        (
            {"sweep": {"sampler": "tpe", "trials": 5, "zip": ["lora.r"]}},
            "sweep.zip=['lora.r']: sweep.sampler=tpe chooses the points itself",
        ),
        (
            {"sweep": {"pruner": "asha"}},
            "sweep.pruner=asha: not one of hyperband, halving, median, patient; did you",
        ),
        (
            {"sweep": {"pruner": "median"}},
            "sweep.pruner=median needs evaluations during training: set training.eval_steps",
        ),
        (
            {"sweep": {"pruner": "halving"}, "training": {"eval_steps": 50, "max_steps": 100}},
            "sweep.pruner=halving: the first evaluation comes too late to end any job (training.eval_steps=50)",
        ),
        (
            {"sweep": {"pruner": "median"}, "training": {"eval_steps": 0.7}},
            "sweep.pruner=median: the first evaluation comes too late to end any job (training.eval_steps=0.7)",
        ),
        (
            {"sweep": {"pruner": "hyperband"}, "training": {"eval_steps": 100, "max_steps": 100}},
            "sweep.pruner=hyperband: the first evaluation comes too late to end any job (training.eval_steps=100)",
        ),
        ({"sweep": {"turn": 5}}, "sweep.turn=5 needs sweep.pruner"),
        (
            {"sweep": {"workers": "all"}},
            "sweep.workers=all: expected a number of processes, 1 or more, or auto",
        ),
        ({"sweep": {"workers": 0}}, "sweep.workers=0: expected a number of processes, 1 or more, or auto"),
        (
            {"sweep": {"direction": "minimize"}},
            "sweep.direction=minimize: not one of minimise, maximise; did you mean minimise?",
        ),
        ({"sweep": {"metric": [1]}}, "sweep.metric=[1]: expected a number of report.json"),
        (
            {"sweep": {"metric": ["a", "b"], "direction": ["minimise"]}},
            "sweep.direction=['minimise']: 1 directions for 2 metrics",
        ),
        (
            {"sweep": {"metric": "evaluation.passed"}},
            "sweep.metric=evaluation.passed: no job would ask them; set training.golden_steps, for instance 10, and evaluation.golden=FILE",
        ),
        (
            {"sweep": {"metric": "evaluation.passed", "pruner": "median"}, "training": {"eval_steps": 1}},
            "sweep.metric=evaluation.passed: no job would ask them",
        ),
        (
            {"sweep": {"metric": ["a", "a"], "sampler": "nsgaii", "trials": 2}},
            "sweep.metric: a is there twice; name it once",
        ),
        ({"sweep": {"metric": ["a", "b"]}}, "sweep.metric: two metrics need sweep.sampler=nsgaii"),
        (
            {"sweep": {"metric": ["a", "b"], "pruner": "median"}, "training": {"eval_steps": 1}},
            "sweep.pruner=median with two metrics: it judges by one held-out loss",
        ),
        (
            {"lora": {"init_lora_weights": "orthogonal", "r": 3}},
            "lora.r=3 with lora.init_lora_weights=orthogonal: must be even",
        ),
        ({"model": {"new_tokens": ["<a>", "<a>"]}}, "model.new_tokens: '<a>' is there twice"),
        ({"model": {"new_tokens": [" "]}}, "model.new_tokens: ' ' is empty"),
        ({"trainig": {}}, "trainig: no such key; did you mean training?"),
        (
            {"model": {"load_in_4bit": "maybe"}},
            "model.load_in_4bit='maybe': expected true or false",
        ),
        (
            {"lora": {"r": "many"}},
            "lora.r='many': expected a whole number",
        ),
        ({"lora": {"r": -1}}, "lora.r=-1: must be at least 0"),
        ({"lora": {"lora_dropout": 1.0}}, "lora.lora_dropout=1.0: must be at least 0 and below 1"),
        ({"training": {"learning_rate": 0}}, "training.learning_rate=0.0: must be above 0"),
        (
            {"model": {"engine": "unslot"}},
            "model.engine=unslot: not one of auto, unsloth, transformers; did you mean unsloth?",
        ),
        (
            {"model": {"dtype": "float8"}},
            "model.dtype=float8: not one of float16, bfloat16, float32; did you mean float32?",
        ),
        (
            {"lora": {"use_gradient_checkpointing": "yes please"}},
            "lora.use_gradient_checkpointing=yes please: not one of unsloth, true, false",
        ),
        (
            {"save": {"method": "merged16bit"}},
            (
                "save.method=merged16bit: not one of lora, merged_16bit, merged_4bit, gguf, none; did you"
                " mean merged_16bit?"
            ),
        ),
        (
            {"task": "trian"},
            "task=trian: not one of train, check, plan, export, evaluate, verify, replay; did you mean train?",
        ),
        (
            {"model": "llama"},
            "model: expected keys and values, got 'llama'; an option of it is chosen by model=OPTION, or in",
        ),
        ({"model": {"brings": 3}}, "model.brings: expected keys and values, got 3; write them below it"),
        ({"model": {"name": "???"}}, "model.name: not set; give it a value, for instance model.name=…"),
        ({"training": {"bf16": True}}, "training.bf16: set model.dtype"),
        (
            {"training": {"neftune_noise_alpha": "much"}},
            "training.neftune_noise_alpha='much': expected float | None",
        ),
        ({"training": {"max_steps": None}}, "training.max_steps and training.num_train_epochs are both null"),
        (
            {"lora": {"r": 0}},
            "model.load_in_4bit=true with lora.r=0: 4-bit weights cannot be trained in full",
        ),
        (
            {"lora": {"r": 0}, "model": {"load_in_4bit": False}, "save": {"method": "lora"}},
            "save.method=lora with lora.r=0",
        ),
        (
            {"save": {"method": ["lora", "none"]}},
            "save.method=none: not one of lora, merged_16bit, merged_4bit, gguf",
        ),
        (
            {"save": {"method": []}},
            "save.method and save.gguf_quantization: an empty list; name one, or set save.method=none",
        ),
        (
            {"save": {"method": "gguf", "gguf_quantization": "q4_k"}},
            "save.gguf_quantization=q4_k: not one of 19 that there are; did you mean q4_k_m?",
        ),
        (
            {"save": {"method": "lora", "save_path": "x.gguf"}},
            "save.save_path=x.gguf: names a GGUF file, but save.method=lora; name a folder",
        ),
        (
            {"save": {"method": "gguf", "save_path": "x.gguf", "gguf_quantization": ["f16", "q8_0"]}},
            "save.save_path=x.gguf: names one file for 2",
        ),
        (
            {"save": {"method": "gguf", "save_path": "x.gguf", "push_to_hub": True}},
            "save.save_path=x.gguf: names a file, and save.push_to_hub",
        ),
        (
            {"save": {"method": "none", "push_to_hub": True}},
            "save.push_to_hub=true with save.method=none: there is nothing to upload",
        ),
        ({"task": "export"}, "task=export needs run=DIR, the directory of a run"),
        ({"run": "x"}, "run=x: needs task=export, task=evaluate, task=verify or task=replay"),
        ({"task": "verify", "run": "x"}, "task=verify needs both run=DIR, the directory of a run, and url="),
        ({"task": "verify", "evaluation": {"url": "http://a/v1"}}, "task=verify needs both run=DIR"),
        ({"task": "evaluate", "run": "x"}, "task=evaluate needs evaluation.golden=FILE"),
        ({"task": "evaluate", "evaluation": {"golden": "g"}}, "task=evaluate needs one of run=PATH"),
        (
            {"task": "evaluate", "run": "x", "evaluation": {"golden": "g", "url": "http://a/v1"}},
            "run=x and evaluation.url=http://a/v1: task=evaluate asks one of them; leave one out",
        ),
        ({"evaluation": {"url": "localhost:8000"}}, "evaluation.url=localhost:8000: not an address such as"),
        (
            {"evaluation": {"judge_url": "http://a:x/v1"}},
            "evaluation.judge_url=http://a:x/v1: not an address",
        ),
        ({"evaluation": {"url": "http://me:secret@a/v1"}}, "evaluation.url: an address alone, without user"),
        ({"evaluation": {"url": "http://a/v1?key=1"}}, "evaluation.url: an address alone"),
        (
            {"evaluation": {"api_key_variable": "sk-abcdef"}},
            "evaluation.api_key_variable: the name of an environment variable that holds the key, never the key",
        ),
        ({"evaluation": {"minimum": 1.5}}, "evaluation.minimum=1.5: must be at most 1"),
        (
            {"task": "export", "run": "x", "save": {"method": "none"}},
            "task=export with save.method=none: nothing to do; for instance save=gguf",
        ),
    ],
)
def test_what_is_wrong_is_named(config, message):
    with pytest.raises(UserError) as caught:
        Config.from_mapping(config)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_token_is_refused_and_never_repeated():
    with pytest.raises(UserError, match="HF_TOKEN") as caught:
        Config.from_mapping({"model": {"token": "hf_secret"}})
    assert "hf_secret" not in str(caught.value)


def test_values_are_converted_as_yaml_users_expect():
    config = Config.from_mapping(
        {"training": {"learning_rate": "1e-4", "num_train_epochs": 3}, "lora": {"lora_dropout": 0}}
    )
    assert config.training.learning_rate == 1e-4
    assert config.training.num_train_epochs == 3.0
    assert config.effective_batch_size == 8


def test_sft_arguments_pass_through_and_come_back():
    config = Config.from_mapping({"training": {"neftune_noise_alpha": 5, "max_grad_norm": 0.3}})
    assert config.sft_arguments == {"neftune_noise_alpha": 5, "max_grad_norm": 0.3}
    assert Config.from_mapping(config.to_dict()) == config


@pytest.mark.slow
def test_every_sft_argument_is_known_as_trl_itself_knows_it():
    """The parsed sources agree with the imported class, so no key is refused that TRL takes."""
    import trl

    assert set(sft_arguments.known()) == {
        field.name for field in dataclasses.fields(trl.SFTConfig) if field.init
    }


def test_every_sft_argument_is_ours_or_passed_on_or_refused_with_what_to_use_instead():
    """Over the real class: a key that a new TRL brings fails here, and is refused until someone has seen what
    it does.
    """
    ours = {field.name for field in dataclasses.fields(TrainingConfig)} - {"output_dir"}
    kinds = [set(sft_arguments.MANAGED), set(sft_arguments.PASSED), ours & set(sft_arguments.known())]
    assert set.union(*kinds) == set(sft_arguments.known())
    assert sum(map(len, kinds)) == len(set.union(*kinds))
    for key in sft_arguments.MANAGED:
        if key != "output_dir":
            with pytest.raises(UserError, match=rf"^training\.{key}: .*(\bset \w|leave it out)"):
                Config.from_mapping({"training": {key: 1}})


def test_a_key_that_only_a_newer_trl_has_is_refused(monkeypatch):
    monkeypatch.setattr(sft_arguments, "known", lambda: {"new_trick": "bool"})
    with pytest.raises(
        UserError,
        match=(
            r"^training\.new_trick: a key of this version of TRL that chatbot_sft does not know; leave it out"
        ),
    ):
        Config.from_mapping({"training": {"new_trick": True}})


def test_a_users_own_class_may_take_keys_of_its_own():
    config = Config.from_mapping({"dataset": {"_target_": "my_loader.Mine", "flavour": "sen"}})
    assert config.dataset._target_ == "my_loader.Mine"


def test_the_seeds_yaml_is_read_as_it_stands(tmp_path):
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "configs").mkdir()
    file = tmp_path / "configs" / "sft.yaml"
    file.write_text(SEED.read_text(encoding="utf-8"))
    config = ConfigLoader.load_config(file)
    assert ConfigLoader.validate_config(config)
    assert config["dataset"]["data_path"] == str(tmp_path / "data" / "thinking_teacher_conversations.json")
    assert config["training"]["output_dir"] == str(tmp_path / "checkpoints")
    assert config["save"]["save_path"] == str(tmp_path / "checkpoints" / "final_model")
    assert config["training"]["gradient_accumulation_steps"] == 4
    assert config["training"]["logging_steps"] == 1  # filled in
    ours = Config.from_mapping({}).to_dict()
    seed = OmegaConf.to_container(OmegaConf.create(SEED.read_text(encoding="utf-8")))
    different = {(s, k): v for s, keys in seed.items() for k, v in keys.items() if ours[s][k] != v}
    assert different == {("save", "hub_model_id"): "your-username/model-name"}  # our defaults are the seed's


def test_paths_are_relative_to_the_working_directory_outside_of_a_project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sft.yaml").write_text("model: {name: smollm2}")
    assert ConfigLoader.load_config("sft.yaml")["training"]["output_dir"] == str(tmp_path / "checkpoints")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "expected sections"),
        ("model: [unclosed", "sft.yaml, line 1, column 8: a bracket that is not closed"),
        ("modle: {}", "modle: no such key; did you mean model?"),
    ],
)
def test_a_bad_yaml_file_is_named(tmp_path, text, message):
    file = tmp_path / "sft.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        ConfigLoader.load_config(file)
    assert message in str(caught.value)


def test_merge_and_save_round_trip(tmp_path):
    merged = ConfigLoader.merge(
        Config.from_mapping({}).to_dict(),
        {"training": {"max_steps": 7}, "lora": {"target_modules": ["q_proj"]}},
    )
    assert merged["training"]["max_steps"] == 7
    assert merged["lora"]["target_modules"] == ["q_proj"]
    ConfigLoader.save(merged, tmp_path / "new" / "sft.yaml")
    loaded = ConfigLoader.load_config(tmp_path / "new" / "sft.yaml", project_root=tmp_path)
    assert loaded["training"]["max_steps"] == 7
    with pytest.raises(UserError, match=r"did you mean training\.max_steps"):
        ConfigLoader.merge(merged, {"training": {"max_step": 1}})
