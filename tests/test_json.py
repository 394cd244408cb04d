"""--json: one object on standard output and nothing else, whatever else is said; exit codes as ever."""

import json
import signal

import pytest
from conftest import a_report, conversations, write_json


def only_json(process):
    """What stands on standard output, which is one line."""
    assert process.stdout.count("\n") == 1, process.stdout
    assert process.stdout.endswith("\n")
    return json.loads(process.stdout)


def test_check_gives_its_report_and_the_datas(launch, tiny, tmp_path):
    process = launch(*tiny, "task=check", "--json", "hydra.run.dir=run")
    answer = only_json(process)
    assert process.returncode == 0, process.stderr
    run = tmp_path / "run"
    assert answer.pop("data_report") == json.loads((run / "data_report.json").read_text(encoding="utf-8"))
    assert answer.pop("run_directory") == str(run)
    assert answer == json.loads((run / "report.json").read_text(encoding="utf-8"))
    assert (answer["status"], answer["error"]) == ("completed", None)
    assert str(run / "data_preview.html") in process.stderr  # the table is there


def test_a_check_that_refuses_says_which_rows(launch, tiny, tmp_path):
    rows = [*conversations(3), {"messages": [{"role": "user", "content": "alone"}]}]
    data = write_json(tmp_path / "chats.json", rows)
    words = (*tiny, "task=check", f"dataset.data_path={data}", "--json", "hydra.run.dir=run")
    process = launch(*words)
    answer = only_json(process)
    assert process.returncode == 1
    assert answer["status"] == "failed"
    assert process.stderr.splitlines()[-1] == f"error: {answer['error']}"
    assert answer["data_report"] == json.loads(
        (tmp_path / "run" / "data_report.json").read_text(encoding="utf-8")
    )
    # What stands in the directory of an earlier run is not this one's.
    process = launch(*words, "dataset.columns={nothing: like}")
    answer = only_json(process)
    assert process.returncode == 1
    assert process.stderr.splitlines()[-1] == f"error: {answer['error']}"


def test_plan_gives_memory_and_layout(launch, tiny, tmp_path):
    process = launch(*tiny, "--json", "task=plan", "hydra.run.dir=run")
    answer = only_json(process)
    assert process.returncode == 0, process.stderr
    assert (
        answer["plan"] == json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))["plan"]
    )
    assert answer["plan"]["memory_gb"]["total"] > 0
    assert answer["plan"]["layout"] in process.stderr
    assert "data_report" not in answer


def test_training_gives_its_report(launch, tiny, tmp_path):
    process = launch(*tiny, "save=none", "--json", "hydra.run.dir=run")
    answer = only_json(process)
    assert process.returncode == 0, process.stderr
    assert answer["training"]["steps"] == 2
    assert answer["run_directory"] == str(tmp_path / "run")
    assert "loss    training" in process.stderr


def test_a_run_that_is_interrupted_says_how_far_it_came(warm, tiny, tmp_path):
    words = ("save=none", "training.max_steps=100000", "--json", "hydra.run.dir=run")
    run = warm.start(["-m", "chatbot_sft", *tiny, *words], tmp_path)
    run.wait_for("layout:")
    run.send_signal(signal.SIGINT)
    process = run.finish()
    answer = only_json(process)
    assert process.returncode == 130
    assert answer["status"] == "interrupted"
    assert answer["error"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("lora.r=x",), "lora.r='x': expected a whole number"),
        (("lora=nope",), "lora=nope: no such option"),
        (("-m", "lora.r=8,16"), "--json: a sweep is many runs"),
        (("hparams_search=seeds",), "--json: a sweep is many runs"),
        (("--cfg", "job"), "--json: --cfg runs nothing that reports"),
        (("--help", "lora"), "--json: --help runs nothing that reports"),
        (("dataset.data_path=none.jsonl", "task=check"), "none.jsonl"),
    ],
)
def test_an_error_is_an_object_and_a_line(launch, words, said):
    process = launch(*words, "--json")
    answer = only_json(process)
    assert process.returncode == 1
    assert said in answer["error"]
    assert process.stderr.splitlines()[-1] == f"error: {answer['error']}"


def test_no_secret_is_in_it(launch, tiny):
    token = "hf_" + "abcdefghij" * 4
    process = launch(
        *tiny, "task=check", f"dataset.data_path=/tmp/{token}.json", "--json", env={"HF_TOKEN": token}
    )
    assert process.returncode == 1
    assert token not in process.stdout + process.stderr


@pytest.fixture
def compare(light, tmp_path):
    return lambda *words: light.run(["-m", "chatbot_sft.compare", *map(str, words)], tmp_path)


def test_compare_gives_rows_and_differences(compare, tmp_path):
    for name, loss in (("a", 1.5), ("b", float("nan"))):
        (tmp_path / name).mkdir()
        report = a_report()
        report["training"] = {**report["training"], "eval_loss": None if loss != loss else loss}
        write_json(tmp_path / name / "report.json", report)
    process = compare("a", "b", "--json")
    answer = only_json(process)
    assert process.returncode == 0, process.stderr
    assert [row["name"] for row in answer["rows"]] == ["a", "b"]
    assert (answer["rows"][0]["rank"], answer["rows"][0]["mean"]) == (1, 1.5)
    job = answer["rows"][0]["jobs"][0]
    assert (job["folder"], job["status"], job["steps"], job["value"]) == ("a", "completed", 4, 1.5)
    assert {"what": "held-out loss", "a": "1.5000", "b": "(not set)"} in answer["differences"]["results"]
    assert (answer["metric"], answer["direction"], answer["error"]) == (
        "training.eval_loss",
        "minimise",
        None,
    )


def test_compare_of_a_sweep_writes_its_files_as_ever(compare, two_jobs):
    for number in range(2):
        write_json(two_jobs.folder / str(number) / "report.json", a_report())
    process = compare(two_jobs.folder, "--json")
    answer = only_json(process)
    assert process.returncode == 0, process.stderr
    assert [job["settings"] for row in answer["rows"] for job in row["jobs"]] == [
        {"lora.r": "4"},
        {"lora.r": "5"},
    ]
    assert two_jobs.leaderboard_file.exists()
    assert "page  " in process.stderr
    process = compare(two_jobs.folder, "--json", "--metric", "training.nothing")
    answer = only_json(process)
    assert process.returncode == 1
    assert len(answer["rows"]) == 2
    assert answer["error"].startswith("training.nothing: no job reports such a number")


@pytest.mark.parametrize("words", [("none",), (), ("a", "--fix")])
def test_compare_says_an_error_as_an_object(compare, words):
    process = compare(*words, "--json")
    answer = only_json(process)
    assert process.returncode == 1
    assert process.stderr == f"error: {answer['error']}\n"


def test_the_doctor_says_an_error_as_an_object(light, tmp_path):
    process = light.run(["-m", "chatbot_sft.doctor", "lora.r=x", "--json"], tmp_path)
    assert only_json(process) == {"error": "lora.r='x': expected a whole number"}
    assert (process.returncode, process.stderr) == (1, "error: lora.r='x': expected a whole number\n")
