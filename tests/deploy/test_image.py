"""The Dockerfile, as far as it can be built without a daemon: linted, its files there, its commands run where they are cheap."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

import pathspec
import pytest
from conftest import REPO
from dockerfile_parse import DockerfileParser

from chatbot_sft.cache import VARIABLE

BIN = Path(sys.executable).parent


def instructions() -> dict[str, list[tuple[str, str]]]:
    """Stage → its instructions, (name, text) each."""
    with (REPO / "Dockerfile").open("rb") as file:
        lines = [
            line for line in DockerfileParser(fileobj=file).structure if line["instruction"] != "COMMENT"
        ]
    stages: dict[str, list[tuple[str, str]]] = {}
    for line in lines:
        if line["instruction"] == "FROM":
            image, _, name = line["value"].partition(" AS ")
            current = stages[name] = [("FROM", image)]
        else:
            current.append((line["instruction"], line["value"]))
    return stages


STAGES = instructions()


def of(stage: str, name: str) -> list[str]:
    """The texts of the instructions `name` in `stage` and in what it is built on, first to last."""
    (_, image), *rest = STAGES[stage]
    return [*(of(image, name) if image in STAGES else []), *(text for word, text in rest if word == name)]


def copied(stage: str) -> list[tuple[Path, str]]:
    """(source in the checkout, where it goes in the image) of what comes from there."""
    files = [text.split() for text in of(stage, "COPY") if not text.startswith("--from")]
    return [(REPO / source, target) for *sources, target in files for source in sources]


def sent(path: Path) -> bool:
    """Whether .dockerignore lets it go to the builder."""
    lines = (REPO / ".dockerignore").read_text().splitlines()
    return not pathspec.PathSpec.from_lines("gitignore", lines).match_file(path.relative_to(REPO))


def test_the_dockerfile_is_linted():
    done = subprocess.run(
        [BIN / "hadolint", "--no-color", REPO / "Dockerfile"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_it_stands_on_images_of_one_version_that_the_project_runs_with():
    bases = {image for (_, image), *_ in STAGES.values()} - STAGES.keys()
    assert len(bases) == 1
    found = re.fullmatch(r"python:(3\.(\d+)\.\d+)-slim-\w+", bases.pop())
    assert found
    assert 11 <= int(found[2]) < 14


@pytest.mark.parametrize("stage", ["wheel", "cpu", "cuda"])
def test_what_it_copies_is_there_and_goes_to_the_builder(stage):
    assert copied(stage)
    for source, _ in copied(stage):
        files = [source] if source.is_file() else [*source.rglob("*.yaml"), *source.rglob("*.py")]
        assert [file for file in [*files, *source.glob("white_crane.jsonl")] if sent(file)], source


def test_nothing_else_goes_to_the_builder():
    for name in (
        ".env", ".git/config", ".venv/bin/python", "data/customers.jsonl", "outputs/2026-11-30/run.log", "token.txt",
        "src/chatbot_sft/__pycache__/cli.cpython-311.pyc",
    ):  # fmt: skip
        assert not sent(REPO / name), name


@pytest.mark.slow
def test_its_wheel_can_be_built_of_what_is_copied(tmp_path):
    """The wheel stage: its COPY lines, from what .dockerignore leaves, and its last RUN line."""
    context = tmp_path / "build"
    for source, target in copied("wheel"):
        for file in [source] if source.is_file() else filter(Path.is_file, source.rglob("*")):
            if sent(file):
                place = context / target / (file.name if source.is_file() else file.relative_to(source))
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, place)
    program, *words = shlex.split(of("wheel", "RUN")[-1].replace("/dist", str(tmp_path / "dist")))
    assert program == "python"
    subprocess.run([sys.executable, *words], cwd=context, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("chatbot_sft-*.whl")
    assert wheel.stat().st_size > 500_000


def test_its_dependencies_are_what_this_environment_has(tmp_path):
    """uv's own line, asked what it would do here. Nothing is missing where `make setup` has been, so nothing is fetched."""
    (line,) = (text for text in of("dependencies", "RUN") if "uv pip install" in text)
    without_torch, install = line.split(" && ")[1:]
    subprocess.run(["sh", "-c", without_torch.replace("/tmp/", f"{tmp_path}/")], check=True)
    words = shlex.split(install.replace("/tmp/", f"{tmp_path}/"))
    assert words[:4] == ["uv", "pip", "install", "--system"]
    asked = [*words[1:3], "--python", sys.executable, "--dry-run", "--offline", *words[4:]]
    done = subprocess.run([sys.executable, "-m", "uv", *asked], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Would make no changes" in done.stderr
    extras = {word for before, word in pairwise(words) if before == "--extra"}
    named = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras <= named.keys() and "test" not in extras


@pytest.mark.parametrize("stage", ["cpu", "cuda"])
def test_an_image_runs_the_program_as_nobody_in_particular(stage, launch):
    user = of(stage, "USER")[-1]
    assert user.isdigit() and int(user) > 0
    program, command = (json.loads(of(stage, name)[-1]) for name in ("ENTRYPOINT", "CMD"))
    assert program == ["python", "-m", "chatbot_sft"]
    done = launch(*command)
    assert done.returncode == 0
    assert done.stdout.startswith("chatbot_sft: ")


@pytest.mark.parametrize("stage", ["cpu", "cuda"])
def test_an_image_keeps_its_caches_and_runs_in_volumes(stage):
    set_there = dict(pair.split("=", 1) for text in of(stage, "ENV") for pair in shlex.split(text))
    volumes = json.loads(of(stage, "VOLUME")[-1])
    for name in ("HOME", "HF_HOME", VARIABLE):
        assert Path(set_there[name]).is_relative_to(volumes[0]), name
    assert of(stage, "WORKDIR")[-1] == volumes[1]
