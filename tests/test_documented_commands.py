"""Every command in README.md and docs/ is run here: for real where that is cheap; else as far as it goes without a GPU, a
hub, a server or minutes of training, which is the whole of the command line, the configuration and its checks. None is
passed by: each falls into exactly one class.
"""

import importlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import REPO, conversations, write_json
from documented import commands, files
from hydra.core.override_parser.overrides_parser import OverridesParser
from written_sweep import job, written

from chatbot_sft import UserError, command_line
from chatbot_sft.config import hydra_glue
from chatbot_sft.config.help import help_text

pytestmark = pytest.mark.slow  # no torch, but many
LAUNCHERS = Path(sys.prefix, "launchers")  # where `make setup` puts Hydra's
# Programs of others: nothing of theirs is ours to test. Those with a reason are told apart from a slip of the pen.
OTHERS = {
    "source", "ollama", "vllm", "llama-server", "transformers", "lm_eval", "git", "pre-commit", "accelerate", "docker", "sky", "sbatch",
    "srun", "squeue", "scancel", "nvidia-smi", "curl", "cd", "cp", "export", "bash", "hf", "jq", "uv",
}  # fmt: skip
ALL = commands()
# Of a key that names a place, any value composes alike.
A_PLACE = re.compile(
    r"^(run|hydra\.(?:run|sweep)\.dir|dataset\.data_path|evaluation\.(?:golden|against)|model\.adapter)=.*"
)


def alike(command):
    """Commands of which one need be run: with the error that it is to end with, where one is shown."""
    return (command.error, *(A_PLACE.sub(r"\1=", word) for word in command.arguments))


OF_LAUNCHER = list({alike(one): one for one in ALL if one.kind == "launcher"}.values())
REALLY = [  # what is run to its end: it trains nothing
    one
    for one in OF_LAUNCHER
    if {"--help", "--cfg", "-sc"} & set(one.arguments) or (one.error and "task=check" in one.arguments)
]
SWEEPS = [one for one in OF_LAUNCHER if "-m" in one.arguments and one not in REALLY]
# Lists alone: of them two jobs are composed here. The others, zipped, chosen or dealt out, are dry runs.
NOT_PLAIN = (
    "sweep.zip",
    "sweep.points",
    "sweep.sampler",
    "sweep.dry_run",
    "hparams_search=tpe",
    "hydra/launcher",
)
PLAIN = [one for one in SWEEPS if not any(word.startswith(NOT_PLAIN) for word in one.arguments)]
COMPOSED = [one for one in OF_LAUNCHER if one not in REALLY and one not in SWEEPS]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with what the documents' commands name: data, options of one's own, runs, a sweep."""
    folder = tmp_path_factory.mktemp("place")
    files(folder)
    shutil.copytree(REPO / "docs" / "tutorial", folder, dirs_exist_ok=True)
    shutil.copytree(REPO / "data", folder / "data")
    broken_chats(folder / "chats.jsonl")
    (folder / "plain.jsonl").write_text(
        '{"text": "User: Hi\\nBot: Hello"}\n{"text": "User: Hours?\\nBot: 9 to 5"}\n'
    )
    write_json(folder / "jobs.yaml", [{"lora.r": 8, "seed": 1}, {"lora.r": 16}])
    jobs = [
        {"overrides": [f"lora.r={rank}"], "loss": loss} for rank, loss in ((8, 1.9), (16, 1.5), (32, 1.6))
    ]
    for name in ("outputs/multirun/2026-11-30/12-00-00", "sweep", "s", "s4"):
        written(folder / name, jobs)
    for name in (
        "run_a",
        "run_b",
        "run_c",
        "RUN_A",
        "RUN_B",
        "outputs/a",
        "outputs/b",
        "outputs/my_run",
        "outputs/workshop",
    ):
        job(folder / name)
    return folder


def broken_chats(file: Path) -> None:
    """The 36 rows of docs/data.md, the last six of them with something to find."""
    rows = [row["messages"] for row in conversations(36)]
    rows[30][0]["role"], rows[31][0]["content"] = "asistant", ""
    rows[32], rows[33] = rows[32][:1], [rows[33][0], *rows[33]]
    rows[34][0]["content"] += " <|im_end|>"
    rows[35] = rows[1]
    file.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows), encoding="utf-8")


def test_no_command_is_passed_by():
    assert len(ALL) > 180
    assert {one.kind for one in ALL} == {"launcher", "program", "make", "pip", "script", "other"}
    assert len(REALLY) > 5
    assert len(SWEEPS) > 10
    assert len(COMPOSED) > 40
    strange = [str(one) for one in ALL if one.kind == "other" and one.words[0] not in OTHERS | {"eval"}]
    assert not strange, "a program of others: add it to OTHERS; one of ours: mend it"


@pytest.mark.parametrize("command", COMPOSED, ids=str)
def test_a_command_composes_and_is_not_refused(command, place, monkeypatch):
    """All that happens before data or model are looked at; or the error that the document shows."""
    monkeypatch.chdir(place)
    words = command_line.of_a_server(command.arguments)
    if command.error:
        with pytest.raises(UserError) as caught:
            composed(words)
        assert str(caught.value) == command.error
    else:
        composed(words)


def composed(words):
    """`--json` says how a result is shown, and is no word of Hydra's."""
    given = command_line.check([word for word in words if word != "--json"])
    overrides = command_line.all_opened(given.overrides, given)
    return hydra_glue.composed(overrides, given.config_name or "config", given.config_dir)


@pytest.mark.parametrize("command", PLAIN, ids=str)
def test_the_first_and_the_last_job_of_a_sweep_compose(command, place, monkeypatch):
    monkeypatch.chdir(place)
    words = [word for word in command.arguments if word != "-m"]
    for one in {tuple(value_of(word, of_list) for word in words) for of_list in (0, -1)}:
        composed(one)


def value_of(word: str, of_list: int) -> str:
    """`lora.r=8` or `lora.r=16` of `lora.r=8,16`."""
    override = OverridesParser.create().parse_override(word)
    if not override.is_sweep_override():
        return word
    return f"{override.key_or_group}={list(override.sweep_string_iterator())[of_list]}"


@pytest.mark.parametrize("command", [one for one in SWEEPS if one not in PLAIN], ids=str)
def test_a_sweep_that_is_no_plain_grid_is_run_up_to_its_first_job(command, place, launch, tmp_path):
    """`sweep.dry_run=true` is the command itself, every job composed and checked."""
    words = [word for word in command.arguments if not word.startswith("hydra.sweep.dir=")]
    environment = {}
    if of_launcher := any(word.startswith("hydra/launcher=") for word in words):
        if not LAUNCHERS.is_dir():
            pytest.skip("needs the launchers of `make setup`")
        environment = {"PYTHONPATH": os.pathsep.join([str(LAUNCHERS), os.environ.get("PYTHONPATH", "")])}
    place_of_sweep = f"hydra.sweep.dir={tmp_path / 'sweep'}"
    done = launch(*words, "sweep.dry_run=true", place_of_sweep, cwd=place, cold=of_launcher, env=environment)
    assert done.returncode == 0, done.stderr
    assert "nothing was trained (sweep.dry_run=true)" in done.stdout


@pytest.mark.parametrize("command", REALLY, ids=str)
def test_a_command_that_trains_nothing_is_run(command, place, launch, tmp_path):
    words = command.arguments
    if "task=check" in words:
        words = [*words, f"hydra.run.dir={tmp_path / 'run'}"]
    done = launch(*words, cwd=place)
    if command.error:
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1] == f"error: {command.error}"
    else:
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        assert done.stdout.strip()


PROGRAMS = list({tuple(one.words): one for one in ALL if one.kind == "program"}.values())
CHEAP = ("chatbot_sft.doctor", "chatbot_sft.compare", "chatbot_sft.evaluate", "chatbot_sft.config.reference")
PARSED = ("chatbot_sft.chat", "chatbot_sft.compare")
RUN = [
    one for one in PROGRAMS if one.words[2] in CHEAP and not {"--promote", "--online", "…"} & set(one.words)
]


@pytest.mark.parametrize("command", RUN, ids=str)
def test_a_program_beside_the_launcher_is_run(command, place, light, tmp_path):
    """In a folder and with a cache of its own. What the doctor finds here may be an error; that it is asked, not."""
    shutil.copytree(place, tmp_path / "place")
    (tmp_path / "cache" / "data").mkdir(parents=True)
    words = list(itertools.takewhile(lambda word: word != ">", command.words[1:]))
    done = light.run(words, tmp_path / "place", {"CHATBOT_SFT_CACHE": str(tmp_path / "cache")})
    assert done.returncode in ((0, 1) if "chatbot_sft.doctor" in words else (0,)), done.stderr
    assert "error: " not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", [one for one in PROGRAMS if one not in RUN], ids=str)
def test_the_arguments_of_a_program_that_needs_more_are_its_own(command, light, tmp_path, monkeypatch):
    """A model, a server, another tool's file: its arguments are parsed where they can be, else looked up in its help."""
    if command.words[2] in PARSED and len(command.words) > 3 and "…" not in command.words:
        monkeypatch.setattr(sys, "argv", command.words[2:])
        assert importlib.import_module(command.words[2]).parse()
        return
    told = light.run(["-m", command.words[2], "--help"], tmp_path)
    assert told.returncode == 0, told.stderr
    assert all(word in told.stdout for word in command.words[3:] if word.startswith("--"))


def test_every_target_of_make_is_there():
    made = set(re.findall(r"^([\w-]+):", (REPO / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for command in ALL:
        if command.kind == "make":
            assert set(command.words[1:]) <= made, command


def test_every_extra_that_pip_is_told_is_there():
    project = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for command in ALL:
        if command.kind != "pip":
            continue
        words = command.words[command.words.index("install") + 1 :]
        for word in words:
            if named := re.fullmatch(r"(?:\.|chatbot-sft)\[([\w,]+)\]", word):
                assert set(named[1].split(",")) <= project["optional-dependencies"].keys(), command
            elif word.endswith(".txt"):
                assert (REPO / word).is_file(), command


def test_every_script_that_python_is_told_is_there_and_every_file_that_is_copied():
    for command in ALL:
        if command.words[0] == "cp":
            assert all((REPO / path).is_file() for path in command.words[1:-1]), command
        if command.kind == "script":
            paths = [word for word in command.words[1:] if "/" in word]
            assert paths, command
            assert all((REPO / path).exists() for path in paths), command


def test_the_lines_for_a_shell_are_scripts(launch):
    for command in {tuple(one.words): one for one in ALL if one.words[0] == "eval"}.values():
        inside = re.fullmatch(r"\$\((.*)\)", command.words[1])[1].split()
        done = launch(*inside[1:])
        shell = inside[-1].rpartition("=")[2]
        assert "_chatbot_sft" in done.stdout
        if shutil.which(shell):
            subprocess.run([shell, "-n"], input=done.stdout, text=True, check=True)


def test_the_help_says_something_of_every_topic_that_is_named():
    for command in REALLY:
        if "--help" in command.arguments:
            given = command_line.check(command.arguments)
            assert help_text(command_line.topics(given), None)
