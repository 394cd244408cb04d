"""`model.adapter`: an earlier adapter is trained on, and what cannot be gone on from is said before a model
is loaded.
"""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import pytest
from conftest import MODEL, a_report, only_error, write_json
from test_checkpoints import flipped
from test_earlier_runs import base

from chatbot_sft.config import Config
from chatbot_sft.errors import UserError
from chatbot_sft.model.base import description
from chatbot_sft.model.earlier import adopt, check_tokenizer, reference_fingerprint
from chatbot_sft.run import checkpoints
from chatbot_sft.run.directory import Run
from chatbot_sft.run.lock import Lock
from chatbot_sft.train import resume

TARGETS = ["v_proj", "q_proj"]


def weights(rank: int) -> bytes:
    """A safetensors file with one pair of LoRA matrices."""
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    a, b = 4 * rank * 8, 4 * 8 * rank
    header = {
        f"{name}A.weight": {"dtype": "F32", "shape": [rank, 8], "data_offsets": [0, a]},
        f"{name}B.weight": {"dtype": "F32", "shape": [8, rank], "data_offsets": [a, a + b]},
    }
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(a + b)


def adapter(folder: Path, model: Path, rank: int = 8, **config) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(weights(rank))
    found = {
        "peft_type": "LORA",
        "base_model_name_or_path": str(model),
        "r": rank,
        "lora_alpha": 32,
        "target_modules": TARGETS,
        "init_lora_weights": True,
    }
    write_json(folder / "adapter_config.json", {**found, **config})
    return folder


@pytest.fixture
def model(tmp_path):
    return base(tmp_path / "base")


def given(model: Path, place: Path, lora: dict | None = None, **more) -> dict:
    return {
        "model": {"name": str(model), "adapter": str(place), "load_in_4bit": False, **more},
        "lora": lora or {},
    }


def test_rank_and_targets_are_the_adapters(model, tmp_path):
    place = adapter(tmp_path / "adapter", model, use_rslora=True, modules_to_save=["lm_head"])
    adopted = adopt(given(model, place, {"lora_dropout": 0.1}))
    lora = Config.from_mapping(adopted).lora
    assert (lora.r, lora.lora_alpha, lora.target_modules, lora.use_rslora, lora.modules_to_save) == (
        8,
        32,
        ["q_proj", "v_proj"],
        True,
        ["lm_head"],
    )
    assert (lora.lora_dropout, lora.use_dora, lora.bias) == (0.1, False, "none")
    assert adopted["model"]["adapter"] == str(place)
    assert adopt(adopted) == adopted
    settings = adopt(Config.from_mapping(given(model, place)))
    assert isinstance(settings, Config)
    assert settings.lora.r == 8
    plain = Config.from_mapping({"model": {"name": "x"}})
    assert adopt(plain) is plain


def in_run(model: Path, folder: Path) -> Path:
    staged = adapter(folder / "staged", model)
    (folder / "checkpoints").mkdir()
    checkpoints.publish(
        staged, folder / "checkpoints" / "checkpoint-4", resume.record(resume.Origin(), 4, 1.0, True, {}, {})
    )
    return folder


def test_a_run_an_export_and_a_checkpoint_have_an_adapter(model, tmp_path, monkeypatch, caplog):
    run = in_run(model, tmp_path / "run")
    last = run / "checkpoints" / "checkpoint-4"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(run)
    for way in ("run", "run/", "link", "run/checkpoints", "run/checkpoints/checkpoint-4"):
        assert adopt(given(model, way))["model"]["adapter"] == str(last)
    write_json(run / "report.json", a_report())
    saved = adapter(run / "model" / "lora", model)
    assert adopt(given(model, "run"))["model"]["adapter"] == str(last)
    assert adopt(given(model, "run/model"))["model"]["adapter"] == str(saved)
    flipped("adapter_model.safetensors")(last)
    assert adopt(given(model, "run"))["model"]["adapter"] == str(saved)
    assert "is passed over: adapter_model.safetensors is damaged" in caplog.text
    with pytest.raises(UserError, match=r"adapter_model.safetensors is damaged .*; name another checkpoint"):
        adopt(given(model, last))


def test_the_base_is_the_same_wherever_it_lies(model, tmp_path):
    place = adapter(tmp_path / "adapter", model)
    copy = shutil.copytree(model, tmp_path / "copy")
    assert adopt(given(copy, place))
    mark = {
        "made_from": {},
        "export": {"files": {}},
        "base": description(Config.from_mapping(given(model, place)), place),
    }
    write_json(place / "export.json", mark)
    shutil.rmtree(model)  # what it held is written in the export
    assert adopt(given(copy, place))
    (copy / "config.json").write_text('{"other": 1}')
    with pytest.raises(
        UserError,
        match=(
            r"it was trained on .*/base, not on model\.name=.*/copy; go on with model=local"
            r" model\.name=.*/base"
        ),
    ):
        adopt(given(copy, place))


@pytest.mark.parametrize(
    ("config", "lora", "more", "expected"),
    [
        ({}, {"r": 4}, {}, r"lora\.r=4: the adapter that is gone on from has 8; leave lora\.r out"),
        ({}, {"r": 0}, {}, r"with lora\.r=0: an adapter is trained on as an adapter"),
        ({}, {"lora_alpha": 64}, {}, r"lora\.lora_alpha=64: the adapter that is gone on from has 32"),
        (
            {},
            {"target_modules": ["k_proj"]},
            {},
            r"lora\.target_modules=\['k_proj'\]: the adapter that is gone on from has \['q_proj', 'v_proj'\]",
        ),
        ({}, {"use_dora": True}, {}, r"lora\.use_dora=True: the adapter that is gone on from has False"),
        ({}, {"init_lora_weights": "gaussian"}, {}, "an adapter that is there is not initialised"),
        ({"init_lora_weights": "pissa"}, {}, {}, r"its initialisation \(pissa\) changed the base"),
        ({"peft_type": "IA3"}, {}, {}, "a IA3 adapter; only LoRA can be trained on"),
        ({"rank_pattern": {"q_proj": 4}}, {}, {}, "it uses rank_pattern, which this program does not train"),
        ({"target_modules": ".*_proj"}, {}, {}, "it uses a pattern for target_modules"),
        (
            {"trainable_token_indices": {"embed_tokens": [5]}},
            {},
            {},
            r"it has new tokens; model\.new_tokens has to name the same ones",
        ),
        ({}, {}, {"new_tokens": ["<|x|>"]}, "it was trained without new tokens"),
        ({"base_model_name_or_path": "org/other"}, {}, {}, "it was trained on org/other, not on model.name="),
        ({"base_model_name_or_path": None}, {}, {}, "adapter_config.json is damaged"),
        ({"r": "8"}, {}, {}, "adapter_config.json is damaged"),
        ({"r": 16}, {}, {}, "has matrices of rank 8, and adapter_config.json says 16"),
    ],
)
def test_an_adapter_that_cannot_be_gone_on_from_is_named(config, lora, more, expected, model, tmp_path):
    place = adapter(tmp_path / "adapter", model, **config)
    with pytest.raises(UserError, match=expected):
        adopt(given(model, place, lora, **more))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("adapter_config.json", b"[]", "adapter_config.json is damaged"),
        ("adapter_config.json", b"{", "adapter_config.json is damaged"),
        ("adapter_config.json", b"[" * 100_000, "adapter_config.json is damaged"),
        ("adapter_model.safetensors", weights(8)[:-1], "is cut or damaged"),
        ("adapter_model.safetensors", weights(8) + b"x", "is cut or damaged"),
        ("adapter_model.safetensors", b"", "is no safetensors file"),
        (
            "adapter_model.safetensors",
            b"version https://git-lfs.github.com/spec/v1\n",
            "is no safetensors file",
        ),
        ("adapter_model.safetensors", struct.pack("<Q", 2) + b"[]", "is no safetensors file"),
        ("adapter_model.safetensors", struct.pack("<Q", 2) + b"{}", "is no safetensors file"),
        ("adapter_model.safetensors", None, "no adapter_model.safetensors in"),
        ("adapter_config.json", None, "no adapter in it"),
    ],
)
def test_a_damaged_adapter_is_named(name, content, expected, model, tmp_path):
    place = adapter(tmp_path / "adapter", model)
    (place / name).unlink()
    if content is not None:
        (place / name).write_bytes(content)
    with pytest.raises(UserError, match=expected):
        adopt(given(model, place))


def test_what_is_no_adapter_says_what_it_is(model, tmp_path):
    with pytest.raises(
        UserError, match="no such folder; name a run directory, an exported adapter or a checkpoint"
    ):
        adopt(given(model, tmp_path / "nowhere"))
    with pytest.raises(
        UserError, match=r"no adapter in it .*; it is a whole model: name it with model\.name"
    ):
        adopt(given(model, model))


def test_training_goes_on_from_an_earlier_run_on_both_engines(launch, tiny, tiny_llama, tmp_path):
    first = [
        *tiny,
        "lora.r=8",
        "training.learning_rate=5e-2",
        "training.warmup_steps=0",
        "training.save_steps=1.0",
        "save=lora",
        "hydra.run.dir=first",
    ]
    process = launch(*first)
    assert process.returncode == 0, process.stderr
    before = json.loads((tmp_path / "first" / "report.json").read_text())["training"]
    for engine in ("transformers", "unsloth"):
        second = [
            *tiny,
            f"model.engine={engine}",
            "model.adapter=first",
            "training.max_steps=1",
            "save=lora",
            f"hydra.run.dir={engine}",
        ]
        process = launch(*second)
        assert process.returncode == 0, process.stderr
        report = json.loads((tmp_path / engine / "report.json").read_text())
        assert report["training"]["eval_loss_before"] == pytest.approx(before["eval_loss"], abs=0.01)
        assert before["eval_loss"] < before["eval_loss_before"] - 0.05
        assert report["model"]["adapter"] == str(tmp_path / "first" / "checkpoints" / "checkpoint-2")
        assert "which decides lora.* (r=8, alpha=16)" in process.stderr
        assert json.loads((tmp_path / engine / "model" / "adapter_config.json").read_text())["r"] == 8
        identity = json.loads((tmp_path / engine / "checkpoints" / "checkpoint-1" / "run.json").read_text())[
            "identity"
        ]
        assert identity["model.adapter (weights)"]
    shutil.rmtree(tmp_path / "first")  # an export needs what it became alone
    process = launch(
        "task=export", "run=transformers", "save=merged_16bit", "save.save_path=bot", "hydra.run.dir=export"
    )
    assert process.returncode == 0, process.stderr
    error = only_error(launch(*second, "lora.r=4", "hydra.run.dir=third"))
    assert "model.adapter=first: no such folder" in error


# An adapter that is measured from, and a run that is begun at


def referring_to(model: Path, place: Path, **more) -> dict:
    objective = {"name": "dpo", "reference": str(place)}
    return {"model": {"name": str(model), "load_in_4bit": False}, "objective": objective, **more}


@pytest.mark.parametrize(
    ("config", "more", "expected"),
    [
        ({"base_model_name_or_path": "org/other"}, {}, "it was trained on org/other, not on model.name="),
        ({"peft_type": "IA3"}, {}, "a IA3 adapter; only LoRA"),
        ({"init_lora_weights": "pissa"}, {}, r"its initialisation \(pissa\) changed the base"),
        ({"r": 4}, {}, "has matrices of rank 8, and adapter_config.json says 4"),
        ({}, {"lora": {"r": 0}}, "with lora.r=0: it is an adapter beside the one that is trained"),
        ({}, {"training": {"shard": True}}, "with training.shard=true: it is an adapter beside"),
    ],
)
def test_a_reference_that_is_none_is_named(model, tmp_path, config, more, expected):
    place = adapter(tmp_path / "adapter", model, **config)
    with pytest.raises(UserError, match=rf"^objective\.reference=.*{expected}"):
        adopt(referring_to(model, place, **more))


def test_a_reference_of_another_rank_is_one_and_of_another_tokenizer_is_none(model, tmp_path):
    run = in_run(model, tmp_path / "run")
    settings = adopt(referring_to(model, run, lora={"r": 4}))
    assert settings.objective.reference == str(run / "checkpoints" / "checkpoint-4")
    assert (settings.lora.r, settings.model.adapter) == (4, None)
    assert reference_fingerprint(settings)
    with pytest.raises(UserError, match=r"^objective\.reference=.*/nowhere: no such folder"):
        adopt(referring_to(model, tmp_path / "nowhere"))
    check_tokenizer(settings, "ours")  # it says nothing of its own
    lock = Lock({}, "theirs", "2026-11-30", {}, "cpu")
    Run(run).write_lock(lock)
    check_tokenizer(settings, "theirs")
    with pytest.raises(UserError, match=r"^objective\.reference=.*the run in .*/run had another tokenizer"):
        check_tokenizer(settings, "ours")


def test_a_run_as_a_model_is_in_memory_as_it_was_then(model, tmp_path, caplog):
    run = in_run(model, tmp_path / "run")
    settings = Config.from_mapping({"model": {"name": str(model), "load_in_4bit": False}})
    write_json(
        run / "report.json", a_report(model={**MODEL, "name": str(model), "base": description(settings, run)})
    )
    asked = {"model": {"name": str(run)}}
    assert adopt(asked).model.load_in_4bit  # nothing says how it was
    Run(run).write_config(settings.to_dict())
    caplog.set_level("INFO")
    assert not adopt(asked).model.load_in_4bit
    assert f"{run} was trained with model.load_in_4bit=false, and so is this" in caplog.text
    assert adopt(asked, ["model.load_in_4bit"]).model.load_in_4bit
    Run(run).write_config(Config.from_mapping({"model": {"name": str(model)}}).to_dict())
    assert adopt(asked).model.load_in_4bit
    assert not adopt({"model": {"name": str(run), "load_in_4bit": False}}).model.load_in_4bit


def test_an_adapter_is_read_whole_once(model, tmp_path, monkeypatch):
    run, read = in_run(model, tmp_path / "run"), []
    checksum = checkpoints._checksum
    monkeypatch.setattr(checkpoints, "_checksum", lambda file: read.append(file.name) or checksum(file))
    adopted = adopt(given(model, run))
    once = len(read)
    assert "adapter_model.safetensors" in read
    adopt(adopted)
    adopt(given(model, run))
    assert len(read) == once
    flipped("adapter_model.safetensors")(run / "checkpoints" / "checkpoint-4")
    with pytest.raises(UserError, match="is damaged"):
        adopt(given(model, run / "checkpoints" / "checkpoint-4"))


def test_a_run_as_a_model_is_its_base_and_its_adapter(model, tmp_path):
    run = in_run(model, tmp_path / "run")
    settings = Config.from_mapping({"model": {"name": str(model), "load_in_4bit": False}})
    known = {**MODEL, "name": str(model), "base": description(settings, run)}
    write_json(run / "report.json", a_report(model=known))
    begun = adopt({"model": {"name": str(run), "load_in_4bit": False}})
    assert begun.model.name == str(model)
    assert begun.model.adapter == str(run / "checkpoints" / "checkpoint-4")
    assert begun.lora.r == 8
    whole = {**known, "trainable_parameters": known["parameters"]}
    write_json(run / "report.json", a_report(model=whole))
    with pytest.raises(UserError, match=r"a run that trained every weight, and no export of it is there"):
        adopt({"model": {"name": str(run)}})
    export = {"method": "merged_16bit", "path": str(model)}
    write_json(
        run / "report.json", a_report(model=whole, save={"method": "merged_16bit", "exports": [export]})
    )
    begun = adopt({"model": {"name": str(run)}})
    assert (begun.model.name, begun.model.adapter) == (str(model), None)
    shutil.rmtree(run / "checkpoints")  # what its adapter was in
    export = {"method": "merged_16bit", "path": "/where/the/run/was/model"}
    shutil.copytree(model, run / "model")
    write_json(
        run / "report.json", a_report(model=known, save={"method": "merged_16bit", "exports": [export]})
    )
    begun = adopt({"model": {"name": str(run)}})
    assert (begun.model.name, begun.model.adapter) == (str(run / "model"), None)
