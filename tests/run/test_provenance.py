"""What explains a run: files by their content, git, and what each step came to."""

from __future__ import annotations

import hashlib
import json
import subprocess

import pytest

from chatbot_sft.errors import UserError
from chatbot_sft.run import fingerprint, git, steps
from chatbot_sft.run.directory import Run
from chatbot_sft.run.lock import Lock
from chatbot_sft.run.provenance import Code, Provenance
from chatbot_sft.run.steps import StepLog

# Files


def test_a_file_is_marked_by_every_byte_and_large_weights_by_a_sample(tmp_path, monkeypatch):
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(range(256)) * 64)
    whole = hashlib.sha256(file.read_bytes()).hexdigest()
    assert fingerprint.data_mark(file) == fingerprint.weights_mark(file)
    assert (fingerprint.data_mark(file).sha256, fingerprint.data_mark(file).bytes) == (whole, 1 << 14)

    monkeypatch.setattr(fingerprint, "LARGE", 1 << 10)
    monkeypatch.setattr(fingerprint, "PART", 1 << 6)
    mark = fingerprint.weights_mark(file)
    assert mark.sampled
    assert mark.sha256 != whole == fingerprint.data_mark(file).sha256
    content = bytearray(file.read_bytes())
    for place in (0, len(content) // 15 + 1, len(content) - 1):  # in the first part, the second, the last
        other = content.copy()
        other[place] ^= 1
        file.write_bytes(other)
        assert fingerprint.weights_mark(file).sha256 != mark.sha256
    file.write_bytes(content + b"\0")
    assert fingerprint.weights_mark(file).sha256 != mark.sha256


def test_a_file_that_was_changed_is_read_again(tmp_path):
    file = tmp_path / "a.json"
    found = set()
    for text in ("[1]", "[2]", "[12]"):
        file.write_text(text)
        found.add(fingerprint.sha256(file))
    assert found == {hashlib.sha256(text.encode()).hexdigest() for text in ("[1]", "[2]", "[12]")}


# Git


def run_git(folder, *words):
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    run_git(folder, "init", "-q")
    (folder / "data.json").write_text("[1]\n")
    run_git(folder, "add", ".")
    run_git(folder, "commit", "-qm", "first")
    return folder


@pytest.mark.slow  # processes
def test_git_says_what_was_not_committed_where_it_is_asked(repository):
    commit = git.commit(repository)
    assert len(commit) == 40
    assert git.of(repository, asked=True) == git.Git(commit, dirty=False)
    (repository / "data.json").write_text("[2]\n")
    (repository / "new.json").write_text("[]")
    found = git.of(repository, asked=True)
    assert (found.commit, found.dirty, found.untracked, found.cut) == (commit, True, ["new.json"], 0)
    assert found.diff.splitlines()[-2:] == ["-[1]", "+[2]"]
    run_git(repository, "add", "data.json")
    assert git.of(repository, asked=True).diff == found.diff
    run_git(repository, "worktree", "add", "-q", "../second")
    assert git.commit(repository.parent / "second") == commit
    assert git.of(repository.parent / "second", asked=True).dirty is False


@pytest.mark.slow
def test_git_is_not_run_unless_it_is_asked_and_runs_nothing_of_the_repository(repository, monkeypatch):
    (repository / "data.json").write_text("[2]\n")
    trap = repository.parent / "trap.sh"
    trap.write_text(f"#!/bin/sh\ntouch {repository.parent}/ran\n")
    trap.chmod(0o755)
    for key in ("diff.external", "core.fsmonitor"):
        run_git(repository, "config", key, str(trap))
    assert git.of(repository, asked=True).dirty
    assert not (repository.parent / "ran").exists()
    monkeypatch.setattr(git.subprocess, "run", lambda *_, **__: pytest.fail("git was run"))
    assert git.of(repository, asked=False) == git.Git(git.commit(repository))
    assert git.of(repository.parent, asked=True) is None


def test_a_git_that_cannot_be_had_is_one_line(tmp_path, monkeypatch):
    (tmp_path / ".git").mkdir()
    assert git.of(tmp_path, asked=False) == git.Git(None)
    with pytest.raises(UserError, match=r"^replay.git=true: git status failed in .*; mend it, or leave"):
        git.of(tmp_path, asked=True)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"^replay.git=true: git is not installed; leave it out"):
        git.of(tmp_path, asked=True)


@pytest.mark.slow
def test_a_diff_is_cut_and_its_secrets_are_masked(repository, monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "a-long-secret-value")
    monkeypatch.setattr(git, "LONGEST", 400)
    (repository / "data.json").write_text(
        "key a-long-secret-value and hf_" + "a" * 34 + "\n" + "line\n" * 200
    )
    found = git.of(repository, asked=True)
    assert (len(found.diff), found.cut > 0) == (400, True)
    explained = Provenance("c", "/", {}, None, "t", {}, Code("s"), found)
    run = Run(repository.parent)
    run.write_lock(Lock({}, "t", "2026-11-29", {}, "cpu", provenance=explained))
    text = run.lock_file.read_text()
    assert "a-long-secret-value" not in text
    assert "hf_aaaa" not in text
    assert "${oc.env:MY_API_KEY}" in text
    assert run.lock().provenance.git.dirty is True


# Steps


def test_each_step_is_a_line_in_all_its_digits(tmp_path):
    file = tmp_path / "steps.jsonl"
    log = StepLog(file)
    log.begin(0)
    log.add(1, loss=0.1 + 0.2, grad_norm=1e-300, learning_rate=0.0)
    assert steps.read(file) == [{"step": 1, "loss": 0.1 + 0.2, "grad_norm": 1e-300, "learning_rate": 0.0}]
    log.add(2, loss=float("nan"), grad_norm=float("inf"))
    assert json.loads(file.read_text().splitlines()[1]) == {"step": 2, "loss": None, "grad_norm": None}
    log.end()
    log.add(3, loss=1.0)  # nothing is open any more
    assert len(steps.read(file)) == 2


def test_a_start_goes_on_behind_its_checkpoint_and_a_fresh_one_begins_anew(tmp_path):
    file = tmp_path / "steps.jsonl"
    file.write_text(
        '{"step": 1, "loss": 1}\nno step\n[]\n{"loss": 1}\n{"step": 2, "loss": 2}\n{"step": 3, "lo'
    )
    assert [one["step"] for one in steps.read(file)] == [1, 2]
    for behind, expected in ((1, [1, 2]), (0, [1])):
        log = StepLog(file)
        log.begin(behind)
        log.add(behind + 1, loss=5.0)
        log.end()
        assert [one["step"] for one in steps.read(file)] == expected
        assert steps.read(file)[-1]["loss"] == 5.0
    assert [path.name for path in tmp_path.iterdir()] == ["steps.jsonl"]


def test_a_line_that_is_broken_takes_no_other_with_it(tmp_path):
    file = tmp_path / "evaluations.jsonl"
    answer = "one\u2028two\x85three"  # no end of a line, but for `str.splitlines`
    whole = [json.dumps({"step": n, "answer": answer}, ensure_ascii=False).encode() for n in (1, 2)]
    file.write_bytes(b"\n".join([whole[0], b"\xff", b'{"step": "3"}', whole[1]]))
    assert steps.read(file) == [{"step": n, "answer": answer} for n in (1, 2)]


def test_a_full_disk_is_said_once_and_stops_nothing(tmp_path, caplog):
    log = StepLog(tmp_path / "nowhere" / "steps.jsonl")
    log.begin(0)
    log.add(1, loss=1.0)
    log.end()
    assert caplog.text.count("the steps of this run are not kept") == 1
    StepLog(None).begin(0)
    assert steps.read(tmp_path / "steps.jsonl") == []
