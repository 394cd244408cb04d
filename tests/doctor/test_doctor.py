"""Faults of an environment, each planted, and found by a command line or a call; and that a sound one has none."""

import json
import os
import re
import subprocess
import sys

import pytest
from conftest import write_json
from planted import metadata, smi, torch_for

from chatbot_sft.config import Config
from chatbot_sft.doctor import room, surroundings, takes
from chatbot_sft.doctor.finding import State, examined

LLAMA = {
    "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "intermediate_size": 14336, "vocab_size": 128256, "tie_word_embeddings": False,
}  # fmt: skip


@pytest.fixture
def doctor(light, tmp_path):
    """`doctor("lora.r=8", HF_TOKEN="…")`: (exit code, findings) of the command in an empty folder."""
    here = tmp_path / "here"
    here.mkdir()

    def run(*words, cold=False, **env):
        command = ["-m", "chatbot_sft.doctor", *map(str, words), "--json"]
        if cold:
            process = subprocess.run(
                [sys.executable, *command],
                cwd=here,
                env={**os.environ, **env},
                capture_output=True,
                text=True,
            )
        else:
            process = light.run(command, here, env)
        assert "Traceback" not in process.stderr, process.stderr
        answer = json.loads(process.stdout)
        faults = [one for one in answer["findings"] if one["state"] == "fault"]
        assert (process.returncode, answer["faults"]) == (bool(faults), len(faults))
        assert all(one["repair"] for one in faults)
        return answer["findings"]

    run.folder = here
    return run


def only(findings, name, said):
    """The one fault, which is called so and says that."""
    faults = [one for one in findings if one["state"] == "fault"]
    assert [one["name"] for one in faults] == [name], faults
    assert re.search(said, faults[0]["what"]), faults[0]["what"]
    return faults[0]["repair"]


def has(findings, name, state, said):
    found = [one for one in findings if one["name"] == name and one["state"] == state]
    assert any(re.search(said, one["what"]) for one in found), findings
    return next(one["repair"] for one in found if re.search(said, one["what"]))


@pytest.mark.slow
def test_the_environment_of_make_setup_has_no_fault_and_no_torch_is_imported(tmp_path):
    program = (
        "import sys, runpy; sys.argv = ['doctor']\n"
        "try: runpy.run_module('chatbot_sft.doctor', run_name='__main__')\n"
        "except SystemExit as ending: print('ended', ending.code)\n"
        "print('heavy', {'torch', 'transformers', 'unsloth', 'huggingface_hub'} & set(sys.modules))"
    )
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert process.stdout.endswith("no fault\nended 0\nheavy set()\n"), process.stdout
    for name in (
        "python",
        "packages",
        "gpu",
        "engine",
        "extras",
        "model",
        "memory",
        "disk",
        "output",
        "hub",
        "cache",
    ):
        assert f"\nok    {name}" in process.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_versions_that_do_not_go_together(doctor, tmp_path):
    folder = metadata(tmp_path / "more", "transformers", "4.30.0")
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    repair = only(
        doctor(cold=True, PYTHONPATH=path),
        "packages",
        "transformers 4.30.0 is installed, and .*chatbot-sft 0.1.0 wants",
    )
    assert repair.startswith("pip install 'transformers")
    assert "<=5.17.0" in repair


@pytest.mark.slow
def test_a_driver_that_is_older_than_torch(doctor, tmp_path):
    path = torch_for(tmp_path / "more", "13.0")
    env = {"PYTHONPATH": path, "PATH": smi(tmp_path / "bin")}
    repair = only(
        doctor(cold=True, **env),
        "torch",
        r"torch 2.13.0 is built for CUDA 13.0, the driver carries 12.4 at most",
    )
    assert (
        repair
        == "pip install --force-reinstall 'torch>=2.6' --index-url https://download.pytorch.org/whl/cu124"
    )


def test_more_than_the_memory_and_the_disk_hold(doctor):
    words = ("model=local", "model.name=org/Huge-9000000B", "save=gguf")
    findings = doctor(*words)
    assert has(findings, "disk", "fault", "the run writes") == "save.save_path=/larger/disk/model"
    has(findings, "memory", "fault", "training needs at least")


def test_a_small_disk(doctor, small_disk, monkeypatch):
    folder = small_disk("20m")
    repair = only(
        # Without the converted model in the cache: it is known by its name.
        doctor(f"hydra.run.dir={folder}/run", CHATBOT_SFT_CACHE=f"{folder.parent}/cache"),
        "disk",
        rf"0.0 GB free at {folder}; the run writes 0.4 GB: 3 checkpoints 0.13 GB, exports \(merged_16bit\)",
    )
    assert repair == "save.save_path=/larger/disk/model"
    monkeypatch.setenv("CHATBOT_SFT_CACHE", f"{folder}/cache")
    monkeypatch.setenv("HF_HOME", f"{folder}/hf")
    for name, size, repair in (
        ("smollm2", "0.54", "CHATBOT_SFT_CACHE=/larger/disk/cache"),
        ("org/Some-1B", "2.00", "HF_HOME=/larger/disk/huggingface"),
    ):
        settings = Config.from_mapping({"model": {"name": name}, "task": "plan"})
        (found,) = room.disks(takes.writes(settings, takes.size(settings)))
        assert (found.state, found.repair) == (State.FAULT, f"export {repair}")
        assert f"{size} GB" in found.what


def test_files_that_hide_a_library(doctor, monkeypatch):
    here = doctor.folder
    (here / "data").mkdir()
    (here / "datasets").mkdir()
    (here / "datasets" / "my.jsonl").write_text("{}")
    (here / "torch.py").write_text("raise SystemExit('never imported')\n")
    repair = only(doctor(), "folder", r"torch.py in .* hides the library torch")
    assert repair == f"mv {here}/torch.py {here}/my_torch.py"
    (here / "torch.py").unlink()
    monkeypatch.chdir(here)
    # A folder without __init__.py hides nothing.
    assert next(one.what for one in surroundings.check()) == f"{here} hides no library"
    (here / "datasets" / "__init__.py").write_text("")
    own = here / "mine"
    own.mkdir()
    (own / "random.py").write_text("")
    found = [one.what for one in surroundings.check([str(own)]) if one.state is State.FAULT]
    assert found == [
        f"random.py in {own} hides Python's own random",
        f"datasets in {here} hides the library datasets",
    ]


@pytest.mark.slow
def test_files_that_hide_what_the_doctor_itself_imports(doctor):
    for name in ("argparse", "packaging", "omegaconf"):
        (doctor.folder / f"{name}.py").write_text("raise SystemExit('imported')\n")
    faults = [one["what"] for one in doctor(cold=True) if one["state"] == "fault"]
    assert [what.partition(" ")[0] for what in faults] == ["argparse.py", "omegaconf.py", "packaging.py"]
    assert "Python's own argparse" in faults[0]


@pytest.mark.slow
def test_a_library_that_does_not_import_is_a_finding(doctor, tmp_path):
    """What composes a run is broken: the rest is looked at all the same."""
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "omegaconf.py").write_text("raise ImportError('half an installation')\n")
    path = os.pathsep.join(filter(None, [str(tmp_path / "more"), os.environ.get("PYTHONPATH")]))
    findings = doctor(cold=True, PYTHONPATH=path)
    has(findings, "run", "fault", "cannot be composed: ImportError: half an installation")
    has(findings, "PYTHONPATH", "note", "omegaconf from")
    assert {"packages", "gpu", "encoding"} <= {one["name"] for one in findings if one["state"] == "ok"}


def test_a_check_that_fails_is_a_finding():
    def check():
        yield from ()
        raise ModuleNotFoundError("No module named 'psutil'", name="psutil")

    (found,) = examined("memory", check)
    assert (found.state, found.repair) == (State.FAULT, "pip install --force-reinstall psutil")
    assert found.what == "cannot be looked at: ModuleNotFoundError: No module named 'psutil'"


@pytest.mark.slow
def test_a_locale_without_letters(doctor):
    """What it prints itself has other letters than ASCII's."""
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    (doctor.folder / "dữ liệu.jsonl").write_text("{}", encoding="utf-8")
    text = subprocess.run(
        [sys.executable, "-m", "chatbot_sft.doctor"],
        env=env,
        cwd=doctor.folder,
        capture_output=True,
        text=True,
    )
    assert text.returncode == 1, text.stderr
    assert "\nfault encoding" in text.stdout
    assert "export LC_ALL=C.UTF-8\n1 fault\n" in text.stdout


def test_a_token_with_which_nothing_is_done(doctor):
    token = "your_token_here"
    findings = doctor("save.push_to_hub=true", "save.hub_model_id=me/it", HF_TOKEN=token)
    assert has(findings, "token", "fault", "does not begin") == "unset HF_TOKEN && hf auth login"
    assert token not in json.dumps(findings)
    has(doctor(HF_TOKEN=token), "token", "note", "does not begin")


def test_a_model_that_cannot_be_had(doctor, tmp_path):
    words = ("model=local", "model.name=org/Some-1B", "dataset.data_path=org/chats")
    findings = doctor(*words, HF_HOME=str(tmp_path / "hf"))
    repair = has(findings, "model", "fault", "org/Some-1B: not in the hub's cache, and HF_HUB_OFFLINE is set")
    assert repair == "HF_HUB_OFFLINE=0 hf download org/Some-1B"
    has(findings, "data", "fault", "org/chats: not in the hub's cache")
    folder = tmp_path / "model"
    folder.mkdir()
    write_json(folder / "config.json", LLAMA)
    (folder / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    )
    findings = doctor("model=local", f"model.name={folder}")
    has(findings, "model", "fault", "Git LFS pointer")


@pytest.mark.slow
def test_the_hub_is_asked_where_the_user_says_so(doctor, tmp_path):
    """The address is one that takes no connection."""
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "token").write_text("hf_abcdefghijklmnopqrstuvwxyz")
    env = {"HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": "http://127.0.0.1:9"}
    words = ("model=local", "model.name=meta-llama/Llama-3.2-1B-Instruct")
    findings = doctor(*words, "--online", cold=True, **env)
    has(findings, "model", "note", "will be downloaded")
    has(findings, "online", "fault", "no answer from http://127.0.0.1:9")
    assert "hf_abc" not in json.dumps(findings)


def test_extras_that_are_not_installed(doctor, monkeypatch):
    words = (
        "training.report_to=[wandb,swanlab]",
        "training.optim=galore_adamw",
        "training.optim_target_modules=all-linear",
    )
    faults = [one for one in doctor(*words) if one["state"] == "fault"]
    assert [one["repair"] for one in faults] == [
        "pip install 'wandb<1,>=0.30'",
        "pip install swanlab",
        "pip install galore-torch",
    ]


def test_what_is_wrong_with_the_configuration_is_said_as_the_launcher_says_it(light, tmp_path):
    for words in (["lora.r=x"], ["--fix"], ["lora=nope"]):
        ours = light.run(["-m", "chatbot_sft.doctor", *words], tmp_path)
        theirs = light.run(["-m", "chatbot_sft", *words], tmp_path)
        assert (ours.returncode, ours.stdout, ours.stderr) == (1, "", theirs.stderr)
        assert ours.stderr.startswith("error: ")
        assert len(ours.stderr.splitlines()) == 1


def test_it_takes_the_overrides_of_a_run_and_a_sweep(doctor, tmp_path):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "large.yaml").write_text(
        "# @package _global_\nmodel:\n  name: org/Large-1B\n  load_in_4bit: true\nsave:\n  method: lora\n"
    )
    env = {"HF_HOME": str(tmp_path / "hf")}
    findings = doctor("--config-dir", tmp_path / "mine", "experiment=large", "lora.r=32", **env)
    has(findings, "model", "fault", "org/Large-1B")
    has(findings, "disk", "ok", r"exports \(lora\) 0.09 GB")
    assert not [one for one in doctor("-m", "lora.r=8,16", "hparams_search=seeds") if one["state"] == "fault"]


def test_lines_are_aligned_and_faults_stand_last(light, tmp_path):
    (tmp_path / "torch.py").write_text("")
    process = light.run(["-m", "chatbot_sft.doctor", "training.report_to=wandb"], tmp_path)
    lines = process.stdout.splitlines()
    assert process.returncode == 1
    assert lines[-1] == "2 faults"
    assert [line.split()[0] for line in lines[-5:-1]] == ["fault", "→", "fault", "→"]
    assert lines[-2] == f"{'':18}→ pip install 'wandb<1,>=0.30'"
    assert all(len(line) > 18 and line[17] == " " for line in lines[:-1])
