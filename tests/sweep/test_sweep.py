"""Sweeps that train: killed and gone on, pruned."""

import json
import shutil
import signal

import pytest
import strike
from conftest import conversations, write_json

from chatbot_sft.run.report import Status
from chatbot_sft.sweep.directory import Sweep

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tiny(tiny, tmp_path_factory):
    """On a few short conversations: what takes time is the start of a job."""
    file = write_json(tmp_path_factory.mktemp("data") / "chats.json", conversations(12))
    return [*tiny, f"dataset.data_path={file}"]


def command(tiny, folder, *words):
    return [
        "-m", "chatbot_sft", "-m", *tiny, "save=none", "training.sample_max_new_tokens=0", f"hydra.sweep.dir={folder}", *words,
    ]  # fmt: skip


def results(folder):
    """Job → its overrides, and all that it came to but for times."""
    sweep = Sweep(folder)
    reports = {point.number: (point, sweep.run(point).report()) for point in sweep.study().points}
    return {
        number: (
            point.overrides,
            report.status,
            [(entry["step"], entry["loss"]) for entry in report.history],
            report.training and report.training.eval_loss,
        )
        for number, (point, report) in reports.items()
    }


def test_a_sweep_killed_three_times_comes_to_what_an_undisturbed_one_does(warm, tiny, tmp_path):
    words = ("training.max_steps=4", "training.save_steps=1", "lora.r=2,4,8", "seed=1,2")
    whole = warm.run(command(tiny, "whole", *words), tmp_path)
    assert whole.returncode == 0, whole.stderr
    for moment in ("0/checkpoints/checkpoint-3", "0/report.json", "3/checkpoints/checkpoint-2"):
        killed = warm.run(command(tiny, "killed", *words), tmp_path, strike.at(tmp_path / "killed" / moment))
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    last = warm.run(command(tiny, "killed", *words), tmp_path)
    assert last.returncode == 0, last.stderr
    assert results(tmp_path / "killed") == results(tmp_path / "whole")
    rows = [
        [line.split(",")[0] for line in (tmp_path / name / "leaderboard.csv").read_text().splitlines()]
        for name in ("killed", "whole")
    ]
    assert rows[0] == rows[1]


def test_the_worst_end_early_and_one_of_them_is_taken_up_again(warm, tiny, tmp_path):
    words = (
        "training.max_steps=4", "training.eval_steps=1", "training.warmup_steps=0", "sweep.pruner=halving",
        "training.learning_rate=1e-6,1e-2,1e-5",
    )  # fmt: skip
    process = warm.run(command(tiny, "sweep", *words), tmp_path)
    assert process.returncode == 0, process.stderr
    found = results(tmp_path / "sweep")
    assert {number: status for number, (_, status, *_) in found.items()} == {
        0: Status.PRUNED, 1: Status.COMPLETED, 2: Status.PRUNED,
    }  # fmt: skip
    again = warm.run(command(tiny, "sweep", *words, "sweep.revive=2"), tmp_path)
    assert again.returncode == 0, again.stderr
    revived = results(tmp_path / "sweep")
    assert revived[2][1] == Status.COMPLETED
    assert [step for step, _ in revived[2][2]] == [1, 2, 3, 4]
    assert (revived[0], revived[1]) == (found[0], found[1])
    shutil.rmtree(tmp_path / "sweep" / "1")
    last = warm.run(command(tiny, "sweep", *words), tmp_path)
    assert last.returncode == 0, last.stderr
    assert "job 1 runs again from the first step; what study.log had of it is forgotten" in last.stderr
    assert results(tmp_path / "sweep") == revived


def test_a_sampled_sweep_goes_on(warm, tiny, tmp_path):
    words = (
        "training.max_steps=1",
        "sweep.sampler=tpe",
        "training.learning_rate=tag(log, interval(1e-5,1e-3))",
    )
    process = warm.run(command(tiny, "sweep", *words, "sweep.trials=2"), tmp_path)
    assert process.returncode == 0, process.stderr
    first = results(tmp_path / "sweep")
    shutil.rmtree(tmp_path / "sweep" / "1")
    more = warm.run(command(tiny, "sweep", *words, "sweep.trials=3"), tmp_path)
    assert more.returncode == 0, more.stderr
    again = results(tmp_path / "sweep")
    assert {number: again[number] for number in first} == first
    assert len(again) == 3
    assert json.loads((tmp_path / "sweep" / "sweep.json").read_text())["sampler"] == "tpe"
