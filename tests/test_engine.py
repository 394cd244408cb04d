"""Which engine `auto` takes, told from versions and hardware alone."""

import importlib.metadata

import pytest

from chatbot_sft.model import engine, hardware


@pytest.mark.parametrize(
    ("version", "cards", "name", "reason"),
    [
        ("2026.10.9", (), "unsloth", "auto: unsloth 2026.10.9 trains on a CPU"),
        ("2026.10.7", (), "transformers", "auto: unsloth 2026.10.7 needs a GPU; 2026.10.8 and later train on a CPU"),
        ("2026.10.7", (hardware.Gpu("NVIDIA H200", 150.8, "580"),), "unsloth", "auto: unsloth 2026.10.7 on NVIDIA H200"),
        (None, (), "transformers", "auto: unsloth is not installed"),
    ],
)
def test_auto_goes_by_version_and_hardware(monkeypatch, version, cards, name, reason):
    def installed(package):
        if version is None:
            raise importlib.metadata.PackageNotFoundError(package)
        return version

    monkeypatch.setattr(engine.importlib.metadata, "version", installed)
    monkeypatch.setattr(hardware, "gpus", lambda: cards)
    assert engine.expected("auto") == engine.Choice(name, reason)
    assert engine.expected("transformers") == engine.Choice("transformers", "as configured")


def test_gpus_are_read_from_nvidia_smi(monkeypatch, tmp_path):
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\necho 'NVIDIA H200, 143771, 580.159.04'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    hardware.gpus.cache_clear()
    assert hardware.gpus() == (hardware.Gpu("NVIDIA H200", 150.8, "580.159.04"),)
    hardware.gpus.cache_clear()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert hardware.gpus() == ()
    hardware.gpus.cache_clear()
