"""Real attacks, one planted in each place that a stranger's file may come from. What is promised is in SECURITY.md."""

import json
import os
import pickle
import re
import shutil
import struct
import time
import zipfile
from types import SimpleNamespace

import pytest
from conftest import conversations, only_error, write_json

from chatbot_sft.config import ConfigLoader
from chatbot_sft.data import rendering
from chatbot_sft.data.messages import BadRow
from chatbot_sft.data.sources import read_rows
from chatbot_sft.data.template import ChatTemplate
from chatbot_sft.errors import UserError
from chatbot_sft.evaluation import checks
from chatbot_sft.model_files import check_folder
from chatbot_sft.report.leaderboard import csv_file, promotion
from chatbot_sft.run import checkpoints
from chatbot_sft.run.directory import Run
from chatbot_sft.targets import locate

ZEN = "Beautiful is better than ugly."  # what the module `this` prints as it is imported
ASK = [{"role": "user", "content": "?"}]


class Payload:
    """A pickle of it makes the file `marker`."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def marker(tmp_path):
    """A path that is not there; a payload that runs makes it."""
    yield tmp_path / "owned"
    assert not (tmp_path / "owned").exists(), "the payload ran"


def pickled(file, marker):
    """A file as torch.save writes it, with a payload in it."""
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"state": Payload(marker)}, protocol=2))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")


# _target_: importing is running, so nothing is imported before it is judged.


@pytest.mark.parametrize(
    "target", ["this.s", "os.system", "builtins.eval", "pytest.main", "xml.dom.minidom.parse"]
)
@pytest.mark.parametrize("section", ["model", "lora", "dataset", "objective", "training", "save"])
def test_a_target_of_an_installed_package_is_refused_before_it_is_imported(section, target, capsys):
    package = target.partition(".")[0]
    with pytest.raises(
        UserError, match=rf"^{section}\._target_={target}: {package} is neither of this program"
    ):
        locate(section, target)
    assert ZEN not in capsys.readouterr().out


def test_a_target_is_allowed_by_its_package_or_module(capsys):
    with pytest.raises(UserError, match="has to be a subclass"):
        locate("dataset", "xml.dom.minidom.parse", ["xml.dom"])
    for allowed in (["xml.do"], ["xm"], ["xml.dom.minidom.parse.more"], [""]):
        with pytest.raises(UserError, match=r"allow_targets=\[xml\] on the command line allows it"):
            locate("dataset", "xml.dom.minidom.parse", allowed)


def test_a_module_is_the_users_where_it_lies_in_a_folder_of_theirs(tmp_path, monkeypatch):
    """In a package folder, or a virtual environment inside the current folder, it is not."""
    source = "from chatbot_sft import DatasetLoader\nclass Mine(DatasetLoader):\n    pass\n"
    installed = tmp_path / ".venv" / "lib" / "python3" / "site-packages"
    installed.mkdir(parents=True)
    (installed / "theirs_installed.py").write_text(source)
    (tmp_path / "mine_here.py").write_text(source)
    (tmp_path / "mine_package").mkdir()
    (tmp_path / "mine_package" / "loader.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(installed)
    assert locate("dataset", "mine_here.Mine").__name__ == "Mine"
    assert locate("dataset", "mine_package.loader.Mine").__name__ == "Mine"
    with pytest.raises(UserError, match="theirs_installed is neither of this program nor a file of yours"):
        locate("dataset", "theirs_installed.Mine")
    assert locate("dataset", "theirs_installed.Mine", ["theirs_installed"]).__name__ == "Mine"


HYDRAS = {
    "a callback": ("hydra:\n  callbacks:\n    evil:\n      _target_: this.s\n", "hydra.callbacks.evil._target_=this.s"),
    "a callback by reference": (
        "hydra:\n  callbacks: ${hydra.job.env_set}\n  job:\n    env_set: {evil: {_target_: this.s}}\n",
        "hydra.callbacks.evil._target_=this.s",
    ),
    "a log handler": (
        "hydra:\n  job_logging: {version: 1, handlers: {x: {(): this.s}}, root: {handlers: [x]}}\n",
        "hydra.job_logging.handlers.x.()=this.s",
    ),
    "a stream of a log": (
        "hydra:\n  job_logging: {version: 1, handlers: {x: {class: logging.StreamHandler, stream: ext://this.s}}}\n",
        "hydra.job_logging.handlers.x.stream=this.s",
    ),
    "what imports by name": (
        "hydra:\n  callbacks: {evil: {_target_: hydra.utils.get_method, path: this.s}}\n",
        "hydra.callbacks.evil._target_=hydra.utils.get_method",
    ),
    "what one of ours has imported": (
        "hydra:\n  callbacks: {evil: {_target_: chatbot_sft.targets.importlib.import_module, name: this}}\n",
        "hydra.callbacks.evil._target_=chatbot_sft.targets.importlib.import_module",
    ),
    "what a plugin has imported": (
        "hydra:\n  callbacks: {evil: {_target_: logging.handlers.os.system, command: echo Beautiful}}\n",
        "hydra.callbacks.evil._target_=logging.handlers.os.system",
    ),
    "a launcher": ("hydra:\n  launcher:\n    _target_: this.s\n", "hydra.launcher._target_=this.s"),
}  # fmt: skip


@pytest.mark.parametrize("name", HYDRAS)
def test_what_hydra_itself_would_import_is_judged_too(name, launch, tmp_path):
    """A file that is put among one's own options cannot allow itself."""
    text, where = HYDRAS[name]
    folder = tmp_path / "mine" / "experiment"
    folder.mkdir(parents=True)
    (folder / "evil.yaml").write_text(f"# @package _global_\nallow_targets: [this]\n{text}")
    process = launch("--config-dir", "mine", "experiment=evil", "task=check", "dataset.data_path=gone.json")
    assert "Beautiful" not in process.stdout
    error = only_error(process)
    assert error.startswith(f"{where}: ")
    assert (
        "is neither of this program nor a file of yours" in error or "there is no system in a module" in error
    )


def test_hydras_pickled_configurations_are_not_read(launch, tmp_path, marker):
    (tmp_path / "config.pickle").write_bytes(pickle.dumps(Payload(marker)))
    assert "reads a pickle" in only_error(launch("--experimental-rerun", "config.pickle"))


# Weights, adapters and checkpoints: no pickled code.


def test_a_model_of_pickled_weights_is_refused_and_says_how_to_allow_it(tiny_llama, tmp_path, marker):
    from chatbot_sft.inference.hf_model import HFModel

    folder = shutil.copytree(tiny_llama, tmp_path / "base")
    (folder / "model.safetensors").unlink()
    pickled(folder / "pytorch_model.bin", marker)
    with pytest.raises(
        UserError, match=r"pytorch_model\.bin is a pickle.*model\.allow_pickle=true loads them"
    ):
        check_folder(str(folder), trust_remote_code=False)
    check_folder(str(folder), trust_remote_code=False, allow_pickle=True)
    with pytest.raises(UserError, match=r"pytorch_model\.bin is a pickle"):
        HFModel.load(folder)
    with pytest.raises(
        Exception, match=r"(?i)weights.only|unsupported"
    ):  # PyTorch's loader for weights alone
        HFModel.load(folder, allow_pickle=True)


def test_pickled_weights_of_a_friend_are_trained_where_a_key_says_so(launch, tiny, tiny_llama, tmp_path):
    import torch
    from safetensors.torch import load_file

    folder = shutil.copytree(tiny_llama, tmp_path / "base")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    arguments = [*tiny, f"model.name={folder}", "training.max_steps=1", "save=lora", "hydra.run.dir=run"]
    assert "model.allow_pickle=true" in only_error(launch(*arguments))
    process = launch(*arguments, "model.allow_pickle=true")
    assert process.returncode == 0, process.stderr


def test_an_adapter_of_pickled_weights_is_refused_and_says_how_to_convert_it(tiny_llama, tmp_path, marker):
    from chatbot_sft.inference.hf_model import HFModel
    from chatbot_sft.model.earlier import adopt

    adapter = tmp_path / "adapter"
    adapter.mkdir()
    write_json(
        adapter / "adapter_config.json",
        {
            "base_model_name_or_path": str(tiny_llama), "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4,
            "lora_alpha": 4, "target_modules": ["q_proj"], "init_lora_weights": True,
        },
    )  # fmt: skip
    pickled(adapter / "adapter_model.bin", marker)
    with pytest.raises(UserError, match=r"adapter_model\.bin is a pickle.*weights_only=True"):
        HFModel.load(adapter)
    model = {"name": str(tiny_llama), "adapter": str(adapter), "load_in_4bit": False}
    with pytest.raises(UserError, match=r"adapter_model\.bin is a pickle"):
        adopt({"model": model, "lora": {"r": 4, "lora_alpha": 4, "target_modules": ["q_proj"]}})


@pytest.fixture(scope="module")
def stranger(warm, tiny, tmp_path_factory):
    """`stranger(loop)` is the directory of a run that stopped before its end, as somebody else may hand it on."""
    folder, made = tmp_path_factory.mktemp("stranger"), {}

    def run(loop, *more):
        if loop not in made:
            made[loop] = folder / loop
            words = [*tiny, f"training.loop={loop}", "training.save_steps=1", "save=none", *more]
            process = warm.run(["-m", "chatbot_sft", *words, f"hydra.run.dir={made[loop]}"], folder, {})
            assert process.returncode == 0, process.stderr
        return made[loop]

    return run


@pytest.mark.parametrize(
    ("loop", "name"),
    [
        *(("native", name) for name in ("optimizer.pt", "rng_state.pth")),
        *(("trl", name) for name in ("optimizer.pt", "training_args.bin")),
    ],
)
def test_code_in_a_checkpoint_is_not_run(loop, name, stranger, launch, tiny, tmp_path, marker):
    """The record that says its files are whole is the attacker's, too."""
    first = stranger(loop)
    checkpoint = shutil.copytree(first / "checkpoints" / "checkpoint-1", tmp_path / "checkpoint-1")
    pickled(checkpoint / name, marker)
    record = json.loads((checkpoint / "run.json").read_text())
    checkpoints.seal(
        checkpoint, {key: record[key] for key in record if key not in ("files", "checksums", "checksum")}
    )
    words = [
        *tiny,
        f"training.loop={loop}",
        "training.save_steps=1",
        "save=none",
        f"training.resume={checkpoint}",
    ]
    process = launch(*words)
    if name == "training_args.bin":  # nobody reads it
        assert process.returncode == 0, process.stderr
        return
    assert "has a pickle in it that this program did not write" in only_error(process)


def test_the_run_of_a_stranger_executes_nothing(stranger, launch, tmp_path, marker):
    """What its config.yaml allows is not allowed here: the command line says it, or nobody."""
    run = shutil.copytree(stranger("native"), tmp_path / "theirs")
    export = ["task=export", "run=theirs", "save=lora", "save.verify=false", "hydra.run.dir=mine"]
    written = (run / "config.yaml").read_text()

    def export_of(text, *more):
        (run / "config.yaml").write_text(text)
        process = launch(*export, *more)
        assert ZEN not in process.stdout + process.stderr
        return only_error(process)

    target = written.replace("chatbot_sft.model.ModelLoader", "this.s").replace(
        "allow_targets: []", "allow_targets: [this]"
    )
    assert "allow_targets:\n" not in target and "allow_targets: [this]" in target
    assert export_of(target).startswith("model._target_=this.s: this is neither of this program")
    own = (run / "evil_loader.py").write_text(f"import os\nos.mkdir({str(marker)!r})\n")
    assert own and "there is no module evil_loader" in export_of(
        written.replace("chatbot_sft.model.ModelLoader", "evil_loader.Mine")
    )
    assert "add model.trust_remote_code=true" in export_of(
        written.replace("trust_remote_code: false", "trust_remote_code: true")
    )
    tag = written + f"evil: !!python/object/apply:os.mkdir ['{marker}']\n"
    assert "config.yaml cannot be read" in export_of(tag)
    with pytest.raises(UserError):
        Run(run).config()


def test_yaml_tags_make_no_objects(tmp_path, marker):
    (tmp_path / "sft.yaml").write_text(f"model:\n  name: !!python/object/apply:os.mkdir ['{marker}']\n")
    with pytest.raises(UserError, match=r"sft\.yaml"):
        ConfigLoader.load_config(tmp_path / "sft.yaml")


def test_code_that_comes_with_a_model_is_not_run(tiny_llama, tmp_path, marker):
    from chatbot_sft.inference.hf_model import HFModel

    folder = shutil.copytree(tiny_llama, tmp_path / "base")
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(marker)!r})\nEvil = None\n")
    kinds = {
        "AutoConfig": "evil.Evil",
        "AutoModelForCausalLM": "evil.Evil",
        "AutoTokenizer": ["evil.Evil", "evil.Evil"],
    }
    for name in ("config.json", "tokenizer_config.json"):
        write_json(folder / name, {**json.loads((folder / name).read_text()), "auto_map": kinds})
    with pytest.raises(UserError, match="auto_map names Python code of the model's own"):
        check_folder(str(folder), trust_remote_code=False)
    HFModel.load(folder)  # transformers' own Llama in place of it
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {**config, "model_type": "evil"})
    with pytest.raises(UserError, match=r"(?i)trust_remote_code|custom code|evil"):
        HFModel.load(folder)


# Paths


@pytest.mark.parametrize(
    "name", ["chat_template.jinja", "tokenizer_config.json", "preprocessor_config.json", "README.md"]
)
def test_a_link_out_of_a_model_folder_is_refused(name, tiny_llama, tmp_path):
    """It would bring a file that only its user may read into an export."""
    (tmp_path / "id_rsa").write_text("a private key")
    folder = shutil.copytree(tiny_llama, tmp_path / "base")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(tmp_path / "id_rsa")
    with pytest.raises(UserError, match=rf"{name} is a link to .*id_rsa, outside the folder"):
        check_folder(str(folder), trust_remote_code=False)


@pytest.mark.parametrize(
    "shard", ["../elsewhere.safetensors", "/etc/passwd", "a/../../b.safetensors", "linked.safetensors"]
)
def test_an_index_leads_out_of_no_folder(shard, tiny_llama, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "base")
    shutil.copy(folder / "model.safetensors", tmp_path / "elsewhere.safetensors")
    (folder / "linked.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    write_json(
        folder / "model.safetensors.index.json", {"weight_map": {"a": "model.safetensors", "b": shard}}
    )
    with pytest.raises(UserError, match="outside the folder"):
        check_folder(str(folder), trust_remote_code=False)


# Templates. test_model_folder.py has more of those that never end.

REFUSED = {
    "squares": "{% set ns = namespace(x=7) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}{{ ns.x > 1 }}",
    "powers": "{% set ns = namespace(x=9) %}{% for i in range(9) %}{% set ns.x = ns.x ** 999 %}{% endfor %}{{ ns.x > 1 }}",
    "digits": "{{ 1.0 | round(1000000000, 'floor') }}",
    "a text, while it compiles": "{{ 'a' | center(9999999999) }}",
    "a text": "{{ 'x' * 99999999999 }}",
    "a long answer": "{% for a in range(1000) %}{{ 'x' * 100000 }}{% endfor %}",
    "an endless loop": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a large range": "{% for a in range(10 ** 9) %}x{% endfor %}",
    "recursion": "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
    "__class__": "{{ messages.__class__.__mro__ }}",
    "__globals__": "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "__init__": "{{ cycler.__init__.__globals__.os }}",
    "a file": "{% include '/etc/passwd' %}",
    "a module": "{% import 'os' as os %}{{ os }}",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_template_ends_and_reaches_nothing(name, monkeypatch):
    monkeypatch.setattr(rendering, "SECONDS", 1.0)
    monkeypatch.setattr(rendering, "AGAIN", 0.1)
    began = time.process_time()  # which is the same on a busy machine
    with pytest.raises((UserError, BadRow), match="chat template"):
        ChatTemplate(REFUSED[name]).render(ASK)
    assert time.process_time() - began < 10


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''|attr('__class__') }}",
        "{{ '{0.__class__}'.format(messages) }}",
        "{{ raise_exception.__globals__ }}",
    ],
)
def test_what_the_sandbox_hides_is_nothing(source):
    assert ChatTemplate(source).render(ASK) == ""


@pytest.mark.slow
def test_a_transformers_tokenizer_is_bounded_too(monkeypatch):
    from chatbot_sft.model.generate import rendered

    monkeypatch.setattr(rendering, "SECONDS", 1.0)
    tokenizer = SimpleNamespace(chat_template=REFUSED["an endless loop"], special_tokens_map={})
    with pytest.raises(UserError, match=r"takes over .* seconds for one conversation"):
        rendered(tokenizer, ASK, {})


@pytest.mark.slow
def test_our_rendering_is_transformers_own(tokenizer):
    from chatbot_sft.model.generate import rendered

    turns = [{"role": "system", "content": "Bạn là Mai."}, *ASK, {"role": "assistant", "content": "¿"}, *ASK]
    for kwargs in ({}, {"add_generation_prompt": False}):
        expected = tokenizer.apply_chat_template(
            turns, return_dict=False, **{"add_generation_prompt": True, **kwargs}
        )
        assert rendered(tokenizer, turns, kwargs) == expected


# Data


def test_a_zip_file_is_read_in_place(tmp_path):
    """A member called ../x is passed over, and nothing is written; of one that unpacks to much a row is held."""
    with zipfile.ZipFile(tmp_path / "rows.zip", "w") as archive:
        archive.writestr("../../outside.jsonl", json.dumps(conversations(1)[0]))
    with pytest.raises(UserError, match=r"without data files; it has \.\./\.\./outside\.jsonl"):
        list(read_rows(str(tmp_path / "rows.zip")))
    assert [path.name for path in tmp_path.iterdir()] == ["rows.zip"]
    with (
        zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a.jsonl", "w", force_zip64=True) as member,
    ):
        member.write(b'{"messages": "')
        for _ in range(16):
            member.write(b"x" * (1 << 20))
    with pytest.raises(UserError, match=r"bomb\.zip/a\.jsonl: line 1 has over 1 million characters"):
        list(read_rows(str(tmp_path / "bomb.zip"), max_row_mb=1))


@pytest.mark.parametrize("text", ["[" * 200_000, '{"messages": ' + "[" * 200_000 + "]" * 200_000 + "}"])
def test_json_nested_deeply_is_refused(tmp_path, text):
    (tmp_path / "rows.jsonl").write_text(text + "\n")
    with pytest.raises(UserError, match=r"rows\.jsonl"):
        for row in read_rows(str(tmp_path / "rows.jsonl")):
            assert "fault" in repr(row)


LYING = {
    "tensors": struct.pack("<IQQ", 3, 2**60, 0),
    "keys": struct.pack("<IQQ", 3, 1, 2**62),
    "a text": struct.pack("<IQQQ", 3, 1, 1, 2**62) + b"abc",
    "a list": struct.pack("<IQQQ3sIIQ", 3, 1, 1, 3, b"abc", 9, 8, 2**61),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LYING)
def test_a_gguf_file_that_lies_of_its_lengths_is_refused(name, tmp_path):
    """By llama.cpp, which reads them."""
    from chatbot_sft.inference.gguf_model import GGUFModel

    (tmp_path / "lying.gguf").write_bytes(b"GGUF" + LYING[name])
    with pytest.raises(UserError, match=r"lying\.gguf: cannot be loaded"):
        GGUFModel.load(tmp_path / "lying.gguf")


def test_a_pattern_that_searches_for_years_ends(monkeypatch):
    answer = SimpleNamespace(spoken="a" * 60 + "!")
    assert checks.Regex.read("a+!", True).fault(answer) == ""
    monkeypatch.setattr(checks, "SECONDS", 0.3)
    with pytest.raises(checks.CannotTell, match="its regular expression takes over 0 seconds here"):
        checks.Regex.read("(a+)+$", True).fault(answer)


# What comes out


def test_a_spreadsheet_computes_nothing_of_a_leaderboard():
    cells = ["=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(1)", "-1.5e-4", "+7", "2e-4", "adamw"]
    assert [csv_file._text(cell) for cell in cells] == [*(f"'{cell}" for cell in cells[:4]), *cells[4:]]


def test_every_page_forbids_what_is_not_its_own():
    """That a planted script does not run is in test_preview.py, test_page.py and test_leaderboard.py, in Chromium."""
    from chatbot_sft.resources import PACKAGE

    pages = list(PACKAGE.rglob("*.html"))
    assert len(pages) >= 3
    for page in pages:
        policy = re.search(r'Content-Security-Policy content="([^"]*)"', page.read_text(encoding="utf-8"))
        assert policy and policy[1].startswith("default-src 'none'; style-src 'unsafe-inline'")
        assert "script-src" in policy[1] and "unsafe-inline" not in policy[1].partition("script-src")[2]


def test_a_cache_is_its_owners_alone(tmp_path, monkeypatch):
    from chatbot_sft import cache

    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    before = os.umask(0)
    try:
        folder, _ = cache.cached(
            "data", "one", lambda place: (place / "rows").write_text("rows") and None, "rows"
        )
    finally:
        os.umask(before)
    assert [place.stat().st_mode & 0o077 for place in (folder, folder.parent, folder.parent.parent)] == [
        0,
        0,
        0,
    ]


def test_a_record_of_a_checkpoint_names_no_other_file(tmp_path):
    """It would read a device for ever."""
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    kept = {
        "format": checkpoints.FORMAT,
        "step": 1,
        "started": "2026-11-30",
        "seconds": 1.0,
        "finished": False,
    }
    whole = {**kept, "losses": {}, "layout": {}, "resumes": [], "identity": {}}
    checkpoints.seal(folder, whole)
    assert checkpoints.verified(folder).step == 1
    record = json.loads((folder / "run.json").read_text())
    record["checksums"]["../../../../../../../../dev/zero"] = "0"
    write_json(folder / "run.json", {**record, "checksum": checkpoints._own_checksum(record)})
    with pytest.raises(checkpoints.Damaged, match="checksums of other files"):
        checkpoints.verified(folder)


def test_a_promotion_copies_exports_and_nothing_else(tmp_path):
    """Where an export lies is said by the report, which may be a stranger's."""
    private, run = tmp_path / "private", tmp_path / "run"
    for place in (private, run / "model"):
        place.mkdir(parents=True)
        (place / "file").write_text("a private key")
    assert promotion._place(private, run) == run / "model"
    assert promotion._place(private / "file", run) == run / "model" / "file"
    (run / "model" / "linked").symlink_to(private / "file")
    with pytest.raises(UserError, match="a link out of the export"):
        promotion._refuse_links_out(run / "model")


def test_a_model_of_the_hub_without_safetensors_is_told_so():
    from chatbot_sft.model.hub import readable_errors

    with (
        pytest.raises(
            UserError, match=r"^model\.name=org/old: it has no \*\.safetensors; model\.allow_pickle=true"
        ),
        readable_errors("org/old"),
    ):
        raise OSError("org/old does not appear to have a file and thus cannot be loaded with `safetensors`.")
