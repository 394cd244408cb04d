"""What a run leaves for people: figures, pictures, and whole files."""

import json
import subprocess
import sys

import pytest

from chatbot_sft.report.figure import write_loss_figure
from chatbot_sft.report.markdown import markdown
from chatbot_sft.report.run_report import git_commit, new_report, write_json
from chatbot_sft.train.batches import epoch_steps
from chatbot_sft.train.progress import duration


def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path):
    write_json({"status": "running"}, tmp_path)
    with pytest.raises(TypeError):
        write_json({"status": object()}, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text()) == {"status": "running"}


def test_the_commit_is_read_without_running_git(tmp_path):
    assert git_commit(tmp_path / "nowhere") is None or len(git_commit(tmp_path / "nowhere")) == 40
    git = tmp_path / ".git"
    (git / "refs" / "heads").mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    assert git_commit(tmp_path) is None
    (git / "packed-refs").write_text("# pack-refs\n" + "b" * 40 + " refs/heads/main\n")
    assert git_commit(tmp_path) == "b" * 40
    (git / "refs" / "heads" / "main").write_text("a" * 40 + "\n")
    assert git_commit(tmp_path / "src" / "deep") == "a" * 40
    (git / "HEAD").write_text("c" * 40 + "\n")
    assert git_commit(tmp_path) == "c" * 40


def test_a_failed_run_has_a_readable_report():
    report = {**new_report("python -m chatbot_sft", "train", 1), "status": "failed", "error": "data.json: not JSON"}
    text = markdown(report, picture=False)
    assert text.startswith("# Fine-tuning run: failed\n")
    assert "**data.json: not JSON**" in text
    assert "loss.png" not in text


def test_the_loss_figure_is_drawn_from_what_was_logged(tmp_path):
    training = {"history": [{"step": s, "loss": 3 / s} for s in range(1, 31)]}
    evaluations = [{"step": s, "loss": 3.2 - s / 15} for s in (0, 10, 20, 30)]
    sizes = [write_loss_figure(training, evaluations[::stride], tmp_path).stat().st_size for stride in (5, 3, 1)]
    assert 10_000 < sizes[0] < sizes[1] < sizes[2]
    assert write_loss_figure({"history": []}, [], tmp_path) is None


def test_rows_are_ordered_by_length_within_a_step_only():
    lengths = [5, 1, 4, 2, 3, 9, 7, 8, 6, 10]
    packs = [[row] for row in range(10)]
    steps = epoch_steps(packs, lengths, 4, seed=1, shuffle=True)
    assert sorted(pack for step in steps for pack in step) == packs
    assert [len(step) for step in steps] == [4, 4, 2]
    for step in steps:
        sizes = [lengths[row] for (row,) in step]
        assert sizes == sorted(sizes, reverse=True)
    assert steps != epoch_steps(packs, lengths, 4, seed=2, shuffle=True)
    assert epoch_steps(packs[:6], [5, 9, 7, 1, 2, 3], 3, seed=1, shuffle=False) == [[[1], [2], [0]], [[5], [4], [3]]]


def test_durations_are_as_people_write_them():
    assert [duration(seconds) for seconds in (0, 7, 75, 3700)] == ["0:00", "0:07", "1:15", "1:01:40"]


def test_the_doctor_answers_without_a_model_library():
    program = (
        "import sys; sys.argv = ['doctor']\n"
        "from chatbot_sft.doctor import main\n"
        "main()\n"
        "print('heavy', {'torch', 'transformers', 'unsloth'} & set(sys.modules))"
    )
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert "heavy set()" in process.stdout
    for line in ("python", "gpu", "unsloth", "engine", "smollm2", "cache"):
        assert f"\n{line}" in f"\n{process.stdout}"
    wrong = subprocess.run([sys.executable, "-m", "chatbot_sft.doctor", "--fix"], capture_output=True, text=True)
    assert wrong.returncode == 1
    assert wrong.stderr == "error: --fix: no such argument; there is --clear-cache [PART]\n"
