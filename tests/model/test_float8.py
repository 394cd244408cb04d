"""The frozen base in float8: products, their gradients, and what is left as it is."""

import pytest
from conftest import composed

pytestmark = pytest.mark.slow


@pytest.fixture
def layer():
    import torch

    torch.manual_seed(0)
    return torch.nn.Linear(64, 96, bias=True).requires_grad_(False).to(torch.bfloat16)


def test_products_and_their_gradients_are_those_of_the_rounded_factors(layer):
    import torch

    from chatbot_sft.model.float8 import Float8Linear, rounded

    def restored(matrix):
        values, scales = rounded(matrix)
        return values.float() * scales

    fast = Float8Linear(layer)
    x = torch.randn(2, 5, 64, dtype=torch.bfloat16, requires_grad=True)
    y = fast(x)
    expected = restored(x.detach().reshape(-1, 64)) @ restored(layer.weight).t() + layer.bias.float()
    assert y.shape == (2, 5, 96)
    assert torch.allclose(y.reshape(-1, 96).float(), expected, rtol=1e-2, atol=1e-2)
    gradient = torch.randn_like(y)
    y.backward(gradient)
    expected = restored(gradient.reshape(-1, 96)) @ restored(layer.weight.t()).t()
    assert torch.allclose(x.grad.reshape(-1, 64).float(), expected, rtol=1e-2, atol=1e-2)


def test_rounding_loses_a_sixteenth_of_a_value_at_most(layer):
    import torch

    from chatbot_sft.model.float8 import rounded

    matrix = torch.randn(8, 256) * torch.logspace(-6, 6, 8)[:, None]
    values, scales = rounded(matrix)
    large = matrix.abs() > matrix.abs().amax(-1, keepdim=True) / 1000  # smaller ones are subnormal
    assert ((values.float() * scales - matrix).abs() <= matrix.abs() / 15)[large].all()
    assert rounded(torch.zeros(2, 16))[0].float().abs().max() == 0


def test_compiled_it_is_one_graph(layer):
    import torch

    from chatbot_sft.model.float8 import Float8Linear

    fast = Float8Linear(layer)
    x = torch.randn(16, 64, dtype=torch.bfloat16)
    compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    fast(one).sum().backward()
    compiled(other).sum().backward()
    assert torch.allclose(one.grad, other.grad)


def test_the_frozen_layers_of_the_decoder_alone_are_rounded(tiny_llama):
    import torch
    from transformers import AutoModelForCausalLM

    from chatbot_sft.config import Config
    from chatbot_sft.model import transformers_engine as engine
    from chatbot_sft.model.float8 import Float8Linear, round_base

    settings = Config.from_mapping({"model": {"name": str(tiny_llama), "load_in_4bit": False}})
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.bfloat16)
    model = engine.add_lora(model, settings, {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]})
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    ids = torch.arange(5, 25)[None]
    exact = model(ids).logits
    layers = len(model.get_base_model().model.layers)
    assert round_base(model) == 7 * layers
    assert sum(isinstance(module, Float8Linear) for module in model.modules()) == 7 * layers
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == trained
    logits = model(ids).logits
    assert not torch.equal(logits, exact)
    assert torch.nn.functional.cosine_similarity(logits.flatten(), exact.flatten(), dim=0) > 0.99
    logits.float().logsumexp(-1).sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_a_run_says_what_its_rounded_base_lost_and_exports_into_16_bits(
    tmp_path, tiny, monkeypatch, warm_probe
):
    from chatbot_sft import pipeline
    from chatbot_sft.model import quantization
    from chatbot_sft.run.report import Report

    monkeypatch.setattr(quantization, "check", lambda settings: None)  # which wants a GPU
    settings = ["model.load_in_fp8=true", "model.dtype=bfloat16", "save=merged_16bit", "save.verify=true"]
    report = pipeline.run(composed(tmp_path / "run", *tiny, *settings))
    cost = report.training.rounding
    assert report.model.dtype == "float8"
    assert cost.layers == 14
    assert cost.conversations == 6  # all that is held out
    assert cost.loss != cost.loss_exact
    assert cost.loss == pytest.approx(cost.loss_exact, rel=0.01)
    assert 0 < cost.kl_divergence < 0.05
    assert report.save.verified
    assert Report.from_json(report.to_json()).training.rounding == cost
    assert "| float8 base | loss" in (tmp_path / "run" / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["load_in_4bit", "r", "use_dora", "engine", "here"])
def test_what_float8_cannot_be_had_with_is_said(name, monkeypatch):
    from chatbot_sft.config import Config
    from chatbot_sft.errors import UserError
    from chatbot_sft.model import hardware, quantization

    model = {"name": "x", "load_in_fp8": True, "load_in_4bit": name == "load_in_4bit"}
    lora = {"r": 0} if name == "r" else {"use_dora": name == "use_dora"}
    if name == "engine":
        model["engine"] = "unsloth"
    card = hardware.Gpu("A100", 40, "1", 8.0 if name == "here" else 9.0)
    monkeypatch.setattr(hardware, "gpus", lambda: (card,))
    settings = Config.from_mapping({"model": model, "lora": lora})
    words = {
        "load_in_4bit": "model.load_in_4bit=false",
        "r": "lora.r above 0",
        "use_dora": "lora.use_dora=false",
        "engine": "leave model.engine out",
        "here": "A100 has 8",
    }
    with pytest.raises(UserError, match=words[name]):
        quantization.check(settings)
