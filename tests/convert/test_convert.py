"""`python -m chatbot_sft.convert`: files written after the peers' documented keys, what becomes of each key, and that
the overlay is one that a run takes.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import REPO, write_json
from omegaconf import OmegaConf

from chatbot_sft.config.hydra_glue import composed
from chatbot_sft.convert import __main__ as command
from chatbot_sft.convert import overlay, page, reading
from chatbot_sft.convert.axolotl.types_of_rows import ALPACA
from chatbot_sft.convert.conversion import convert
from chatbot_sft.convert.rules import Kind
from chatbot_sft.errors import UserError

FILES = Path(__file__).parent / "files"
# File → the keys that are not carried.
LEFT = {
    "axolotl_qlora_chat.yml": ["hub_strategy", "wandb_entity"],
    "axolotl_lora_mixture.yml": ["load_in_8bit", "lora_droput", "special_tokens.eos_token"],
    "axolotl_dpo.yml": [],
    "llama_factory_lora_sft.yaml": [],
    "llama_factory_qlora_kto.yaml": ["loraplus_lr_ratio", "swanlab_project", "swanlab_api_key"],
    "llama_factory_full_sft.yaml": ["deepspeed", "val_size"],
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the files and their data, which is the current one."""
    folder = tmp_path / "work"
    shutil.copytree(FILES, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def run(monkeypatch, capsys, place):
    """`run("a.yml", …)` is (exit status or error line, stdout, stderr) of the command, in this process."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["convert", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            command.main()
        told = capsys.readouterr()
        return end.value.code, told.out, told.err

    return call


def converted(text, name="a.yml", folder=Path()):
    """Of a file with this text."""
    file = folder / name
    file.write_text(text, encoding="utf-8")
    values = reading.read(file)
    return convert(values, reading.told(values, file, list(command.PEERS.values())), file)


def kinds(made):
    return {line.key: line.kind for line in made.lines}


@pytest.mark.parametrize("name", LEFT)
def test_a_file_becomes_the_overlay_that_a_run_takes(run, place, name):
    code, out, err = run(name)
    assert code == 0
    stem = name.partition(".")[0]
    overlay = place / "mine" / "experiment" / f"{stem}.yaml"
    assert overlay.read_text(encoding="utf-8") == (FILES / "expected" / f"{stem}.yaml").read_text(
        encoding="utf-8"
    )
    left = ", ".join(LEFT[name])
    assert err == (f"warning: not carried: {left}\n" if left else "")
    assert f"\nwrote  mine/experiment/{stem}.yaml\n" in out
    # As Hydra composes it: all that was carried is there, also what an overlay need not say.
    values = reading.read(place / name)
    made = convert(values, reading.told(values, Path(name), list(command.PEERS.values())), Path(name))
    config = composed([f"experiment={stem}"], config_dir="mine")
    for path, value in made.settings.items():
        if not path.startswith("/"):
            found = OmegaConf.select(config, path)
            assert (OmegaConf.to_container(found) if OmegaConf.is_config(found) else found) == value, path


@pytest.mark.parametrize("name", LEFT)
def test_every_key_stands_under_one_heading(name, place):
    values = reading.read(Path(name))
    made = convert(values, reading.told(values, Path(name), list(command.PEERS.values())), Path(name))
    keys = [line.key for line in made.lines]
    assert len(keys) == len(set(keys))
    for key in values:
        assert [found for found in keys if found == key or found.startswith((f"{key}[", f"{key}."))], key


def test_what_is_not_carried_is_an_error_where_it_is_to_be(run):
    assert run("axolotl_lora_mixture.yml", "--strict")[0] == 1
    assert run("axolotl_dpo.yml", "--strict")[0] == 0


def test_an_overlay_that_is_there_is_kept(run, place):
    file = place / "mine" / "experiment" / "axolotl_dpo.yaml"
    run("axolotl_dpo.yml")
    file.write_text("mine")
    code, _, _ = run("axolotl_dpo.yml")
    assert (
        code
        == "error: mine/experiment/axolotl_dpo.yaml: is there already; --overwrite replaces it, --out names another place"
    )
    assert file.read_text() == "mine"
    assert run("axolotl_dpo.yml", "--overwrite")[0] == 0
    assert file.read_text().startswith("# @package _global_")


def test_it_goes_where_a_command_finds_it(run, place):
    code, out, _ = run("axolotl_dpo.yml", "--out", "our options/experiment/of_dpo.yaml")
    assert code == 0
    assert "--config-dir 'our options' experiment=of_dpo" in out
    code, _, _ = run("axolotl_dpo.yml", "--out", "here.yaml")
    assert (
        code
        == "error: --out here.yaml: an overlay stands in a folder called experiment; write --out mine/experiment/here.yaml"
    )
    code, _, _ = run("axolotl_dpo.yml", "--out", "mine/experiment/a,b.yaml")
    assert (
        code == "error: --out mine/experiment/a,b.yaml: the name of an overlay has letters, digits, _ and -"
    )
    code, _, _ = run("axolotl_dpo.yml", "--out", "mine/experiment/quick.yaml")
    assert (
        code
        == "error: --out mine/experiment/quick.yaml: there is an experiment=quick already; take another name"
    )
    shutil.copy("axolotl_dpo.yml", "quick.yml")
    assert "experiment=quick_axolotl\n" in run("quick.yml")[1]
    shutil.copy("axolotl_dpo.yml", "Ærø run.v2.yml")
    assert run("Ærø run.v2.yml", "--out", "x")[0] == 0
    assert [file.name for file in (place / "x" / "experiment").iterdir()] == ["r_run_v2.yaml"]


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("base_model: a\nbase_model: b\n", "not YAML: a.yml, line 2: base_model is there twice; keep one of them"),
        ("base_model: [a\n", "not YAML: a.yml, line 1, column 13: a bracket that is not closed"),
        ("", "expected keys and values, such as `base_model: …`"),
        ("- base_model\n", "expected keys and values"),
        ("base_model: !!python/object/apply:os.system [ls]\n", "not YAML: a.yml, line 1, column 13: could not determine a constructor"),
        ("model: x\ntraining: y\n", "no training file of either by its keys (model, training): one has base_model (Axolotl) or"),
        ("base_model: a\nmodel_name_or_path: b\n", "it has keys of both, Axolotl's base_model and LLaMA-Factory's model_name_or_path; say whose it is with --from"),
        ("learning_rate: 1\noutput_dir: x\n", "no training file of either by its keys"),
    ],
)  # fmt: skip
def test_a_file_that_is_none_is_refused_in_one_line(run, place, text, refusal):
    (place / "a.yml").write_text(text)
    code, out, _ = run("a.yml")
    assert code.startswith((f"error: a.yml: {refusal}", f"error: {refusal}"))
    assert "\n" not in code
    assert not out
    assert not (place / "mine").exists()


def test_files_that_cannot_be_read_are_said(run, place):
    assert run("none.yml")[0] == "error: none.yml: No such file or directory"
    assert run("data")[0] == "error: data: Is a directory"
    (place / "utf16.yml").write_text("base_model: a\n", encoding="utf-16")
    assert "not UTF-8 text" in run("utf16.yml")[0]
    (place / "large.yml").write_text("base_model: a\n" + "#" * 1_000_001)
    assert run("large.yml")[0] == "error: large.yml: 1.0 MB; a training file is far smaller"
    (place / "deep.yml").write_text("base_model: " + "[" * 1100)
    assert run("deep.yml")[0].startswith("error: deep.yml: ")
    folded = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10))
    (place / "folded.yml").write_text("base_model: a\na0: &a0 x\n" + folded)
    assert run("folded.yml")[0].startswith("error: folded.yml: its aliases stand for over 100,000 values")
    (place / "itself.yml").write_text("base_model: &a [*a]\n")
    assert run("itself.yml")[0].startswith("error: itself.yml: ")
    assert run()[0].startswith("error: name a FILE.yaml")


def test_whose_file_it_is_can_be_said(run, place):
    (place / "a.yml").write_text("learning_rate: 1e-4\nseed: 3\n")
    code, out, err = run("a.yml", "--from", "llama-factory")
    assert code == 0
    assert "a.yml: LLaMA-Factory, 2 keys" in out
    assert (
        "warning: model.name: the file names none that is carried; ./NAME_YOUR_MODEL stands in its place"
        in err
    )
    assert composed(["experiment=a"], config_dir="mine").dataset.data_path == "./NAME_YOUR_DATA.jsonl"
    assert run("a.yml", "--from", "axolotl", "--overwrite", "--strict")[0] == 1


def test_no_torch_is_imported(place):
    program = "import sys\nfrom chatbot_sft.convert import __main__ as c\ntry:\n    c.main()\nfinally:\n    assert 'torch' not in sys.modules"
    finished = subprocess.run(
        [sys.executable, "-c", program, "axolotl_dpo.yml"],
        capture_output=True,
        text=True,
        env=dict(os.environ),
    )
    assert finished.returncode == 0, finished.stderr


# ---- single keys


def test_a_value_that_the_schema_refuses_is_not_carried(tmp_path):
    made = converted(
        "base_model: a/b\nadapter: lora\nlora_r: many\nlora_dropout: 7\nlearning_rate: 1e-4\n",
        folder=tmp_path,
    )
    assert {line.key: line.note for line in made.leftovers} == {
        "lora_r": "lora.r='many': expected a whole number; lora.r=16 stays",
        "lora_dropout": "lora.lora_dropout=7.0: must be at least 0 and below 1; lora.lora_dropout=0.0 stays",
    }
    assert made.settings["training.learning_rate"] == 1e-4


def test_settings_that_contradict_are_not_all_carried(tmp_path):
    made = converted("base_model: a/b\nwarmup_steps: 3\nwarmup_ratio: 0.1\nearly_stopping_patience: 2\nval_set_size: 0.1\n", folder=tmp_path)  # fmt: skip
    left = {line.key: line.note for line in made.leftovers}
    assert set(left) == {"warmup_steps", "early_stopping_patience"}
    assert left["early_stopping_patience"].startswith("training.early_stopping_patience=2 needs evaluations")


def test_nothing_in_a_value_is_looked_up(tmp_path, monkeypatch):
    """Neither a resolver of OmegaConf nor a quote of YAML: what is written is what was there."""
    monkeypatch.chdir(tmp_path)
    odd = [
        "${oc.env:HOME}",
        "Chào bạn: \U0001f37a",
        "off",
        "1e5",
        "a: b # c",
        "'\"\\",
        "é\u2028\x1b[31m",
        "~",
        ".inf",
        "null",
    ]
    text = yaml.safe_dump(
        {"base_model": odd[0], "tokens": odd, "chat_template_kwargs": {"a${b}": odd[1]}}, default_style='"'
    )
    made = converted(text, folder=tmp_path)
    target = tmp_path / "mine" / "experiment" / "a.yaml"
    command._write(target, command.overlay.text(made, "command"), False)
    text = target.read_text(encoding="utf-8")
    assert "\x1b" not in text
    assert '"Chào bạn: \U0001f37a"' in text
    config = composed(["experiment=a"], config_dir="mine")
    assert config.model.name == odd[0]
    assert list(config.model.new_tokens) == odd


def test_a_secret_is_neither_shown_nor_written(run, place):
    secret = "sk-0123456789abcdef"
    assert secret in (place / "llama_factory_qlora_kto.yaml").read_text()
    _, out, err = run("llama_factory_qlora_kto.yaml")
    assert secret not in out + err + (place / "mine/experiment/llama_factory_qlora_kto.yaml").read_text()


@pytest.mark.parametrize(
    ("line", "kind", "settings"),
    [
        ("adapter: qlora", Kind.CARRIED, {"/save": "lora"}),
        ("adapter:", Kind.CARRIED, {"/lora": "none", "/save": "merged_16bit", "model.load_in_4bit": False}),
        ("adapter: loha", Kind.NOT_CARRIED, {}),
        ("rl: ipo", Kind.CARRIED, {"/objective": "dpo", "objective.loss_type": "ipo"}),
        ("rl: orpo", Kind.CARRIED, {"/objective": "orpo"}),
        ("rl: grpo", Kind.NOT_CARRIED, {}),
        ("train_on_inputs: true", Kind.CARRIED, {"dataset.train_on": "all"}),
        ("excess_length_strategy: raise", Kind.CARRIED, {"dataset.overflow": "error"}),
        ("optimizer: muon", Kind.NOT_CARRIED, {}),
        ("lr_scheduler: rex", Kind.NOT_CARRIED, {}),
        ("peft: {loftq_config: {loftq_bits: 4}}", Kind.CARRIED, {"lora.init_lora_weights": "loftq", "lora.loftq_bits": 4}),
        ("batch_size: 32", Kind.CHANGED, {"training.per_device_train_batch_size": 32}),
        ("fp16: true", Kind.CARRIED, {"model.dtype": "float16"}),
        ("chat_template_jinja: ours.jinja", Kind.CARRIED, {"model.chat_template": "ours.jinja"}),
        ("fsdp: [full_shard]", Kind.NOT_CARRIED, {}),
        ("fsdp: false\nadapter: lora", Kind.NOT_NEEDED, {}),
        ("save_strategy: 'no'", Kind.CARRIED, {"training.save_strategy": "no"}),
        ("eval_strategy: epoch", Kind.NOT_NEEDED, {}),
        ("hub_model_id: us/it", Kind.CHANGED, {"save.push_to_hub": True, "save.hub_model_id": "us/it"}),
        ("context_parallel_size: 1", Kind.NOT_NEEDED, {}),
        ("context_parallel_size: 2", Kind.NOT_CARRIED, {}),
    ],
)  # fmt: skip
def test_a_key_of_axolotl(line, kind, settings, tmp_path):
    extra = (
        "load_in_4bit: false\ngradient_accumulation_steps: 1\n"
        if "batch" in line
        else "load_in_4bit: false\n"
    )
    made = converted(f"base_model: a/b\n{extra}{line}\n", folder=tmp_path)
    found = next(found for found in made.lines if found.key == line.partition(":")[0])
    assert (found.kind, found.settings) == (kind, settings)


@pytest.mark.parametrize(
    ("lines", "key", "kind", "settings"),
    [
        ("stage: dpo\npref_loss: orpo", "stage", Kind.CARRIED, {"/objective": "orpo"}),
        ("stage: dpo\npref_loss: simpo", "stage", Kind.NOT_CARRIED, {}),
        ("stage: dpo\npref_ftx: 0.5", "pref_ftx", Kind.CHANGED, {"objective.loss_type": ["sigmoid", "sft"], "objective.loss_weights": [1, 0.5]}),
        ("stage: ppo", "stage", Kind.NOT_CARRIED, {}),
        ("finetuning_type: freeze", "finetuning_type", Kind.NOT_CARRIED, {}),
        ("quantization_bit: 8", "quantization_bit", Kind.NOT_CARRIED, {}),
        ("pissa_init: true", "pissa_init", Kind.CARRIED, {"lora.init_lora_weights": "pissa_niter_16"}),
        ("packing: true", "packing", Kind.CHANGED, {"training.packing": True}),
        ("eval_strategy: epoch\nval_size: 0.1", "eval_strategy", Kind.CHANGED, {"training.eval_steps": 0.333333}),
        ("add_tokens: <a>,<b>\nadd_special_tokens: <c>", "add_tokens", Kind.CHANGED, {"model.new_tokens": ["<c>", "<a>", "<b>"]}),
        ("max_steps: -1", "max_steps", Kind.NOT_NEEDED, {}),
        ("enable_thinking: false", "enable_thinking", Kind.CHANGED, {"dataset.chat_template_kwargs.enable_thinking": False}),
        ("do_train: false", "do_train", Kind.NOT_CARRIED, {}),
        ("dataset: nowhere", "dataset", Kind.NOT_CARRIED, {}),
        ("dataset: us/it\ndataset_dir: ONLINE", "dataset", Kind.CARRIED, {"dataset.data_path": "us/it"}),
        ("deepspeed: ds_z3_config.json", "deepspeed", Kind.CHANGED, {"training.shard": True}),
        ("deepspeed: ds_z2_config.json", "deepspeed", Kind.NOT_NEEDED, {}),
    ],
)  # fmt: skip
def test_a_key_of_llama_factory(lines, key, kind, settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = converted(f"model_name_or_path: a/b\n{lines}\n", folder=tmp_path)
    found = next(found for found in made.lines if found.key == key)
    assert (found.kind, found.settings) == (kind, settings)


@pytest.mark.parametrize(
    ("names", "kind", "settings"),
    [
        ("[human, user]", Kind.NOT_NEEDED, {}),
        ("[customer, user]", Kind.CARRIED, {"dataset.roles.customer": "user"}),
        ("a.customer", Kind.NOT_CARRIED, {}),  # in our paths a dot parts two keys
    ],
)
def test_roles_of_axolotls_rows(names, kind, settings, tmp_path):
    made = converted(
        f"base_model: a/b\ndatasets: [{{path: a.json, roles: {{user: {names}}}}}]\n", folder=tmp_path
    )
    found = next(found for found in made.lines if found.key == "datasets[0].roles")
    assert (found.kind, found.settings) == (kind, settings)


def test_defaults_there_that_are_others_here_are_written(tmp_path):
    """From the schemas that the tables name: sequence_len 512, cosine, no weight decay …; lora_alpha twice the rank."""
    axolotl = converted("base_model: a/b\nadapter: lora\n", folder=tmp_path)
    assert {path: value for line in axolotl.defaults for path, value in line.settings.items()} == {
        "model.load_in_4bit": False, "dataset.eval_fraction": 0.0, "model.max_seq_length": 512, "dataset.overflow": "drop",
        "training.per_device_train_batch_size": 1, "training.gradient_accumulation_steps": 1,
        "training.lr_scheduler_type": "cosine", "training.optim": "adamw_torch_fused", "training.weight_decay": 0.0,
        "training.num_train_epochs": 1.0, "training.warmup_steps": 0.03, "seed": 42,
    }  # fmt: skip
    factory = converted("model_name_or_path: a/b\nlora_rank: 32\n", folder=tmp_path)
    assert {path: value for line in factory.defaults for path, value in line.settings.items()} == {
        "model.load_in_4bit": False, "/save": "lora", "lora.lora_alpha": 64, "lora.target_modules": "all-linear",
        "dataset.eval_fraction": 0.0, "training.per_device_train_batch_size": 8, "training.gradient_accumulation_steps": 1,
        "training.learning_rate": 5e-5, "training.num_train_epochs": 3.0, "training.warmup_steps": 0,
        "training.weight_decay": 0.0, "training.optim": "adamw_torch_fused", "seed": 42,
    }  # fmt: skip


# ---- the pages


@pytest.mark.parametrize("peer", command.PEERS.values(), ids=lambda peer: peer.name)
def test_the_page_has_the_table_that_converts(peer, run):
    """`python -m chatbot_sft.convert --keys axolotl` prints what stands between the two marks."""
    text = (REPO / "docs" / f"coming-from-{peer.name}.md").read_text(encoding="utf-8")
    _, begin, rest = text.partition(page.BEGIN)
    there = begin + rest.partition(page.END)[0] + page.END
    assert there == page.table(peer)
    assert run("--keys", peer.name) == (0, page.table(peer) + "\n", "")


@pytest.mark.parametrize("peer", command.PEERS)
def test_the_example_of_a_page_is_what_the_command_prints(peer, run, place):
    """The file, what the command says of it, and what it writes."""
    text = (REPO / "docs" / f"coming-from-{peer}.md").read_text(encoding="utf-8")
    theirs, ours = re.findall(r"^```yaml\n(.*?)```", text, re.DOTALL | re.MULTILINE)
    name, said = re.findall(
        r"^```\n\$ python -m chatbot_sft.convert (\S+)\n(.*?)```", text, re.DOTALL | re.MULTILINE
    )[0]
    (place / name).write_text(theirs)
    for file in ("chats.jsonl", "data/support.json"):
        write_json(place / file, [])
    for info in re.findall(r"^```json\n(.*?)```", text, re.DOTALL | re.MULTILINE):
        (place / "data" / "dataset_info.json").write_text(info)
    code, out, err = run(name)
    assert (code, out + err) == (0, said)
    assert (place / "mine" / "experiment" / f"{Path(name).stem}.yaml").read_text() == ours


def test_every_type_of_axolotls_datasets_is_on_its_page():
    text = (REPO / "docs" / "coming-from-axolotl.md").read_text(encoding="utf-8")
    assert not [name for name in ALPACA if f"`{name}`" not in text]


@pytest.mark.parametrize(
    ("peer", "key", "meant"), [("axolotl", "lora_rank", "lora_r"), ("llama-factory", "lora_r", "lora_rank")]
)
def test_a_word_of_another_tool_is_answered_with_the_peers(peer, key, meant, tmp_path):
    made = convert({key: 8}, command.PEERS[peer], tmp_path / "a.yml")
    assert next(line.note for line in made.lines if line.key == key).endswith(f"; did you mean {meant}?")


@pytest.mark.parametrize("peer", command.PEERS.values(), ids=lambda peer: peer.name)
def test_a_key_has_one_rule(peer):
    names = [name for rule in peer.every() for name in rule.names]
    assert len(names) == len(set(names)) == len(peer.rules)


def test_a_file_of_dataset_info_that_is_broken_is_said(place):
    Path("data/dataset_info.json").write_text("{")
    with pytest.raises(UserError, match=r"^data/dataset_info.json: not read: "):
        converted("model_name_or_path: a\ndataset: identity\n")


@pytest.mark.parametrize(("key", "ours"), [("dataset", "data_path"), ("eval_dataset", "eval_data_path")])
def test_an_entry_of_dataset_info_that_is_none_is_said(place, key, ours):
    Path("data/dataset_info.json").write_text('{"a": "rows.json"}')
    for name, why in (
        ("a", ": 'a' is rows.json, and an entry is an object with"),
        ("A", " has no 'A'; did you mean a?"),
    ):
        made = converted(f"model_name_or_path: a\n{key}: {name}\n")
        (line,) = (line for line in made.lines if line.key == key)
        assert line.note.startswith(f"data/dataset_info.json{why}") and line.note.endswith(
            f"dataset.{ours}=FILE"
        )


def test_a_secret_of_the_environment_stands_in_the_overlay_by_its_name(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "deadbeefcafe0123456789abcdef")
    assert overlay.written("deadbeefcafe0123456789abcdef") == '"${oc.env:WANDB_API_KEY}"'


@pytest.mark.parametrize(
    ("text", "gone"),
    [
        ("base_model: org/m\ndatasets:\n  - {path: gone.jsonl, type: alpaca}\n", "gone.jsonl"),
        ("base_model: org/m\ndatasets:\n  - {path: org/rows, type: alpaca}\n", ""),
        ("model_name_or_path: org/m\ntemplate: qwen\ndataset: one,absent\n", "data/absent.json"),
    ],
)
def test_data_that_are_not_there_are_said_and_no_fault_of_the_file(text, gone, run, place):
    several(place, one=1, absent=0)
    (place / "a.yml").write_text(text)
    code, out, err = run("a.yml", "--strict")
    warning = f"{gone}: no such data file; is it spelled so? a relative path begins in {place}"
    assert (code, f"\nmissing\n  {warning}\n" in out) == (0, bool(gone))
    assert err == (f"warning: {warning}\n" if gone else "")


@pytest.mark.parametrize(
    ("rows", "more", "counts", "kind", "said"),
    [
        ({"one": 9, "two": 6}, "", [5, 5], Kind.CHANGED, "there the first"),
        ({"one": 9, "two": 3}, "", [5, None], Kind.CHANGED, "all rows of two, no more than that today"),
        ({"one": 9, "two": 0}, "", [None, None], Kind.NOT_CARRIED, "not all of them are here"),
        ({"one": 9, "two": 6}, "interleave_probs: 1,1", [None, None], Kind.NOT_CARRIED, "have weights"),
    ],
)
def test_max_samples_of_several_files_is_a_count_where_there_are_more(rows, more, counts, kind, said, place):
    """A count of more than there are would repeat them; one of as many as there are today would be stale tomorrow."""
    several(place, **rows)
    made = converted(
        f"model_name_or_path: org/m\ntemplate: qwen\ndataset: one,two\nmax_samples: 5\n{more}\n", folder=place
    )
    assert [source.get("count") for source in made.settings["dataset.sources"]] == counts
    (line,) = (line for line in made.lines if line.key == "max_samples")
    assert (line.kind, said in line.note) == (kind, True)


def several(place, **rows):
    """Files of so many rows, none where there are none, and a dataset_info.json that names them."""
    write_json(place / "data" / "dataset_info.json", {name: {"file_name": f"{name}.json"} for name in rows})
    for name, count in rows.items():
        row = {"instruction": "q", "input": "", "output": "a"}
        if count:
            write_json(place / "data" / f"{name}.json", [row] * count)
