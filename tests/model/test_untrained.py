"""An end token that the base never learned is said, and nothing else is."""

import pytest
from conftest import composed, conversations, write_json

from chatbot_sft import pipeline
from chatbot_sft.model.untrained import indistinct

END, START = 2, 1  # of SmolLM2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda rows: None, []),
        (lambda rows: rows[2].zero_(), [2]),
        (lambda rows: rows[2].mul_(1e-6), [2]),
        (lambda rows: rows[2].copy_(rows[1]), [2]),
        (lambda rows: rows[2].copy_(rows[1] * 1.001), [2]),
        (lambda rows: rows[2].copy_(rows[90]), []),  # no special token: that may be meant
        (lambda rows: rows[2].copy_(rows[1] * 1.2), []),
        (lambda rows: rows[1].copy_(rows[0]), []),
    ],
)
def test_a_row_that_says_nothing(change, found):
    import torch

    torch.manual_seed(0)
    weight = torch.randn(100, 16, dtype=torch.bfloat16)
    change(weight)
    assert indistinct(weight, [2], [0, 1, 2, 99]) == found


@pytest.mark.slow
def test_the_embedded_model_knows_its_end(smollm2):
    from safetensors import safe_open

    with safe_open(next(smollm2.glob("*.safetensors")), "pt") as tensors:
        assert indistinct(tensors.get_tensor("model.embed_tokens.weight"), [END], range(17)) == []


@pytest.mark.parametrize(
    ("overrides", "said"),
    [([], True), (["lora.modules_to_save=[embed_tokens,lm_head]"], False), (["lora=none"], False)],
)
def test_an_end_that_lora_cannot_teach_is_said(tiny_llama, tmp_path, overrides, said):
    import shutil

    from transformers import AutoModelForCausalLM

    base = shutil.copytree(tiny_llama, tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(base)
    model.get_input_embeddings().weight.data[END] = model.get_input_embeddings().weight.data[START]
    model.save_pretrained(base)
    data = write_json(tmp_path / "data.json", conversations(16))
    given = [
        "model=local", f"model.name={base}", f"dataset.data_path={data}", "model.engine=transformers", "model.load_in_4bit=false", "save=none",
        "training.max_steps=1", "training.batch_layout=as_configured", "training.sample_max_new_tokens=0", "training.stop_on_divergence=false",
        *overrides,
    ]  # fmt: skip
    warnings = pipeline.run(composed(tmp_path / "run", *given)).training.warnings
    told = [line for line in warnings if "never learned <|im_end|>" in line]
    assert bool(told) == said
    assert not said or "lora.modules_to_save=[embed_tokens,lm_head]" in told[0]
