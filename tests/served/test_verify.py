"""task=verify as a command: what it prints and writes, its exit code, and what is no run, no server or no model."""

from __future__ import annotations

import json

import pytest
from conftest import a_report, only_error, write_json
from ports import reserved
from stand_in import SYSTEM, kept

from chatbot_sft.command_line import of_a_server
from chatbot_sft.errors import UserError
from chatbot_sft.served.task import find


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    kept().write(folder / "trained_answers.json")
    checks = {"q8_0": {"noise": 1.25}}
    save = {
        "method": "gguf",
        "path": "model",
        "exports": [{"method": "gguf", "path": "model", "checks": checks}],
    }
    write_json(folder / "report.json", a_report(save=save))
    return folder


def test_a_server_that_says_what_was_trained(launch, run, stand_in, tmp_path):
    server = stand_in("vllm")
    process = launch("task=verify", f"run={run}", f"url={server.url}", f"hydra.run.dir={tmp_path / 'out'}")
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines() == [
        f"mai at {server.url}, judged as q8_0",
        "  ✓ prompts         4/4 with the same token ids",
        "  ✓ system prompt   passed on; callers have to send it",
        "  ✓ greedy answers  2/2 alike; 27/27 tokens up to the first that differs",
        "  ✓ ends by itself  2/2; 2/2 in training",
        "  ✓ probabilities   0.0002 nats from the trained model's at 27 places; the bound of q8_0 is 0.03",
        "note: system prompt: the server does not put it in by itself. For callers: send what the model was trained"
        f" with: '{SYSTEM}'",
    ]
    found = json.loads((tmp_path / "out" / "verify.json").read_text())
    assert (found["passed"], found["served_as"], found["model"]) == (True, "q8_0", "mai")
    assert found["numbers"]["noise"] == 1.25
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["task"], report["status"], report["run"]) == ("verify", "completed", str(run))
    assert "# Verification of a server: completed" in (tmp_path / "out" / "report.md").read_text()


def test_one_that_does_not(launch, run, stand_in, tmp_path):
    server = stand_in("ollama")
    server.models = ["mai:latest", "llama"]
    server.say = server.base
    command = [
        "task=verify",
        f"run={run}",
        f"url={server.url}",
        "model=mai",
        f"hydra.run.dir={tmp_path / 'out'}",
    ]
    process = launch(*command)
    assert only_error(process) == (
        f"mai at {server.url} does not say what {run} was trained to say: The base model answers, without the"
        f" adapter; all of it is in {tmp_path / 'out' / 'verify.json'}"
    )
    assert "  ✗ greedy answers  0/2 alike" in process.stdout
    assert "(it also has mai:latest, llama)" not in process.stdout  # mai is mai:latest
    assert "(it also has llama)" in process.stdout
    found = json.loads((tmp_path / "out" / "verify.json").read_text())
    assert found["passed"] is False
    assert found["findings"][-1]["decides"] is True
    assert json.loads((tmp_path / "out" / "report.json").read_text())["status"] == "failed"


def test_the_first_words_are_short(capsys):
    words = ["task=verify", "run=a", "url=http://b/v1", "model=c", "model.name=d"]
    written = ["task=verify", "run=a", "evaluation.url=http://b/v1", "evaluation.model=c", "model.name=d"]
    assert of_a_server(words) == written
    assert of_a_server(["task=train", "model=c"]) == ["task=train", "model=c"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["url=http://127.0.0.1:9/v1"], "task=verify needs both run=DIR"),
        (["run={run}"], "task=verify needs both run=DIR"),
        (["run={run}", "url=localhost:8000"], "evaluation.url=localhost:8000: not an address such as"),
        (["run=nothing", "url=http://127.0.0.1:9/v1"], "run=nothing: no such folder"),
        (["run={run}", "url=http://127.0.0.1:9/v1", "training.max_steps=3"], "training.max_steps: task=verify trains nothing"),
        (["run={run}", "url=http://127.0.0.1:9/v1", "evaluation.format=q9"], "evaluation.format=q9"),
        (["run={run}", "url=http://127.0.0.1:9/v1", "evaluation.api_key_variable=NO_SUCH_KEY"], "evaluation.api_key_variable: the environment has no"),
    ],
)  # fmt: skip
def test_a_command_that_is_none(arguments, message, launch, run):
    process = launch("task=verify", *(argument.format(run=run) for argument in arguments))
    assert only_error(process).startswith(message)


def test_a_key_of_verify_elsewhere(launch):
    assert only_error(launch("task=check", "evaluation.format=q8_0")).startswith(
        "evaluation.format=q8_0 has no effect here: it needs task=verify"
    )


def test_nobody_is_there(launch, run):
    with reserved() as port:
        url = f"http://127.0.0.1:{port}/v1"
        process = launch("task=verify", f"run={run}", f"url={url}", "evaluation.retries=0")
    assert only_error(process).startswith(f"evaluation.url={url}: no server answers")


def test_a_model_that_the_server_does_not_have(launch, run, stand_in):
    server = stand_in("vllm")
    server.models = ["mai-lora", "base"]
    process = launch("task=verify", f"run={run}", f"url={server.url}", "model=mai-lroa")
    assert only_error(process) == (
        f"evaluation.model=mai-lroa: {server.url} has no such model; did you mean mai-lora?"
    )


# Runs


def test_an_export_stands_for_its_run(run):
    export = run / "model" / "lora"
    export.mkdir(parents=True)
    assert find(str(run)).folder == find(str(run / "model")).folder == find(str(export)).folder == run


@pytest.mark.parametrize(
    ("report", "message"),
    [
        (a_report(), "it kept no answers of the trained model (trained_answers.json), as no export of it was verified"),
        (a_report(task="check", training={}), "the directory of a task=check, which trains nothing"),
        (a_report(task="evaluate", training={}), "nothing was trained there (task=evaluate, completed)"),
        (None, "not a run directory: no report.json in it"),
        ({"some": "thing"}, "its report.json is damaged"),
    ],
)  # fmt: skip
def test_a_run_that_kept_nothing(report, message, tmp_path):
    folder = tmp_path / "a" / "b" / "c"
    folder.mkdir(parents=True)
    if report:
        write_json(folder / "report.json", report)
    with pytest.raises(UserError) as caught:
        find(str(folder))
    assert str(caught.value).startswith(f"run={folder}: {message}")


def test_answers_that_cannot_be_read(launch, run, stand_in):
    (run / "trained_answers.json").write_text('{"prompts": [')
    process = launch("task=verify", f"run={run}", f"url={stand_in('vllm').url}")
    assert only_error(process).startswith(f"{run / 'trained_answers.json'}: cannot be read")
