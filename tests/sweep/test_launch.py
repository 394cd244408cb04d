"""Several workers for one sweep: processes on this machine, jobs of Hydra's launchers, jobs of several processes."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from io import StringIO
from pathlib import Path

import pytest
import strike
from conftest import EXAMPLE, conversations, only_error, write_json
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from rich.console import Console

from chatbot_sft import UserError
from chatbot_sft.sweep import cards, job_of_launcher
from chatbot_sft.sweep.display import Display
from chatbot_sft.sweep.launch import Workers

BESIDE = Path(sys.prefix, "launchers")  # where `make setup` puts them: Hydra imports what is installed
DATA = [f"dataset.data_path={EXAMPLE}", "dataset.max_rows=16"]


# Which GPUs


@pytest.mark.parametrize(
    ("visible", "workers", "each", "expected"),
    [
        ("0,1,2", "auto", 1, ["0", "1", "2"]),
        ("0,1,2", 2, 1, ["0", "1"]),
        ("GPU-a,GPU-b", "auto", 1, ["GPU-a", "GPU-b"]),
        ("0,1,2,3", "auto", 2, ["0,1", "2,3"]),
        ("0,1,2", "auto", 2, ["0,1"]),
        ("5,5", 2, 1, ["5", "5"]),  # asked for
        ("5,5", "auto", 1, ["5"]),
        ("0,-1,1", "auto", 1, ["0"]),  # as CUDA reads it
    ],
)
def test_no_two_workers_have_a_gpu_that_was_not_named_twice(monkeypatch, visible, workers, each, expected):
    monkeypatch.setenv(cards.VISIBLE, visible)
    assert [place[cards.VISIBLE] for place in cards.places(workers, each)] == expected


def test_without_a_gpu_workers_share_the_threads(monkeypatch):
    monkeypatch.setenv(cards.VISIBLE, "")
    monkeypatch.delenv(cards.THREADS, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert cards.places("auto") == [{}]
    assert cards.places(3) == [{cards.THREADS: "2"}] * 3
    assert cards.places(2, each=2) == [{cards.THREADS: "2"}] * 2
    assert cards.places(16)[0] == {cards.THREADS: "1"}
    monkeypatch.setenv(cards.THREADS, "5")
    assert cards.places(3) == [{}] * 3


# What is refused before a folder is made


@pytest.mark.parametrize(
    ("words", "visible", "line"),
    [
        (
            ["sweep.workers=2"],
            "3",
            "sweep.workers=2: 2 GPUs, and there is 1; to put two on one, name it twice: CUDA_VISIBLE_DEVICES=3,3",
        ),
        (
            ["sweep.workers=2", "sweep.processes_per_job=2"],
            "0,1,2",
            "sweep.workers=2 sweep.processes_per_job=2: 4 GPUs, and there are 3; ask for fewer",
        ),
        (
            ["hydra/launcher=slurm", "sweep.workers=2"],
            "",
            "hydra/launcher=submitit_slurm: not installed; `pip install 'hydra-submitit-launcher<2,>=1.2'`",
        ),
        (["sweep.wait=false"], "", "sweep.wait=false: only with hydra/launcher=slurm; with basic"),
        (
            ["sweep.pruner=halving", "training.eval_steps=1", "sweep.processes_per_job=2"],
            "",
            "sweep.pruner=halving: not with sweep.processes_per_job=2, whose jobs take no turns",
        ),
        (["sweep.worker=true"], "", "sweep.worker=true: name the sweep's directory, hydra.sweep.dir=DIR"),
    ],
)
def test_workers_that_cannot_be_are_refused_before_a_folder_is_made(launch, tmp_path, words, visible, line):
    process = launch("-m", *DATA, "lora.r=4,8", *words, env={"CUDA_VISIBLE_DEVICES": visible})
    assert only_error(process).startswith(line)
    assert not list(tmp_path.iterdir())


# Processes


def workers(place, script, count=1):
    console = Console(file=StringIO())
    words = [sys.executable, "-c", script, str(place.folder)]
    return Workers(place, words, [{"PLACE": str(n)} for n in range(count)], Display(place.folder, console))


def test_a_job_whose_processes_are_killed_twice_has_failed(two_jobs):
    """And the worker is started again for the others."""
    killed = workers(
        two_jobs,
        """if True:
        import json, os, pathlib, signal, sys
        sweep = pathlib.Path(sys.argv[1])
        if not json.loads((sweep / "sweep.json").read_text())["errors"]:
            holder = {"pid": os.getpid(), "host": os.uname().nodename, "command": ""}
            (sweep / "1" / ".lock.json").write_text(json.dumps(holder))
            os.kill(os.getpid(), signal.SIGKILL)
        print("went on in", os.environ["PLACE"])
        """,
    )
    assert killed.run() == []
    assert two_jobs.study().errors == {1: "its process was killed (SIGKILL), 2 times; is memory short?"}
    assert killed.deaths == {1: 2}
    said = killed.display.console.file.getvalue()
    assert said.count("worker 0 was killed (SIGKILL), with job 1") == 2
    assert (two_jobs.folder / ".workers" / "0.log").read_text() == "went on in 0\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_asks_the_workers_to_stop_with_a_checkpoint(two_jobs, number):
    stopped = workers(
        two_jobs,
        """if True:
        import os, pathlib, signal, sys
        mine = pathlib.Path(sys.argv[1], os.environ["PLACE"] + ".stopped")
        signal.signal(signal.SIGTERM, lambda *_: (mine.touch(), sys.exit(143)))
        mine.with_suffix(".ready").touch()
        signal.pause()
        """,
        count=2,
    )

    def send():
        while len(list(two_jobs.folder.glob("*.ready"))) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=send).start()
    assert stopped.run() == [number]
    assert sorted(path.name for path in two_jobs.folder.glob("*.stopped")) == ["0.stopped", "1.stopped"]


@pytest.mark.parametrize(("number", "requeued"), [(signal.SIGUSR2, True), (signal.SIGTERM, False)])
def test_a_preempted_job_of_submitit_is_requeued_when_its_worker_has_stopped(
    tmp_path, monkeypatch, number, requeued
):
    """submitit's handler of its own signal does it, and swallows SIGTERM."""
    told = []
    stopped = tmp_path / "stopped"
    script = f"""if True:
        import pathlib, signal, sys, time
        signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.3), pathlib.Path({str(stopped)!r}).touch(), sys.exit(143)))
        pathlib.Path({str(tmp_path / "ready")!r}).touch()
        signal.pause()
    """

    def theirs(number, frame):
        if number == signal.SIGUSR2:
            told.append(stopped.exists())
            sys.exit(-1)

    before = {name: signal.signal(name, theirs) for name in (signal.SIGUSR2, signal.SIGTERM)}
    monkeypatch.setattr(HydraConfig.instance(), "cfg", OmegaConf.create({"hydra": {"job": {"num": 0}}}))

    def send():
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=send).start()
    try:
        with pytest.raises(SystemExit if requeued else UserError):
            job_of_launcher.work(None, [sys.executable, "-c", script], str(tmp_path), tmp_path, [{}])
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
    assert stopped.exists()
    assert told == ([True] if requeued else [])


# The whole of it


def command(*words):
    return [sys.executable, "-m", "chatbot_sft", *map(str, words)]


def run(folder, *words, env=None, timeout=600):
    return subprocess.run(
        command(*words),
        cwd=folder,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@pytest.fixture(scope="module")
def launchers():
    """The environment of a command that finds Hydra's launchers."""
    if not BESIDE.is_dir():
        pytest.skip("needs the launchers of `make setup`")
    return {"PYTHONPATH": os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(BESIDE)]))}


def reports(sweep):
    found = {int(file.parent.name): json.loads(file.read_text()) for file in sweep.glob("*/report.json")}
    return dict(sorted(found.items()))


def results(sweep):
    """What every job came to, but for its times."""
    return {
        number: (
            report["status"],
            report["training"]["history"],
            [(evaluation["step"], evaluation["loss"]) for evaluation in report["evaluations"]],
        )
        for number, report in reports(sweep).items()
    }


@pytest.fixture(scope="module")
def jobs(tiny, tmp_path_factory):
    """A sweep of three jobs, of short conversations, so that what takes time is the start of a process."""
    data = write_json(tmp_path_factory.mktemp("data") / "chats.json", conversations(12))
    own = [f"dataset.data_path={data}", "training.max_steps=10", "training.save_steps=2"]
    return ["-m", *tiny, *own, "training.sample_max_new_tokens=0", "save=none", "seed=1,2,3"]


@pytest.fixture(scope="module")
def undisturbed(jobs, warm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    process = warm.run(["-m", "chatbot_sft", *jobs, "hydra.sweep.dir=sweep"], folder)
    assert process.returncode == 0, process.stderr
    return results(folder / "sweep")


@pytest.mark.slow
def test_a_worker_that_is_killed_loses_nothing(jobs, undisturbed, tmp_path):
    sweep = tmp_path / "sweep"
    struck = strike.at(sweep / "0" / "checkpoints" / "checkpoint-4", once=tmp_path / "struck")
    process = run(tmp_path, *jobs, "sweep.workers=2", "hydra.sweep.dir=sweep", env=strike.cold(struck))
    out, err = process.stdout, process.stderr
    assert process.returncode == 0, err
    # The other worker may have taken the job up before anybody has looked whose it was.
    assert re.search(r"^worker [01] was killed \(SIGKILL\)(, with job 0)?$", err, re.MULTILINE), err
    assert results(sweep) == undisturbed
    assert reports(sweep)[0]["training"]["resumed_from"] == 2
    pids = {json.loads((sweep / name / ".lock.json").read_text())["pid"] for name in "012"}
    assert int((tmp_path / "struck").read_text()) not in pids
    assert re.search(r"^job 1  completed  step 10  loss ", err, re.MULTILINE), err
    assert "3 jobs: 3 completed" in out


@pytest.mark.slow
def test_submitits_jobs_are_preempted_queued_again_and_go_on(jobs, undisturbed, launchers, tmp_path):
    sweep = tmp_path / "sweep"
    place, once = sweep / "0" / "checkpoints" / "checkpoint-4", tmp_path / "struck"
    struck = strike.at(place, number=signal.SIGUSR2, once=once, to_parent=True)
    process = run(
        tmp_path, *jobs, "hydra/launcher=submitit_local", "hydra.sweep.dir=sweep",
        env=strike.cold({**launchers, **struck}),
    )  # fmt: skip
    out, err = process.stdout, process.stderr
    assert process.returncode == 0, err
    assert results(sweep) == undisturbed
    assert reports(sweep)[0]["training"]["resumed_from"] == 5  # asked while step 4 is saved, it ends the next
    logs = "".join(log.read_text() for log in sweep.glob(".submitit/*/*_log.*"))
    assert "this job is preempted" in logs
    assert logs.count("Starting with JobEnvironment") == 2
    assert "3 jobs: 3 completed" in out


@pytest.mark.slow
def test_joblibs_jobs_share_a_sweep(jobs, undisturbed, launchers, tmp_path):
    process = run(
        tmp_path, *jobs, "sweep.workers=2", "hydra/launcher=joblib", "hydra.sweep.dir=sweep", env=launchers
    )
    assert process.returncode == 0, process.stderr
    assert results(tmp_path / "sweep") == undisturbed
    assert sorted(log.name for log in (tmp_path / "sweep" / ".workers").glob("*.log")) == ["0.log", "1.log"]


@pytest.mark.slow
def test_a_job_of_two_processes_is_a_torchrun_of_its_own(tiny, tmp_path):
    own = ["dataset.max_rows=16", "training.sample_max_new_tokens=0", "save=none", "hydra.sweep.dir=sweep"]
    words = ["-m", *tiny, *own, "sweep.processes_per_job=2", "seed=1"]
    process = run(tmp_path, *words)
    assert process.returncode == 0, process.stderr
    (report,) = reports(tmp_path / "sweep").values()
    assert report["status"] == "completed"
    assert report["training"]["processes"] == 2
    again = run(tmp_path, *words)
    assert "job 0: done before" in again.stderr


@pytest.mark.slow
def test_slurm_gets_an_array_of_workers_and_the_command_does_not_wait(launchers, tmp_path):
    """A stub takes the place of the cluster and keeps what it was given."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, script in {
        "sbatch": f'cp "$1" {tmp_path}/script.sh; echo Submitted batch job 4321',
        "srun": "",
        "sacct": "",
    }.items():
        (tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (tools / name).chmod(0o755)
    process = run(
        tmp_path,
        "-m", *DATA, "lora.r=4,8", "hydra/launcher=slurm", "sweep.workers=3", "sweep.wait=false",
        "hydra.launcher.partition=gpu", "hydra.launcher.mem_gb=64", "hydra.launcher.timeout_min=600",
        "+hydra.launcher.additional_parameters={mail-type: FAIL}", "hydra.sweep.dir=sweep",
        env={**launchers, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"},
        timeout=600,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert "python -m chatbot_sft.compare sweep shows how far they are" in process.stdout
    script = (tmp_path / "script.sh").read_text()
    asked = dict(
        line.removeprefix("#SBATCH --").split("=", 1) for line in script.splitlines() if "#SBATCH" in line
    )
    folder = tmp_path / "sweep" / ".submitit"
    assert asked == {
        "array": "0-2%3",
        "error": f"{folder}/%A_%a/%A_%a_0_log.err",
        "output": f"{folder}/%A_%a/%A_%a_0_log.out",
        "gpus-per-node": "1",
        "job-name": "chatbot_sft",
        "mail-type": "FAIL",
        "mem": "64GB",
        "nodes": "1",
        "ntasks-per-node": "1",
        "open-mode": "append",
        "partition": "gpu",
        "signal": "USR2@120",
        "time": "600",
        "wckey": "submitit",
    }
    assert "submitit.core._submit" in script.splitlines()[-2] or "submitit.core._submit" in script
    assert sorted(path.name for path in folder.glob("*/*_submitted.pkl")) == [
        f"4321_{number}_submitted.pkl" for number in range(3)
    ]
