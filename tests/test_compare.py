"""`python -m chatbot_sft.compare`: what it prints, writes and promotes, and how it refuses."""

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from conftest import write_json
from written_sweep import job, plausible, written

from chatbot_sft import compare
from chatbot_sft.report.leaderboard import promotion

LOCK = {
    "decides": {"lora.r": 8, "dataset.rows": "aaaa", "training.learning_rate": 1e-4},
    "tokenizer": "t",
    "date": "2026-11-29T12:00:00",
    "versions": {"torch": "2.13.0", "python": "3.11.7"},
    "device": "cpu",
    "schema": 1,
}
PROVENANCE = {
    "command": "python -m chatbot_sft",
    "folder": "/home",
    "seeds": {"seed": 1},
    "driver": None,
    "template": "t" * 64,
    "files": {"data": [{"path": "/data/chats.json", "bytes": 9, "sha256": "a" * 64}]},
    "code": {"sha256": "c" * 64, "own": {}, "commit": "e" * 40},
    "git": {"commit": "e" * 40, "dirty": False},
}


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """`command("sweep", …)` is (exit status or error line, stdout, stderr) of the command, in this process."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["compare", *map(str, words)])
        try:
            compare.main()
            code = 0
        except SystemExit as end:
            code = end.code
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


@pytest.fixture
def sweep(tmp_path):
    return written(
        tmp_path / "sweep",
        [
            {"overrides": ["lora.r=8"], "loss": 1.6},
            {"overrides": ["lora.r=16"], "loss": 1.5},
            {"overrides": ["lora.r=32"], "status": "failed", "error": "out of memory"},
        ],
    )


def exported(run: Path, **files) -> None:
    """A model in the run, and its report says so."""
    (run / "model").mkdir()
    for name, text in files.items():
        (run / "model" / name).write_text(text)
    report = json.loads((run / "report.json").read_text())
    export = {"method": "lora", "path": str(run / "model"), "files": {}, "verified": True}
    write_json(
        run / "report.json",
        {**report, "save": {"method": "lora", "path": str(run / "model"), "exports": [export]}},
    )
    write_json(run / "lock.json", LOCK)


def test_a_table_for_people_and_two_files(command, sweep):
    code, out, _ = command("sweep")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].split() == [
        "name",
        "lora.r",
        "held-out",
        "loss",
        "curve",
        "steps",
        "tokens/s",
        "peak",
        "GB",
        "seconds",
        "status",
    ]
    assert lines[1].startswith("job 1  16      1.5000")
    assert lines[4:] == [
        "3 jobs: 2 completed, 1 failed",
        "job 2 failed: out of memory",
        "page  sweep/leaderboard.html",
    ]
    assert {file.name for file in sweep.glob("leaderboard.*")} == {"leaderboard.csv", "leaderboard.html"}
    assert compare.table(sweep) == lines[:-1]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (
            ["nowhere"],
            "nowhere: no such folder; name a sweep's directory (outputs/multirun/<date>/<time>), or several runs",
        ),
        ([], "the following arguments are required: PATH; --help lists the arguments"),
        (
            ["empty"],
            "empty: no sweep: neither a sweep.json nor the folder of a job is in it; name a sweep's directory",
        ),
        (["begun"], "begun: a sweep without jobs yet; wait for its first one"),
        (
            ["sweep", "--metric", "eval_los"],
            "eval_los: no job reports such a number; did you mean training.eval_loss?",
        ),
        (["sweep", "--promote", "7"], "--promote 7: no such job; there is best, or one of 0, 1, 2"),
        (
            ["sweep", "--promote", "2"],
            "--promote 2: that job is failed, and has no finished model; choose another",
        ),
        (
            ["sweep", "--promote", "1", "--name", "../x"],
            "--name ../x: not a name for a folder; letters, digits and . _ - make one",
        ),
        (
            ["sweep", "sweep/0", "--promote", "1"],
            "--promote takes one PATH, a sweep's directory; --help lists the arguments",
        ),
        (["sweep", "--name", "x"], "--name and --overwrite belong to --promote; --help lists the arguments"),
    ],
)
def test_what_is_wrong_is_one_line(words, error, command, sweep, tmp_path):
    (tmp_path / "empty").mkdir()
    written(tmp_path / "begun", [])
    code, out, err = command(*words)
    assert code == f"error: {error}"
    assert err == ""
    if words[:1] == ["sweep"] and len(words) > 2 and words[1] in ("--metric", "--promote"):
        assert out.startswith("name")  # what can be shown is shown


def test_a_sweep_is_never_broken_by_its_leaderboard(sweep, tmp_path, caplog, monkeypatch):
    assert not compare.write(tmp_path / "nowhere")
    assert "no such" in caplog.text or "no sweep" in caplog.text
    assert compare.table(tmp_path / "nowhere") != []

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("chatbot_sft.report.leaderboard.files.page", full)
    assert not compare.write(sweep)
    assert "No space left on device" in caplog.text
    assert not list(sweep.glob(".leaderboard*"))


def test_two_runs_are_held_against_each_other(command, tmp_path):
    for name, loss in (("a", 1.6), ("b", 1.5)):
        job(tmp_path / name, loss=loss, samples=[{"prompt": "p", "before": "", "after": f"{name} says"}])
        write_json(
            tmp_path / name / "run.lock.json", {**LOCK, "schema": 2, "threads": 2, "provenance": PROVENANCE}
        )
    other = {
        **LOCK,
        "decides": {**LOCK["decides"], "lora.r": 16, "dataset.rows": "bbbb"},
        "versions": {"torch": "2.14.0", "python": "3.11.7"},
        "device": "NVIDIA H100",
        "date": "2026-11-29T18:00:00",
        "schema": 2,
        "threads": 4,
        "provenance": {
            **PROVENANCE,
            "driver": "580.1",
            "files": {"data": [{"path": "/other/chats.json", "bytes": 9, "sha256": "b" * 64}]},
            "code": {"sha256": "d" * 64, "own": {"my.Loader": "1" * 64}, "commit": "f" * 40},
            "git": {"commit": "e" * 40, "dirty": True, "diff": "+ print()"},
        },
    }
    write_json(tmp_path / "b" / "run.lock.json", other)
    code, out, _ = command("a", "b")
    assert code == 0
    parts = [" ".join(line.split()) for line in out[out.index("A  a") :].splitlines()]
    assert parts[3:] == [
        *("configuration", "lora.r 8 → 16", "", "data", "dataset.rows aaaa → bbbb"),
        *("data file chats.json aaaaaaaaaaaaaaaa → bbbbbbbbbbbbbbbb", ""),
        *("versions", "versions.torch 2.13.0 → 2.14.0", ""),
        *("code", "code cccccccccccccccc → dddddddddddddddd", f"code.commit {'e' * 40} → {'f' * 40}"),
        *("git.dirty False → True", "code of my.Loader (not set) → 1111111111111111", ""),
        *("device", "device cpu → NVIDIA H100", "threads 2 → 4", "driver None → 580.1", ""),
        *("results", "status completed → completed", "held-out loss 1.6000 → 1.5000 (6% lower)"),
        *("steps 4 → 4 (unchanged)", "tokens/s 100 → 100 (unchanged)", "peak GB 7.2 → 7.2 (unchanged)"),
        *("seconds 1.0 → 1.0 (unchanged)", "answers alike 0 of 1"),
    ]
    assert not list(tmp_path.glob("leaderboard.*"))
    assert command("a", "b", "--output", "page")[0] == 0
    assert command("a", "b", "--output", "a/report.json")[0] != 0
    assert (tmp_path / "page" / "leaderboard.html").is_file()


def test_of_a_run_of_the_version_before_the_code_is_not_known(command, tmp_path):
    job(tmp_path / "a")
    job(tmp_path / "b")
    write_json(tmp_path / "a" / "lock.json", LOCK)
    new = {**LOCK, "schema": 2, "threads": 2, "provenance": PROVENANCE}
    write_json(tmp_path / "b" / "run.lock.json", {**new, "decides": {**LOCK["decides"], "lora.r": 16}})
    code, out, _ = command("a", "b")
    assert code == 0
    parts = [" ".join(line.split()) for line in out[out.index("A  a") :].splitlines()]
    assert parts[3 : parts.index("results")] == [
        *("configuration", "lora.r 8 → 16", "", "data", "the same", "", "versions", "the same", ""),
        *("code", "not known of A, whose lock is of an earlier version", "", "device", "the same", ""),
    ]


def test_two_runs_of_other_objectives_differ_in_its_name_and_in_their_rewards(command, tmp_path):
    for name, margin in (("sft", None), ("dpo", 0.5)):
        figures = {"rewards/margins": margin, "rewards/accuracies": 0.75} if margin else {}
        job(tmp_path / name, training={"figures": figures})
        method = {"name": name, "_target_": f"chatbot_sft.objective.{name.upper()}"}
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump({"objective": method}))
        decides = {**LOCK["decides"], **{f"objective.{key}": value for key, value in method.items()}}
        write_json(tmp_path / name / "lock.json", {**LOCK, "decides": decides})
    code, out, _ = command("sft", "dpo")
    assert code == 0
    assert out.splitlines()[0].split()[1] == "objective.name"
    said = [" ".join(line.split()) for line in out.splitlines()]
    assert "objective.name sft → dpo" in said
    assert "reward margin (not set) → 0.5000" in said
    assert "reward accuracy (not set) → 75%" in said
    assert "_target_" not in out
    own = yaml.safe_dump({"objective": {"name": "dpo", "_target_": "mine.Loss"}})
    (tmp_path / "sft" / "config.yaml").write_text(own)
    write_json(tmp_path / "sft" / "lock.json", LOCK)
    assert "objective._target_" in command("sft", "dpo")[1]


def test_what_only_turned_out_is_no_difference_of_two_runs(command, tmp_path):
    """A replay is given the engine that `auto` came to."""
    asked = {"a": ("auto", 0.1), "b": ("unsloth", 0.2)}
    for name, (engine, dropout) in asked.items():
        job(tmp_path / name)
        config = {"model": {"engine": engine, "dtype": None}, "lora": {"lora_dropout": dropout}}
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump(config))
        decides = {**LOCK["decides"], "model.engine": "unsloth", "model.dtype": "float32"}
        write_json(tmp_path / name / "lock.json", {**LOCK, "decides": decides})
    code, out, _ = command("a", "b")
    assert (code, "model." in out, "lora.lora_dropout" in out.splitlines()[0]) == (0, False, True)
    decides["model.engine"] = "transformers"
    write_json(tmp_path / "b" / "lock.json", {**LOCK, "decides": decides})
    said = [" ".join(line.split()) for line in command("a", "b")[1].splitlines()]
    assert [line for line in said if line.startswith("model.")] == ["model.engine unsloth → transformers"]


def test_two_runs_without_a_lock_are_compared_by_what_there_is(command, tmp_path):
    job(tmp_path / "a")
    job(tmp_path / "b", status="failed", error="out of memory")
    code, out, _ = command("a", "b")
    assert code == 0
    assert "A and B kept no run.lock.json" in out
    assert "out of memory" in out


@pytest.mark.parametrize("which", ["best", "1"])
def test_the_winner_is_copied_with_its_lock_its_report_and_its_table(which, command, sweep, tmp_path):
    exported(sweep / "1", weights="w")
    code, out, _ = command("sweep", "--promote", which)
    target = tmp_path / "outputs" / "promoted" / f"{tmp_path.name}_sweep_job1"
    assert code == 0
    assert out.splitlines()[-1] == f"promoted job 1, held-out loss 1.5000: {target}"
    assert (target / "model" / "weights").read_text() == "w"
    there = {file.name for file in target.iterdir()}
    assert there == {
        "model",
        "lock.json",
        "report.json",
        "report.md",
        "leaderboard.csv",
        "leaderboard.html",
        "promotion.json",
    }
    report = json.loads((target / "report.json").read_text())
    assert report["save"]["path"] == report["save"]["exports"][0]["path"] == str(target / "model")
    assert report["training"]["eval_loss"] == 1.5
    mark = json.loads((target / "promotion.json").read_text())
    assert (mark["job"], mark["value"], mark["settings"]) == (1, 1.5, {"lora.r": "16"})


def test_a_promotion_out_of_a_sweep_that_goes_on_says_so(command, tmp_path):
    losses = [{"loss": 1.5}, {"status": "interrupted"}, {"status": "waiting"}, {"status": "failed"}]
    sweep = written(
        tmp_path / "sweep", [{"overrides": [f"lora.r={at}"], **job} for at, job in enumerate(losses)]
    )
    exported(sweep / "0", weights="w")
    code, out, _ = command("sweep", "--promote", "best", "--name", "bot")
    assert code == 0
    assert "promoted job 0, held-out loss 1.5000 (2 of 4 jobs not ended): " in out
    mark = json.loads((tmp_path / "outputs" / "promoted" / "bot" / "promotion.json").read_text())
    assert (mark["jobs"], mark["jobs_not_ended"]) == (4, 2)


def test_an_earlier_promotion_stays_unless_it_is_to_be_replaced(command, sweep, tmp_path):
    exported(sweep / "1", weights="new")
    place = tmp_path / "outputs" / "promoted"
    assert command("sweep", "--promote", "best", "--name", "bot")[0] == 0
    (place / "bot" / "model" / "weights").write_text("old")
    code, _, _ = command("sweep", "--promote", "best", "--name", "bot")
    assert (
        code
        == f"error: {place / 'bot'}: an earlier promotion is there; choose another --name, or add --overwrite"
    )
    assert (place / "bot" / "model" / "weights").read_text() == "old"
    assert command("sweep", "--promote", "best", "--name", "bot", "--overwrite")[0] == 0
    assert (place / "bot" / "model" / "weights").read_text() == "new"
    (place / "mine").mkdir()
    code, _, _ = command("sweep", "--promote", "best", "--name", "mine", "--overwrite")
    assert code == f"error: {place / 'mine'}: something else is there; choose another --name"
    assert sorted(path.name for path in place.iterdir()) == ["bot", "mine"]


@pytest.mark.parametrize("at", ["copytree", "write_reports"])
def test_a_promotion_is_whole_or_not_at_all(at, command, sweep, tmp_path, monkeypatch):
    exported(sweep / "1", weights="new")
    assert command("sweep", "--promote", "best", "--name", "bot")[0] == 0

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((promotion.shutil, at) if at == "copytree" else (promotion, at)), full)
    code, _, _ = command("sweep", "--promote", "best", "--name", "bot", "--overwrite")
    assert code.endswith("bot: No space left on device; nothing was promoted")
    assert [path.name for path in (tmp_path / "outputs" / "promoted").iterdir()] == ["bot"]
    assert (tmp_path / "outputs" / "promoted" / "bot" / "model" / "weights").read_text() == "new"


def test_best_is_the_best_seed_of_the_best_row(command, tmp_path):
    losses = {"1e-4": (1.50, 1.54), "3e-4": (1.40, 1.80)}
    jobs = [
        {"overrides": [f"training.learning_rate={rate}", f"seed={seed}"], "loss": loss}
        for rate, both in losses.items()
        for seed, loss in enumerate(both)
    ]
    sweep = written(tmp_path / "sweep", jobs)
    exported(sweep / "0", weights="w")
    code, out, _ = command("sweep", "--promote", "best")
    assert code == 0
    assert "promoted job 0" in out


def exporting(monkeypatch, done):
    """Has `done` of the words in place of the process that exports."""

    def started(words, **_):
        ended = done(words)
        return contextlib.nullcontext(
            SimpleNamespace(stdout=io.StringIO(ended.stderr), returncode=ended.returncode)
        )

    monkeypatch.setattr(promotion.subprocess, "Popen", started)


def test_an_export_that_fails_promotes_nothing(command, sweep, tmp_path, monkeypatch):
    exporting(
        monkeypatch,
        lambda words: subprocess.CompletedProcess(words, 1, "", f"{words[-1]}: no space\n{words[-3]}\n"),
    )
    code, _, err = command("sweep", "--promote", "best")
    target = tmp_path / "outputs" / "promoted" / f"{tmp_path.name}_sweep_job1"
    # And not where it was staged, or the directory of the export, which goes with it.
    assert err == f"save.save_path='{target}/model': no space\nhydra.run.dir='{target}'\n"
    assert code == "error: sweep/1: its export failed, as said above; nothing was promoted"
    assert list((tmp_path / "outputs" / "promoted").iterdir()) == []


def test_the_comparison_needs_no_torch(tmp_path):
    """Nor Hydra: it is there in half a second."""
    plausible(tmp_path / "sweep")
    code = "import sys; from chatbot_sft import compare; sys.argv = ['compare', 'sweep']; compare.main()"
    code += "; sys.exit(', '.join({'torch', 'transformers', 'datasets', 'hydra', 'matplotlib'} & sys.modules.keys()))"
    process = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (process.returncode, process.stderr) == (1, "\n")  # an empty message


def test_the_help_names_every_argument(command):
    code, out, _ = command("--help")
    assert code == 0
    for word in (
        "PATH",
        "--metric",
        "--maximise",
        "--output",
        "--promote",
        "--name",
        "--overwrite",
        "--save",
    ):
        assert word in out


def test_a_job_without_an_export_is_exported(launch, tiny, warm, command, tmp_path, monkeypatch):
    """By task=export, from the checkpoint that it kept; what comes of it is found as any run's model is."""
    from chatbot_sft.inference.opening import find

    process = launch("-m", *tiny, "lora.r=4", "save=none", "hydra.sweep.dir=sweep")
    assert process.returncode == 0, process.stderr
    exporting(monkeypatch, lambda words: warm.run(words[1:], tmp_path))
    code, _, err = command("sweep", "--promote", "0", "--save", "lora", "--name", "bot")
    assert code == 0, err
    assert ".bot." not in err and ".export" not in err
    target = tmp_path / "outputs" / "promoted" / "bot"
    assert find(target).path == target / "model"
    assert (target / "model" / "adapter_config.json").is_file()
    assert (target / "run.lock.json").read_bytes() == (
        tmp_path / "sweep" / "0" / "run.lock.json"
    ).read_bytes()
    report = json.loads((target / "report.json").read_text())
    assert report["task"] == "train"
    assert report["save"]["path"] == str(target / "model")
    assert not [path for path in target.parent.iterdir() if path != target]
    for file in (*target.rglob("*.json"), *target.rglob("*.md")):
        assert ".bot." not in file.read_text(), file  # the name it had on the way
