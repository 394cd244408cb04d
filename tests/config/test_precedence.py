"""Which setting counts: the user's word, then what the options of data and model bring, then the default."""

import pytest
import yaml
from conftest import only_error, report_of
from hydra.errors import HydraException

from chatbot_sft import ConfigLoader, UserError
from chatbot_sft.config import BringsConfig, Config
from chatbot_sft.config.hydra_errors import said
from chatbot_sft.resources import conf_dir

EXAMPLES = 100  # steps that the default data brings
BROUGHT = {"training.max_steps": EXAMPLES, "training.learning_rate": 2e-3, "model.load_in_4bit": False}
USUAL = {"training.max_steps": EXAMPLES, "training.learning_rate": 2e-4, "model.load_in_4bit": True}
EVERY_PROJECTION = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def composed(tmp_path_factory):
    """`composed("model=local", …)` is the configuration that a command line comes to, with the user's own
    options at hand.
    """
    mine = tmp_path_factory.mktemp("mine")
    files = {
        "training/slow": "defaults: [default]\nmax_steps: 7\nlearning_rate: 1.0e-5\n",
        "training/bare": "_target_: chatbot_sft.train.SFTTrainerWrapper\nmax_steps: 7\n",
        "training/epochs": "defaults: [default]\nnum_train_epochs: 2\n",
        "lora/mine": "defaults: [default]\ntarget_modules: [q_proj]\n",
        "dataset/mine": "defaults: [default]\ndata_path: mine.json\nbrings: {max_steps: 9}\n",
        "model/mine": "defaults: [local]\nname: org/mine\nbrings: {learning_rate: 3.0e-3}\n",
        "model/bare": "name: org/bare\n",
        "objective/bare": "name: dpo\n",
        "dataset/absolute": "defaults: [/dataset/default]\ndata_path: mine.json\n",
        "model/longer": "defaults: [mine]\nmax_seq_length: 64\n",
        "experiment/named": "# @package _global_\nmodel: {name: org/other, max_seq_length: 4096}\n",
        "experiment/mixed": "# @package _global_\ndataset: {sources: [{data_path: a.json}], max_rows: 5}\n",
        "experiment/ranked": "# @package _global_\nlora: {r: 64}\nsave: {method: gguf, overwrite: true}\n",
        "debug/short": "# @package _global_\ndefaults: [fast]\nsave: {method: none}\n",
        "own": "defaults: [config, _self_]\nmodel: {name: org/other}\n",
        "experiment/long": "# @package _global_\ntraining: {num_train_epochs: 3}\n",
        "experiment/rate": "# @package _global_\ntraining: {learning_rate: 1.0e-6}\n",
    }
    for name, text in files.items():
        file = mine / f"{name}.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)

    def compose(*overrides, config_name="config"):
        from chatbot_sft.config import hydra_glue

        config = hydra_glue.composed(overrides, config_name, config_dir=str(mine))
        del config.hydra
        return config

    return compose


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], BROUGHT),
        (["model=smollm2"], BROUGHT),
        (["model.name=org/other"], USUAL),  # the file's settings are for the name in the file
        (["experiment=named"], USUAL),
        (["model=local", "model.name=org/other"], USUAL),
        (["model=llama3b"], USUAL),
        (["model.name=org/other", "model.load_in_4bit=false"], {**USUAL, "model.load_in_4bit": False}),
        (
            ["training=slow"],
            {"training.max_steps": 7, "training.learning_rate": 1e-5, "model.load_in_4bit": False},
        ),
        (
            ["training=slow", "training.max_steps=9"],
            {"training.max_steps": 9, "training.learning_rate": 1e-5},
        ),
        (["training=bare"], {"training.max_steps": 7}),
        (["model=bare"], {"model.name": "org/bare", "training.learning_rate": 2e-4}),
        (["objective=bare"], {"objective.name": "dpo"}),
        (["experiment=rate"], {"training.max_steps": EXAMPLES, "training.learning_rate": 1e-6}),
        (
            ["training.learning_rate=2.0e-4"],
            {"training.learning_rate": 2e-4},
        ),  # the default's own value, said by the user
        (
            ["lora=none"],
            {"training.max_steps": EXAMPLES, "training.learning_rate": 2e-4, "model.load_in_4bit": False},
        ),
        (["lora.r=0"], {"training.learning_rate": 2e-4}),
        (["lora=none", "training.learning_rate=5e-5"], {"training.learning_rate": 5e-5}),
        (["model=phi4_mini"], {**USUAL, "lora.target_modules": "all-linear"}),
        (["model=phi4_mini", "model.name=/models/phi"], {"lora.target_modules": "all-linear"}),
        (["model=phi4_mini", "lora=mine"], {"lora.target_modules": ["q_proj"]}),
        (["model=phi4_mini", "lora.target_modules=[q_proj]"], {"lora.target_modules": ["q_proj"]}),
        (["model=llama3b"], {"lora.target_modules": EVERY_PROJECTION}),
        (["model=mine"], {"training.max_steps": EXAMPLES, "training.learning_rate": 3e-3}),
        # what the data brings is for that data alone; on data of one's own the model's word counts
        (["dataset.data_path=mine.json"], {**BROUGHT, "training.max_steps": 24}),
        (["model=llama3b", "dataset.data_path=mine.json"], {**USUAL, "training.max_steps": 30}),
        (
            ["model=mine", "dataset.data_path=a.json"],
            {"training.max_steps": 30, "training.learning_rate": 3e-3},
        ),
        (["dataset.sources=[{data_path: a.json}]"], {"training.max_steps": 24}),
        (["dataset=thinking_teacher"], {"training.max_steps": 24}),
        (["dataset=thinking_teacher", "model=llama3b"], {**USUAL, "training.max_steps": 30}),
        (["dataset=mine"], {"training.max_steps": 9, "training.learning_rate": 2e-3}),
        (["dataset=mine", "training=slow"], {"training.max_steps": 7}),
        (["experiment=company"], {**USUAL, "training.max_steps": None, "training.num_train_epochs": 3}),
        (
            ["experiment=company", "dataset=mine"],
            {"dataset.data_path": "mine.json", "training.max_steps": None},
        ),
        # an option on the command line counts over a file, in what it says itself
        (
            ["experiment=named", "model=smollm2"],
            {**BROUGHT, "model.name": "smollm2", "model.max_seq_length": 4096},
        ),
        (["experiment=named", "model=longer"], {"model.name": "org/mine", "model.max_seq_length": 64}),
        (["experiment=named", "model=local"], {"model.name": "org/other", "model.max_seq_length": 2048}),
        (["experiment=named", "model=smollm2", "model.name=org/third"], {**USUAL, "model.name": "org/third"}),
        (
            ["experiment=ranked", "lora=none", "save=none"],
            {"lora.r": 0, "save.method": "none", "save.overwrite": True},
        ),
        (["experiment=ranked", "lora=default"], {"lora.r": 16}),
        (["experiment=ranked", "lora=dora"], {"lora.r": 64, "lora.use_dora": True}),
        (
            ["experiment=mixed", "dataset=thinking_teacher"],
            {"dataset.sources": None, "dataset.max_rows": 5, "training.max_steps": 24},
        ),
        (["experiment=mixed", "dataset.data_path=b.json"], {"dataset.sources": None, "dataset.max_rows": 5}),
        (["experiment=rate", "training=slow"], {"training.learning_rate": 1e-5}),
        (["debug=fast", "training=slow"], {"training.max_steps": 2, "training.learning_rate": 1e-5}),
        (["debug=short", "training=slow", "save=gguf"], {"training.max_steps": 2, "save.method": "none"}),
        # two lengths: a default gives way, the command line beats a file
        (["training.num_train_epochs=3"], {"training.max_steps": None, "training.num_train_epochs": 3}),
        (["training=epochs"], {"training.max_steps": None, "training.num_train_epochs": 2}),
        (["experiment=long"], {"training.max_steps": None, "training.num_train_epochs": 3}),
        (
            ["experiment=long", "training.max_steps=100"],
            {"training.max_steps": 100, "training.num_train_epochs": None},
        ),
        (
            ["experiment=company", "training.max_steps=100"],
            {"training.max_steps": 100, "training.num_train_epochs": None},
        ),
        (
            ["training=slow", "training.num_train_epochs=0.5"],
            {"training.max_steps": None, "training.num_train_epochs": 0.5},
        ),
        (
            ["training.max_steps=null", "training.num_train_epochs=1"],
            {"training.max_steps": None, "training.num_train_epochs": 1},
        ),
        (["training.num_train_epochs=null"], {"training.max_steps": EXAMPLES}),
        (["training.warmup_ratio=0.1"], {"training.warmup_steps": None, "training.warmup_ratio": 0.1}),
        (["training.warmup_steps=0.1"], {"training.warmup_steps": 0.1}),
    ],
)
def test_what_the_user_names_wins(composed, overrides, expected):
    from omegaconf import OmegaConf

    config = composed(*overrides)
    found = {key: OmegaConf.select(config, key) for key in expected}
    assert {
        key: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        for key, value in found.items()
    } == expected
    assert "${default" not in OmegaConf.to_yaml(config.training) + OmegaConf.to_yaml(
        config.model
    ) + OmegaConf.to_yaml(config.lora)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["training.max_steps=3", "training.num_train_epochs=2"],
            "training.max_steps=3 and training.num_train_epochs=2: two values for one thing; set",
        ),
        (
            ["training=slow", "experiment=long"],
            (
                "training.max_steps=7 and training.num_train_epochs=3: two values for one thing; set one of"
                " them to null"
            ),
        ),
        (
            ["training.warmup_steps=5", "training.warmup_ratio=0.1"],
            "training.warmup_steps=5 and training.warmup_ratio=0.1: two values for one thing",
        ),
        (
            ["training.warmup_steps=1.5"],
            (
                "training.warmup_steps=1.5: expected a number of optimizer steps, 0 or more, or a share of"
                " the run below 1"
            ),
        ),
        (
            ["dataset.sources=[{data_path: a.json}]", "dataset.data_path=b.json"],
            "dataset.data_path and dataset.sources: two values for one thing; leave one out",
        ),
        (["training.warmup_ratio=1.5"], "training.warmup_ratio=1.5: must be at least 0 and below 1"),
        (
            ["+model.brings.max_step=3"],
            (
                "model.brings.max_step: a model's option may bring learning_rate, load_in_4bit, max_steps,"
                " only_for, target_modules"
            ),
        ),
        (["++model.brings.learning_rate=fast"], "model.brings.learning_rate='fast': "),
        (
            ["++dataset.brings.max_step=3"],
            "dataset.brings.max_step: a dataset's option may bring max_steps, only_for; did you mean max_steps?",
        ),
        (["++dataset.brings.max_steps=many"], "dataset.brings.max_steps='many': "),
        (["dataset=absolute"], "dataset.dataset: no such key; a file in dataset/ holds the keys of dataset"),
        (
            ["model=bare", "model.revision=abc"],
            (
                "model.revision: the chosen model=OPTION has no such key, as its file builds on no other; begin"
                " it with `defaults: [local]`"
            ),
        ),
    ],
)
def test_two_words_of_the_users_are_refused(composed, overrides, message):
    with pytest.raises((UserError, HydraException)) as caught:
        composed(*overrides)
    assert said(caught.value).startswith(message)


def test_every_default_that_gives_way_can_be_brought_and_the_other_way_round():
    texts = {file: file.read_text() for file in conf_dir().rglob("*.yaml")}
    giving_way = {
        line.split(":")[0].strip()
        for text in texts.values()
        for line in text.splitlines()
        if ": ${default:" in line
    }
    assert giving_way - {"warmup_steps"} == set(BringsConfig.__dataclass_fields__) - {"only_for"}


def test_an_option_that_counts_over_a_file_is_said_once(composed, capsys):
    for _ in range(2):
        composed("experiment=named", "model=phi4_mini", "debug=short", "save=lora", "lora=dora")
    assert capsys.readouterr().err.splitlines() == [
        "model=phi4_mini counts over what another file says: model.name='org/other'",
        "debug=short counts over what another file says: save.method='lora'",
    ]


def test_an_option_counts_over_a_configuration_of_the_users_own(composed):
    assert composed("model=llama1b", config_name="own").model.name == "unsloth/Llama-3.2-1B-Instruct"
    assert composed(config_name="own").model.name == "org/other"


def test_the_options_of_a_sweep_count_over_its_experiment(launch, tmp_path):
    for name, text in {
        "experiment/named": "# @package _global_\nmodel: {name: org/other}\nsweep: {dry_run: false}\n",
        "sweep/listed": "defaults: [default]\ndry_run: true\n",
    }.items():
        file = tmp_path / f"{name}.yaml"
        file.parent.mkdir()
        file.write_text(text)
    words = ("--config-dir", ".", "-m", "experiment=named", "model=smollm2,llama1b", "sweep=listed")
    process = launch(*words)
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines()[:2] == ["job 0  model=smollm2", "job 1  model=llama1b"]
    assert process.stderr.splitlines() == [
        "sweep=listed counts over what another file says: sweep.dry_run=False",
        "model=smollm2 counts over what another file says: model.name='org/other'",
        "model=llama1b counts over what another file says: model.name='org/other'",
    ]


@pytest.mark.slow
def test_a_sweep_over_models_gives_each_its_own(launch, tiny_llama, tmp_path):
    (tmp_path / "empty.json").write_text("[]")
    process = launch(
        "-m",
        f"model.name={tiny_llama},smollm2",
        "dataset.data_path=empty.json",
        "training.num_train_epochs=1,2",
    )
    assert process.returncode != 0
    kept = [
        yaml.safe_load(file.read_text())
        for file in sorted(tmp_path.glob("outputs/multirun/*/*/*/.hydra/config.yaml"))
    ]
    assert [(job["model"]["name"], job["model"]["load_in_4bit"], job["training"]["learning_rate"]) for job in kept] == [
        (str(tiny_llama), True, 2e-4), (str(tiny_llama), True, 2e-4), ("smollm2", False, 2e-3), ("smollm2", False, 2e-3),
    ]  # fmt: skip
    assert [(job["training"]["max_steps"], job["training"]["num_train_epochs"]) for job in kept] == [
        (None, 1),
        (None, 2),
    ] * 2


def test_the_python_interface_follows_the_same_rules(tmp_path):
    def training(**given):
        return Config.from_mapping({"training": given}).training

    assert (
        training(num_train_epochs=3).max_steps,
        training().max_steps,
        training(max_steps=7).num_train_epochs,
    ) == (None, 30, None)
    assert (
        training(warmup_ratio=0.1).warm_up,
        training(warmup_steps=0.2).warm_up,
        training(warmup_steps=None).warm_up,
        training().warm_up,
    ) == (0.1, 0.2, 0, 5)
    with pytest.raises(
        UserError, match=r"^training\.max_steps=30 and training\.num_train_epochs=3: two values"
    ):
        training(max_steps=30, num_train_epochs=3)
    file = tmp_path / "sft.yaml"
    file.write_text("model: {name: smollm2}\ntraining: {num_train_epochs: 3}\n")
    loaded = ConfigLoader.load_config(file)
    assert (
        loaded["training"]["max_steps"],
        loaded["training"]["learning_rate"],
        loaded["model"]["load_in_4bit"],
    ) == (None, 2e-4, True)
    merged = ConfigLoader.merge(loaded, {"training": {"max_steps": 5}})
    assert (merged["training"]["max_steps"], merged["training"]["num_train_epochs"]) == (5, None)
    brings = {"max_steps": 5, "learning_rate": 1e-3}
    config = Config.from_mapping({"model": {"name": "a/b", "brings": brings}, "training": {"max_steps": 6}})
    assert (config.training.max_steps, config.training.learning_rate, config.brought["model"]) == (
        6,
        1e-3,
        ["learning_rate=0.001"],
    )
    assert Config.from_mapping({"model": {"brings": {**brings, "only_for": "a/b"}}}).brought["model"] == []
    both = {"model": {"brings": brings}, "dataset": {"brings": {"max_steps": 9}}}
    config = Config.from_mapping(both)
    assert config.training.max_steps == 9
    assert config.brought == {"model": ["learning_rate=0.001"], "dataset": ["max_steps=9"], "objective": []}
    config = Config.from_mapping({**both, "objective": {"name": "dpo", "brings": {"learning_rate": 2e-5}}})
    assert config.training.learning_rate == 2e-5
    assert config.brought == {"model": [], "dataset": ["max_steps=9"], "objective": ["learning_rate=2e-05"]}


def test_what_a_model_brings_is_said_in_the_run(launch, tiny, tmp_path):
    given = [word for word in tiny if not word.startswith("training.max_steps")]
    process = launch(
        *given,
        "+model.brings={load_in_4bit: false, max_steps: 3, learning_rate: 1e-3}",
        "dataset.brings={only_for: null, max_steps: 2}",
        "training.learning_rate=1e-4",
        "save=none",
    )
    assert process.returncode == 0, process.stderr
    name = next(word for word in tiny if word.startswith("model.name=")).removeprefix("model.name=")
    assert f"model: {name} brings load_in_4bit=False\n" in process.stderr
    assert "data: chats.json brings max_steps=2\n" in process.stderr
    assert report_of(tmp_path)["training"]["steps"] == 2


def test_shown_plainly(launch):
    shown = yaml.safe_load(launch("--cfg", "job").stdout)
    assert shown["training"]["max_steps"] == EXAMPLES
    assert shown["dataset"]["brings"] == {"max_steps": EXAMPLES}
    assert shown["model"]["brings"] == {"load_in_4bit": False, "max_steps": 24, "learning_rate": 2e-3}
    assert only_error(launch("training.max_steps=3", "training.num_train_epochs=2")).startswith(
        "training.max_steps=3 and training.num_train_epochs=2"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lora:  # nothing", "{file}, line 3: lora: null, or nothing under `lora:` in a file; "),
        (
            "lora: 3",
            "{file}, line 3: lora: expected keys and values, got 3; an option of it is chosen by lora=",
        ),
        ("paths: out", "{file}, line 3: paths: expected keys and values, got 'out'; "),
        ("sweep: [1]", "experiment/mine.yaml: a list stands where a group has keys and values; "),
        ("hydra: {run: 3}", "experiment/mine.yaml: hydra.run: expected keys and values, got 3; "),
        ("model: {brings: 3}", "model.brings: expected keys and values, got 3; "),
        ("debug: 3", "debug: an overlay is chosen on the command line; write debug=OPTION"),
    ],
)
def test_an_overlay_without_keys_where_a_group_has_them(tmp_path, text, said):
    from chatbot_sft.config import hydra_errors, hydra_glue

    file = tmp_path / "experiment" / "mine.yaml"
    file.parent.mkdir()
    file.write_text(f"# @package _global_\ntraining: {{max_steps: 3}}\n{text}\n")
    with pytest.raises((UserError, HydraException)) as caught:
        hydra_glue.composed(["experiment=mine"], config_dir=str(tmp_path))
    assert hydra_errors.said(caught.value).startswith(said.format(file=file))
