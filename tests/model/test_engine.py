"""Which engine `auto` takes, told from versions and hardware alone."""

import gc
import importlib.metadata
import json
import os
from pathlib import Path

import pytest

from chatbot_sft import cache
from chatbot_sft.config import Config
from chatbot_sft.model import engine, hardware


@pytest.mark.parametrize(
    ("version", "cards", "name", "reason"),
    [
        ("2026.10.9", (), "unsloth", "auto: unsloth 2026.10.9 trains on a CPU"),
        (
            "2026.10.7",
            (),
            "transformers",
            "auto: unsloth 2026.10.7 needs a GPU; 2026.10.8 and later train on a CPU",
        ),
        (
            "2026.10.7",
            (hardware.Gpu("NVIDIA H200", 150.8, "580"),),
            "unsloth",
            "auto: unsloth 2026.10.7 on NVIDIA H200",
        ),
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


PLAIN = {"model": {"name": "smollm2"}}


@pytest.mark.parametrize(
    ("changes", "packs"),
    [
        ({}, True),
        ({"model": {"name": "smollm2", "dtype": "float16"}}, False),
        ({"model": {"name": "smollm2", "dtype": "float32"}}, False),
        ({"model": {"name": "smollm2", "new_tokens": ["<x>"]}}, False),
        ({"lora": {"modules_to_save": ["lm_head"]}}, False),
        ({"lora": {"r": 0}, "model": {"name": "smollm2", "load_in_4bit": False}}, False),
        ({"training": {"neftune_noise_alpha": 5}}, False),
        ({"training": {"batch_layout": "as_configured"}}, False),
        ({"training": {"loop": "trl"}}, False),
    ],
)
def test_auto_takes_the_plain_engine_where_that_packs(monkeypatch, changes, packs):
    monkeypatch.setattr(engine.importlib.metadata, "version", lambda package: "2.11.0+cu130")
    settings = Config.from_mapping({**PLAIN, **changes})
    monkeypatch.setattr(hardware, "gpus", lambda: (hardware.Gpu("NVIDIA H200", 150.8, "580", 9.0),))
    assert engine.trains_packed(settings, lambda settings: "llama") is packs
    assert not engine.trains_packed(settings, lambda settings: "gpt2")
    for cards in ((), (hardware.Gpu("Tesla T4", 15.6, "580", 7.5),)):
        monkeypatch.setattr(hardware, "gpus", lambda cards=cards: cards)
        assert not engine.trains_packed(settings, lambda settings: "llama")


def test_gpus_are_read_from_nvidia_smi(monkeypatch, tmp_path):
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\necho 'NVIDIA H200, 143771, 580.159.04, 9.0'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    hardware.gpus.cache_clear()
    assert hardware.gpus() == (hardware.Gpu("NVIDIA H200", 150.8, "580.159.04", 9.0),)
    hardware.gpus.cache_clear()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert hardware.gpus() == ()
    hardware.gpus.cache_clear()


def test_layers_and_head_apart_give_the_loss_and_gradient_of_the_model(warm_unsloth, tiny_llama, tmp_path):
    """What CUDA graphs hold and what stays outside of them, on real Unsloth; the graphs themselves need a
    GPU.
    """
    program = f"""
import json, torch
from chatbot_sft import ModelLoader
loader = ModelLoader({{"model": {{"name": {str(tiny_llama)!r}, "engine": "unsloth", "load_in_4bit": False, "dtype": "float32"}}}})
model, _ = loader.load_and_configure()
engine = loader.engine
engine.for_training(model, False)
trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
torch.manual_seed(0)
for parameter in trained:
    parameter.data.normal_(0, 0.05)
ids = torch.randint(3, 900, (3, 40))
labels = ids.clone()
labels[0, 25:], labels[2, :10] = -100, -100
count = (labels[:, 1:] != -100).sum()
whole = model(input_ids=ids, labels=labels, attention_mask=torch.ones_like(ids), num_items_in_batch=count).loss
whole.backward()
expected = torch.cat([parameter.grad.flatten() for parameter in trained])
model.zero_grad()
hidden = engine.hidden_states(model, ids)
leaf = hidden.detach().requires_grad_()
parts = engine.head_loss(model, leaf, labels, count)
parts.backward()
hidden.backward(leaf.grad)
found = torch.cat([parameter.grad.flatten() for parameter in trained])
print(json.dumps([whole.item(), parts.item(), ((found - expected).norm() / expected.norm()).item()]))
"""
    process = warm_unsloth.run(["-c", program], tmp_path)
    assert process.returncode == 0, process.stderr
    whole, parts, difference = json.loads(process.stdout.splitlines()[-1])
    assert parts == pytest.approx(whole, abs=1e-5)
    assert difference < 1e-5


def test_what_is_compiled_is_kept_in_parts_of_the_cache_that_can_be_cleared(monkeypatch, tmp_path):
    names = ("UNSLOTH_COMPILE_LOCATION", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
    environment = {cache.VARIABLE: str(tmp_path)}
    monkeypatch.setattr(engine.os, "environ", environment)
    engine.prepare_environment()
    parts = {Path(environment[name]).relative_to(tmp_path).parts[0] for name in names}
    assert parts == {"compiled", "unsloth_compiled"}
    assert parts <= set(cache.PARTS)


def test_the_engine_is_imported_without_looking_for_garbage(monkeypatch):
    """In a sweep, and in a process that has collection off, it stays as it was; what is imported is looked through
    no more.
    """
    looked, frozen = [], []
    monkeypatch.setattr(engine, "_imported", lambda requested: looked.append(gc.isenabled()))
    monkeypatch.setattr(engine.gc, "freeze", lambda: frozen.append(gc.isenabled()))
    monkeypatch.setattr(os, "environ", dict(os.environ))
    engine.load_engine.__wrapped__("transformers")
    assert gc.isenabled()
    gc.disable()
    try:
        engine.load_engine.__wrapped__("transformers")
        assert not gc.isenabled()
    finally:
        gc.enable()
    assert (looked, frozen) == ([False, False], [False, False])
