"""What a run says: no secret, nothing that a terminal obeys, and a ruined model is no success."""

import json
import math
import re
import shutil
import zipfile

import pytest
import yaml
from conftest import TRAINING, conversations, only_error, report_of, write_json

from chatbot_sft.config import Config
from chatbot_sft.errors import UserError
from chatbot_sft.inference.hf_model import adapter_base
from chatbot_sft.inference.opening import find
from chatbot_sft.model.base import named
from chatbot_sft.places import read_mark, write_mark
from chatbot_sft.report.markup import cell, inline, quoted
from chatbot_sft.report.masking import by_name, masked, places, read_yaml, referring, resolved
from chatbot_sft.report.plain import plain, plain_line, uncoloured
from chatbot_sft.report.secrets_trained import check_secrets
from chatbot_sft.report.words import amount, moved, number
from chatbot_sft.run.report import Training
from chatbot_sft.run.report import write_json as write_report
from chatbot_sft.train.outcome import refuse_ruined, rows_warnings, warnings

PASSWORD = "correct-horse-9"
PLANTED = ("MODEL_KEY", "DATA_KEY", "SYSTEM_SECRET", "PROMPT_PASSWORD", "PROJECT_TOKEN", "HUB_TOKEN")


def test_how_many_there_are():
    assert [amount(number, "bad row") for number in (0, 1, 2000)] == [
        "0 bad rows",
        "1 bad row",
        "2,000 bad rows",
    ]
    assert (amount(2, "process"), amount(1.5, "epoch", "g")) == ("2 processes", "1.5 epochs")


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (2.0, 1.0, "50% lower"),
        (1.0, 3.02, "202% higher"),
        (1.0, 1.001, "unchanged"),
        (0.0, 1.0, ""),
        (1.0, math.nan, ""),
        (None, 1.0, ""),
    ],
)
def test_how_a_loss_moved(before, after, words):
    assert moved(before, after) == words


def test_a_worse_end_and_a_base_that_was_the_best_are_warnings():
    assert warnings(2.0, 1.0, {"step": 4, "loss": 1.0}) == []
    worse, lowest = warnings(2.0, 2.5, {"step": 4, "loss": 2.2})
    assert "2.000 → 2.500 (25% higher)" in worse and "before training (2.000) was better" in lowest
    assert warnings(2.0, math.nan, None) == ["the held-out loss ended worse than it began: 2.000 → no number"]


def test_no_number_is_null_in_json(tmp_path):
    write_report({"loss": math.nan, "all": [math.inf, 1.5], "half": "\ud800"}, tmp_path / "report.json")
    found = json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    assert (found["loss"], found["all"]) == (None, [None, 1.5])
    assert number(None) == number(math.inf) == "no number"


def test_what_a_terminal_obeys_is_written_out():
    assert plain("a\x1b[2J\x9b1m\u202eb\r\nc\td\ud800") == "a\\x1b[2J\\x9b1m\\u202eb\nc\td\\ud800"
    assert plain_line("two\nlines\r") == "two\\nlines\\r"
    assert uncoloured("\x1b[1;31mred\x1b[0m") == "red"
    assert plain("Tiếng Việt 👩‍👩‍👧 ok") == "Tiếng Việt 👩‍👩‍👧 ok"


def test_text_cannot_break_a_page():
    assert inline("a|b `c` </details> my_run") == r"a\|b \`c\` \</details\> my_run"
    assert cell("a | b\nc") == r"a \| b c"
    assert quoted("# x\n1. y\n```\n") == [r"> \# x", "> 1\\. y", r"> \`\`\`", "> "]


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (f"https://user:{PASSWORD}@host/x", "https://***@host/x"),
        ("https://user:p@ss/word@host/x", "https://***@host/x"),
        (f"https://{PASSWORD}@host", "https://***@host"),
        (f"https:/user:{PASSWORD}@host/x", "https:/***@host/x"),
        (f"https://h/x?sig={PASSWORD}&n=1", "https://h/x?sig=***&n=1"),
        (f"Authorization: Bearer {PASSWORD}", "Authorization: Bearer ***"),
        ("http://host:8080/model@v2", "http://host:8080/model@v2"),
        ("cd /srv/PWD=/here", "cd /srv/PWD=/here"),
        ("training.x_token=${oc.env:MY_TOKEN}", "training.x_token=${oc.env:MY_TOKEN}"),
    ],
)
def test_credentials_in_text(text, clean):
    assert masked(text) == clean


@pytest.mark.parametrize(
    "text",
    [
        "a: 1e-4\nb: 1.0e-05\nc: '0123'\nd: 0123\ne: no\nf: '2020-01-01'\ng: .inf\nh: [null, ~, '']\n",
        'Tiếng Việt: "\\U0001F37A \\x85"\nemoji: 🍺\nlong: |-\n  one\n\n  two\n',
        "a: &x {b: 1}\nc: *x\n",
        "",
    ],
)
def test_yaml_is_read_as_the_slow_reader_does(text):
    from omegaconf import OmegaConf

    assert read_yaml(text) == yaml.safe_load(text)
    composed_text = OmegaConf.to_yaml(OmegaConf.create(yaml.safe_load(text) or {}))
    assert read_yaml(composed_text) == yaml.safe_load(composed_text)


def test_a_variable_that_is_set_later_is_masked_from_then_on(monkeypatch):
    text = "login with correct-horse, then with battery-staple"
    assert masked(text) == text
    monkeypatch.setenv("LATER_PASSWORD", "correct-horse")
    assert masked(text) == "login with ***, then with battery-staple"
    monkeypatch.setenv("LATER_PASSWORD", "battery-staple")
    assert masked(text) == "login with correct-horse, then with ***"
    monkeypatch.delenv("LATER_PASSWORD")
    assert masked(text) == text


def test_a_masked_configuration_is_read_from_the_environment_again(monkeypatch):
    monkeypatch.setenv("MY_MODEL_TOKEN", "hidden")
    config = {
        "model": {"name": "hidden"},
        "dataset": {"system_prompt": "not hidden at all"},
        "lora": {"r": 4},
    }
    kept = referring(config)
    assert kept["model"]["name"] == "${oc.env:MY_MODEL_TOKEN}"
    assert resolved(kept) == config


def test_what_is_read_again_keeps_all_but_the_environments_secrets(monkeypatch, tmp_path):
    monkeypatch.setenv("MY_TOKEN", "a-folder-or-token")
    row = {"content": "password=typed, a-folder-or-token", "api_key": {"type": "string"}}
    assert by_name(row) == {"content": "password=typed, ${oc.env:MY_TOKEN}", "api_key": {"type": "string"}}
    assert places("x a-folder-or-token!") == [(2, 19)]
    (tmp_path / "a-folder-or-token").mkdir()
    assert named(by_name(str(tmp_path / "a-folder-or-token"))) == str(tmp_path / "a-folder-or-token")
    assert (
        named("somebody/${oc.env:MY_TOKEN}") == "somebody/${oc.env:MY_TOKEN}"
    )  # or an adapter's author had it sent to the hub
    write_mark(
        tmp_path, {"made_from": {}, "base": {"relative": "../a-folder-or-token"}, "export": {"files": {}}}
    )
    assert "a-folder-or-token" not in (tmp_path / "export.json").read_text()
    assert read_mark(tmp_path)["base"] == {"relative": "../a-folder-or-token"}


def test_a_secret_is_no_new_token_and_is_said_to_be_trained(monkeypatch, caplog):
    monkeypatch.setenv("MY_TOKEN", "<|not for others|>")
    with pytest.raises(
        UserError, match=r"^model.new_tokens: <a>, \$\{oc.env:MY_TOKEN\}: a token's text is in every file"
    ):
        check_secrets(Config.from_mapping({"model": {"new_tokens": ["<a>", "<|not for others|>"]}}))
    check_secrets(Config.from_mapping({"dataset": {"system_prompt": "say <|not for others|>"}}))
    assert [record.getMessage()[:60] for record in caplog.records] == [
        "dataset.system_prompt: the secret in it is trained into the "
    ]


def test_no_credential_is_in_any_file_or_stream(launch, tiny, tiny_llama, tmp_path, monkeypatch):
    """A secret wherever a key can bring one: a run, the same run gone on with, an export of it, a refused run
    and a sweep, byte by byte.
    """
    secrets = {name: f"{name.lower().replace('_', '-')}-x7" for name in PLANTED}
    work, cache = tmp_path / "work", tmp_path / "cache"
    work.mkdir()
    model = shutil.copytree(tiny_llama, tmp_path / secrets["MODEL_KEY"] / "model")
    data = tmp_path / secrets["DATA_KEY"] / "rows.json"
    data.parent.mkdir()
    write_json(data, conversations(24))

    def run(*arguments):
        return launch(*arguments, cwd=work, env={**secrets, "CHATBOT_SFT_CACHE": str(cache)})

    planted_name = f"+training.run_name=https://me:{PASSWORD}@host/run"
    planted = [
        *tiny,
        f"model.name={model.parent.parent}/${{oc.env:MODEL_KEY}}/model",
        f"dataset.data_path={data.parent.parent}/${{oc.env:DATA_KEY}}/rows.json",
        "dataset.max_rows=null",
        "dataset.system_prompt=ask ${oc.env:SYSTEM_SECRET} first",
        "training.sample_prompts=['what is ${oc.env:PROMPT_PASSWORD}?']",
        "+training.project='${oc.env:PROJECT_TOKEN}'",
        planted_name,
        "training.report_to=tensorboard",
        "training.save_steps=1",
        "save.hub_model_id=org/${oc.env:HUB_TOKEN}",
        "save.method=[lora,merged_16bit,gguf]",
        "save.gguf_quantization=f16",
        "hydra.run.dir=good",
    ]
    address = f"dataset.data_path=https://me:{PASSWORD}y@host/data.json"
    processes = [run(*planted), run(*planted, "training.max_steps=3")]
    processes += [run("task=export", "run=good", "save=lora", "save.verify=true", "hydra.run.dir=again")]
    assert [process.returncode for process in processes] == [0, 0, 0], "".join(
        process.stderr for process in processes
    )
    processes += [
        run(*tiny, address, "hydra.run.dir=bad"),
        run("-m", *tiny, address, "hydra.sweep.dir=refused", "seed=1,2"),
        run("-m", *tiny, "task=check", planted_name, "hydra.sweep.dir=swept", "seed=1,2"),
    ]
    assert only_error(processes[3])
    assert processes[5].returncode == 0, processes[5].stderr

    assert report_of(work / "good")["training"]["resumed_from"] == 2
    assert "${oc.env:SYSTEM_SECRET}" in (work / "good" / "config.yaml").read_text()
    texts = {"a stream": "".join(process.stdout + process.stderr for process in processes).encode()}
    for file in (path for place in (work, cache) for path in place.rglob("*") if path.is_file()):
        texts[str(file.relative_to(tmp_path))] = file.read_bytes()
        if file.suffix == ".html":
            texts[f"{file.name} as it is read"] = re.sub(rb"<[^>]*>", b"", file.read_bytes())
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as members:
                texts |= {
                    f"{file.relative_to(tmp_path)}/{name}": members.read(name) for name in members.namelist()
                }
    kept = " ".join(texts)
    assert all(
        name in kept
        for name in (
            "multirun.yaml",
            "Modelfile",
            "adapter_config.json",
            "optimizer.pt/",
            "tfevents",
            "preview.html as",
        )
    )
    found = [
        f"{secret} in {name}"
        for name, text in texts.items()
        for secret in (PASSWORD, *secrets.values())
        if secret.encode() in text
    ]
    assert not found, "\n".join(found)

    for name, secret in secrets.items():
        monkeypatch.setenv(name, secret)
    assert {
        adapter_base(work / place)[0]
        for place in ("good/model/lora", "again/model", "good/checkpoints/checkpoint-3")
    } == {str(model)}


def losses(before, after, rows_before=None, rows=None):
    found = {
        "eval_loss_before": before,
        "eval_loss": after,
        "rows_loss_before": rows_before,
        "rows_loss": rows,
        "weights_of_step": 24,
    }
    return Training(**{**TRAINING, **found})


@pytest.mark.parametrize(
    ("training", "said"),
    [
        (losses(2.75, 5.6), "held out 2.750 → 5.600 (limit 5.500)"),
        (losses(2.75, math.nan), "held out 2.750 → no number"),
        (losses(2.75, 5.4), None),
        (losses(None, None), None),
        (losses(None, None, 2.75, 5.6), "the loss of trained conversations 2.750 → 5.600 (limit 5.500)"),
        (losses(None, None, 2.75, math.nan), "the loss of trained conversations 2.750 → no number"),
        (losses(None, None, 2.75, 3.2), None),
        (losses(None, None, 0.01, 0.4), None),  # half a nat is granted to what was learned by heart
        (losses(None, None, 8.0, 11.4), "(limit 11.303)"),  # below twice the loss, above chance
        (losses(None, None, 10.9, 11.35), None),  # random weights begin at chance
    ],
)
def test_a_ruined_model_is_refused_and_a_worse_one_is_not(training, said):
    refuse_ruined(
        training,
        Config.from_mapping({"training": {"learning_rate": 100, "stop_on_divergence": False}}),
        49152,
    )
    settings = Config.from_mapping({"training": {"learning_rate": 100}})
    if said is None:
        refuse_ruined(training, settings, 49152)
        return
    with pytest.raises(UserError, match=r"^training ruined the model: .*checkpoint-24") as error:
        refuse_ruined(training, settings, 49152)
    assert said in str(error.value)


def test_trained_conversations_that_became_less_likely_are_a_warning():
    assert rows_warnings(None, None) == rows_warnings(2.0, 1.9) == rows_warnings(2.0, 2.009) == []
    assert rows_warnings(2.0, 3.0) == [
        "the loss of trained conversations ended worse than it began: 2.000 → 3.000 (50% higher)"
    ]
    assert rows_warnings(2.0, math.nan) == [
        "the loss of trained conversations ended worse than it began: 2.000 → no number"
    ]


def test_a_short_run_with_nothing_held_out_that_ruined_its_model_is_no_success(launch, tiny, tmp_path):
    """One step of every weight: the guard looks before a step, not after the last; an ordinary and a tiny
    learning rate pass.
    """
    common = (
        "-m",
        *tiny,
        "training.warmup_steps=0",
        "training.max_steps=1",
        "dataset.max_rows=9",
        "dataset.eval_fraction=0",
        "lora=none",
    )
    process = launch(*common, "training.learning_rate=100,1e-3,1e-9", "hydra.sweep.dir=sweep")
    assert process.returncode == 1
    ruined, good, still = (
        json.loads((tmp_path / "sweep" / number / "report.json").read_text()) for number in "012"
    )
    assert (ruined["status"], good["status"], still["status"]) == (
        "failed",
        "completed",
        "completed",
    ), process.stderr
    assert ruined["error"].startswith("training ruined the model: the loss of trained conversations ")
    assert ruined["training"]["warnings"][0] in (tmp_path / "sweep" / "0" / "report.md").read_text()
    assert not (tmp_path / "sweep" / "0" / "model").exists()
    assert good["training"]["rows_loss"] < good["training"]["rows_loss_before"]
    assert good["training"]["warnings"] == still["training"]["warnings"] == []
    exported = launch(
        *common[1:],
        "training.learning_rate=100",
        "training.stop_on_divergence=false",
        "hydra.run.dir=regardless",
    )
    assert exported.returncode == 0, exported.stderr
    warning = "the loss of trained conversations ended worse than it began"
    assert warning in exported.stdout
    assert warning in (tmp_path / "regardless" / "model" / "README.md").read_text()


def test_the_trained_system_prompt_is_kept_for_the_chat(launch, tiny, tmp_path):
    rows = conversations(20)
    for row in rows:
        row["messages"].insert(0, {"role": "system", "content": "You are in Ashford."})
    data = write_json(tmp_path / "rows.json", rows)
    process = launch(
        *tiny,
        f"dataset.data_path={data}",
        "save=lora",
        "hydra.run.dir=run",
        'training.sample_prompts=["a | b \\x1b"]',
    )
    assert process.returncode == 0, process.stderr
    run = tmp_path / "run"
    assert (
        find(run).system_prompt
        == find(run / "model").system_prompt
        == find(run / "checkpoints").system_prompt
        == "You are in Ashford."
    )
    card = (run / "model" / "README.md").read_text()
    used = report_of(run)["settings"]
    expected = {
        "learning_rate": 2e-4, "lr_scheduler_type": "linear", "optimizer": "adamw_torch_fused", "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4, "max_steps": 2, "num_train_epochs": None, "lora_r": 16, "lora_alpha": 16, "full_finetuning": False,
    }  # fmt: skip
    assert {key: used[key] for key in expected} == expected
    assert "| optimizer | adamw_torch_fused, learning rate 0.0002, linear, " in card
    assert (
        '{"role": "system", "content": "You are in Ashford."}, {"role": "user", "content": "câu hỏi' in card
    )


@pytest.mark.slow
@pytest.mark.parametrize(("every", "expected"), [(0.0, ["1 of 3", "2 of 3", "3 of 3"]), (60.0, [])])
def test_a_slow_evaluation_says_how_far_it_is(caplog, monkeypatch, every, expected):
    from chatbot_sft.train import evaluation

    monkeypatch.setattr(evaluation, "EVERY", every)
    part = evaluation.Part("step 0: sample answers", 3)
    with caplog.at_level("INFO"):
        for _ in range(3):
            part.advance()
    said = [record.getMessage() for record in caplog.records if record.name == evaluation.__name__]
    assert said == [f"step 0: sample answers: {part}" for part in expected]
