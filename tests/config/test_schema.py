"""Each key is defined once: help, bounds, choices and what it decides stand beside its default, and conf/
says the same.
"""

import pytest
from conftest import REPO
from omegaconf import OmegaConf

from chatbot_sft import UserError
from chatbot_sft.config import SECTIONS, Config, deciding, find, keys
from chatbot_sft.resources import conf_dir

KEYS = {key.path: key for key in keys()}
NUMBERS = [
    path for path, key in KEYS.items() if key.kind.startswith(("int", "float")) and not key.about.choices
]


def with_value(path, value):
    section, _, name = path.rpartition(".")
    return Config.from_mapping({section: {name: value}} if section else {name: value})


def test_every_key_says_what_it_is_for():
    assert len(KEYS) > 80
    for path, key in KEYS.items():
        assert key.about.help, path
        assert "\n" not in key.about.help, path
        assert find(path) == key


@pytest.mark.parametrize("path", NUMBERS)
def test_every_number_has_bounds(path):
    assert KEYS[path].about.bound
    wrong = [-1, 10**12] if KEYS[path].kind.startswith("int") else [-1.0, 1e12, float("nan"), float("inf")]
    for value in wrong:
        with pytest.raises(UserError) as caught:
            with_value(path, value)
        assert str(caught.value).startswith(f"{path}="), value


@pytest.mark.parametrize("path", [path for path, key in KEYS.items() if key.about.choices])
def test_every_choice_is_checked(path):
    assert KEYS[path].default is None or KEYS[path].default in KEYS[path].about.choices
    with pytest.raises(UserError, match=rf"^{path}=(nonsense|99): not one of "):
        with_value(path, 99 if KEYS[path].kind.startswith("int") else "nonsense")


def of_conf(path):
    """What the files of conf/ have for a key, ${default:…} as what it stands for; the path of the file that
    has it.
    """
    section, _, name = path.rpartition(".")
    for option in (
        ("config.yaml",)
        if not section
        else (f"{section}/{option}.yaml" for option in ("default", "local", "merged_16bit", "sft"))
    ):
        file = conf_dir() / option
        values = OmegaConf.to_container(OmegaConf.load(file)) if file.exists() else {}
        if name in values:
            value = values[name]
            giving_way = isinstance(value, str) and value.startswith("${default:")
            return OmegaConf.create([value[len("${default:") : -1]])[0] if giving_way else value
    raise KeyError(path)


@pytest.mark.parametrize("path", KEYS)
def test_conf_has_the_same_keys_and_defaults(path):
    """Those that are meant to be others are marked as such, `elsewhere`, with the reason."""
    shown = of_conf(path)
    key = KEYS[path]
    if isinstance(shown, str) and isinstance(key.default, (int, float, list)):  # from ${default:…}
        shown = OmegaConf.to_container(OmegaConf.create(f"value: {shown}"))["value"]
    assert (shown == key.default) != bool(key.about.elsewhere), (path, shown, key.default)


def test_conf_has_no_other_keys():
    for section in SECTIONS:
        for file in (conf_dir() / section).glob("*.yaml"):
            names = {name for name in OmegaConf.load(file) if name != "defaults"}
            assert names <= {key.name for key in KEYS.values() if key.section == section}, file.relative_to(
                REPO
            )


# What decides a result


def test_what_decides_a_result_is_what_a_checkpoint_always_recorded():
    """Written out: a key that goes makes checkpoints of older runs another run's; one that comes does so where it is
    not at its default.
    """
    assert set(deciding(Config())) == {
        "seed", "dataset.shuffle",
        *(f"model.{name}" for name in ("_target_", "revision", "max_seq_length", "load_in_4bit", "load_in_fp8", "new_tokens")),
        *(
            f"lora.{name}"
            for name in (
                "_target_", "r", "lora_alpha", "lora_dropout", "target_modules", "bias", "use_rslora", "use_dora", "modules_to_save",
                "init_lora_weights", "loftq_bits", "loftq_iter",
            )
        ),
        *(
            f"training.{name}"
            for name in (
                "_target_", "packing", "max_steps", "num_train_epochs", "learning_rate", "lr_scheduler_type", "warmup_steps", "warmup_ratio",
                "weight_decay", "response_only",
            )
        ),
        *(
            f"objective.{name}"
            for name in ("name", "_target_", "beta", "loss_type", "loss_weights", "label_smoothing", "desirable_weight", "undesirable_weight")
        ),
    }  # fmt: skip


def test_keys_of_a_users_own_class_and_of_sft_config_decide_where_they_may():
    config = Config.from_mapping({
        "model": {"_target_": "my.Model", "mine": 1},
        "dataset": {"_target_": "my.Data", "greeting": "hi"},
        "training": {"neftune_noise_alpha": 5, "run_name": "a", "dataloader_num_workers": 2, "save_strategy": "no"},
    })  # fmt: skip
    found = deciding(config)
    assert (found["model.mine"], found["training.neftune_noise_alpha"]) == (1, 5)
    assert not {
        "dataset.greeting",
        "training.run_name",
        "training.dataloader_num_workers",
        "training.save_strategy",
    } & set(found)


# A user's own class


def test_keys_of_a_users_own_class_have_a_typed_place_and_come_back():
    given = {
        "dataset": {"_target_": "my_loader.Mine", "flavour": "sen", "mine": {"a": [1]}},
        "training": {"_target_": "my.T", "rate": 2},
    }
    config = Config.from_mapping(given)
    assert (config.dataset.extra, config.training.extra, config.lora.extra) == (
        {"flavour": "sen", "mine": {"a": [1]}},
        {"rate": 2},
        {},
    )
    assert config.to_dict()["dataset"]["flavour"] == config["dataset"]["flavour"] == "sen"
    assert "extra" not in config["dataset"]
    assert Config.from_mapping(config.to_dict()) == config
    assert Config.from_mapping(config) is config
    assert dict(config) == {**config} == config.to_dict()
