"""Exports and their verification: every format of every architecture is the trained model, and whatever is
planted in it is found.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import replicas
from conftest import composed, conversations, only_error, write_json
from families import FAMILIES, write_folders
from hub_double import Failure, serve, user

from chatbot_sft import pipeline
from chatbot_sft.config import Config
from chatbot_sft.errors import UserError
from chatbot_sft.inference.gguf_model import GGUFModel
from chatbot_sft.inference.hf_model import HFModel
from chatbot_sft.save import saver
from chatbot_sft.save.gguf import file as gguf_file
from chatbot_sft.save.gguf.file import check_architecture
from chatbot_sft.save.gguf.vocabulary import read_vocabulary
from chatbot_sft.save.saver import ModelSaver
from chatbot_sft.save.trained import Trained
from chatbot_sft.save.verify.compare import Observation, Reference, compare, logits_of
from chatbot_sft.save.verify.evidence import Evidence, Row

ARCHITECTURES = (
    "llama3b",
    "llama8b",
    "qwen3_4b",
    "mistral7b",
    "gemma3_4b",
)  # of conf/model: tied and untied, rope scaling, norms, a vision tower


@pytest.fixture(scope="session")
def tokenizer_folders(smollm2, tmp_path_factory) -> dict[str, Path]:
    whole = json.loads((smollm2 / "tokenizer.json").read_text(encoding="utf-8"))
    return write_folders(tmp_path_factory.mktemp("families"), replicas.small_vocabulary(whole))


@pytest.fixture(autouse=True)
def warm_probe_where_trained(request):
    if "trained" in request.fixturenames:
        request.getfixturevalue("warm_probe")


@pytest.fixture(scope="session")
def trained(tokenizer_folders, tmp_path_factory):
    """`trained("llama3b")` is the saver of a replica that was trained; its adapter has been made large enough
    to be seen in any format.
    """
    base, made = tmp_path_factory.mktemp("trained"), {}

    def train(option: str, *overrides: str) -> ModelSaver:
        key = (option, *overrides)
        if key not in made:
            replica, folder = replicas.REPLICAS[option], base / str(len(made))
            checkpoint = replicas.write(
                replica, tokenizer_folders[replica.family], FAMILIES[replica.family].end, folder / "base"
            )
            data = write_json(folder / "data.json", conversations(24))
            savers = []
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(pipeline, "save", lambda saver, report: savers.append(saver))
                given = [
                    f"model={option}",
                    f"model.name={checkpoint}",
                    f"dataset.data_path={data}",
                    *QUICK,
                    *overrides,
                ]
                pipeline.run(composed(folder / "run", *given))
            made[key] = savers[0]
        return made[key]

    return train


QUICK = [
    "model.engine=transformers", "model.load_in_4bit=false", "training.max_steps=6", "training.warmup_steps=0", "training.learning_rate=2e-2",
    "training.batch_layout=as_configured", "training.sample_max_new_tokens=0", "training.save_steps=1.0",
]  # fmt: skip


@pytest.mark.parametrize("option", ARCHITECTURES)
def test_a_gguf_is_the_trained_model(option, trained, tmp_path):
    kinds = ["f32", "q8_0"]
    result = trained(option).save(
        {"method": "gguf", "save_path": str(tmp_path / "out"), "gguf_quantization": kinds}
    )
    assert result.verified is True
    (export,) = result.exports
    assert set(export.checks) == set(kinds)
    exact = export.checks["f32"]
    assert abs(exact["kl"]) < 1e-3
    assert exact["kl_base"] > 0.01, "training has to show for the check to mean anything"
    assert exact["trained_share"] == pytest.approx(1, abs=0.05)
    assert exact["prompts"] == "2/2"
    assert {"out-F32.gguf", "out-Q8_0.gguf", "Modelfile", "README.md"} <= set(export.files)
    assert "TEMPLATE" in (tmp_path / "out" / "Modelfile").read_text(encoding="utf-8")


def test_every_format_at_once_has_a_folder_each(trained, tmp_path):
    methods = ["gguf", "merged_16bit", "lora"]
    result = trained("llama3b").save(
        {"method": methods, "save_path": str(tmp_path / "out"), "gguf_quantization": ["f16", "q4_k_m"]}
    )
    assert [export.method for export in result.exports] == ["lora", "merged_16bit", "gguf"]
    assert result.verified is True
    assert sorted(folder.name for folder in (tmp_path / "out").iterdir()) == ["gguf", "lora", "merged_16bit"]
    kl = {kind: abs(found["kl"]) for export in result.exports for kind, found in export.checks.items()}
    assert kl["lora"] < 1e-6 <= kl["merged_16bit"] < kl["q4_k_m"] < 0.4
    assert result.exports[0].base is None
    assert result.exports[1].base == "the base's own weights"


# ---- the comparison itself


@pytest.mark.parametrize(
    ("moved", "noise", "gone", "expected"),
    [
        (1.0, 0.1, 1, None),
        (1.0, 0.1, 0, "it shows -?[0-9]+% of what training changed: the adapter is missing"),
        (1.0, 0.1, 2, "it shows [0-9]+% of what training changed: the adapter was added more than once"),
        (
            0.05,
            0.3,
            1,
            None,
        ),  # two steps of training, under a coarse quantisation: nothing can be said of its direction
        (0.05, 0.3, 0, None),
        (0.05, 0.001, 0, "the adapter is missing"),
    ],
)
def test_what_training_changed_is_told_from_the_noise_of_a_format(moved, noise, gone, expected):
    import numpy as np

    random = np.random.default_rng(0)
    base, way, error = (random.normal(0, size, (100, 500)).astype("float32") for size in (3, moved, noise))
    trained = Observation([[1]], [[7]], np.concatenate([base + way, base[:1]]), [7])
    reference = Reference(trained, Evidence([], [], 1, [7]), 100, base, False, str)
    export = Observation([[1]], [[7]], np.concatenate([base + gone * way + error, base[:1]]), [7])
    told = [
        failure for failure in compare(reference, export, "q2_k").failures if "training changed" in failure
    ]
    assert len(told) == (expected is not None)
    assert expected is None or re.search(expected, told[0])


# ---- planted faults


def corrupt(method: str, damage):
    """The writer of `method`, followed by `damage(trained, folder)`."""
    write = saver.WRITERS[method]

    def both(trained, folder):
        write(trained, folder)
        damage(trained, folder)

    return both


def without_the_adapter(trained, folder):
    """The base's own weights under the export's name."""
    for file in folder.glob("*.safetensors"):
        file.unlink()
    for file in Path(trained.settings.model.name).glob("*.safetensors"):
        shutil.copy(file, folder)


def without_the_end(trained, folder):
    file = folder / "generation_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    other = trained.tokenizer.convert_tokens_to_ids("<|end_of_text|>")
    file.write_text(json.dumps({**config, "eos_token_id": other}), encoding="utf-8")


def with_another_template(trained, folder):
    file = folder / "chat_template.jinja"
    file.write_text(
        file.read_text(encoding="utf-8").replace("<|end_header_id|>\\n\\n", "<|end_header_id|>\\n"),
        encoding="utf-8",
    )


def with_another_tokenizer(trained, folder):
    other = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    other["model"]["merges"] = other["model"]["merges"][:100]
    (folder / "tokenizer.json").write_text(json.dumps(other), encoding="utf-8")


FAULTS = {
    "base merged instead of adapter": (
        without_the_adapter,
        "it shows 0% of what training changed: the adapter is missing",
    ),
    "end removed": (without_the_end, "it does not stop at <|eot_id|>, with which the trained answers end"),
    "wrong template": (with_another_template, "becomes other token ids, from the"),
    "tokenizer of another model": (with_another_tokenizer, "becomes other token ids, from the"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_planted_in_a_merged_model_is_found(fault, trained, tmp_path, monkeypatch):
    damage, found = FAULTS[fault]
    monkeypatch.setitem(saver.WRITERS, "merged_16bit", corrupt("merged_16bit", damage))
    refused(trained("llama3b"), "merged_16bit", tmp_path, found)


def test_an_adapter_that_is_the_base_is_found(trained, tmp_path, monkeypatch):
    def zeroed(trained, folder):
        from safetensors.torch import load_file, save_file

        file = folder / "adapter_model.safetensors"
        save_file(
            {name: tensor * ("lora_B" not in name) for name, tensor in load_file(file).items()},
            file,
            metadata={"format": "pt"},
        )

    monkeypatch.setitem(saver.WRITERS, "lora", corrupt("lora", zeroed))
    error = failure(trained("llama3b"), "lora", tmp_path)
    assert "it shows 0% of what training changed: the adapter is missing" in error


def refused(saver: ModelSaver, method: str, tmp_path: Path, found: str, **settings) -> None:
    error = failure(saver, method, tmp_path, **settings)
    assert found in error
    assert f"the adapter is in {tmp_path / 'out-adapter'}" in error
    assert (tmp_path / "out-adapter" / "adapter_model.safetensors").is_file()


def failure(saver: ModelSaver, method: str, tmp_path: Path, **settings) -> str:
    """The error of an export that is refused; nothing of it stands on the disk."""
    with pytest.raises(UserError) as caught:
        saver.save({"method": method, "save_path": str(tmp_path / "out"), **settings})
    assert not (tmp_path / "out").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    return str(caught.value)


def test_a_wrong_rope_permutation_in_a_gguf_is_found(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_file, "permute", lambda tensor, heads: tensor)
    refused(
        trained("llama3b"), "gguf", tmp_path, "nats away from the trained model's", gguf_quantization="f16"
    )


def test_a_wrong_template_in_a_gguf_is_found(trained, tmp_path, monkeypatch):
    add = gguf_file.add_vocabulary

    def other(writer, tokenizer, *rest):
        add(writer, tokenizer, *rest)
        template = writer.kv_data[0]["tokenizer.chat_template"]
        template.value = template.value.replace("<|end_header_id|>\\n\\n", "<|end_header_id|>\\n")

    monkeypatch.setattr(gguf_file, "add_vocabulary", other)
    refused(trained("llama3b"), "gguf", tmp_path, "becomes other token ids", gguf_quantization="f16")


def test_a_beginning_of_text_too_many_in_a_gguf_is_found(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("chatbot_sft.save.gguf.vocabulary.adds_bos", lambda tokenizer: True)
    refused(
        trained("qwen3_4b"),
        "gguf",
        tmp_path,
        "prompt 1 becomes other token ids, from the 1. on",
        gguf_quantization="f16",
    )


def test_a_gguf_that_does_not_end_is_found(trained, tmp_path, monkeypatch):
    add = gguf_file.add_vocabulary

    def endless(writer, tokenizer, folder, rows, end_of_turn):
        add(writer, tokenizer, folder, rows, None)
        values = writer.kv_data[0]
        values["tokenizer.ggml.eos_token_id"].value = tokenizer.convert_tokens_to_ids("<|end_of_text|>")
        tokens = values["tokenizer.ggml.tokens"].value
        tokens[tokenizer.convert_tokens_to_ids("<|eot_id|>")] = (
            "<|eot|>"  # a name by which llama.cpp knows no end
        )

    monkeypatch.setattr(gguf_file, "add_vocabulary", endless)
    assert "it does not stop at <|eot_id|>" in failure(
        trained("llama3b"), "gguf", tmp_path, gguf_quantization="f16"
    )


def test_a_gguf_that_llama_cpp_does_not_read_is_a_finding(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_file, "_rope_factors", lambda config: __import__("numpy").ones(3, "float32"))
    error = failure(trained("llama3b"), "gguf", tmp_path, gguf_quantization="f16")
    assert "the f16 export is not the trained model" in error


# ---- places


def test_a_file_name_is_a_file(trained, tmp_path):
    target = tmp_path / "bot.gguf"
    result = trained("llama3b").save(
        {"method": "gguf", "save_path": str(target), "gguf_quantization": "q8_0"}
    )
    assert target.is_file()
    assert (
        set(result.files)
        == {"bot.gguf", "bot.Modelfile", "bot.md"}
        == {path.name for path in tmp_path.iterdir()}
    )
    assert "FROM ./bot.gguf" in (tmp_path / "bot.Modelfile").read_text(encoding="utf-8")
    with pytest.raises(
        UserError, match=r"a file of that name is in the way \(save.overwrite=true replaces it\)"
    ):
        trained("llama3b").save({"method": "gguf", "save_path": str(target)})
    for kind in (
        "q8_0",
        "q4_k_m",
    ):  # each replaces what was there: llama.cpp's quantiser keeps our name in the metadata
        trained("llama3b").save(
            {
                "method": "gguf",
                "save_path": str(target),
                "gguf_quantization": kind,
                "overwrite": True,
                "verify": False,
            }
        )


def test_a_gguf_file_alone_carries_the_trained_system_prompt(trained, tmp_path):
    """Written by us and by llama.cpp's quantiser, and the one that most conversations had, whatever fills the
    gaps of the others.
    """
    saver = trained("llama3b")
    settings = Config.from_mapping(
        {
            **saver.settings.to_dict(),
            "dataset": {**saver.settings.to_dict()["dataset"], "system_prompt": "fills gaps"},
        }
    )
    evidence = dataclasses.replace(saver.evidence, system_prompt="Bạn là Mai.\n" + "x" * 300)
    mine = ModelSaver(settings, saver.model, saver.tokenizer, evidence, saver.report)
    mine.save(
        {
            "method": "gguf",
            "save_path": str(tmp_path / "out"),
            "gguf_quantization": ["q8_0", "q4_k_m"],
            "verify": False,
        }
    )
    for file in (tmp_path / "out").glob("*.gguf"):
        alone = file.rename(tmp_path / file.name)
        assert GGUFModel.load(alone).system_prompt == evidence.system_prompt
    assert "Bạn là Mai." in (tmp_path / "out" / "Modelfile").read_text(encoding="utf-8")
    saver.save(
        {"method": "gguf", "save_path": str(tmp_path / "none"), "gguf_quantization": "q8_0", "verify": False}
    )
    assert GGUFModel.load(tmp_path / "none" / "none-Q8_0.gguf").system_prompt is None


def test_a_folder_is_replaced_only_when_told(trained, tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "mine.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"not empty, and no export of this program \(export\.json\)"):
            trained("llama3b").save(
                {"method": "lora", "save_path": str(target), "verify": False, "overwrite": overwrite}
            )
    assert (target / "mine.txt").read_text() == "mine"
    (target / "mine.txt").unlink()
    for overwrite in (False, True):
        result = trained("llama3b").save(
            {"method": "lora", "save_path": str(target), "verify": False, "overwrite": overwrite}
        )
        assert result.verified is None
        assert (target / "adapter_model.safetensors").is_file()
    link = tmp_path / "link"
    link.symlink_to(target)  # a link means the folder that it leads to
    trained("llama3b").save({"method": "lora", "save_path": str(link), "verify": False, "overwrite": True})
    assert link.is_symlink()
    with pytest.raises(
        UserError, match=r"not empty; name another folder, remove it, or set save\.overwrite=true"
    ):
        trained("llama3b").save({"method": "lora", "save_path": str(target), "verify": False})


# ---- refused before training


@pytest.mark.slow
def test_rope_factors_are_those_of_transformers():
    import numpy as np
    import torch
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {**replicas.LLAMA3_ROPE, "factor": 32.0, "original_max_position_embeddings": 8192}
    config = LlamaConfig(
        hidden_size=3072,
        num_attention_heads=24,
        head_dim=128,
        rope_parameters=rope,
        max_position_embeddings=131072,
    )
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 1 / 500000.0 ** (np.arange(0, 128, 2) / 128)
    factors = gguf_file._rope_factors(config)
    np.testing.assert_allclose(plain / factors, scaled.numpy(), rtol=1e-5)
    assert len(set(factors.tolist())) > 3, "of all three parts: unchanged, in between, divided by 32"


def test_what_has_no_gguf_is_refused_by_name():
    with pytest.raises(
        UserError,
        match=r"model.name=x is a phi3 model; GGUF is written for llama, mistral, qwen2, qwen3, gemma3",
    ):
        check_architecture({"model_type": "phi3"}, "x")
    with pytest.raises(UserError, match="rope type dynamic, which is not written to GGUF"):
        check_architecture({"model_type": "llama", "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "x")


def test_a_tokenizer_that_llama_cpp_does_not_know_is_refused(tokenizer_folders):
    whole = json.loads((tokenizer_folders["phi4"] / "tokenizer.json").read_text(encoding="utf-8"))
    whole["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] += "|x"
    with pytest.raises(
        UserError,
        match=(
            r"llama.cpp has no tokenizer like that of model.name=x \(BPE, pre-tokenizer Split \+ ByteLevel\)"
        ),
    ):
        read_vocabulary(whole, "x")


# ---- what training can leave behind


def test_new_tokens_and_full_embeddings_reach_the_gguf(trained, tmp_path):
    for extra in ("model.new_tokens=['<|gold|>']", "lora.modules_to_save=[embed_tokens,lm_head]"):
        saver = trained("llama8b", extra, "training.max_steps=4")
        result = saver.save(
            {"method": "gguf", "save_path": str(tmp_path / extra[:9]), "gguf_quantization": "f32"}
        )
        assert abs(result.exports[0].checks["f32"]["kl"]) < 1e-3


def test_a_dora_adapter_and_a_changed_base_are_merged(trained, tmp_path):
    for number, extra in enumerate(
        (["lora=dora"], ["lora.init_lora_weights=pissa", "lora.r=4"], ["lora=rslora", "lora.r=8"])
    ):
        result = trained("mistral7b", *extra).save(
            {
                "method": ["merged_16bit", "gguf"],
                "save_path": str(tmp_path / str(number)),
                "gguf_quantization": "f32",
            }
        )
        assert result.verified is True, extra
        assert abs(result.exports[1].checks["f32"]["kl"]) < 1e-3
        assert result.exports[1].base == (
            "the base as it was in training" if "pissa" in extra[0] else "the base's own weights"
        )


def test_a_full_fine_tune_is_exported_from_memory(trained, tmp_path):
    result = trained("gemma3_4b", "lora=none", "training.learning_rate=1e-3").save(
        {"method": ["merged_16bit", "gguf"], "save_path": str(tmp_path / "x")}
    )
    assert result.verified is True
    assert {export.base for export in result.exports} == {"the base as it was in training"}
    assert result.exports[0].checks["merged_16bit"]["trained_share"] is None, "there is no base beside it"


@pytest.mark.slow
def test_a_base_that_is_there_in_4_bits_alone_is_dequantised(tokenizer_folders, tmp_path, warm_probe):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from chatbot_sft.model.quantization import nf4

    torch.manual_seed(0)
    sizes = {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folders["chatml"])
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes, **ends, dtype="bfloat16")).to(
        torch.bfloat16
    ).save_pretrained(tmp_path / "whole")
    AutoModelForCausalLM.from_pretrained(
        tmp_path / "whole", quantization_config=nf4(torch.bfloat16)
    ).save_pretrained(tmp_path / "base")
    for file in tokenizer_folders["chatml"].iterdir():
        shutil.copy(file, tmp_path / "base")
    data = write_json(tmp_path / "data.json", conversations(24))
    given = [
        "model=local",
        f"model.name={tmp_path / 'base'}",
        f"dataset.data_path={data}",
        *QUICK,
        "model.load_in_4bit=true",
        "save.method=[lora,merged_16bit]",
    ]
    report = pipeline.run(composed(tmp_path / "run", *given))
    lora, merged = report.save.exports
    assert merged.base == "the 4-bit base, dequantised: there are no 16-bit weights"
    assert lora.verified is merged.verified is True
    assert abs(lora.checks["lora"]["kl"]) < 1e-4
    config = json.loads(
        (tmp_path / "run" / "model" / "merged_16bit" / "config.json").read_text(encoding="utf-8")
    )
    assert "quantization_config" not in config


def test_the_trained_model_is_asked_as_an_export_and_left_as_it_was(tiny_llama):
    import torch
    from accelerate import Accelerator
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32),
        LoraConfig(task_type="CAUSAL_LM"),
    )
    config = {"model": {"name": str(tiny_llama), "engine": "transformers", "load_in_4bit": False}}
    evidence = Evidence([Row([1, 5, 6, 7], [1, 2])], [[{"role": "user", "content": "?"}]], 2, [2, 0])
    exact = logits_of(HFModel(model.eval(), tokenizer), evidence.rows)
    model.train()
    Accelerator(mixed_precision="bf16", cpu=True).prepare_model(model)
    before, stops = {**vars(model)}, dict(vars(model.get_base_model().generation_config))
    assert "forward" in before
    made = Trained(Config.from_mapping(config), model, tokenizer, evidence, {})
    assert (made.reference.trained.logits[:2] == exact).all(), "with autocast"
    assert made.reference.trained.stop_ids == [0, 2]
    assert vars(model) == before
    assert vars(model.get_base_model().generation_config) == stops
    assert model.training


# ---- the command line


def test_an_earlier_run_is_exported_and_a_failed_export_does_not_lose_the_others(launch, tiny, tmp_path):
    process = launch(
        *tiny,
        "save.method=[lora,gguf]",
        "save.gguf_quantization=f16",
        "save.verify=true",
        "hydra.run.dir=run",
    )
    assert process.returncode == 0, process.stderr
    first = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))
    assert [export["method"] for export in first["save"]["exports"]] == ["lora", "gguf"]
    saved = [line for line in process.stdout.splitlines() if line.startswith("saved ")]
    assert len(saved) == 2
    assert saved[1].endswith("verified: run/model/gguf")
    assert "| gguf f16 |" in (tmp_path / "run" / "report.md").read_text(encoding="utf-8")

    # Killed while it wrote its last export: the same command goes on with what is missing.
    (tmp_path / "run" / "report.json").unlink()
    shutil.rmtree(tmp_path / "run" / "model" / "gguf")
    kept = (tmp_path / "run" / "model" / "lora" / "export.json").stat().st_mtime_ns
    again = launch(
        *tiny,
        "save.method=[lora,gguf]",
        "save.gguf_quantization=f16",
        "save.verify=true",
        "hydra.run.dir=run",
    )
    assert again.returncode == 0, again.stderr
    assert "saved: lora in" in again.stderr
    assert (tmp_path / "run" / "model" / "lora" / "export.json").stat().st_mtime_ns == kept
    assert (tmp_path / "run" / "model" / "gguf" / "model-F16.gguf").is_file()

    process = launch(
        "task=export",
        "run=run",
        "save=gguf",
        "save.gguf_quantization=q8_0",
        "save.save_path=bot.gguf",
        "hydra.run.dir=export",
    )
    assert process.returncode == 0, process.stderr
    report = json.loads((tmp_path / "export" / "report.json").read_text(encoding="utf-8"))
    assert (report["status"], report["task"], report["save"]["verified"]) == ("completed", "export", True)
    assert report["training"]["steps"] == 2
    assert report["run"] == "run"
    assert "[all findings](../run/data_report.json)" in (tmp_path / "export" / "report.md").read_text(
        encoding="utf-8"
    )
    assert (tmp_path / "bot.gguf").read_bytes()[:4] == b"GGUF"

    shutil.rmtree(tmp_path / "run" / "checkpoints")  # the adapter that was saved is enough
    process = launch("task=export", "run=run", "save=lora", "save.save_path=adapter", "hydra.run.dir=again")
    assert process.returncode == 0, process.stderr
    ours, theirs = (tmp_path / place / "adapter_model.safetensors" for place in ("adapter", "run/model/lora"))
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["task=export", "save=gguf"],
            "task=export needs run=DIR, the directory of a run",
        ),
        (
            ["task=export", "run=nowhere", "save=gguf"],
            "run=nowhere: no such folder; name the directory of a run",
        ),
        (
            ["task=export", "run=run", "save=gguf"],
            "run=run: the export would overwrite that run's own report; leave hydra.run.dir out",
        ),
        (
            ["task=export", "run=x", "model=llama3b"],
            "model: task=export takes everything but save.* from the run; leave it out",
        ),
        (["model=phi4_mini", "save=gguf"], "is a phi3 model"),
        (
            ["save=gguf", "save.llama_cpp_dir=/nowhere"],
            "save.llama_cpp_dir=/nowhere: no llama-quantize in it, nor in bin/ or build/bin/",
        ),
        (
            ["save.push_to_hub=true"],
            "save.push_to_hub=true: save.hub_model_id is missing; set it to ORGANISATION/NAME or USER/NAME",
        ),
    ],
)
def test_what_cannot_be_exported_is_said_before_anything_is_computed(arguments, expected, launch, tmp_path):
    if "model=phi4_mini" in arguments:
        folder = write_json(tmp_path / "config.json", {"model_type": "phi3"}).parent
        (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
        arguments = [*arguments, f"model.name={folder}"]
    process = launch(*arguments, "hydra.run.dir=run")
    assert expected in only_error(process)
    assert "engine:" not in process.stderr


def test_a_run_is_pushed_and_a_failed_push_loses_nothing(launch, tiny, tmp_path):
    token = "hf_" + "x" * 34
    with serve() as hub:
        hub.tokens = {token: user(orgs=[("bia", "write")])}
        env = {
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": token,
            "HF_HUB_OFFLINE": "",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(tmp_path / "hf"),
        }
        arguments = [
            *tiny,
            "save=lora",
            "save.push_to_hub=true",
            "save.hub_model_id=bia/chat",
            "hydra.run.dir=run",
        ]
        hub.failures["commit"] = Failure(403)
        process = launch(*arguments, env=env, cold=True)
        error = only_error(process)
        assert "the upload to bia/chat failed" in error
        assert f"the export in {tmp_path / 'run' / 'model'} is whole" in error
        report = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))
        assert (report["status"], report["save"]["method"]) == ("failed", "lora")
        assert "adapter_model.safetensors" in report["save"]["exports"][0]["files"]

        hub.failures.clear()
        process = launch(*arguments, env=env, cold=True)  # nothing is trained or saved again
        assert process.returncode == 0, process.stderr
        assert "saved: lora in" in process.stderr
        assert f"pushed: {hub.url}/bia/chat" in process.stderr
        assert set(hub.repos["bia/chat"].branches["main"]) >= {
            "adapter_model.safetensors",
            "adapter_config.json",
            "README.md",
        }
    for file in (file for file in (tmp_path / "run").rglob("*") if file.is_file()):
        assert token.encode() not in file.read_bytes(), file


def test_a_llama_cpp_of_the_users_own_quantises(trained, tmp_path):
    """Theirs is a script here, that notes it was called and hands on to the one in the wheel."""
    place = tmp_path / "llama.cpp" / "build" / "bin"
    place.mkdir(parents=True)
    binary = place / "llama-quantize"
    binary.write_text(
        f'#!/bin/sh\necho "$3" >> "{tmp_path}/called"\nexec "{sys.executable}" -m chatbot_sft.save.gguf.llama_cpp'
        ' "$@"\n'
    )
    binary.chmod(0o755)
    settings = {
        "gguf_quantization": ["q4_k_m", "q5_k_m"],
        "llama_cpp_dir": str(tmp_path / "llama.cpp"),
        "verify": False,
    }
    result = trained("llama3b").save({"method": "gguf", "save_path": str(tmp_path / "out"), **settings})
    assert (tmp_path / "called").read_text().split() == ["Q4_K_M", "Q5_K_M"]
    assert {"out-Q4_K_M.gguf", "out-Q5_K_M.gguf"} <= set(result.files)
    assert "out-F16.gguf" not in result.files


@pytest.mark.parametrize("method", ["lora", "merged_16bit", "gguf"])
def test_what_a_model_card_shows_runs_in_its_folder(method, warm, trained, tmp_path):
    saver = trained("llama3b")
    saver.save(
        {"method": method, "save_path": str(tmp_path / "out"), "gguf_quantization": "q8_0", "verify": False}
    )
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\n")
    assert "| training | 6 steps of 8 conversations" in card
    assert f"fingerprint `{saver.report.dataset.fingerprint[:16]}`" in card
    assert (tmp_path / "out" / "loss.png").is_file()
    blocks = dict(re.findall(r"```(\w+)\n(.*?)```", card, re.DOTALL))
    served = {
        "lora": "--lora-modules chatbot=.",
        "merged_16bit": "transformers serve .",
        "gguf": "llama-server -m",
    }
    assert served[method] in blocks["sh"]
    verified = re.findall(
        r"^python -m chatbot_sft task=verify run=RUN url=http://localhost:\d+/v1", blocks["sh"], re.MULTILINE
    )
    assert len(verified) == (1 if method == "lora" else 2)
    if method != "gguf":
        process = warm.run(["-c", blocks["python"]], tmp_path / "out")
        assert process.returncode == 0, process.stderr
        assert process.stdout.strip()
    (chat,) = re.findall(r"^python -m chatbot_sft.chat (\S+)", blocks["bash"], re.MULTILINE)
    command = ["-m", "chatbot_sft.chat", chat, "--prompt", "Xin chào!", "--max-new-tokens", "8"]
    process = warm.run(command, tmp_path / "out")
    assert process.returncode == 0, process.stderr
