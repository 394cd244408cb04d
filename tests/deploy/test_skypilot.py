"""deploy/skypilot.yaml: its scripts, run as SkyPilot would, but for the machine."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import REPO

BIN = Path(sys.executable).parent
TASK = yaml.safe_load((REPO / "deploy" / "skypilot.yaml").read_text(encoding="utf-8"))


def script(folder: Path, bucket: Path) -> str:
    """What is run on the machine, with the bucket in a folder here."""
    text = TASK["run"].replace("/outputs/", f"{bucket}/")
    assert text != TASK["run"]
    if not (folder / "chatbot-sft").exists():
        (folder / "chatbot-sft").symlink_to(BIN.parent)
    return text


def run(folder: Path, bucket: Path, **variables: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "HOME": str(folder), **TASK["envs"], **variables}
    command = ["bash", "-c", script(folder, bucket)]
    return subprocess.run(command, cwd=REPO, env=env, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize("part", ["setup", "run"])
def test_its_scripts_are_linted(part):
    done = subprocess.run(
        [BIN / "shellcheck", "--shell=bash", "-"], input=TASK[part], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_run_is_written_into_the_bucket_in_which_a_run_can_be_written():
    (place, bucket), *others = TASK["file_mounts"].items()
    assert not others
    assert bucket["mode"] == "MOUNT_CACHED"
    assert f"hydra.run.dir={place}/$RUN hydra.sweep.dir={place}/$RUN" in TASK["run"]


def test_its_environment_is_what_this_one_has():
    """The line that installs, asked what it would do here; `.` with its dependencies."""
    (line,) = (line for line in TASK["setup"].splitlines() if line.startswith("uv pip install"))
    words = shlex.split(line)
    words[words.index("--python") + 1] = sys.executable
    asked = ["-m", "uv", *words[1:], "--dry-run", "--offline", "--no-build-isolation"]
    done = subprocess.run([sys.executable, *asked], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert " + " not in done.stderr.replace(" + chatbot-sft", "")


def test_its_command_is_composed(tmp_path):
    """What is quoted in ARGUMENTS stays one word."""
    words = "dataset.data_path='my chats.jsonl' lora.r=8 --cfg all"
    done = run(tmp_path, tmp_path / "bucket", ARGUMENTS=words, RUN="second")
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load(done.stdout)
    assert config["hydra"]["run"]["dir"] == f"{tmp_path}/bucket/second"
    assert (config["lora"]["r"], config["dataset"]["data_path"]) == (8, "my chats.jsonl")
    assert TASK["envs"]["ARGUMENTS"] == "experiment=quick"  # tests/test_cli.py composes every option


def test_several_cards_are_several_processes(tmp_path):
    (tmp_path / "chatbot-sft" / "bin").mkdir(parents=True)
    torchrun = tmp_path / "chatbot-sft" / "bin" / "torchrun"
    torchrun.write_text('#!/bin/sh\necho "$@"\n')
    torchrun.chmod(0o755)
    done = run(tmp_path, tmp_path / "bucket", SKYPILOT_NUM_GPUS_PER_NODE="4")
    place = tmp_path / "bucket" / "first"
    expected = f"--standalone --nproc-per-node=4 -m chatbot_sft experiment=quick hydra.run.dir={place} hydra.sweep.dir={place}"
    assert done.stdout.strip() == expected
