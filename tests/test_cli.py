"""The command line: real processes, as a user starts them."""

import errno
import json
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest
from conftest import composed, conversations, only_error, report_of, write_json

from chatbot_sft import cli, command_line
from chatbot_sft.config import aliases, keys
from chatbot_sft.config.help import help_text
from chatbot_sft.objective import DPO, KTO, ORPO
from chatbot_sft.resources import conf_dir


@pytest.mark.parametrize(
    ("override", "typed"),
    [
        ("++training.save_strategy=epoch", "training.save_strategy=epoch"),
        ("+experiment=mine", "+experiment=mine"),
        ("++lora.r=8", "++lora.r=8"),
        ("lora.r=8", "lora.r=8"),
    ],
)
def test_the_repeated_command_has_no_pluses_that_nobody_has_to_type(override, typed):
    from chatbot_sft import hydra_job

    assert hydra_job.typed(override) == typed


def test_help_says_what_there_is(launch, tmp_path):
    (tmp_path / "mine" / "lora").mkdir(parents=True)
    (tmp_path / "mine" / "lora" / "of_mine.yaml").write_text("defaults: [default]\n")
    process = launch("--help", "--config-dir", "mine", "task=check")
    assert process.returncode == 0
    text = process.stdout
    assert text.startswith("chatbot_sft: fine-tune a chat model")
    assert text.count("  python -m chatbot_sft") == 7  # examples
    for group in (
        "model: gemma3_4b",
        "lora: default, dora, loftq, none, of_mine, rslora",
        "dataset:",
        "training:",
        "save: gguf, lora, merged_16bit",
    ):
        assert group in text
    for key in keys():
        assert f"\n  {key.path}=" in text or key.name == "_target_", key.path
    assert (
        "\n  model.engine=auto                         auto | unsloth | transformers; what trains fastest here,"
        " Unsloth, or" in text
    )
    assert max(map(len, text.splitlines())) < 125


def test_help_on_one_section():
    text = help_text(["lora", "save"], None)
    assert "  lora.r=16 " in text
    assert "  save.verify=true " in text
    assert "training." not in text
    assert help_text([], None).count("\n") < 300


def test_help_says_what_a_command_without_arguments_would_take():
    """Where an option that is taken by default brings another value than the key's own."""
    config = composed(Path("out"))
    text = " ".join(help_text([], None).split())
    for path, option in {
        "training.max_steps": "dataset=white_crane", "training.learning_rate": "model=smollm2", "model.load_in_4bit": "model=smollm2",
    }.items():  # fmt: skip
        section, _, name = path.partition(".")
        value = aliases.plain(config[section][name])
        assert re.search(
            rf" {path}=\S+ {re.escape(value)} in the quick start, as {option} brings it; ", text
        ), path


def test_help_names_every_loss():
    text = help_text(["objective.loss_type"], None)
    for method in (DPO, ORPO, KTO):
        assert not set(method.loss_types) - set(re.findall(r"\w+", text)), method


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        (["save.method"], ["  save.method=merged_16bit  "]),
        (["seed", "experiment"], ["  seed=3407  ", "  experiment: company, quick"]),
        (["training.neftune_noise_alpha"], ["  training.neftune_noise_alpha: of TRL's SFTConfig"]),
        (["dataset.on_bad_row", "role"], ["  dataset.on_bad_row="]),
        (["paths", "task=check"], ["paths", "  paths.output_dir=outputs/<date>/<time>"]),
    ],
)
def test_help_on_one_key(words, lines):
    text = help_text(command_line.topics(command_line.check(["--help", *words])), None)
    for line in lines:
        assert any(one.startswith(line) for one in text.splitlines()), text
    assert "lora.r=" not in text


@pytest.mark.parametrize(
    ("word", "first", "others"),
    [
        ("method", "save.method", []),  # in its name
        ("Patience", "training.early_stopping_patience", []),
        ("batch_size", "training.per_device_train_batch_size", []),
        ("biases", "lora.bias", []),  # in its help
        ("lr", "training.learning_rate", ["training.lr_scheduler_type"]),  # as other tools call it
        ("rank", "lora.r", ["lora.use_rslora"]),
    ],
)
def test_help_finds_keys_by_a_word_of_their_name_or_help(word, first, others):
    heading, *lines = help_text(command_line.topics(command_line.check(["--help", word])), None).splitlines()
    assert heading == f"Keys with “{word}” in their name or help"
    found = [line.split("=")[0].strip() for line in lines if line.startswith("  ") and line[2] != " "]
    assert found[0] == first
    assert set(others) <= set(found)
    assert len(found) == len(set(found)) < len(list(keys()))


@pytest.mark.slow
def test_cfg_job_shows_the_configuration_without_torch(tmp_path):
    """--cfg, --help and a config error import no torch: asked of sys.modules itself."""
    program = (
        "import sys; sys.argv = ['chatbot_sft', *{arguments}]\nfrom chatbot_sft.cli import main\ntry:"
        " main()\nexcept SystemExit as e: print('exit', e.code)\nprint('heavy:', sorted({{'torch',"
        " 'transformers', 'trl', 'unsloth', 'datasets', 'numpy', 'matplotlib'}} & set(sys.modules)))"
    )
    for arguments in (
        ["--cfg", "job"],
        ["--help"],
        ["training.max_stpes=3"],
        ["dataset.data_path=absent.json", "hydra.run.dir=."],
    ):
        process = subprocess.run(
            [sys.executable, "-c", program.format(arguments=arguments)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        assert "heavy: []" in process.stdout, (arguments, process.stdout, process.stderr)


@pytest.mark.parametrize("option", sorted(path.stem for path in (conf_dir() / "model").glob("*.yaml")))
def test_every_model_option_composes(option, launch):
    arguments = ["model.name=some/model"] if option == "local" else []
    process = launch(f"model={option}", *arguments, "--cfg", "job")
    assert process.returncode == 0, process.stderr


@pytest.mark.slow
def test_every_other_option_composes(launch):
    for group, arguments in (("lora", ["model=smollm2"]), ("save", ["lora=default"]), ("experiment", [])):
        for path in sorted((conf_dir() / group).glob("*.yaml")):
            process = launch(f"{group}={path.stem}", *arguments, "--cfg", "job")
            assert process.returncode == 0, process.stderr


def test_hub_ids_are_those_that_unsloth_itself_knows():
    from importlib.util import find_spec
    from pathlib import Path

    from omegaconf import OmegaConf

    mapper = Path(find_spec("unsloth").submodule_search_locations[0], "models", "mapper.py").read_text(
        encoding="utf-8"
    )
    for path in (conf_dir() / "model").glob("*.yaml"):
        config = OmegaConf.load(path)
        if path.stem not in ("local", "smollm2"):
            assert f'"{config.get("model", config).name}"' in mapper, path.name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["training.max_stpes=3"], "training.max_stpes: no such key; did you mean training.max_steps?"),
        (["+training.max_stpes=3"], "training.max_stpes: no such key; did you mean training.max_steps?"),
        (["++lora.rank=3", "--cfg", "job"], "lora.rank: no such key"),
        (["modle.name=x"], "modle: no such key; did you mean model?"),
        (["model=lama3b"], "model=lama3b: no such option; did you mean llama3b?"),
        (["save=ggfu"], "save=ggfu: no such option; did you mean gguf?"),
        (["lora.r=eight"], "lora.r='eight': expected a whole number"),
        (["model=local"], "model.name: not set; give it a value, for instance model.name=…"),
        (["model.token=hf_secret"], "model.token: leave it null and set the environment variable HF_TOKEN"),
        (["lora=none", "save=lora"], "save.method=lora with lora.r=0"),
        (["training.max_steps=null"], "training.max_steps and training.num_train_epochs are both null"),
        (["-m", "lora.r=8,0.5"], "job 1 (lora.r=0.5): lora.r=0.5: expected a whole number"),
        (
            ["-m", "lora.r=8,sixteen", "hydra/sweeper=basic"],
            "job 1 (lora.r=sixteen): lora.r='sixteen': expected a whole number",
        ),
        (
            ["-m", "lora.r=8,16", "training.max_stpes=3"],
            "training.max_stpes: no such key; did you mean training.max_steps?",
        ),
        (["training.max_steps="], "training.max_steps='': expected a whole number, or null"),
        (["lora.r"], "lora.r: not understood as key=value"),
        (
            ["-m", "model=smollm2,lama1b"],
            "job 1 (model=lama1b): model=lama1b: no such option; did you mean llama1b?",
        ),
        (
            ["-m", "lora.r=16,0", "model.load_in_4bit=false,true"],
            "job 3 (lora.r=0 model.load_in_4bit=True): model.load_in_4bit=true with lora.r=0",
        ),  # each value alone is right
        (
            ["-m", "training.max_grad_norm=1,nan"],
            "job 1 (training.max_grad_norm=nan): training.max_grad_norm=nan: must be a finite number",
        ),
        (
            ["-m", "objective=dpo", "objective.loss_type=sigmoid,sigmoidd"],
            "job 1 (objective.loss_type=sigmoidd): objective.loss_type=sigmoidd: not one of",
        ),
        (["--cfg", "job", "-m", "lora.r=8,16"], "--cfg shows the configuration of one run; leave out -m"),
        (["--cfg", "job", "experiment=quik"], "experiment=quik: no such option; did you mean quick?"),
        (["experiment=null"], "experiment=null: names no option; leave it out"),
    ],
)
def test_a_config_error_is_one_line_and_leaves_nothing(launch, tmp_path, arguments, message):
    process = launch(*arguments)
    assert only_error(process).startswith(message)
    assert "hf_secret" not in process.stdout + process.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.EACCES, "Permission denied", "a/b"), "a/b: Permission denied"),
        (OSError(errno.EPIPE, "Broken pipe"), "Broken pipe"),
        (
            OSError(errno.EFBIG, "File too large"),
            "out/my_run: a file there or in the cache cannot be written: File too large; raise `ulimit -f`",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "out/my_run: a file there or in the cache cannot be written: No space left on device; make room there",
        ),
    ],
)
def test_a_file_that_cannot_be_written_is_said_to_be_of_a_folder(error, told):
    """The system names a file that cannot be opened, and none that cannot be written on."""
    assert cli.one_line(error, Path("out/my_run/run.log")) == told
    assert cli.one_line(OSError(errno.EFBIG, "File too large")) == "File too large"


def test_a_typo_in_the_users_own_yaml_is_named(launch, tmp_path):
    overlay = tmp_path / "mine" / "experiment" / "my_run.yaml"
    overlay.parent.mkdir(parents=True)
    overlay.write_text("# @package _global_\ntraining:\n  max_stpes: 3\n")
    process = launch("--config-dir", "mine", "+experiment=my_run")
    assert only_error(process) == "training.max_stpes: no such key; did you mean training.max_steps?"


def test_a_file_that_is_not_yaml_is_named(launch, tmp_path):
    overlay = tmp_path / "mine" / "experiment" / "my_run.yaml"
    overlay.parent.mkdir(parents=True)
    overlay.write_text("# @package _global_\ntraining: max_steps: 3\n")
    error = only_error(launch("--config-dir", "mine", "+experiment=my_run"))
    assert error.startswith("mine/experiment/my_run.yaml, line 2, column 20: a second colon; ")


def test_full_error_shows_the_traceback(launch):
    process = launch("training.max_stpes=3", env={"HYDRA_FULL_ERROR": "1"})
    assert process.returncode != 0
    assert "Traceback" in process.stderr


def test_the_token_of_the_environment_is_not_in_the_shown_configuration(launch):
    """That a whole run writes it nowhere is in test_loggers.py."""
    secret = "hf_abcdefghijklmnopqrstuvwxyz012345"
    shown = launch("--cfg", "all", env={"HF_TOKEN": secret})
    assert secret not in shown.stdout + shown.stderr


def test_a_users_overlay_and_loader_from_a_file(launch, tiny, tmp_path):
    """--config-dir with an overlay, and the seed's CustomDatasetLoader in a file beside it, with a key of its
    own.
    """
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "my_run.yaml").write_text(
        "# @package _global_\ntraining:\n  max_steps: 1\ndataset:\n  _target_:"
        " my_loader.CustomDatasetLoader\n  greeting: Xin chào\n"
    )
    (tmp_path / "mine" / "my_loader.py").write_text(
        "from chatbot_sft import DatasetLoader\nclass CustomDatasetLoader(DatasetLoader):\n    def"
        " formatting_prompts_func(self, examples):\n        hello = self.config['dataset']['greeting']\n     "
        "   texts = super().formatting_prompts_func(examples)['text']\n        return {'text':"
        " [text.replace('<|im_start|>user\\n', '<|im_start|>user\\n' + hello + ': ') for text in texts]}\n"
    )
    write_json(tmp_path / "data.json", conversations(12))
    arguments = [a for a in tiny if not a.startswith(("dataset.", "training.max_steps"))]
    process = launch(
        "--config-dir", "mine", "+experiment=my_run", *arguments, "dataset.data_path=data.json", "save=none"
    )
    assert process.returncode == 0, process.stderr
    report = report_of(tmp_path)
    assert report["training"]["steps"] == 1
    assert report["command"].startswith(
        f"python -m chatbot_sft --config-dir {tmp_path}/mine experiment=my_run "
    )
    assert report["dataset"]["trainable_tokens"] > 0


def test_a_target_that_is_not_there_is_named(launch, tmp_path):
    process = launch("dataset._target_=my_lodaer.Mine")
    error = only_error(process)
    assert error.startswith(f"dataset._target_=my_lodaer.Mine: there is no module my_lodaer in {tmp_path}, ")
    assert "run: " not in process.stderr  # its directory has gone again
    error = only_error(launch("dataset._target_=os.system", "allow_targets=[os]"))
    assert error == "dataset._target_=os.system: has to be a subclass of chatbot_sft.data.DatasetLoader"
    error = only_error(launch("dataset._target_=chatbot_sft.data.DatasetLoaderr"))
    assert error.endswith("chatbot_sft.data has no DatasetLoaderr; did you mean DatasetLoader?")


def test_a_sweep_runs_every_job_into_its_own_folder_and_a_failing_one_does_not_stop_it(
    launch, tiny, tmp_path
):
    arguments = [a for a in tiny if not a.startswith("dataset.")]
    good, empty = (
        write_json(tmp_path / "good.json", conversations(12)),
        write_json(tmp_path / "empty.json", []),
    )
    process = launch(
        "-m",
        f"dataset.data_path={empty},{good}",
        "lora.r=4,8",
        *arguments,
        "save=none",
        "training.sample_max_new_tokens=0",
    )
    assert process.returncode != 0
    assert f"error: job 0: {empty}: " in process.stderr
    reports = [
        json.loads(path.read_text()) for path in sorted(tmp_path.glob("outputs/multirun/*/*/*/report.json"))
    ]
    assert [report["status"] for report in reports] == ["failed", "failed", "completed", "completed"]
    assert [report["command"].split()[4] for report in reports] == ["lora.r=4", "lora.r=8"] * 2
    assert reports[2]["model"]["trainable_parameters"] * 2 == reports[3]["model"]["trainable_parameters"]
    for report in reports[2:]:  # counted from the job's own start, not from the process's
        took = datetime.fromisoformat(report["finished"]) - datetime.fromisoformat(report["started"])
        assert 0 < report["training"]["seconds_to_first_step"] < took.total_seconds() + 1
        assert report["memory"]["peak_since"] == "run"
