"""Models read back from disk by transformers, PEFT and llama.cpp: the same prompts, the same answers, and
what a person may name.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from conftest import a_report, random_llama

from chatbot_sft.errors import UserError
from chatbot_sft.inference.gguf_model import BATCH, GGUFModel
from chatbot_sft.inference.hf_model import ADAPTER_CONFIG, HFModel, adapter_base
from chatbot_sft.inference.opening import find, open_model
from chatbot_sft.model import embedded
from chatbot_sft.model.generate import generate, generation_stops
from chatbot_sft.train import resume

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
CONVERSATIONS = [
    QUESTION,
    [
        {"role": "system", "content": "Bạn là Mai, trợ lý của Bia Hạc Trắng."},
        {"role": "user", "content": "Gold với Lager khác gì nhau? 🍺"},
    ],
    [
        *QUESTION,
        {"role": "assistant", "content": "The capital of France is Paris."},
        {"role": "user", "content": "  And of Italy?\n"},
    ],
]


ASKED = {
    "repetition_penalty": 3.0, "min_p": 0.5, "top_k": 3, "top_p": 0.1, "temperature": 9.0, "do_sample": True, "no_repeat_ngram_size": 1,
    "num_beams": 2, "min_new_tokens": 10, "suppress_tokens": [16], "bad_words_ids": [[26]], "sequence_bias": [[[3], 50.0]], "max_time": 1e-9,
    "forced_eos_token_id": 2, "eos_token_id": [2, 9], "use_cache": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def small():
    """A Llama of random weights, plain and within a PEFT model."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    plain = LlamaForCausalLM(
        LlamaConfig(vocab_size=32, **sizes, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    ).eval()
    return {"plain": plain, "peft": get_peft_model(plain, LoraConfig(target_modules=["q_proj"])).eval()}


@pytest.mark.parametrize("name", [*ASKED, "all"])
@pytest.mark.parametrize("kind", ["plain", "peft"])
def test_an_answer_is_greedy_whatever_the_models_generation_config_asks_for(kind, name, small):
    """Samples, the chat and the verification of exports all ask through `generate`."""
    import torch
    from transformers import GenerationConfig

    model = small[kind]
    given = GenerationConfig(
        **{"eos_token_id": 2, "pad_token_id": 0, **(ASKED if name == "all" else {name: ASKED[name]})}
    )
    given_before = given.to_dict()
    holder = model.get_base_model() if kind == "peft" else model
    holder.generation_config = given
    ids, stops = [1, 3, 4], generation_stops(model)
    with torch.inference_mode():
        while len(ids) < 13 and (len(ids) == 3 or ids[-1] not in stops):
            ids.append(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax().item())
    assert generate(model, [1, 3, 4], 10, stops, 0) == ids[3:]
    assert holder.generation_config is given
    assert given.to_dict() == given_before


@functools.cache
def embedded_gguf():
    """(metadata as name, value and types; tensors) of the embedded model's file; reading it takes seconds."""
    from gguf import GGUFReader

    reader = GGUFReader(embedded.gguf_path())
    written_anyway = ("GGUF.", "general.architecture")
    metadata = [
        (name, field.contents(), field.types)
        for name, field in reader.fields.items()
        if not name.startswith(written_anyway)
    ]
    return metadata, reader.tensors


def write_gguf(target: Path, blocks: int = 2, half: bool = False, **changes) -> Path:
    """The embedded model's GGUF file, cut to its first `blocks` layers, with `changes` of its metadata (those
    it has not are texts); `half`: its weights in float16."""
    from gguf import GGUFWriter, dequantize

    metadata, tensors = embedded_gguf()
    writer = GGUFWriter(target, "llama")
    given = {"llama.block_count": blocks, **changes}
    for name, value, types in metadata:
        writer.add_key_value(name, given.get(name, value), types[0], types[-1] if len(types) > 1 else None)
    for name in set(given) - {name for name, _, _ in metadata}:
        writer.add_string(name, given[name])
    for tensor in tensors:
        if not tensor.name.startswith("blk.") or int(tensor.name.split(".")[1]) < blocks:
            if half:  # norms stay in float32, as in every GGUF file
                values = dequantize(tensor.data, tensor.tensor_type)
                writer.add_tensor(tensor.name, values.astype(np.float16 if values.ndim > 1 else np.float32))
            else:
                writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory):
    """Two layers of the embedded model, and a context of 256 tokens."""
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", **{"llama.context_length": 256})


@pytest.fixture(scope="session")
def tiny_llama(smollm2, tmp_path_factory):
    """In place of the narrower one, which bitsandbytes does not take."""
    return random_llama(tmp_path_factory.mktemp("models") / "tiny-llama", smollm2, 64)


@pytest.fixture(scope="session")
def tiny_adapter(tiny_llama, tmp_path_factory):
    """An adapter over `tiny_llama`, with one new token that both have rows for."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("adapter") / "tiny-adapter"
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32),
        AutoTokenizer.from_pretrained(tiny_llama),
    )
    tokenizer.add_tokens(["<|beer|>"], special_tokens=True)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    new = {"embed_tokens": [len(tokenizer) - 1]}
    config = LoraConfig(
        r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", trainable_token_indices=new
    )
    model = get_peft_model(model, config)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.3)
    model.save_pretrained(folder, save_embedding_layers=False)
    tokenizer.save_pretrained(folder)
    return folder, HFModel(model.eval(), tokenizer, "trained")


@pytest.fixture(scope="module")
def real(smollm2):
    return HFModel.load(smollm2)


@pytest.fixture(scope="module")
def gguf():
    return GGUFModel.load(embedded.gguf_path())


# ---- transformers


def test_the_embedded_model_answers(real, smollm2):
    heard = []
    said = real.answer(real.prompt_ids(QUESTION), 64, on_token=heard.append)
    assert real.text(said) == "The capital of France is Paris."
    assert heard == said
    assert said[-1] in real.stop_ids == {2}
    assert (real.name, real.context) == (str(smollm2), 8192)
    assert not real.model.training


def test_sampling_is_by_temperature_alone(real, monkeypatch):
    """Whatever the checkpoint's own generation settings are: with top_k=1 every sample would be the likeliest
    token, with the penalty none would.
    """
    for name, value in {"do_sample": True, "top_k": 1, "repetition_penalty": 100.0}.items():
        monkeypatch.setattr(real.model.generation_config, name, value)
    prompt = real.prompt_ids(QUESTION)
    assert real.text(real.answer(prompt, 64)) == "The capital of France is Paris."
    first = {real.answer(prompt, 1, temperature=2.0)[0] for _ in range(8)}
    assert len(first) > 1
    assert real.answer(prompt, 8, temperature=1e-6) == real.answer(prompt, 8)


def test_logits_are_those_of_the_whole_forward_pass(tiny_llama):
    import torch

    model = HFModel.load(tiny_llama)
    ids = list(range(100, 140))
    with torch.inference_mode():
        whole = model.model(input_ids=torch.tensor([ids])).logits[0].numpy()
    for positions in ([0], [39], [3, 17, 38], [38, 3], range(40)):
        found = model.logits(ids, positions)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, whole[list(positions)], atol=1e-5)


def test_text_is_without_special_tokens_and_half_letters(real, gguf, tokenizer):
    ids = tokenizer("ngon ậ", add_special_tokens=False)["input_ids"]
    for model in (real, gguf):
        assert model.text([*ids, 2]) == "ngon ậ"
        assert [model.text(ids[:-n]) for n in (1, 2)] == [
            "ngon",
            "ngon",
        ]  # ậ is three tokens, the first with the space


def test_an_adapter_opens_on_its_base_or_as_its_base(tiny_adapter, tiny_llama):
    folder, trained = tiny_adapter
    after, before, base = HFModel.load(folder), HFModel.load(folder, adapter=False), HFModel.load(tiny_llama)
    ids = [*after.prompt_ids(QUESTION), len(after.tokenizer) - 1]
    assert ids[:-1] == trained.prompt_ids(QUESTION) == before.prompt_ids(QUESTION)
    positions = range(0, len(ids), 5)
    np.testing.assert_allclose(
        after.logits(ids, [*positions, len(ids) - 1]),
        trained.logits(ids, [*positions, len(ids) - 1]),
        atol=1e-4,
    )
    np.testing.assert_array_equal(before.logits(ids[:-1], [3]), base.logits(ids[:-1], [3]))
    assert np.abs(after.logits(ids, [3])[:, :49152] - base.logits(ids[:-1], [3])).max() > 0.1
    assert after.answer(ids, 5) == trained.answer(ids, 5)
    assert len(after.tokenizer) == len(before.tokenizer) + 1


def test_weights_are_float32_on_a_cpu_and_four_bits_stay_four(tiny_llama, tiny_adapter, tmp_path):
    import torch

    assert HFModel.load(tiny_llama).model.dtype == torch.float32  # saved in bfloat16
    quantised = HFModel.load(tiny_llama, four_bit=True)
    shutil.copytree(tiny_llama, tmp_path / "4bit")
    quantised.model.save_pretrained(tmp_path / "4bit")
    again = HFModel.load(tmp_path / "4bit")
    assert again.model.is_loaded_in_4bit
    np.testing.assert_allclose(again.logits([1, 2, 3], [2]), quantised.logits([1, 2, 3], [2]), atol=0.02)
    assert (
        np.abs(HFModel.load(tiny_llama).logits([1, 2, 3], [2]) - quantised.logits([1, 2, 3], [2])).max()
        > 0.02
    )
    adapter = HFModel.load(tiny_adapter[0], four_bit=True)
    assert adapter.model.get_base_model().is_loaded_in_4bit
    assert len(adapter.answer([1, 2, 3], 2)) == 2


def test_works_on_the_trained_model_in_memory_under_unsloth(warm_unsloth, tiny_llama, tmp_path):
    program = f"""
import json
from chatbot_sft import ModelLoader
from chatbot_sft.inference.hf_model import HFModel
loader = ModelLoader({{"model": {{"name": {str(tiny_llama)!r}, "engine": "unsloth", "load_in_4bit": False, "dtype": "float32"}}}})
model, tokenizer = loader.load_and_configure()
loader.engine.for_inference(model)
model = HFModel(model, tokenizer)
ids, heard = model.prompt_ids([{{"role": "user", "content": "hi"}}]), []
said = model.answer(ids, 6, on_token=heard.append)
print(json.dumps([loader.engine.NAME, ids, said, heard, model.logits(ids, [0, 5, len(ids) - 1]).argmax(1).tolist(), sorted(model.stop_ids)]))
"""
    process = warm_unsloth.run(["-c", program], tmp_path)
    assert process.returncode == 0, process.stderr
    engine, ids, said, heard, likeliest, stops = json.loads(process.stdout.splitlines()[-1])
    assert engine == "unsloth"
    model = HFModel.load(tiny_llama)
    assert ids == model.prompt_ids([{"role": "user", "content": "hi"}])
    assert said == heard == model.answer(ids, 6)
    assert likeliest == model.logits(ids, [0, 5, len(ids) - 1]).argmax(1).tolist()
    assert set(stops) == model.stop_ids


def test_stops_only_where_the_library_does(tiny_llama, tmp_path):
    """Two end tokens are two; none is none, and then an answer goes on to its limit."""
    for ends, expected in (([2, 7], {2, 7}), (2, {2}), (None, set())):
        folder = tmp_path / str(ends)
        shutil.copytree(tiny_llama, folder)
        kept = json.loads((folder / "generation_config.json").read_text())
        (folder / "generation_config.json").write_text(json.dumps({**kept, "eos_token_id": ends}))
        assert HFModel.load(folder).stop_ids == expected


def test_template_arguments_reach_the_template(tiny_llama):
    model = HFModel.load(tiny_llama)
    model.tokenizer.chat_template = "{{ strftime_now('%Y') }} {{ mood }}"
    glad = HFModel(model.model, model.tokenizer, template_kwargs={"mood": "glad"})
    assert glad.text(glad.prompt_ids(QUESTION)).split()[-1] == "glad"
    assert model.text(model.prompt_ids(QUESTION)) == glad.text(glad.prompt_ids(QUESTION)).removesuffix(
        " glad"
    )


# ---- llama.cpp


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_both_libraries_make_the_same_prompt(real, gguf, messages):
    assert gguf.prompt_ids(messages) == real.prompt_ids(messages)


def test_quantised_products_stay_near(real, gguf):
    """llama.cpp multiplies 4-bit weights with activations in 8 bits: probabilities move a little, sure tokens
    stay.
    """
    ids = [token for messages in CONVERSATIONS for token in real.prompt_ids(messages)]
    ours, theirs = real.logits(ids, range(len(ids))), gguf.logits(ids, range(len(ids)))
    assert ours.shape == theirs.shape == (len(ids), 49152)
    assert theirs.dtype == np.float32
    assert kl(ours, theirs) < 0.1
    top = np.sort(ours, axis=1)
    sure = top[:, -1] - top[:, -2] > 2 * np.abs(ours - theirs).max(axis=1)
    assert sure.mean() > 0.3
    assert (ours.argmax(1) == theirs.argmax(1))[sure].all()


def test_float16_answers_as_transformers_does(real, tmp_path):
    """The same weights without that rounding: the same words, but where two tokens are as likely."""
    model = GGUFModel.load(write_gguf(tmp_path / "half.gguf", blocks=30, half=True))
    for messages in CONVERSATIONS[:2]:
        ids = model.prompt_ids(messages)
        heard = []
        said, expected = model.answer(ids, 16, on_token=heard.append), real.answer(ids, 16)
        assert heard == said
        chain = [*ids, *expected]
        ours, theirs = (m.logits(chain, range(len(ids) - 1, len(chain) - 1)) for m in (model, real))
        assert kl(theirs, ours) < 0.001
        differing = next((n for n, (a, b) in enumerate(zip(said, expected, strict=False)) if a != b), None)
        if differing is not None:
            second, first = np.sort(theirs[differing])[-2:]
            assert first - second < 0.25
    assert model.text(model.answer(model.prompt_ids(QUESTION), 24)) == "The capital of France is Paris."


@pytest.mark.slow
def test_answers_are_the_likeliest_tokens_over_batches_and_from_the_cache(tmp_path):
    """A prompt longer than a batch, an answer from a cache of something else, one that goes on from the last,
    and logits in between.
    """
    file = write_gguf(tmp_path / "long.gguf", half=True)
    model = GGUFModel.load(file)
    long = model.prompt_ids([{"role": "user", "content": " ".join(f"number {n}" for n in range(130))}])
    assert BATCH < len(long) < 2 * BATCH
    said = model.answer(long, 5)
    chain = [*long, *said]
    places = [3, BATCH - 1, BATCH, *range(len(long) - 1, len(chain) - 1)]
    found = model.logits(chain, places)
    assert found.argmax(1)[3:].tolist() == said
    for ids in (model.prompt_ids(QUESTION), long, chain, long[: BATCH + 20], long):
        assert model.answer(ids, 3) == GGUFModel.load(file).answer(ids, 3)
    np.testing.assert_array_equal(model.logits(chain, places), found)


def test_an_interrupted_answer_leaves_a_model_that_answers(tiny_gguf):
    model, fresh = GGUFModel.load(tiny_gguf), GGUFModel.load(tiny_gguf)
    ids = model.prompt_ids(QUESTION)

    def stop(token):
        if len(heard) == 3:
            raise KeyboardInterrupt
        heard.append(token)

    heard = []
    with pytest.raises(KeyboardInterrupt):
        model.answer(ids, 20, on_token=stop)
    said = fresh.answer(ids, 20)
    assert heard == said[:3]
    assert model.answer(ids, 20) == said


def test_sampling_in_llama_cpp(gguf):
    prompt = gguf.prompt_ids(QUESTION)
    assert len({tuple(gguf.answer(prompt, 4, temperature=1.5)) for _ in range(5)}) > 1
    assert gguf.answer(prompt, 6, temperature=1e-3) == gguf.answer(prompt, 6)


def test_stops_at_every_end_of_generation(gguf):
    tokens = next(value for name, value, _ in embedded_gguf()[0] if name == "tokenizer.ggml.tokens")
    assert {tokens[token] for token in gguf.stop_ids} == {"<|im_end|>", "<|endoftext|>", "<reponame>"}


@pytest.mark.slow
def test_the_beginning_of_text_is_never_doubled(tmp_path):
    """A vocabulary that adds <|im_start|> before a template that writes it: one of them, as llama.cpp's
    server has it.
    """
    template = "{{ bos_token }}{% for message in messages %}{{ message.content }}{{ eos_token }}{% endfor %}"
    for adds, number in ((True, 0), (False, 1)):
        file = write_gguf(
            tmp_path / f"{number}.gguf",
            1,
            **{"tokenizer.ggml.add_bos_token": adds, "tokenizer.chat_template": template},
        )
        ids = GGUFModel.load(file).prompt_ids(QUESTION)
        assert (ids[0], ids.count(1), ids[-1]) == (1, 1, 2)


def test_a_context_has_an_end(tiny_gguf, tiny_llama):
    """An answer ends there at the latest; a prompt that fills it has no answer."""
    small = HFModel.load(tiny_llama)
    small.context = 256
    for model in (GGUFModel.load(tiny_gguf), small):
        assert model.context == 256
        ids = [500] * 250
        assert len(model.answer(ids, 100)) == 6
        with pytest.raises(
            UserError,
            match=r"256 tokens leave no room for an answer; prompt and answer together may have 256",
        ):
            model.answer([500] * 256, 100)
    model = GGUFModel.load(tiny_gguf)
    assert model.logits([500] * 256, [255]).shape == (1, 49152)
    with pytest.raises(UserError, match="257 tokens"):
        model.logits([500] * 257, [0])


@pytest.mark.slow
def test_what_is_no_gguf_file_is_said_in_a_line(tmp_path, monkeypatch):
    for name, content, expected in (
        ("text.gguf", b"hello, this is a text", "does not look like a valid GGUF"),
        ("short.gguf", b"GGUF", "too small"),
        ("cut.gguf", embedded.gguf_path().read_bytes()[:5_000_000], "not within the file bounds"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=expected) as caught:
            GGUFModel.load(tmp_path / name)
        assert str(caught.value).count(name) == 1
    file = write_gguf(tmp_path / "plain.gguf", 1, **{"tokenizer.chat_template": ""})
    with pytest.raises(UserError, match="has no chat template"):
        GGUFModel.load(file)
    monkeypatch.setitem(sys.modules, "cyllama.llama", None)
    with pytest.raises(UserError, match=r"`pip install 'cyllama<0\.3,>=0\.2\.18'` brings it"):
        GGUFModel.load(file)


def test_a_template_that_refuses_is_said_in_a_line(tmp_path, tiny_llama):
    template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}hi"
    )
    plain = HFModel.load(tiny_llama)
    plain.tokenizer.chat_template = template
    for model in (
        plain,
        GGUFModel.load(write_gguf(tmp_path / "refuses.gguf", 1, **{"tokenizer.chat_template": template})),
    ):
        assert model.prompt_ids(QUESTION)
        with pytest.raises(UserError, match="System role not supported"):
            model.prompt_ids(CONVERSATIONS[1])


def kl(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Mean over the rows, in nats."""
    import torch

    logs = [torch.log_softmax(torch.from_numpy(logits), 1) for logits in (ours, theirs)]
    return float((logs[0].exp() * (logs[0] - logs[1])).sum(1).mean())


# ---- what a person may name


def fake(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    return folder


MERGED, ADAPTER = (
    ("config.json", "model.safetensors"),
    (ADAPTER_CONFIG, "adapter_model.safetensors", "config.json"),
)


def test_exports_are_found(tmp_path):
    merged, adapter = fake(tmp_path / "merged", *MERGED), fake(tmp_path / "adapter", *ADAPTER)
    files = fake(tmp_path / "files", "m-Q4_K_M.gguf", "m-Q8_0.gguf")
    (files / "m-Q8_0.gguf").write_text("larger than that")
    assert [(find(path).kind, find(path).path) for path in (merged, adapter, files, files / "m-Q4_K_M.gguf")] == [
        ("merged", merged), ("adapter", adapter), ("gguf", files / "m-Q8_0.gguf"), ("gguf", files / "m-Q4_K_M.gguf"),
    ]  # fmt: skip
    assert find(str(merged)) == find(merged)


def test_of_several_exports_the_merged_one_comes_first(tmp_path):
    folder = fake(
        tmp_path,
        *(f"gguf/{name}" for name in ("m.gguf",)),
        *(f"lora/{name}" for name in ADAPTER),
        ".merged.x/config.json",
    )
    assert find(folder).path == folder / "lora"
    shutil.rmtree(folder / "lora")
    assert find(folder).path == folder / "gguf" / "m.gguf"
    fake(folder / "merged_16bit", *MERGED)
    fake(folder / "lora", *ADAPTER)
    assert find(folder).path == folder / "merged_16bit"


def checkpoint(run: Path, step: int, *names: str) -> Path:
    """A whole one, as far as `run.checkpoints` can tell."""
    folder = fake(run / f"checkpoint-{step}", *names)
    record = resume.record(resume.Origin(), step, 1.0, False, {}, {})
    (folder / "run.json").write_text(json.dumps({**record, "files": dict.fromkeys(sorted(names), 2)}))
    return folder


def test_a_run_is_what_it_saved_else_its_newest_checkpoint(tmp_path):
    run = tmp_path / "run"
    steps = {step: checkpoint(run / "checkpoints", step, *ADAPTER) for step in (9, 10)}
    assert find(run).path == steps[10]  # killed before its report
    assert find(run / "checkpoints").path == steps[10]
    assert find(steps[9]).path == steps[9]
    (run / "report.json").write_text(
        json.dumps(a_report(save={"method": "gguf", "path": str(tmp_path / "elsewhere")}))
    )
    assert find(run).path == steps[10]
    fake(run / "model", *MERGED)
    assert (find(run).path, find(run).base) == (run / "model", "org/base")  # the run was moved
    fake(tmp_path / "elsewhere", "gguf/m.gguf")
    assert find(run).path == tmp_path / "elsewhere" / "gguf" / "m.gguf"
    report = a_report(status="failed", model={}, save={})
    fake(tmp_path / "failed")
    (tmp_path / "failed" / "report.json").write_text(json.dumps(report))
    with pytest.raises(
        UserError, match="this run is failed and has neither saved a model nor kept a checkpoint"
    ):
        find(tmp_path / "failed")
    saved = fake(tmp_path / "one", "my.gguf")
    (tmp_path / "failed" / "report.json").write_text(
        json.dumps({**report, "save": {"method": "gguf", "path": str(saved / "my.gguf")}})
    )
    assert find(tmp_path / "failed").path == saved / "my.gguf"


@pytest.mark.slow
def test_nothing_there_is_said_in_a_line(tmp_path):
    with pytest.raises(UserError, match="no such folder or file; name a run directory"):
        find(tmp_path / "nothing")
    with pytest.raises(UserError, match="neither a model"):
        find(fake(tmp_path / "half", "config.json"))
    fake(tmp_path / "merged", *MERGED)
    with pytest.raises(UserError, match="what it was trained on is not written in it"):
        find(tmp_path / "merged").open_base()
    with pytest.raises(UserError, match="merged: cannot be loaded"):
        open_model(tmp_path / "merged")


def test_the_embedded_model_has_a_name(smollm2):
    assert find("smollm2").path == smollm2


def test_a_base_that_is_gone_is_named(tiny_adapter, tmp_path, monkeypatch):
    folder = shutil.copytree(tiny_adapter[0], tmp_path / "adapter")
    config = json.loads((folder / ADAPTER_CONFIG).read_text())

    def trained_on(base: Path) -> None:
        (folder / ADAPTER_CONFIG).write_text(json.dumps({**config, "base_model_name_or_path": str(base)}))

    trained_on(tmp_path / "gone")
    with pytest.raises(
        UserError,
        match=(
            r"adapter: the model it was trained on is not at .*gone any more; correct base_model_name_or_path"
        ),
    ):
        HFModel.load(folder)
    # The embedded model in a cache that was cleared is made again.
    monkeypatch.setenv("CHATBOT_SFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(embedded, "convert", lambda folder: None)
    base = embedded.folder()
    shutil.rmtree(base)
    trained_on(base)
    assert adapter_base(folder) == (str(base), None)
    assert base.is_dir()


@pytest.fixture
def hub():
    """(address, connections) of a host that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        connections = []

        def accept():
            while True:
                try:
                    connections.append(server.accept()[0])
                except OSError:
                    return
                connections[-1].close()

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", connections


def test_a_local_model_never_reaches_the_network(tiny_adapter, hub, tmp_path):
    """And a base that is a hub id does, where the user has not forbidden it."""
    address, connections = hub
    local = shutil.copytree(tiny_adapter[0], tmp_path / "local")
    config = json.loads((local / ADAPTER_CONFIG).read_text())
    remote = shutil.copytree(local, tmp_path / "remote")
    (remote / ADAPTER_CONFIG).write_text(
        json.dumps({**config, "base_model_name_or_path": "nobody/no-such-model"})
    )
    program = """
import sys
from chatbot_sft.inference.opening import open_model
open_model(sys.argv[1])
print("opened", flush=True)
sys.stdin.readline()
open_model(sys.argv[2])
"""
    env = {**os.environ, "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(
        [sys.executable, "-c", program, str(local), str(remote)], env=env, text=True, **pipes
    ) as process:
        assert process.stdout.readline() == "opened\n"
        assert connections == []
        _, errors = process.communicate("go on\n", timeout=600)
    assert process.returncode != 0
    assert "nobody/no-such-model: cannot be had from the Hugging Face hub" in errors.splitlines()[-1]
    assert connections
