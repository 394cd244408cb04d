"""A model folder from a stranger: each fault is one line that names the file, before the data gate's work;
nothing hangs, nothing is made up.
"""

import contextlib
import json
import os
import shutil

import pytest
from conftest import conversations, only_error, write_json

from chatbot_sft.data.messages import BadRow
from chatbot_sft.data.template import ChatTemplate
from chatbot_sft.errors import UserError
from chatbot_sft.model_files import check_folder

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.fixture
def folder(tiny_llama, tmp_path):
    return shutil.copytree(tiny_llama, tmp_path / "base")


def change_config(folder, **values):
    config = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps(config))


def change(file, **values):
    write_json(file, json.loads(file.read_text()) | values)


def add_token(folder, number):
    """`<|far|>`, as the end of sequence, with that id."""
    about = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    about["added_tokens"].append({**about["added_tokens"][0], "id": number, "content": "<|far|>"})
    write_json(folder / "tokenizer.json", about)
    change(folder / "tokenizer_config.json", eos_token="<|far|>")


def cut(file, size):
    file.write_bytes(file.read_bytes()[:size])


def header(folder, change):
    """The safetensors header of `folder` as `change` returns it."""
    file = folder / "model.safetensors"
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    text = json.dumps(change(json.loads(data[8 : 8 + length]))).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def index(folder, shard):
    write_json(
        folder / "model.safetensors.index.json", {"weight_map": {"a": "model.safetensors", "b": shard}}
    )


FAULTS = {
    "weights are an LFS pointer": (
        lambda f: (f / "model.safetensors").write_bytes(POINTER),
        "model.safetensors is a Git LFS pointer",
    ),
    "weights are cut": (
        lambda f: cut(f / "model.safetensors", 100_000),
        "model.safetensors has 100,000 bytes, its header tells of",
    ),
    "weights are cut in the header": (
        lambda f: cut(f / "model.safetensors", 100),
        "model.safetensors is not a whole safetensors file",
    ),
    "weights are empty": (
        lambda f: cut(f / "model.safetensors", 0),
        "model.safetensors is not a whole safetensors file",
    ),
    "weights are a web page": (
        lambda f: (f / "model.safetensors").write_text("<!DOCTYPE html>" * 99),
        "model.safetensors is not a whole",
    ),
    "a header that is a list": (
        lambda f: header(f, lambda h: [h]),
        "model.safetensors is not a safetensors file",
    ),
    "a header without offsets": (
        lambda f: header(f, lambda h: {"a": {}}),
        "model.safetensors is not a safetensors file",
    ),
    "a .bin that is text": (
        lambda f: (f / "pytorch_model.bin").write_text("hello"),
        "pytorch_model.bin is not a file of PyTorch weights",
    ),
    "an index that leaves the folder": (
        lambda f: index(f, "../x.safetensors"),
        "names ../x.safetensors, a file outside the folder",
    ),
    "an index with an absolute path": (
        lambda f: index(f, "/etc/passwd"),
        "names /etc/passwd, a file outside the folder",
    ),
    "an index that names what is not there": (
        lambda f: index(f, "model-2.safetensors"),
        "names model-2.safetensors, which is not there",
    ),
    "an index that is a list": (
        lambda f: write_json(f / "model.safetensors.index.json", []),
        "index.json holds a list",
    ),
    "an adapter beside it": (
        lambda f: write_json(f / "adapter_config.json", {"base_model_name_or_path": "other/base"}),
        "also holds an adapter (adapter_config.json, for other/base)",
    ),
    "config.json is a list": (
        lambda f: write_json(f / "config.json", []),
        "config.json holds a list, expected an object",
    ),
    "config.json is null": (
        lambda f: write_json(f / "config.json", None),
        "config.json holds null, expected an object",
    ),
    "config.json is cut": (lambda f: cut(f / "config.json", 40), "config.json is not JSON in UTF-8"),
    "config.json is Latin-1": (
        lambda f: (f / "config.json").write_bytes(b'{"a": "\xe9"}'),
        "config.json is not JSON in UTF-8",
    ),
    "config.json is too deep": (
        lambda f: (f / "config.json").write_text("[" * 100_000),
        "config.json is not JSON in UTF-8 (nested too deeply)",
    ),
    "config.json is a pointer": (
        lambda f: (f / "config.json").write_bytes(POINTER),
        "config.json is a Git LFS pointer",
    ),
    "a size that is text": (
        lambda f: change_config(f, hidden_size="32"),
        "hidden_size is '32', expected a whole number",
    ),
    "a negative size": (
        lambda f: change_config(f, vocab_size=-1),
        "vocab_size is -1, expected a whole number",
    ),
    "ten thousand layers": (
        lambda f: change_config(f, num_hidden_layers=10_000),
        "num_hidden_layers is 10000, expected",
    ),
    "heads that do not divide": (
        lambda f: change_config(f, num_attention_heads=5, head_dim=None),
        "hidden_size 32 cannot be divided",
    ),
    "key heads that do not divide": (
        lambda f: change_config(f, num_key_value_heads=3),
        "num_attention_heads 4 cannot be divided",
    ),
    "an unknown architecture": (
        lambda f: change_config(f, model_type="lama"),
        "model_type 'lama' is unknown",
    ),
    "an architecture of its own": (
        lambda f: change_config(f, model_type="mine", auto_map={"AutoConfig": "x.Y"}),
        "model.trust_remote_code=true",
    ),
    "no architecture": (lambda f: change_config(f, model_type=None), "model_type is None"),
    "a quantisation that is text": (
        lambda f: change_config(f, quantization_config="4bit"),
        "quantization_config is '4bit', expected an object",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no weights in it"),
    "weights that are a pipe": (
        lambda f: ((f / "model.safetensors").unlink(), os.mkfifo(f / "model.safetensors")),
        "is not a regular file",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_a_model_folder_is_one_line(folder, name):
    break_it, message = FAULTS[name]
    break_it(folder)
    with pytest.raises(UserError) as error:
        check_folder(str(folder), trust_remote_code=False)
    assert message in str(error.value)
    assert str(error.value).startswith(f"model.name={folder}: ")


TOKENIZER_FAULTS = {
    "tokenizer.json is a pointer": (
        lambda f: (f / "tokenizer.json").write_bytes(POINTER),
        "tokenizer.json is a Git LFS pointer",
    ),
    "tokenizer.json is cut": (lambda f: cut(f / "tokenizer.json", 1000), "tokenizer.json is not JSON"),
    "tokenizer.json is empty": (
        lambda f: write_json(f / "tokenizer.json", {}),
        "tokenizer.json is no tokenizer",
    ),
    "tokenizer_config.json is a list": (
        lambda f: write_json(f / "tokenizer_config.json", [1]),
        "tokenizer_config.json holds a list",
    ),
    "special_tokens_map.json is null": (
        lambda f: write_json(f / "special_tokens_map.json", None),
        "special_tokens_map.json holds null",
    ),
    "generation_config.json is text": (
        lambda f: (f / "generation_config.json").write_text("x"),
        "generation_config.json is not JSON",
    ),
    "the template is Latin-1": (
        lambda f: (f / "chat_template.jinja").write_bytes(b"\xe9"),
        "chat_template.jinja: not UTF-8 text (byte 0); save the file as UTF-8",
    ),
    "the template is not Jinja": (
        lambda f: (f / "chat_template.jinja").write_text("{% for %}"),
        "the chat template is not Jinja",
    ),
    "another model's tokenizer": (lambda f: change_config(f, vocab_size=1000), "they are not of one model"),
    "an end that is no token": (
        lambda f: change(f / "tokenizer_config.json", eos_token="<|nowhere|>"),
        "eos_token <|nowhere|> is not a token",
    ),
    "an end without a row": (
        lambda f: add_token(f, 2000),
        "eos_token <|far|> is token 2000, and config.json has a vocab_size of 2000",
    ),
    "a stop without a row": (
        lambda f: write_json(f / "generation_config.json", {"eos_token_id": [2, 2000]}),
        "eos_token_id 2000 is no token",
    ),
    "a stop that is text": (
        lambda f: write_json(f / "generation_config.json", {"eos_token_id": "2"}),
        "eos_token_id '2' is no token",
    ),
    "no template": (lambda f: (f / "chat_template.jinja").unlink(), "give one with model.chat_template=FILE"),
}


@pytest.mark.parametrize("name", TOKENIZER_FAULTS)
def test_a_fault_of_a_tokenizer_is_one_line(folder, name):
    from chatbot_sft.model import ModelLoader

    break_it, message = TOKENIZER_FAULTS[name]
    break_it(folder)
    with pytest.raises(UserError) as error:
        ModelLoader({"model": {"name": str(folder), "load_in_4bit": False}}).chat_tokenizer()
    assert message in str(error.value)


def test_an_added_token_beyond_the_rows_is_no_other_models_tokenizer(folder):
    """Gemma 3 1B has one for images."""
    from chatbot_sft.model import ModelLoader

    about = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    about["added_tokens"].append({**about["added_tokens"][0], "id": 2000, "content": "<image>"})
    write_json(folder / "tokenizer.json", about)
    assert (
        ModelLoader({"model": {"name": str(folder), "load_in_4bit": False}})
        .chat_tokenizer()
        .backend.token_to_id("<image>")
        == 2000
    )


def test_what_a_wrong_name_most_likely_means(tiny_llama, tmp_path):
    (tmp_path / "models--a--b" / "snapshots").mkdir(parents=True)
    inside = shutil.copytree(tiny_llama, tmp_path / "models--a--b" / "snapshots" / "0ab1")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    for name, message in {
        tmp_path / "models--a--b": f"did you mean {inside}?",
        inside.parent: f"did you mean {inside}?",
        tmp_path / "models--a--c": "no such folder; did you mean models--a--b?",
        tmp_path / "model.gguf": "a GGUF file cannot be trained",
    }.items():
        with pytest.raises(UserError, match="model") as error:
            check_folder(str(name), trust_remote_code=False)
        assert message in str(error.value)


@pytest.mark.parametrize("symlinked", [False, True])
def test_a_whole_folder_passes(tiny_llama, tmp_path, symlinked):
    """As the hub's cache has it: every file a link to a blob."""
    folder = shutil.copytree(tiny_llama, tmp_path / "snapshots" / "0ab1")
    if symlinked:
        (tmp_path / "blobs").mkdir()
        for number, file in enumerate(folder.iterdir()):
            file.rename(tmp_path / "blobs" / str(number))
            file.symlink_to(f"../../blobs/{number}")
    check_folder(str(folder), trust_remote_code=False)


# Weights


@pytest.mark.parametrize("change", ["renamed", "missing", "another shape"])
def test_weights_that_would_be_made_up_are_refused_with_their_names(launch, tiny, folder, change):
    import torch
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    weight = weights.pop(name)
    if change == "renamed":
        weights[name.replace("up_proj", "upp_proj")] = weight
    elif change == "another shape":
        weights[name] = torch.cat([weight, weight])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    error = only_error(launch(*tiny, f"model.name={folder}"))
    assert name in error
    assert error.startswith(f"model.name={folder}: ")
    if change == "renamed":
        assert "upp_proj.weight, which the model does not know" in error


# Templates

HOSTILE = {
    "endless": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a long text": "{{ 'x' * 99999999999 }}",
    "doubled": (
        "{% set ns = namespace(x='xxxxxxxxxx') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{%"
        " endfor %}{{ ns.x }}"
    ),
    "center": "{{ messages[0].content.center(9999999999) }}",
    "indent": "{{ messages | tojson(indent=9999999999) }}",
    "format": "{{ '%9999999999s' % messages[0].content }}",
    "a list": "{{ [1] * 9999999999 }}",
    "power": "{{ 9 ** (9 ** 9) }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_template_that_never_ends_or_fills_the_memory_is_stopped(name, monkeypatch):
    from chatbot_sft.data import rendering

    with monkeypatch.context() as patch, pytest.raises((UserError, BadRow), match="chat template"):
        patch.setattr(rendering, "SECONDS", 1.0)
        ChatTemplate(HOSTILE[name]).render([{"role": "user", "content": "?"}])
    assert ChatTemplate("{{ messages[0].content }}").render([{"role": "user", "content": "?"}]) == "?"


@pytest.mark.parametrize(
    "source",
    [
        "{{ strftime_now('%99999999d') }}",
        "{{ '{:>9999999999}'.format(1) }}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    ],
)
def test_no_template_ends_in_anothers_exception(source):
    with contextlib.suppress(UserError, BadRow):
        ChatTemplate(source).render([{"role": "user", "content": "?"}])


def test_a_template_may_be_given(launch, tiny, folder, tmp_path):
    """To a base model, which has none: it is trained, saved with the model, and an export of the run takes it
    again.
    """
    template = (folder / "chat_template.jinja").read_text().replace("<|im_start|>", "<|im_start|>~")
    (folder / "chat_template.jinja").unlink()
    (tmp_path / "mine.jinja").write_text(template)
    arguments = [*tiny, f"model.name={folder}", "save=lora", "hydra.run.dir=run"]
    missing = only_error(launch(*arguments, "model.chat_template=mine.jinia"))
    assert missing.startswith("model.chat_template=mine.jinia: no such file; is it spelled so?")
    process = launch(*arguments, "model.chat_template=mine.jinja")
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "run" / "model" / "chat_template.jinja").read_text() == template
    assert ">~<" in (tmp_path / "run" / "data_preview.html").read_text()
    (tmp_path / "mine.jinja").unlink()
    again = launch(
        "task=export", "run=run", "save=merged_16bit", "save.verify=false", "hydra.run.dir=exported"
    )
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "exported" / "model" / "chat_template.jinja").read_text() == template


@pytest.mark.parametrize("encoding", ["utf-8-sig", "latin-1", "utf-16", "utf-16-le"])
def test_a_template_of_a_windows_editor_is_read_or_named(tmp_path, encoding):
    """A byte order mark would stand at the head of every prompt."""
    from chatbot_sft.model import ModelLoader

    text = "{{ messages[0]['content'] }} {# à #}"
    (tmp_path / "mine.jinja").write_text(text, encoding=encoding)
    loader = ModelLoader({"model": {"chat_template": str(tmp_path / "mine.jinja"), "load_in_4bit": False}})
    if encoding == "utf-8-sig":
        assert loader.chat_template() == text
        return
    with pytest.raises(
        UserError,
        match=r"^model\.chat_template=.*mine\.jinja: not UTF-8 text \(byte \d+\).*; save the file as UTF-8$",
    ):
        loader.chat_template()


@pytest.mark.parametrize(
    ("content", "licence"),
    [
        (b"\xef\xbb\xbf---\nlicense: mit\n---\n", "mit"),
        (b"---\nlicense: mit\n---\ncaf\xe9", "mit"),
        (b"---\nlicense: [\n---\n", None),
        ("---\nlicense: mit\n---\n".encode("utf-16"), None),
    ],
)
def test_no_readme_of_the_base_ends_a_save(tmp_path, content, licence):
    from chatbot_sft.config import Config
    from chatbot_sft.save.card import licence_of

    (tmp_path / "README.md").write_bytes(content)
    assert licence_of(Config.from_mapping({"model": {"name": str(tmp_path)}})) == licence


def test_a_template_of_ones_own_is_in_the_key_of_the_tokenised_rows(launch, folder, tmp_path):
    write_json(tmp_path / "my.json", conversations(4))
    (tmp_path / "mine.jinja").write_text((folder / "chat_template.jinja").read_text() + "{# another #}")
    common = (
        "task=check",
        "model=local",
        f"model.name={folder}",
        "model.load_in_4bit=false",
        "dataset.data_path=my.json",
    )
    cached = [
        launch(*common, *more, f"hydra.run.dir=r{n}", env={"CHATBOT_SFT_CACHE": str(tmp_path / "cache")})
        for n, more in enumerate([(), ("model.chat_template=mine.jinja",), ()])
    ]
    assert [process.returncode for process in cached] == [0, 0, 0]
    assert [
        json.loads((tmp_path / f"r{n}" / "data_report.json").read_text())["cached"] for n in range(3)
    ] == [False, False, True]
