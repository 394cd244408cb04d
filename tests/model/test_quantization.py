"""A base in 4 bits, decoded once into 16 and put back."""

import pytest
from conftest import random_llama

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def four_bit(smollm2, tmp_path_factory):
    """A model with an adapter over a 4-bit base."""
    import torch

    from chatbot_sft.config import Config
    from chatbot_sft.model import transformers_engine as engine

    folder = random_llama(tmp_path_factory.mktemp("models") / "wide", smollm2, 64)
    settings = Config.from_mapping({"model": {"name": str(folder)}})
    model = engine.load(str(folder), settings, torch.float32)
    return engine.add_lora(
        model, settings, {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]}
    )


def test_a_decoded_base_has_the_same_numbers_until_it_is_put_back(four_bit):
    import torch
    from bitsandbytes.nn import Linear4bit

    from chatbot_sft.model.quantization import decode

    def layers():
        return [module for module in four_bit.modules() if isinstance(module, Linear4bit)]

    before, ids = layers(), torch.arange(5, 25)[None]
    four_bit.train()
    expected = four_bit(ids).logits
    decoded = decode(four_bit)
    assert before
    assert layers() == []
    assert torch.allclose(four_bit(ids).logits, expected, atol=1e-5)
    decoded.encode()
    assert layers() == before


def test_where_memory_does_not_hold_the_copy_the_base_stays_as_it_was(four_bit, monkeypatch):
    import bitsandbytes.functional
    import torch
    from bitsandbytes.nn import Linear4bit

    from chatbot_sft.model.quantization import decode

    whole, calls = bitsandbytes.functional.dequantize_4bit, []

    def short(*arguments):
        calls.append(arguments)
        if len(calls) > 3:
            raise torch.OutOfMemoryError
        return whole(*arguments)

    before = list(four_bit.modules())
    monkeypatch.setattr(bitsandbytes.functional, "dequantize_4bit", short)
    with pytest.raises(torch.OutOfMemoryError):
        decode(four_bit)
    assert list(four_bit.modules()) == before
    assert any(isinstance(module, Linear4bit) for module in before)
