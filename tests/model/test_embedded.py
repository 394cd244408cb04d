"""The embedded model: the weights and the tokenizer are those of the GGUF file, as llama.cpp reads it."""

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import EXAMPLE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chatbot_sft.model import embedded


@pytest.fixture(scope="module")
def llama_cpp():
    """llama.cpp's own model of the GGUF file, with its vocabulary."""
    from cyllama.llama import llama_cpp as lib

    lib.ggml_backend_load_all()
    model = lib.LlamaModel(str(embedded.gguf_path()), lib.LlamaModelParams())
    return lib, model, model.get_vocab()


def llama_cpp_ids(llama_cpp, text):
    _, _, vocab = llama_cpp
    return list(vocab.tokenize(text, add_special=False, parse_special=True))


STRINGS = [
    "Xin chào, cho mình hỏi bia lon 330ml giá bao nhiêu ạ?",
    "What is the capital of France?",
    "12345 67.89 0,5% 14.000đ",
    "  two  spaces   three\n\nlines\t\ttabs \r\n",
    "emoji 🍺🍻👩‍👩‍👧‍👦 and ½ ﬁ ä ä 漢字 العربية हिन्दी",
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    "<|endoftext|><repo_name><|im_end|>",
    "I'm you're he'll we'd they've IT'S",
    "def f(x):\n    return x**2  # squared\n",
    "https://hactrang.example/tour?id=42&x=%20",
    "",
    " ",
    "\n",
    "ー　全角　",
]


def test_tokenizer_agrees_with_llama_cpp(tokenizer, llama_cpp):
    texts = STRINGS + [
        m["content"] for row in json.loads(EXAMPLE.read_text(encoding="utf-8")) for m in row["messages"]
    ]
    assert len(texts) > 700
    for text in texts:
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == llama_cpp_ids(llama_cpp, text), text
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=60))
def test_tokenizer_agrees_with_llama_cpp_on_any_text(tokenizer, llama_cpp, text):
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == llama_cpp_ids(llama_cpp, text)


def test_special_tokens(tokenizer):
    assert tokenizer.eos_token_id == 2
    assert tokenizer.pad_token_id == 0 != tokenizer.eos_token_id
    assert tokenizer.chat_template


@pytest.mark.slow
def test_weights_are_those_of_the_gguf(smollm2):
    """Every dequantised value, by name; q and k in Hugging Face's order of rotary pairs."""
    import numpy as np
    from gguf import GGUFReader, dequantize
    from safetensors.numpy import load_file

    ours = load_file(smollm2 / "model.safetensors")
    theirs = {t.name: t for t in GGUFReader(embedded.gguf_path()).tensors}
    assert len(ours) == len(theirs) == 272
    down = theirs["blk.3.ffn_down.weight"]
    np.testing.assert_array_equal(
        ours["model.layers.3.mlp.down_proj.weight"], dequantize(down.data, down.tensor_type)
    )
    q = theirs["blk.3.attn_q.weight"]
    # llama.cpp keeps the pairs (2i, 2i+1) of a head side by side, Hugging Face its two halves: row 1 of the
    # GGUF is row 32 of the head.
    np.testing.assert_array_equal(
        ours["model.layers.3.self_attn.q_proj.weight"][32], dequantize(q.data, q.tensor_type)[1]
    )


def test_it_answers(smollm2, tokenizer):
    from transformers import AutoModelForCausalLM

    from chatbot_sft.model.generate import as_text, greedy_answer

    model = AutoModelForCausalLM.from_pretrained(smollm2)
    ids = greedy_answer(model, tokenizer, [{"role": "user", "content": "What is the capital of France?"}], 20)
    assert as_text(tokenizer, ids) == "The capital of France is Paris."
    assert ids[-1] == tokenizer.eos_token_id


@pytest.mark.slow
def test_two_processes_at_once_do_no_harm(tmp_path):
    program = "from chatbot_sft.model import embedded; print(embedded.folder())"
    environment = {**os.environ, "CHATBOT_SFT_CACHE": str(tmp_path)}
    processes = [
        subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    folders = {process.communicate(timeout=600)[0].strip() for process in processes}
    assert {process.returncode for process in processes} == {0}
    (folder,) = folders
    name = Path(folder).name
    assert [entry.name for entry in (tmp_path / "models").iterdir() if entry.is_dir()] == [name]
    assert (tmp_path / "models" / name / "model.safetensors").stat().st_size > 500e6


def _die_halfway(folder):
    (folder / "config.json").write_text("{")
    os._exit(9)


@pytest.mark.slow
def test_a_killed_conversion_leaves_no_model_behind(tmp_path):
    from chatbot_sft.cache import build_folder

    process = multiprocessing.get_context("spawn").Process(
        target=build_folder, args=(tmp_path / "m", _die_halfway)
    )
    process.start()
    process.join()
    assert process.exitcode == 9
    assert not (tmp_path / "m").exists()
    build_folder(tmp_path / "m", lambda folder: (folder / "config.json").write_text("{}") and None)
    assert (tmp_path / "m" / "config.json").read_text() == "{}"


def test_an_adapter_finds_it_in_another_cache(smollm2, tmp_path):
    assert embedded.found_again(str(tmp_path / "gone" / "models" / smollm2.name)) == str(smollm2)
    other = str(tmp_path / "models" / "SmolLM2-135M-Instruct-mine")
    assert [embedded.found_again(base) for base in (other, str(smollm2), "org/name")] == [
        other,
        str(smollm2),
        "org/name",
    ]
