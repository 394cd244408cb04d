"""Memory, disks and folders that a run cannot do with."""

import os
import subprocess
from pathlib import Path

from planted import smi

from chatbot_sft.config import Config
from chatbot_sft.doctor import need, room
from chatbot_sft.doctor.finding import State


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
    assert "13.00B weights by the name org/Large-13B" in found.what
    assert of_memory("org/Large-13B").state is State.OK
    assert of_memory("org/Large-70B").repair == "python -m chatbot_sft model=smollm2"


def test_places_that_cannot_be_written(small_disk, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    folder = small_disk("1m")
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    for place, why in (
        (tmp_path / "file" / "run", "file is a file"),
        (tmp_path / "link" / "run", "link is a link that leads nowhere"),
        (folder / "run", f"{folder} cannot be written"),
        (Path("/proc/run"), "/proc"),  # whose permissions let root write
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
