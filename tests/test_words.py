"""What a run says: no secret, nothing that a terminal obeys, and a ruined model is no success."""

import json
import math

import pytest
from conftest import TRAINING, conversations, only_error, write_json

from chatbot_sft.config import Config
from chatbot_sft.errors import UserError
from chatbot_sft.inference.opening import find
from chatbot_sft.pipeline import refuse_ruined, warnings
from chatbot_sft.report.markup import cell, inline, quoted
from chatbot_sft.report.masking import masked, referring, resolved
from chatbot_sft.report.plain import plain, plain_line, uncoloured
from chatbot_sft.report.words import moved, number
from chatbot_sft.run.report import Training
from chatbot_sft.run.report import write_json as write_report

PASSWORD = "correct-horse-9"


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [(2.0, 1.0, "50% lower"), (1.0, 3.02, "202% higher"), (1.0, 1.001, "unchanged"), (0.0, 1.0, ""), (1.0, math.nan, ""), (None, 1.0, "")],
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


def test_a_masked_configuration_is_read_from_the_environment_again(monkeypatch):
    monkeypatch.setenv("MY_MODEL_TOKEN", "hidden")
    config = {"model": {"name": "hidden"}, "dataset": {"system_prompt": "not hidden at all"}, "lora": {"r": 4}}
    kept = referring(config)
    assert kept["model"]["name"] == "${oc.env:MY_MODEL_TOKEN}"
    assert resolved(kept) == config


def test_no_credential_is_in_any_file_or_stream(launch, tiny, tmp_path):
    environment = {"MY_SECRET": "from-the-environment-7", "DATA_PASSWORD": PASSWORD}
    planted = ["dataset.system_prompt=ask ${oc.env:MY_SECRET}", f"+training.run_name=https://me:{PASSWORD}x@host/run"]
    good = launch(*tiny, "save=lora", "hydra.run.dir=good", *planted, env=environment)
    assert good.returncode == 0, good.stderr
    bad = launch(*tiny, f"dataset.data_path=https://me:{PASSWORD}y@host/data.json", "hydra.run.dir=bad", env=environment)
    swept = launch("-m", *tiny, f"dataset.data_path=https://me:{PASSWORD}y@host/data.json", "hydra.sweep.dir=swept", "seed=1,2", env=environment)
    assert only_error(bad)
    streams = "".join(process.stdout + process.stderr for process in (good, bad, swept))
    assert PASSWORD not in streams and environment["MY_SECRET"] not in streams
    assert "${oc.env:MY_SECRET}" in (tmp_path / "good" / "config.yaml").read_text()
    text = [file for file in tmp_path.rglob("*") if file.suffix in (".json", ".yaml", ".md", ".log")]
    assert {"multirun.yaml", "overrides.yaml", "report.md", "run.log"} <= {file.name for file in text}
    for file in text:
        assert PASSWORD.encode() not in file.read_bytes(), file
    again = launch("task=export", "run=good", "save=lora", "save.verify=false", "hydra.run.dir=again", env=environment)
    assert again.returncode == 0, again.stderr


def test_a_ruined_model_is_refused_and_a_worse_one_is_not():
    settings = Config.from_mapping({"training": {"learning_rate": 100}})
    regardless = Config.from_mapping({"training": {"learning_rate": 100, "stop_on_divergence": False}})
    for after in (5.6, math.nan):
        training = Training(**{**TRAINING, "eval_loss_before": 2.75, "eval_loss": after, "weights_of_step": 24})
        with pytest.raises(UserError, match=r"^training ruined the model: held out 2\.750 → .*checkpoint-24"):
            refuse_ruined(training, settings)
        refuse_ruined(training, regardless)
    refuse_ruined(Training(**{**TRAINING, "eval_loss_before": 2.75, "eval_loss": 5.4}), settings)
    refuse_ruined(Training(**{**TRAINING, "eval_loss": None}), settings)


def test_the_trained_system_prompt_is_kept_for_the_chat(launch, tiny, tmp_path):
    rows = conversations(20)
    for row in rows:
        row["messages"].insert(0, {"role": "system", "content": "You are in Ashford."})
    data = write_json(tmp_path / "rows.json", rows)
    process = launch(*tiny, f"dataset.data_path={data}", "save=lora", "hydra.run.dir=run", 'training.sample_prompts=["a | b \\x1b"]')
    assert process.returncode == 0, process.stderr
    run = tmp_path / "run"
    assert find(run).system_prompt == find(run / "model").system_prompt == find(run / "checkpoints").system_prompt == "You are in Ashford."
    card = (run / "model" / "README.md").read_text()
    assert '{"role": "system", "content": "You are in Ashford."}, {"role": "user", "content": "câu hỏi' in card


def test_a_slow_evaluation_says_how_far_it_is(caplog, monkeypatch):
    from chatbot_sft.train import evaluation

    monkeypatch.setattr(evaluation, "EVERY", 0.0)
    part = evaluation.Part("step 0: sample answers", 3)
    with caplog.at_level("INFO"):
        for _ in range(3):
            part.advance()
    said = [record.getMessage() for record in caplog.records if record.name == evaluation.__name__]
    assert said == ["step 0: sample answers: 1 of 3", "step 0: sample answers: 2 of 3"]
