"""Cards and drivers, planted as an nvidia-smi on PATH."""

import sys

from planted import smi, torch_for

from chatbot_sft.config import Config
from chatbot_sft.doctor import gpu, takes
from chatbot_sft.doctor.finding import State
from chatbot_sft.model import engine, hardware


def test_torch_for_the_cpu_beside_a_card(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", smi(tmp_path / "bin", "12.8"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delitem(sys.modules, "torch", raising=False)  # a doctor's process has not imported it
    for cuda, state in ((None, State.FAULT), ("13.0", State.FAULT), ("12.9", State.NOTE), ("12.8", State.OK)):
        folder = tmp_path / str(cuda)
        torch_for(folder, cuda)
        monkeypatch.syspath_prepend(str(folder))
        *cards, built = gpu.check()
        assert [one.what for one in cards] == ["NVIDIA L4, 24 GB, 23 GB free, driver 550.54.14, CUDA 12.8"]
        assert built.state is state, built
    assert built.repair == ""


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


def test_the_engine_is_the_one_that_the_run_takes(monkeypatch, tmp_path):
    """On a card that packs conversations `auto` goes by the model, as far as it is here."""
    monkeypatch.setattr(engine.importlib.metadata, "version", lambda package: "2026.10.9")
    monkeypatch.setattr(hardware, "gpus", lambda: (hardware.Gpu("NVIDIA H200", 150.8, "580", 9.0),))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    packs = "transformers (auto: packs conversations on NVIDIA H200)"
    for name, more, said in (
        (str(tmp_path), {}, packs),
        (str(tmp_path), {"objective": {"name": "dpo"}}, "transformers (auto: objective=dpo)"),
        (str(tmp_path / "other"), {}, "unsloth (auto: unsloth 2026.10.9 on NVIDIA H200)"),
        ("nobody/not-here", {}, "unsloth (auto: unsloth 2026.10.9 on NVIDIA H200)"),
    ):
        (found,) = takes.check(Config.from_mapping({"model": {"name": name}, **more}))
        assert found.what == said
