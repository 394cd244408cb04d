"""What the command line says to a newcomer: words of other tools, quotes, flags, options, numbers out of bounds, foreign targets, completion."""

import dataclasses
import os
import shlex
import subprocess
import sys

import pytest
from conftest import only_error
from hydra.core.override_parser.overrides_parser import OverridesParser

from chatbot_sft import DatasetLoader, UserError, bounds, command_line, completion
from chatbot_sft import config as schema
from chatbot_sft.config import Config, aliases
from chatbot_sft.errors import near
from chatbot_sft.model import add_adapter
from chatbot_sft.targets import locate


def error_of(config):
    with pytest.raises(UserError) as caught:
        Config.from_mapping(config)
    return str(caught.value)


@pytest.mark.parametrize(
    ("section", "word", "value", "ours"),
    [
        ("training", "lr", 1e-4, "training.learning_rate"),
        ("training", "epochs", 3, "training.num_train_epochs"),
        ("training", "batch_size", 8, "training.per_device_train_batch_size"),
        ("training", "micro_batch_size", 8, "training.per_device_train_batch_size"),
        ("lora", "lora_r", 8, "lora.r"),
        ("model", "cutoff_len", 512, "model.max_seq_length"),
        ("model", "bits", 4, "model.load_in_4bit=true"),
        ("dataset", "type", "alpaca", "dataset.format"),
        ("dataset", "file", "a.json", "dataset.data_path"),
        ("", "val_set_size", 0.1, "dataset.eval_fraction=0.1"),
        ("save", "format", "gguf", "save.method"),
        ("", "gradient_checkpointing", True, "lora.use_gradient_checkpointing"),
        ("lora", "learningRate", 1e-4, "training.learning_rate"),
        ("", "neftune_noise_alpha", 5, "training.neftune_noise_alpha"),
        ("optimizer", "lr", 1e-4, "training.learning_rate"),
        ("data", "path", "a.json", "dataset.data_path"),
    ],
)
def test_words_of_other_tools_are_answered_with_ours(section, word, value, ours):
    known = error_of({section: {word: value}} if section else {word: value})
    assert known.endswith(f": no such key; did you mean {ours}?")


def test_every_alias_names_a_key_that_is_there():
    settings = [*aliases.SAME_VALUE, *(ours for words in aliases.IN_SECTION.values() for ours in words.values())]
    settings += [value.partition("=")[0] for values in aliases.OTHER_VALUE.values() for value in values.values()]
    for key in settings:
        assert schema.known_override(key) or schema.kind_of(key) or key == "training.max_grad_norm" or key == "training.neftune_noise_alpha", key
    assert len(aliases.WORDS) > 300


def test_a_secret_is_not_repeated():
    assert "hf_secret" not in error_of({"hf_token": "hf_secret"})


@pytest.mark.parametrize("word", ["lr", "epochs", "type", "file", "bits", "cutoff_len", "zzz"])
def test_nothing_far_away_is_suggested(word):
    assert near(word, [f.name for f in dataclasses.fields(schema.TrainingConfig)]) == []


def test_a_long_list_of_values_ends_after_ten():
    error = error_of({"training": {"optim": "lion"}})
    assert error.count(", ") == 9
    assert error.endswith("more; did you mean lion_32bit?")


def test_a_number_that_goes_through_is_finite():
    assert error_of({"training": {"max_grad_norm": float("nan")}}) == "training.max_grad_norm=nan: must be a finite number"


def test_a_rank_above_every_layer_is_refused(tiny_llama):
    config = Config.from_mapping({"lora": {"r": 65}})
    with pytest.raises(UserError, match="the layers of this model are 64 wide"):
        bounds.check_model(config, tiny_llama)
    bounds.check_model(Config.from_mapping({"lora": {"r": 64}}), tiny_llama)


def test_a_batch_above_the_rows_is_refused_the_default_is_not():
    config = Config.from_mapping({"training": {"per_device_train_batch_size": 100_000}})
    with pytest.raises(UserError, match="a step of 400,000 conversations, and there are 36"):
        bounds.check_batch(config, 36, 1)
    bounds.check_batch(Config.from_mapping({}), 3, 1)


@pytest.mark.parametrize("key", ["dataset.data_path", "model.name", "save.save_path", "dataset.split", "model.revision"])
def test_an_empty_text_is_refused(key):
    section, name = key.split(".")
    assert error_of({section: {name: " "}}).startswith(f"{key}: is empty")


@pytest.mark.parametrize(("value", "read_as"), [(12e9, "a number"), (False, "yes or no"), (42798, "a number")])
def test_text_that_yaml_read_as_something_else_is_refused(value, read_as):
    assert f"read as {read_as}, and this is text; put it in quotes" in error_of({"model": {"revision": value}})


def test_a_null_where_none_may_stand_is_said():
    assert error_of({"training": {"learning_rate": None}}).startswith("training.learning_rate: null")


def test_columns_as_text_are_written_out():
    assert error_of({"dataset": {"columns": "instruction:question"}}).endswith("write 'dataset.columns={instruction: question}'")


@pytest.mark.parametrize("word", ["data_pth", "eval_fractoin", "path"])
def test_a_typo_beside_a_users_own_class_is_refused(word):
    error = error_of({"dataset": {"_target_": "my.Mine", word: 1}})
    assert f"dataset.{word}: no such key; did you mean dataset." in error
    assert f"dataset.mine.{word}" in error
    Config.from_mapping({"dataset": {"_target_": "my.Mine", "greeting": 1, "mine": {word: 1}}})


@pytest.mark.parametrize("target", ["os.system", "builtins.eval", "shutil.rmtree", "chatbot_sft.model.ModelLoader", "subprocess.call"])
def test_a_target_of_lora_takes_what_add_adapter_takes(target):
    with pytest.raises(UserError, match="with the parameters model, settings, engine"):
        locate("lora", target, add_adapter)


def test_a_users_own_adapter_function_is_taken(tmp_path, monkeypatch):
    (tmp_path / "own_adapter.py").write_text("def mine(model, settings, engine, new_token_ids=(), **extra):\n    return model\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert locate("lora", "own_adapter.mine", add_adapter).__name__ == "mine"
    assert locate("lora", "chatbot_sft.model.add_adapter", add_adapter) is add_adapter


@pytest.mark.parametrize("target", ["my_loader.py", "./my_loader.Mine", "my..Mine", "Mine"])
def test_a_target_that_is_no_dotted_name(target):
    with pytest.raises(UserError, match=r"expected module\.Class"):
        locate("dataset", target, DatasetLoader)


@pytest.mark.parametrize("value", ["my file (1).json", "dữ liệu.json", "[a.json", 'say "hi"(', "it's (2)", "a=b{", "C:\\x (1)\\", "Hello!"])
def test_a_value_that_hydra_cannot_read_is_quoted_so_that_it_can(value):
    error = command_line.not_understood(f"dataset.data_path={value}", [f"dataset.data_path={value}"])
    (written,) = shlex.split(error.partition("quote it: ")[2])
    assert OverridesParser.create().parse_override(written).value() == value


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lora.r=8"], "--lora.r=8: settings are written without dashes, as key=value: lora.r=8"),
        (["--learning_rate", "1e-4"], "--learning_rate 1e-4: settings are written without dashes, as key=value: training.learning_rate=1e-4"),
        (["--load_in_4bit", "lora.r=8"], "--load_in_4bit: settings are written without dashes, as key=value: model.load_in_4bit=true"),
        (["--num_gpus=2"], "--num_gpus=2: no such flag; several GPUs: torchrun"),
        (["--multrun"], "--multrun: no such flag; did you mean --multirun?"),
        (["train.yaml"], "train.yaml: not understood as key=value; a file of settings is an overlay"),
        (["check"], "check: not understood as key=value; write task=check"),
        (["lora.r", "=", "8"], "lora.r: not understood as key=value; no space stands beside the equals sign: lora.r=8"),
        (["dataset.columns={a:", "b}"], "dataset.columns={a:: not understood as key=value; quote it: 'dataset.columns={a: b}'"),
    ],
)
def test_a_word_that_is_no_setting(words, message):
    with pytest.raises(UserError) as caught:
        command_line.check(words)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("typed", "taken"),
    [
        ("lora.r=8 -m +model=llama3b", "-m lora.r=8 model=llama3b"),
        ("training.max_grad_norm=1 +experiment=quick", "++training.max_grad_norm=1 experiment=quick"),
        ("dataset.columns={a:b} ++lora.r=8 lora.typo=1", "++dataset.columns={a:b} ++lora.r=8 ++lora.typo=1"),
        ("model.revision=42798,main -m", '-m model.revision="42798",main'),
        ("--info plugins", "--info plugins"),
        ("-cn mine +experiment=quick", "-cn mine +experiment=quick"),
        ("-sc query=fish", "-sc query=fish"),
    ],
)
def test_words_as_hydra_takes_them(typed, taken):
    words = typed.split()
    assert command_line.for_hydra(words, command_line.check(words)) == taken.split()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lora=dora,rslora"], "lora=dora,rslora: several values are several runs; add -m"),
        (["lora.target_modules=q_proj,v_proj"], "lora.target_modules=q_proj,v_proj: several values"),
        (["~lora"], "~lora: a section cannot be left out"),
        (["lora=null"], "lora: null"),
        (["training="], "training=: names no option (there are default)"),
        (["model=unsloth/Llama-3"], "model=unsloth/Llama-3: no such option"),
        (["hydra/sweeper=optuna"], "hydra/sweeper=optuna: not installed; `pip install hydra-optuna-sweeper`"),
        (["hydra/launcher=joblib"], "hydra/launcher=joblib: not installed; `pip install hydra-joblib-launcher`"),
        (["--config-dir", "absent"], "--config-dir: "),
        (["-cn", "typo"], "--config-name typo: there is no typo.yaml"),
    ],
)
def test_options_and_folders_in_our_own_words(launch, arguments, message):
    assert only_error(launch(*arguments)).startswith(message)


def test_a_plus_before_what_is_there_is_read(launch):
    shown = launch("+model=llama3b", "+lora.r=8", "model.revision=12e4567", "--cfg", "job")
    assert "name: unsloth/Llama-3.2-3B-Instruct" in shown.stdout
    assert "  r: 8\n" in shown.stdout
    assert "12e4567" in shown.stdout


def test_version_is_ours(launch):
    assert launch("--version").stdout.startswith("chatbot_sft ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training:\n\tmax_steps: 3\n", "line 3: a tab"),
        ("training:\n  max_steps: 3\n  max_steps: 4\n", "max_steps is there twice"),
        ("training:\n", "training: null, or nothing under `training:` in a file"),
    ],
)
def test_habits_in_a_users_file_are_named(launch, tmp_path, text, message):
    overlay = tmp_path / "mine" / "experiment" / "my.yaml"
    overlay.parent.mkdir(parents=True)
    overlay.write_text(f"# @package _global_\n{text}")
    assert message in only_error(launch("--config-dir", "mine", "+experiment=my"))


@pytest.mark.parametrize("program", ["python -m chatbot_sft", "chatbot-sft"])
def test_bash_completes(tmp_path, program):
    """The script's own function in a real bash, as readline calls it."""
    for name, module in (("python", ""), ("chatbot-sft", "-m chatbot_sft")):
        (tmp_path / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n')
        (tmp_path / name).chmod(0o755)
    line = f"{program} model=lla"
    call = f"COMP_WORDS=({program.split()[0]}); COMP_LINE='{line}'; COMP_POINT={len(line)}; _chatbot_sft; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", f"{completion.BASH}\n{call}"], capture_output=True, text=True, env=env)
    assert done.stdout.split() == ["llama1b", "llama3b", "llama8b"], done.stderr
