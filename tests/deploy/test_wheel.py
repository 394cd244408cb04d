"""The wheel, in an environment that has never seen the checkout: what is in it, and that it works from any folder."""

import contextlib
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import time
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from conftest import REPO, conversations, only_error, write_json

pytestmark = pytest.mark.slow  # starts processes

EXPERIMENT = """\
# @package _global_
model:
  name: {model}
  engine: transformers
  load_in_4bit: false
dataset:
  data_path: {data}
training:
  max_steps: 1
  batch_layout: as_configured
  sample_max_new_tokens: 4
save:
  method: lora
  verify: false
"""


def build(source: Path, folder: Path) -> dict[str, Path]:
    """The sdist and the wheel of `source`, as `python -m build` has its backend make them."""
    command = [sys.executable, "-m", "hatchling", "build", "--directory", str(folder)]
    subprocess.run(command, cwd=source, check=True, capture_output=True, text=True)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return {"wheel": wheel, "sdist": sdist}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build(REPO, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """`installed("chatbot-sft", "--help")` runs in an empty folder, of a user without a home: a fresh environment with the wheel
    and nothing else of ours. It borrows the large packages of this one; this one's .pth, which leads to the checkout, stays unread.
    """
    environment = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    asked = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = Path(subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip())
    install = ["-m", "uv", "pip", "install", "--quiet", "--offline", "--no-deps", "--python", python]
    subprocess.run([sys.executable, *install, built["wheel"]], check=True)
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    folder = tmp_path_factory.mktemp("anywhere")
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
        "HOME": str(python / "no_home"),
        "PATH": f"{environment / 'bin'}:/usr/bin:/bin",
        "TERM": "dumb",
    }

    def run(*command, cwd=folder):
        return subprocess.run(
            list(map(str, command)), cwd=cwd, env=env, capture_output=True, text=True, timeout=600
        )

    run.folder, run.environment, run.env = folder, environment, env
    return run


def tracked(folder: str) -> set[str]:
    """What of `folder` a commit would hold."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", folder]
    names = subprocess.run(listed, cwd=REPO, check=True, capture_output=True, text=True).stdout.split("\n")
    return {name for name in names if name and (REPO / name).exists()}


def test_the_wheel_holds_our_packages_conf_and_the_examples_and_nothing_else(built):
    with zipfile.ZipFile(built["wheel"]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        texts = {name: wheel.read(name) for name in wheel.namelist()}
    places = {"src": "", "conf": "chatbot_sft/conf", "data": "chatbot_sft/examples"}
    expected = {
        str(Path(target, Path(name).relative_to(source)))
        for source, target in places.items()
        for name in tracked(source)
    }
    assert names == {*expected, "chatbot_sft/overrides.txt"}
    assert "chatbot_sft/py.typed" in names
    assert not [name for name, text in texts.items() if str(REPO).encode() in text]


def test_the_wheel_says_what_it_is(built):
    with zipfile.ZipFile(built["wheel"]) as wheel:
        (path,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = message_from_bytes(wheel.read(path))
        folder = path.removesuffix("METADATA")
        assert wheel.read(f"{folder}licenses/LICENSE") == (REPO / "LICENSE").read_bytes()
        assert wheel.read(f"{folder}entry_points.txt").split() == [
            b"[console_scripts]",
            b"chatbot-sft",
            b"=",
            b"chatbot_sft.cli:main",
        ]
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == "<3.14,>=3.11"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert (
        metadata.get_payload(decode=True).decode().strip()
        == (REPO / "README.md").read_text(encoding="utf-8").strip()
    )


def test_data_of_ones_own_beside_the_examples_stays_at_home(tmp_path):
    """In the folder data/ of a checkout, where it lies at hand."""
    for name in (
        "src",
        "conf",
        "data",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "overrides.txt",
        "constraints.txt",
    ):
        source, target = REPO / name, tmp_path / "checkout" / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    (tmp_path / "checkout" / "data" / "customers.jsonl").write_text("{}\n")
    made = build(tmp_path / "checkout", tmp_path / "dist")
    with zipfile.ZipFile(made["wheel"]) as wheel, tarfile.open(made["sdist"]) as sdist:
        named = [*wheel.namelist(), *sdist.getnames()]
    assert [name for name in named if name.endswith("white_crane.jsonl")]
    assert not [name for name in named if "customers" in name]


def test_the_sdist_builds_into_the_same_wheel(built, tmp_path):
    subprocess.run(["tar", "--extract", "--file", built["sdist"], "--directory", tmp_path], check=True)
    (source,) = tmp_path.iterdir()
    again = build(source, tmp_path / "dist")
    assert again["wheel"].read_bytes() == built["wheel"].read_bytes()


def test_it_is_the_wheel_that_is_imported(installed):
    said = installed(
        "python",
        "-c",
        "import chatbot_sft, hydra_plugins; print(chatbot_sft.__file__, *hydra_plugins.__path__)",
    )
    assert said.stdout, said.stderr
    for path in said.stdout.split():
        assert path.startswith(f"{installed.environment}/lib/"), said.stdout


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("chatbot-sft --help", "chatbot_sft: fine-tune a chat model"),
        ("chatbot-sft --version", "chatbot_sft 0.1.0"),
        ("chatbot-sft --cfg job experiment=company", "save:\n"),
        ("python -m chatbot_sft.doctor", " cache "),
        ("python -m chatbot_sft.chat --help", "usage: python -m chatbot_sft.chat"),
        ("python -m chatbot_sft.evaluate --help", "usage: python -m chatbot_sft.evaluate"),
    ],
)
def test_its_commands_answer(installed, command, says):
    done = installed(*command.split())
    assert done.returncode == 0, done.stderr
    assert says in done.stdout
    assert str(REPO) not in done.stdout


def test_it_checks_the_examples_that_came_with_it(installed, tiny_llama):
    for dataset in ("white_crane", "thinking_teacher"):
        done = installed(
            "chatbot-sft", "task=check", "model=local", f"model.name={tiny_llama}", f"dataset={dataset}"
        )
        assert done.returncode == 0, done.stderr
        assert f"{installed.environment}/lib/" in done.stdout + done.stderr
    assert not (installed.folder / "conf").exists()


def test_a_sweep_with_an_experiment_of_ones_own_trains(installed, tiny_llama):
    """Hydra's plug-ins, ours among them, the user's --config-dir, and a step of training, twice."""
    mine = installed.folder / "mine" / "experiment"
    mine.mkdir(parents=True)
    data = write_json(installed.folder / "chats.json", conversations(12))
    (mine / "ours.yaml").write_text(EXPERIMENT.format(model=tiny_llama, data=data.name))
    words = ["--config-dir", "mine", "experiment=ours", "lora.r=2,4", "hydra.sweep.dir=sweep"]
    done = installed("chatbot-sft", "-m", *words)
    assert done.returncode == 0, done.stderr
    for job in ("0", "1"):
        assert (installed.folder / "sweep" / job / "model" / "adapter_model.safetensors").exists()
    compared = installed("python", "-m", "chatbot_sft.compare", "sweep")
    assert compared.returncode == 0, compared.stderr
    assert "lora.r" in compared.stdout and "completed" in compared.stdout
    misspelt = installed("chatbot-sft", "--config-dir", "mine", "experiment=our")
    assert "ours" in only_error(misspelt)


def test_bash_completes_what_is_typed(installed):
    """A real readline: the words that a Tab wrote out are on the terminal."""
    shell, terminal = pty.fork()
    if shell == 0:
        os.chdir(installed.folder)
        os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"], installed.env)
    said = b""

    def typed(keys: str, expected: str) -> None:
        nonlocal said
        os.write(terminal, keys.encode())
        limit = time.monotonic() + 300
        while expected.encode() not in said:
            assert time.monotonic() < limit, said.decode(errors="replace")
            if select.select([terminal], [], [], 1)[0]:
                said += os.read(terminal, 65536)

    try:
        typed('eval "$(chatbot-sft -sc install=bash)"; echo rea""dy\n', "ready\r\n")
        typed("chatbot-sft seed=1 model=smo\t", "model=smollm2 ")
        typed("\x15python -m chatbot_sft lora=rsl\t", "lora=rslora ")
    finally:
        os.kill(shell, signal.SIGKILL)
        os.waitpid(shell, 0)
        with contextlib.suppress(OSError):
            os.close(terminal)
