"""Runs and sweeps beside each other: a directory for each run, a line for each job, a command line as one
types it.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from datetime import datetime

import pytest
import strike
from conftest import TRAINING, a_report, conversations, only_error, report_of, write_json

from chatbot_sft import command_line, distributed
from chatbot_sft.config import Config
from chatbot_sft.errors import UserError
from chatbot_sft.run.report import Export, Report, SaveResult, Training
from chatbot_sft.run.standing import Standing
from chatbot_sft.run_directory import refuse_sweep
from chatbot_sft.sweep.directory import Point, Study, Sweep

TRAINED, SAVED = Training(**TRAINING), SaveResult("lora", exports=[Export("lora", "model")])
GOOD = ("task=check", "dataset.data_path=my.json")


@pytest.fixture
def data(tmp_path):
    return write_json(tmp_path / "my.json", conversations(8))


def start(folder, *arguments, **env):
    command = [sys.executable, "-m", "chatbot_sft", *map(str, arguments)]
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# Directories


@pytest.mark.slow
def test_runs_that_start_in_one_second_have_a_directory_each(tmp_path, data):
    runs = [start(tmp_path, *GOOD) for _ in range(3)]
    outputs = [run.communicate(timeout=600) for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0], outputs
    reports = list(tmp_path.glob("outputs/*/*/report.json"))
    assert len(reports) == 3
    assert all(json.loads(report.read_text())["status"] == "completed" for report in reports)


def test_a_directory_in_use_is_refused_and_left_as_it_is(launch, tmp_path, data):
    from filelock import FileLock

    (tmp_path / "mine" / ".hydra").mkdir(parents=True)
    (tmp_path / "mine" / ".hydra" / "config.yaml").write_text("of the run that is running")
    (tmp_path / "mine" / ".lock.json").write_text('{"pid": 4711, "host": "elsewhere"}')
    with FileLock(tmp_path / "mine" / ".lock"):
        error = only_error(launch(*GOOD, "hydra.run.dir=mine"))
        sweep = only_error(launch("-m", *GOOD, "lora.r=8,16", "hydra.sweep.dir=mine"))
    assert (
        error
        == sweep
        == "mine: process 4711 on elsewhere is running in it; wait for its end, or name another directory"
        " (hydra.run.dir=DIR; of a sweep hydra.sweep.dir=DIR)"
    )
    assert (tmp_path / "mine" / ".hydra" / "config.yaml").read_text() == "of the run that is running"
    assert not (tmp_path / "mine" / "report.json").exists()
    assert launch(*GOOD, "hydra.run.dir=mine").returncode == 0


def test_a_killed_run_leaves_no_lock(launch, tmp_path, data):
    killed = launch(*GOOD, "hydra.run.dir=mine", env=strike.at(tmp_path / "mine" / "report.json"))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (tmp_path / "mine" / ".lock.json").exists()
    assert launch(*GOOD, "hydra.run.dir=mine").returncode == 0


def test_the_directory_of_another_run_of_this_process_is_not_in_the_way(tmp_path):
    from chatbot_sft.run_directory import held

    with held(tmp_path / "run"), held(tmp_path / "run"):
        pass
    with held(tmp_path / "run"):
        pass


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_directory_that_cannot_be_is_one_line(launch, tmp_path, data, name):
    (tmp_path / "file").write_text("")
    error = only_error(launch(*GOOD, f"hydra.run.dir={name}"))
    assert error.startswith(f"{name}: ")
    assert "directory" in error


def test_a_run_directory_behind_a_link_is_the_same_directory(launch, tmp_path, data):
    from filelock import FileLock

    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with FileLock(tmp_path / "real" / ".lock"):
        assert "is running in it" in only_error(launch(*GOOD, "hydra.run.dir=link"))


def test_a_report_cut_in_half_does_not_stop_the_next_run(launch, tmp_path, data):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "report.json").write_text('{"status": "comp')
    assert launch(*GOOD, "hydra.run.dir=mine").returncode == 0
    assert report_of(tmp_path)["status"] == "completed"


@pytest.mark.parametrize("content", ["[]", '{"status": "ok"}', "null"])
def test_a_report_of_something_else_is_not_written_over(launch, tmp_path, data, content):
    (tmp_path / "report.json").write_text(content)
    assert "report.json: not the report of a run" in only_error(launch(*GOOD, "hydra.run.dir=."))
    assert (tmp_path / "report.json").read_text() == content


def training_in(folder, **report):
    """A directory as a finished training leaves it, as far as a start looks at it."""
    folder.mkdir()
    return write_json(folder / "report.json", a_report(**report))


@pytest.mark.parametrize("task", ["task=check", "task=plan"])
def test_a_check_does_not_write_over_the_report_of_a_training(launch, tmp_path, data, task):
    report = training_in(tmp_path / "run")
    before = report.read_text()
    error = only_error(launch(task, "dataset.data_path=my.json", "hydra.run.dir=run"))
    assert f"{task} would write over the report of the training there" in error
    assert report.read_text() == before


@pytest.mark.parametrize(
    ("report", "task"),
    [
        ({"status": "completed"}, "check"),
        ({"status": "failed", "error": "refused"}, "check"),
        ({"status": "interrupted", "training": {"history": [{"step": 1, "loss": 2.0}]}}, "plan"),
        ({"task": "export"}, "check"),
        (None, "check"),
    ],
)
def test_what_does_not_train_is_refused_beside_a_training_however_that_ended(
    tmp_path, monkeypatch, report, task
):
    from chatbot_sft import start
    from chatbot_sft.config import Config
    from chatbot_sft.errors import UserError

    folder = tmp_path / "run"
    if report is None:  # killed before it could write a report
        folder.mkdir()
        monkeypatch.setattr(
            start.checkpoints, "last_in", lambda place: place == folder / "checkpoints" or None
        )
    else:
        training_in(folder, **report)
    there = "export" if report and "task" in report else "training"
    with pytest.raises(UserError, match=f"task={task} would write over the report of the {there} there"):
        start.refuse_written_over(Config.from_mapping({"task": task, "paths": {"output_dir": str(folder)}}))


# A start that comes to nothing


def recorded(folder, **report):
    """A directory with the report of a training, and the other files that tell of it."""
    whole = {"save": {}, **report}
    training_in(folder, **whole)
    for name in ("report.md", "loss.png", "data_report.json", "data_preview.html"):
        (folder / name).write_text(f"{name} of the training")
    return seen(folder)


@pytest.mark.parametrize(
    ("status", "training"),
    [("failed", TRAINING), ("interrupted", {"history": [{"step": 1, "loss": 2.0}]}), ("completed", TRAINING)],
)
@pytest.mark.parametrize("rows", ["none", "bad", "good"])
def test_a_start_that_comes_to_nothing_leaves_the_record_of_the_training(
    tmp_path, monkeypatch, status, training, rows
):
    from chatbot_sft import pipeline
    from chatbot_sft.errors import UserError
    from chatbot_sft.train import resume

    def changed(*_, **__):
        raise UserError("trained with other settings")

    monkeypatch.setattr(
        resume, "refuse_completed", lambda settings: None
    )  # as where more steps are asked for
    monkeypatch.setattr(resume, "refuse_changes", changed)
    if rows != "none":
        write_json(tmp_path / "my.json", conversations(8) if rows == "good" else [{"messages": []}] * 8)
    before = recorded(tmp_path / "run", status=status, training=training)
    with pytest.raises(UserError):
        pipeline.run(
            {
                "paths": {"output_dir": str(tmp_path / "run")},
                "model": {"name": "smollm2", "load_in_4bit": False},
                "dataset": {"data_path": str(tmp_path / "my.json")},
                "training": {"output_dir": str(tmp_path / "run" / "checkpoints")},
                "save": {"method": "none"},
            }
        )
    after = seen(tmp_path / "run")
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) <= {"run.log", ".lock", ".lock.json"}
    assert "stay those of the training there" in after["run.log"].decode()


@pytest.mark.parametrize(
    ("earlier", "report", "stays"),
    [
        (None, Report("", "train", 1), False),
        (Report("", "train", 1), Report("", "train", 1), False),
        (Report("", "train", 1, training=TRAINED), Report("", "train", 1), True),
        (Report("", "train", 1, history=[]), Report("", "train", 1), True),
        (Report("", "train", 1, training=TRAINED), Report("", "train", 1, history=[]), False),
        (
            Report("", "train", 1, training=TRAINED, save=SAVED),
            Report("", "export", 1, training=TRAINED),
            True,
        ),
        (
            Report("", "train", 1, training=TRAINED, save=SAVED),
            Report("", "export", 1, training=TRAINED, save=SAVED),
            False,
        ),
    ],
)
def test_a_report_with_results_outlives_one_without(earlier, report, stays):
    assert Standing(earlier, {}).outlives(report) is stays


def test_a_training_may_follow_a_check_and_a_check_a_failed_start(launch, tmp_path, data):
    training_in(tmp_path / "run", status="failed", training={})
    assert launch(*GOOD, "hydra.run.dir=run").returncode == 0
    error = only_error(
        launch("model=local", "model.name=nowhere/at-all", "dataset.data_path=my.json", "hydra.run.dir=run")
    )
    assert "already completed" not in error
    assert "write over" not in error


def test_a_finished_run_asked_for_another_export_is_told_how(tmp_path):
    from omegaconf import OmegaConf

    from chatbot_sft import pipeline
    from chatbot_sft.errors import UserError

    folder = tmp_path / "run"
    training_in(folder)

    def asked(folder, **save):
        places = {"training": {"output_dir": f"{folder}/checkpoints"}, "paths": {"output_dir": str(folder)}}
        return {**places, "save": {"save_path": f"{folder}/model", **save}, "lora": {"r": 8}}

    config = asked(folder, method="none")
    OmegaConf.save(Config.from_mapping(config).to_dict(), folder / "config.yaml")
    other = {"method": ["lora", "gguf"], "gguf_quantization": "q8_0"}
    moved = tmp_path / "moved"
    for place in (folder, moved):
        if place == moved:
            folder.rename(moved)
        with pytest.raises(UserError) as error:
            pipeline.run(asked(place, **other))
        assert str(error.value).endswith(
            f"for another export of it: task=export run={place} 'save.method=[lora,gguf]'"
            " save.gguf_quantization=q8_0"
        )
    moved.rename(folder)
    # Back from a GGUF of another kind: the command has no key that would be refused there.
    OmegaConf.save(Config.from_mapping(asked(folder, **other)).to_dict(), folder / "config.yaml")
    with pytest.raises(UserError) as error:
        pipeline.run(asked(folder, method="merged_16bit"))
    assert str(error.value).endswith(f"task=export run={folder} save.method=merged_16bit")
    OmegaConf.save(Config.from_mapping(config).to_dict(), folder / "config.yaml")
    with pytest.raises(UserError, match="this run is already completed; name another"):
        pipeline.run(config)


def test_a_finished_run_asked_for_another_training_is_told_in_what_it_differs(tmp_path):
    from omegaconf import OmegaConf

    from chatbot_sft import pipeline
    from chatbot_sft.errors import UserError

    folder = tmp_path / "run"
    training_in(folder)
    config = {"paths": {"output_dir": str(folder)}, "save": {"method": "none"}, "lora": {"r": 8}}
    OmegaConf.save(Config.from_mapping(config).to_dict(), folder / "config.yaml")
    changed = {"lora": {"r": 4}, "dataset": {"data_path": "other.json"}, "training": {"logging_steps": 7}}
    with pytest.raises(UserError) as error:
        pipeline.run({**config, **changed, "save": {"method": "gguf"}})
    assert str(error.value).startswith(
        f"{folder}: this run is already completed, with other settings: lora.r 8 → 4; "
    )
    assert " → other.json. Name another run directory (hydra.run.dir=DIR), or start afresh" in str(
        error.value
    )
    assert "logging_steps" not in str(error.value)


@pytest.mark.parametrize(
    ("report", "message"),
    [
        (
            {"task": "check", "training": {}},
            "the directory of a task=check, which trains nothing; name that of",
        ),
        (
            {"task": "plan", "training": {}},
            "the directory of a task=plan, which trains nothing; name that of",
        ),
        ({"task": "export", "run": "outputs/a"}, "the export of another run; name that one: run=outputs/a"),
        ({"status": "failed", "training": {}}, "its training (task=train, failed) did not end; the same"),
    ],
)
def test_an_export_of_what_is_no_training_says_what_it_is(tmp_path, report, message):
    from chatbot_sft.errors import UserError
    from chatbot_sft.export import Earlier

    training_in(tmp_path / "run", **report)
    with pytest.raises(UserError) as error:
        Earlier.find(tmp_path / "run")
    assert str(error.value).startswith(f"run={tmp_path}/run: {message}")


def test_the_folder_of_a_sweep_names_its_jobs_wherever_a_run_is_asked_for(tmp_path):
    from chatbot_sft.errors import UserError
    from chatbot_sft.inference.opening import find
    from chatbot_sft.model import earlier
    from chatbot_sft.run.directory import Run

    for job in ("10", "9"):
        (tmp_path / "sweep" / job).mkdir(parents=True)
        write_json(tmp_path / "sweep" / job / "report.json", a_report())
    training_in(tmp_path / "check", task="check", training={})
    sweep = tmp_path / "sweep"
    adapter = Config.from_mapping({"model": {"adapter": str(sweep)}})
    for ask, key in (
        (lambda: Run(sweep).finished_report(), "run="),
        (lambda: find(sweep), ""),
        (lambda: earlier.adopt(adapter), "model.adapter="),
    ):
        with pytest.raises(UserError) as error:
            ask()
        assert str(error.value).endswith(
            f"; it is a folder of 2 runs, name one: {key}{sweep}/9, {key}{sweep}/10"
        )
    with pytest.raises(UserError, match="check: the directory of a task=check, which trains nothing"):
        find(tmp_path / "check")


def test_a_full_disk_for_the_report_is_one_line_and_hides_no_other_error(launch, tmp_path, data, small_disk):
    small = small_disk("200k")
    (small / "run").mkdir()
    (small / "filler").write_bytes(b"x" * 150_000)
    error = only_error(launch(*GOOD, f"hydra.run.dir={small}/run"))
    assert "No space left on device" in error
    assert not list((small / "run").glob(".report.json.*"))


def test_the_report_that_cannot_be_written_is_told(tmp_path, monkeypatch, caplog):
    from chatbot_sft.errors import UserError
    from chatbot_sft.report import ending
    from chatbot_sft.run import directory
    from chatbot_sft.run.report import Report, Status

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(directory, "write_json", full)
    report = Report("", "check", 1, Status.COMPLETED)
    with pytest.raises(UserError, match=r"the report cannot be written \(No space left on device\)"):
        ending.write_reports(report, directory.Run(tmp_path))
    ending.write_reports(replace(report, error="the cause"), directory.Run(tmp_path))
    assert "the report cannot be written" in caplog.text


def test_a_directory_below_one_that_takes_nothing_is_one_line(launch, tmp_path, data, small_disk):
    small = small_disk("1m")
    subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
    assert "Read-only file system; name another directory" in only_error(
        launch(*GOOD, f"hydra.run.dir={small}/run")
    )


def test_hydra_job_chdir_leaves_paths_as_they_were_typed(launch, tmp_path, data):
    process = launch(*GOOD, "hydra.job.chdir=true", "hydra.run.dir=runs/a")
    assert process.returncode == 0, process.stderr
    assert f"hydra.job.chdir=true: paths stay those of {tmp_path}" in process.stderr
    assert (tmp_path / "runs" / "a" / "report.json").is_file()
    assert launch("-m", *GOOD, "seed=1,2", "hydra.job.chdir=true", "hydra.sweep.dir=runs/b").returncode == 0
    assert sorted(path.parent.name for path in (tmp_path / "runs" / "b").rglob("report.json")) == ["0", "1"]


# The repeated command


def test_the_command_of_a_report_names_its_directory(launch, tmp_path, data):
    launch(*GOOD, "hydra.run.dir=my runs/a")
    assert report_of(tmp_path)["command"].endswith(" 'hydra.run.dir=my runs/a'")
    launch("-m", *GOOD, "lora.r=8,16", "hydra.sweep.dir=sweep")
    folder = tmp_path / "sweep" / "1"
    assert json.loads((folder / "report.json").read_text())["command"].endswith(
        f"lora.r=16 hydra.run.dir={folder}"
    )


# What a refused start leaves


def seen(folder):
    """Every file below `folder` with its content."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize(
    "words",
    [
        "training.nonsense=1",
        "training.max_steps=-1",
        "hydra.run.dir=my.json",
        "hydra.run.dir=my.json/below",
        "dataset.data_path=my.json training.output_dir=.",
        "dataset.data_path=my.json training.output_dir=. hydra.run.dir=deep/er",
        "dataset.data_path=my.json hydra.run.dir=finished",
        "task=check dataset.data_path=my.json hydra.run.dir=finished",
        "task=export run=finished lora.r=4",
        "dataset.data_path=my.json hydra.run.dir=running",
        "dataset.data_path=nowhere.json",
        "dataset.data_path=nowhere.json hydra.run.dir=deep/er",
        "dataset.data_path=my.json objective=dpo",
        "dataset.data_path=my.json model.name=nowhere model.load_in_4bit=false",
        "task=check dataset.data_path=nowhere.json",
        "task=export run=nowhere",
        "task=evaluate run=nowhere evaluation.golden=my.json",
        "-m lora.r=8,-1",
        "-m dataset.data_path=my.json seed=1,2 hydra.sweep.dir=running",
        "-m seed=1,2 hydra.sweep.dir=my.json/below",
    ],
)
def test_nothing_is_left_of_a_run_that_was_refused_before_it_started(launch, tmp_path, data, words):
    from filelock import FileLock

    training_in(tmp_path / "finished")
    (tmp_path / "running").mkdir()
    with FileLock(tmp_path / "running" / ".lock"):
        before = seen(tmp_path)
        only_error(launch(*words.split()))
        assert seen(tmp_path) == before


def test_what_a_start_left_is_withdrawn_and_what_a_run_wrote_is_not(tmp_path):
    from chatbot_sft.run_directory import Claim

    def start_in(folder, *more):
        claim = Claim.of(folder)
        (folder / ".hydra").mkdir(parents=True)
        for name in (".hydra/config.yaml", ".lock", "multirun.yaml", *more):
            (folder / name).write_text("")
        claim.withdraw()

    start_in(tmp_path / "a" / "b" / "c")
    assert not (tmp_path / "a").exists()
    start_in(tmp_path / "run", "run.log")
    assert seen(tmp_path / "run").keys() == {
        ".hydra",
        ".hydra/config.yaml",
        ".lock",
        "multirun.yaml",
        "run.log",
    }
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("")
    start_in(mine)
    assert seen(mine).keys() == {"notes.txt"}


# Who holds a directory


def test_the_holder_names_its_command_without_secrets(tmp_path, monkeypatch):
    from filelock import FileLock

    from chatbot_sft.errors import UserError
    from chatbot_sft.run_directory import LONGEST, held

    monkeypatch.setattr(
        sys,
        "argv",
        [
            "/x/chatbot_sft/__main__.py",
            "model.token=abc def",
            "dataset.data_path=https://me:pass-word@host/a b.json",
        ],
    )
    with held(tmp_path / "run"):
        kept = (tmp_path / "run" / ".lock.json").read_text()
    command = json.loads(kept)["command"]
    assert command == "python -m chatbot_sft 'model.token=***' 'dataset.data_path=https://***@host/a b.json'"
    with FileLock(tmp_path / "run" / ".lock"), pytest.raises(UserError) as error, held(tmp_path / "run"):
        pass
    assert (
        f"process {os.getpid()} on {os.uname().nodename} ({command}) is running in it; wait for its end"
        in str(error.value)
    )
    monkeypatch.setattr(sys, "argv", ["chatbot-sft", *["lora.r=8"] * 100])
    with held(tmp_path / "run"):
        assert len(json.loads((tmp_path / "run" / ".lock.json").read_text())["command"]) == LONGEST


@pytest.mark.parametrize("rank", "01")
def test_several_nodes_name_their_directory_themselves(tmp_path, monkeypatch, rank):
    """Each launcher has another start."""
    from omegaconf import OmegaConf

    from chatbot_sft.config import hydra_glue  # noqa: F401 (it registers ${started:…})
    from chatbot_sft.run_directory import ClaimDirectory

    monkeypatch.chdir(tmp_path)
    for name, value in {"WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "2", "RANK": rank, "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "started", lambda: datetime(2026, 11, 22, 20, 1, 55))
    config = OmegaConf.create({"hydra": {"sweep": {"dir": "outputs/${started:%H-%M-%S}"}}})
    with pytest.raises(SystemExit, match=r"name one that all of them see: hydra\.run\.dir=DIR"):
        ClaimDirectory().on_multirun_start(config)
    assert not list(tmp_path.iterdir())


def test_a_second_torchrun_of_one_second_is_refused_by_its_first_process(tmp_path, monkeypatch, capsys):
    """Its processes name the directory each for itself, by the start of their launcher: no suffix could reach
    the others.
    """
    from filelock import FileLock
    from omegaconf import OmegaConf

    from chatbot_sft.config import hydra_glue  # noqa: F401 (it registers ${started:…})
    from chatbot_sft.run_directory import ClaimDirectory

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(distributed, "started", lambda: datetime(2026, 11, 22, 20, 1, 55))
    config = OmegaConf.create({"hydra": {"sweep": {"dir": "outputs/${started:%H-%M-%S}"}}})
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", rank)
        folder = tmp_path / "outputs" / "20-01-55"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".lock.json").write_text('{"pid": 4711, "host": "here", "command": "chatbot-sft"}')
        with FileLock(folder / ".lock"):
            if rank == "1":
                ClaimDirectory().on_multirun_start(config)
                break
            with pytest.raises(SystemExit) as refused:
                ClaimDirectory().on_multirun_start(config)
    assert (
        refused.value.code
        == "error: outputs/20-01-55: process 4711 on here (chatbot-sft) is running in it; wait for its end, "
        "or name another directory (hydra.run.dir=DIR; of a sweep hydra.sweep.dir=DIR)"
    )
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["20-01-55"]


@pytest.mark.parametrize(
    ("there", "words", "message"),
    [
        ("report.json", ["-m", "seed=1,2", "hydra.sweep.dir=d"], "hydra.sweep.dir=d: the directory of one run; name another one for the sweep, which"),
        ("report.json", ["-m", "seed=1,2", "sweep.dry_run=true", "hydra.sweep.dir=d"], "hydra.sweep.dir=d: the directory of one run; "),
        ("run.lock.json", ["-m", "seed=1,2", "hydra/sweeper=basic", "hydra.sweep.dir=d"], "hydra.sweep.dir=d: the directory of one run; "),
        ("sweep.json", ["hydra.run.dir=d"], "hydra.run.dir=d: the directory of a sweep; name another one for this run, or go on with the sweep (-m … hydra.sweep.dir=d)"),
        ("multirun.yaml", ["task=check", "hydra.run.dir=d"], "hydra.run.dir=d: the directory of a sweep; "),
        ("sweep.json", ["hydra.sweep.dir=d"], "hydra.sweep.dir=d: is of a sweep, and this is one run; add -m, or name hydra.run.dir=DIR"),
        ("report.json", ["-m", "seed=1,2", "hydra.run.dir=d"], "hydra.run.dir=d: is of one run, and this is a sweep; name hydra.sweep.dir=DIR"),
    ],
)  # fmt: skip
def test_a_run_and_a_sweep_have_no_directory_in_common(launch, tmp_path, there, words, message):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / there).write_text("{}")
    assert only_error(launch(*words)).startswith(message)
    assert [path.name for path in tmp_path.glob("**/*") if path.is_file()] == [there]


def test_a_run_has_no_job_s_place_in_a_sweep_that_has_no_such_job(tmp_path):
    place = Sweep(tmp_path)
    points = [Point(0, ["seed=1"], "0")]
    place.write_study(Study("", "", "training.eval_loss", "minimise", [], [], points))
    with pytest.raises(
        UserError, match=r"1: a job's place in the sweep in .*, which has none of that number"
    ):
        refuse_sweep(tmp_path / "1")
    refuse_sweep(tmp_path / "0")  # a job goes on by itself
    refuse_sweep(tmp_path / "promoted")


# Sweeps


def test_every_failing_job_is_told_when_it_happens_and_in_a_line_at_the_end(launch, tmp_path, data):
    for name in ("empty.json", "none.json"):
        write_json(tmp_path / name, [])
    process = launch("-m", "task=check", "dataset.data_path=empty.json,my.json,none.json")
    assert process.returncode == 1
    assert "Error executing job" not in process.stderr
    told = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert [line.partition(":")[2].split(":")[0].strip() for line in told] == [
        "job 0",
        "job 2",
        "2 of 3 jobs failed",
    ]
    assert "empty.json" in told[0]
    assert "none.json" in told[1]
    lines = [line.split("  ")[:3] for line in process.stdout.splitlines() if line.startswith("job ")]
    assert lines == [
        ["job 0", "failed", "dataset.data_path=empty.json"],
        ["job 1", "completed", "dataset.data_path=my.json"],
        ["job 2", "failed", "dataset.data_path=none.json"],
    ]


def test_a_sweep_started_again_counts_what_is_done(launch, tmp_path, tiny, tiny_llama):
    """Its model and its data by a relative path, and its directory moved; other data are refused."""
    (tmp_path / "base").symlink_to(tiny_llama)
    chats = conversations(12)
    write_json(tmp_path / "chats.json", chats)
    words = [word for word in tiny if not word.startswith(("model.name=", "dataset.data_path="))]
    words += ["model.name=base", "dataset.data_path=chats.json"]
    sweep = ("-m", *words, "training.max_steps=1", "lora.r=2,4", "save=none", "hydra.sweep.dir=sweep")
    first = launch(*sweep)
    assert first.returncode == 0, first.stderr
    losses = [report_of(tmp_path / "sweep" / job)["training"]["eval_loss"] for job in "01"]
    shutil.rmtree(tmp_path / "sweep" / "1")
    shutil.move(tmp_path / "sweep", tmp_path / "moved")
    sweep = (*sweep[:-1], "hydra.sweep.dir=moved")
    again = launch(*sweep)
    assert again.returncode == 0, again.stderr
    assert "job 0: done before" in again.stderr
    assert "job 1: done before" not in again.stderr
    assert [report_of(tmp_path / "moved" / job)["training"]["eval_loss"] for job in "01"] == losses
    assert again.stdout.splitlines()[-2:] == ["2 jobs: 2 completed", "page  moved/leaderboard.html"]
    (tmp_path / "chats.json").write_text(
        json.dumps(chats, indent=1)
    )  # the same rows, and no longer the same bytes
    assert launch(*sweep, "sweep.dry_run=true").stdout.startswith(
        "job 0  done  lora.r=2\njob 1  done  lora.r=4\n"
    )
    write_json(tmp_path / "chats.json", chats[1:])
    assert only_error(launch(*sweep)) == (
        "moved: the training rows and held-out rows of chats.json are not those that jobs 0, 1 had; put it back as"
        " it was, name another directory for the sweep (hydra.sweep.dir=DIR), or move the directories of these away,"
        " so that they run again"
    )
    # Another space in the same directory is no repetition: nothing is taken for what it is not.
    other = launch(*(f"{word},8" if word.startswith("lora.r=") else word for word in sweep), "seed=1")
    assert "moved: the sweep there was begun with other settings: seed=1 was not there. Give" in only_error(
        other
    )


@pytest.mark.parametrize(
    ("swept", "jobs"),
    [
        ("lora=glob(*, exclude=loftq)", ["lora=default", "lora=dora", "lora=none", "lora=rslora"]),
        ("lora=glob([d*,r*])", ["lora=default", "lora=dora", "lora=rslora"]),
        ("+experiment=glob(*)", ["experiment=company", "experiment=quick"]),
        ("experiment=glob(*)", ["experiment=company", "experiment=quick"]),
    ],
)
def test_a_glob_over_options_is_a_sweep(launch, data, swept, jobs):
    process = launch("-m", *GOOD, "model.load_in_4bit=false", "model.name=smollm2", swept)
    lines = [line.split("  ")[1:3] for line in process.stdout.splitlines() if line.startswith("job ")]
    assert lines == [["completed", job] for job in jobs], process.stderr


def test_an_interrupted_sweep_does_not_begin_the_next_job(warm, tmp_path, tiny):
    sweep = [*tiny, "training.max_steps=100000", "lora.r=2,4", "save=none", "hydra.sweep.dir=sweep"]
    started = warm.start(["-m", "chatbot_sft", "-m", *sweep], tmp_path)
    started.wait_for("job 0  running  step ")
    started.send_signal(signal.SIGINT)
    run = started.finish()
    assert run.returncode == 130, run.stderr
    assert not (tmp_path / "sweep" / "1").exists()
    assert run.stdout.splitlines()[-1].startswith("job 0  interrupted")
    last = json.loads((tmp_path / "sweep" / "0" / "report.json").read_text())["training"]["history"][-1][
        "step"
    ]
    assert (tmp_path / "sweep" / "0" / "checkpoints" / f"checkpoint-{last}").is_dir()  # nothing is lost
    assert "Traceback" not in run.stderr
    again = warm.start(["-m", "chatbot_sft", "-m", *sweep], tmp_path)
    again.wait_for(f"job 0: resumes from step {last}")
    again.wait_for("job 0  running  step ")
    again.send_signal(signal.SIGTERM)
    run = again.finish()
    assert run.returncode == 143, run.stderr
    assert (run.stdout + run.stderr).count("the same command") == 1


def test_a_subdir_of_overrides_with_slashes_and_spaces(launch, tmp_path, data):
    write_json(tmp_path / "my other.json", conversations(8))
    process = launch(
        "-m",
        "task=check",
        'dataset.data_path=my.json,"my other.json"',
        "hydra.sweep.dir=sweep",
        "hydra.sweep.subdir=a/${hydra.job.override_dirname}",
    )
    assert process.returncode == 0, process.stderr
    commands = [
        json.loads(path.read_text())["command"] for path in (tmp_path / "sweep" / "a").rglob("report.json")
    ]
    assert len(commands) == 2
    assert any("my other.json" in command for command in commands)


def test_a_sweep_that_a_file_describes(launch, tmp_path, data):
    """Hydra's own words for it; a key of SFTConfig needs no plus sign there."""
    overlay = tmp_path / "mine" / "experiment" / "search.yaml"
    overlay.parent.mkdir(parents=True)
    params = '{training.max_grad_norm: "0.5,1", lora.r: "4,8"}'
    overlay.write_text(f"# @package _global_\nhydra: {{mode: MULTIRUN, sweeper: {{params: {params}}}}}\n")
    process = launch("--config-dir", "mine", "experiment=search", *GOOD, "lora.r=4")
    lines = [line.split("  ")[1:3] for line in process.stdout.splitlines() if line.startswith("job ")]
    assert lines == [["completed", f"++training.max_grad_norm={value}"] for value in ("0.5", "1")], (
        process.stderr
    )
    wrong = launch("--config-dir", "mine", "experiment=search", *GOOD, "training.max_stpes=1,2")
    assert only_error(wrong) == "training.max_stpes: no such key; did you mean training.max_steps?"
    assert len(list((tmp_path / "outputs" / "multirun").glob("*/*"))) == 1


@pytest.mark.parametrize("swept", ["lora=glob(none_such*)", "lora.r=range(8,8)"])
def test_a_sweep_over_nothing_is_refused(launch, tmp_path, swept):
    assert only_error(launch("-m", swept)) == f"{swept}: stands for no value; there is nothing to run"
    assert not list(tmp_path.iterdir())


# Flags anywhere


@pytest.mark.parametrize(
    ("typed", "taken"),
    [
        ("task=check --multirun x=1,2", "--multirun task=check x=1,2"),
        ("a=1 --cfg job b=2", "--cfg job a=1 b=2"),
        ("a=1 -c job --config-dir mine b=2 -m", "-c job --config-dir mine -m a=1 b=2"),
        ("a=1 --config-dir=mine ~b", "--config-dir=mine a=1 ~b"),
        ("--info a=1", "--info a=1"),
    ],
)
def test_flags_may_stand_between_overrides(typed, taken):
    flags, overrides = command_line.parted(typed.split())
    assert [*flags, *overrides] == taken.split()


def test_flags_between_overrides_are_understood(launch, data):
    process = launch("task=check", "--multirun", "dataset.data_path=my.json", "seed=1,2")
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("completed") == 2
    assert "r: 4" in launch("lora.r=4", "--cfg", "job", "seed=1").stdout
