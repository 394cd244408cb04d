"""deploy/slurm.sbatch, run as SLURM would run it: srun and scontrol are stand-ins, the run is a real one."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import strike
from conftest import REPO, report_of

BIN = Path(sys.executable).parent
SCRIPT = REPO / "deploy" / "slurm.sbatch"


@pytest.fixture
def cluster(tmp_path):
    """`cluster(words, NAME=value)` starts the script as job 7. srun runs what it is given, and hands signals on; scontrol notes
    what it is asked.
    """
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "srun").write_text('#!/bin/sh\nexec "$@"\n')
    (programs / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/scontrol.log\n')
    for program in programs.iterdir():
        program.chmod(0o755)
    started = []

    def start(*words, **variables):
        env = {
            **os.environ,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "VENV": str(BIN.parent),
            "SLURM_JOB_ID": "7",
            **variables,
        }
        started.append(
            subprocess.Popen(
                ["bash", SCRIPT, *words], cwd=tmp_path, env=env, text=True, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, start_new_session=True,
            )
        )  # fmt: skip
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def stand_in(folder: Path, text: str) -> str:
    """An environment whose python is the shell script `text`."""
    (folder / "venv" / "bin").mkdir(parents=True)
    python = folder / "venv" / "bin" / "python"
    python.write_text(f"#!/bin/bash\n{text}")
    python.chmod(0o755)
    return str(folder / "venv")


def until(happened, process) -> None:
    limit = time.monotonic() + 300
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.02)


def sleeps(process) -> bool:
    """As bash does that waits for its child: one that has just forked it does not know its id."""
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def test_it_is_linted():
    done = subprocess.run([BIN / "shellcheck", SCRIPT], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_slurm_is_asked_for_a_signal_in_time_and_for_another_turn():
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", SCRIPT.read_text(), re.MULTILINE))
    assert asked["signal"] == "B:USR1@300"  # B: to the script, which hands it on
    assert {"requeue", "open-mode"} <= asked.keys()
    assert asked["open-mode"] == "append"


@pytest.mark.parametrize(
    ("words", "cards", "begins"),
    [
        (["lora.r=8"], None, "-m chatbot_sft lora.r=8 "),
        (["lora.r=8"], "1", "-m chatbot_sft lora.r=8 "),
        (["a b"], "4", "-m torch.distributed.run --standalone --nproc-per-node=4 -m chatbot_sft a b "),
        (["-m", "lora.r=8,16"], "4", "-m chatbot_sft -m lora.r=8,16 "),
    ],
)
def test_the_words_of_sbatch_go_to_as_many_processes_as_there_are_cards(
    cluster, tmp_path, words, cards, begins
):
    venv = stand_in(tmp_path, 'echo "$@"\n')
    variables = {"SLURM_GPUS_ON_NODE": cards} if cards else {}
    said, _ = cluster(*words, VENV=venv, OUTPUTS="/shared/runs", **variables).communicate(timeout=600)
    assert said == f"{begins}hydra.run.dir=/shared/runs/slurm-7 hydra.sweep.dir=/shared/runs/slurm-7\n"


@pytest.mark.parametrize(
    ("signalled", "code", "queued"),
    [(True, 143, True), (True, 0, False), (False, 143, False), (False, 1, False)],
)
def test_it_is_queued_again_where_slurm_took_the_machine_and_the_run_had_not_ended(
    cluster, tmp_path, signalled, code, queued
):
    """Not where the run failed, nor where it was cancelled (SIGTERM to the run, none to the script)."""
    wait = f"""
        trap 'sleep 0.3; echo stopped; exit {code}' TERM
        touch {tmp_path}/began
        while [ ! -e {tmp_path}/end ]; do sleep 0.05; done
        exit {code}
    """
    process = cluster(VENV=stand_in(tmp_path, wait))
    until(lambda: (tmp_path / "began").exists() and sleeps(process), process)
    if signalled:
        process.send_signal(signal.SIGUSR1)
    else:
        (tmp_path / "end").touch()
    said, _ = process.communicate(timeout=600)
    assert process.returncode == code
    assert ("stopped" in said) == signalled
    asked = tmp_path / "scontrol.log"
    assert (asked.read_text() if asked.exists() else "") == ("requeue 7\n" if queued else "")


def test_each_process_has_the_cores_that_sbatch_asked_for(cluster, tmp_path):
    venv = stand_in(tmp_path, 'echo "$SRUN_CPUS_PER_TASK"\n')
    assert cluster(VENV=venv, SLURM_CPUS_PER_TASK="8").communicate(timeout=600)[0] == "8\n"


def test_a_signal_that_comes_as_the_run_has_ended_changes_nothing(tmp_path):
    """The trap alone, with the id of a process that is gone."""
    (line,) = (line for line in SCRIPT.read_text().splitlines() if line.startswith("trap "))
    ended = subprocess.Popen(["true"])
    ended.wait()
    program = f'set -euo pipefail\nstep={ended.pid}\n{line}\nkill -USR1 $$\necho "on, $asked"\n'
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "on, 1\n"), done.stderr


@pytest.mark.slow
def test_a_run_whose_time_is_over_goes_on_when_its_turn_comes_again(cluster, tmp_path, tiny, launch):
    words = [*tiny, "training.max_steps=6", "training.save_steps=2", "save=none"]
    run = tmp_path / "outputs" / "slurm-7"
    place, once = run / "checkpoints" / "checkpoint-4", tmp_path / "struck"
    process = cluster(
        *words, **strike.cold(strike.at(place, number=signal.SIGUSR1, once=once, to_parent=True))
    )
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 143, said
    assert (tmp_path / "scontrol.log").read_text() == "requeue 7\n"
    assert report_of(run)["status"] == "interrupted"
    again = launch(*words, "hydra.run.dir=outputs/slurm-7", "hydra.sweep.dir=outputs/slurm-7")
    assert again.returncode == 0, again.stderr
    training = report_of(run)["training"]
    assert (training["steps"], training["resumed_from"]) == (6, 5)  # the step under way is done
