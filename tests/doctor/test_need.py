"""What a run will need, against what is known of real models and counted in a real folder."""

import pytest
from conftest import write_json

from chatbot_sft.config import Config
from chatbot_sft.doctor import need

LLAMA_8B = {
    "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "intermediate_size": 14336, "vocab_size": 128256, "tie_word_embeddings": False,
}  # fmt: skip
LLAMA_3B = {
    "model_type": "llama", "hidden_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 24, "num_key_value_heads": 8,
    "head_dim": 128, "intermediate_size": 8192, "vocab_size": 128256, "tie_word_embeddings": True,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "weights", "adapter"),
    [(LLAMA_8B, 8_030_261_248, 41_943_040), (LLAMA_3B, 3_212_749_824, 24_313_856)],
)
def test_weights_and_adapter_of_a_config(tmp_path, config, weights, adapter):
    """As transformers and PEFT count them: the norms, a few hundred thousand, are left out."""
    write_json(tmp_path / "config.json", config)
    size = need.size_of(Config.from_mapping({}), tmp_path, "whatever")
    assert size.weights == pytest.approx(weights, rel=1e-4)
    assert size.trained == adapter
    assert size.known == "by its config.json"


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("unsloth/Llama-3.2-3B-Instruct", 3e9),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 135e6),
        ("unsloth/mistral-7b-instruct-v0.3-bnb-4bit", 7e9),
        ("Qwen/Qwen2.5-0.5B", 0.5e9),
        ("unsloth/gemma-3-4b-it", 4e9),
        ("unsloth/Phi-4-mini-instruct", None),
    ],
)
def test_weights_of_a_name(name, weights):
    size = need.size_of(Config.from_mapping({}), None, name)
    assert (size and size.weights) == weights


@pytest.mark.parametrize(
    "damage", ['{"hidden_size": "wide"}', "[]", "{", '{"text_config": 3}', '{"head_dim": {}}']
)
def test_a_config_that_is_none_is_passed_by(tmp_path, damage):
    (tmp_path / "config.json").write_text(damage)
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 20)
    assert need.size_of(Config.from_mapping({}), tmp_path, "org/Some-2B").weights == 2e9


def test_weights_are_counted_in_the_files(tiny_llama):
    from safetensors.torch import load_file

    size = need.size_of(Config.from_mapping({}), tiny_llama, "tiny")
    assert size.known == "by its files"
    assert size.weights == sum(
        tensor.numel() for tensor in load_file(tiny_llama / "model.safetensors").values()
    )


def test_memory_of_methods():
    """What is frozen in 4 bits, 16 and 32; what full fine-tuning adds; 8-bit optimizers are a GPU's."""
    size = need.Size(1e9, 1e8, 1e7, "by the name org/Some-1B")
    four = Config.from_mapping({})
    sixteen = Config.from_mapping({"model": {"load_in_4bit": False}})
    whole = Config.from_mapping(
        {"model": {"load_in_4bit": False}, "lora": {"r": 0}, "training": {"optim": "adamw_torch"}}
    )
    assert need.memory(four, size, gpu=True)["weights"] == pytest.approx(0.55 * 9e8 + 2 * 1e8)
    assert need.memory(sixteen, size, gpu=True)["weights"] == 2e9
    assert need.memory(sixteen, size, gpu=False)["weights"] == 4e9
    assert need.memory(four, size, gpu=True)["optimizer"] == pytest.approx(2.04e7)
    assert need.memory(four, size, gpu=False)["optimizer"] == 8e7
    parts = need.memory(whole, need.Size(1e9, 1e8, 1e9, ""), gpu=True)
    assert (parts["weights"], parts["trained weights"], parts["optimizer"]) == (0, 2e9, 8e9)


@pytest.mark.parametrize(
    ("training", "count"),
    [
        ({}, 3),
        ({"save_total_limit": None}, 10),
        ({"save_steps": 10, "max_steps": 20, "save_total_limit": None}, 2),
        ({"save_steps": 100, "max_steps": 50}, 1),
    ],
)
def test_how_many_checkpoints_are_there_at_once(training, count):
    assert need.checkpoints(Config.from_mapping({"training": training})) == count


def test_exports_by_method():
    size = need.Size(1e9, 0, 1e7, "")

    def gb(method, *kinds):
        settings = Config.from_mapping(
            {"save": {"method": method, "gguf_quantization": list(kinds) or "q4_k_m"}}
        )
        return round(need.export_bytes(method, settings, size) / 1e9, 3)

    assert gb("lora") == 0.07
    assert gb("merged_16bit") == 2.03
    assert gb("gguf") == 2.625  # through f16, which goes again
    assert gb("gguf", "f16", "q4_k_m") == 2.625
    assert gb("gguf", "q8_0") == 1.062
    assert gb("gguf", "bf16", "iq4_xs") == 4.625
