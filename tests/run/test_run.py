"""A run's types: its directory, its report, its lock."""

from __future__ import annotations

import ast
import json
from dataclasses import asdict, replace

import pytest
from conftest import MODEL, REPO, TRAINING, a_report, write_json

from chatbot_sft.errors import UserError
from chatbot_sft.run.directory import FILES, Run
from chatbot_sft.run.lock import Lock, changed, differences
from chatbot_sft.run.report import (
    DamagedReport,
    DatasetStatistics,
    Export,
    Report,
    Sample,
    SaveResult,
    Status,
    Training,
)

PROVENANCE = {
    "command": "", "folder": "/home", "seeds": {"seed": 1}, "driver": None, "template": "t", "files": {},
    "code": {"sha256": "c"}, "git": None,
}  # fmt: skip
LOCK = Lock({"seed": 1, "lora.r": 16}, "tokenizer", "2026-01-02", {"torch": "2.11"}, "CPU")


def test_a_report_comes_back_as_it_was_written():
    report = Report("python -m chatbot_sft", "train", 7, Status.FAILED, "why")
    report.dataset = DatasetStatistics("data.json", rows=3, not_read={"id": 3})
    report.history = [{"step": 1, "loss": 2.0}]
    report.training = Training(**TRAINING)
    report.samples = [Sample("q", "a", "b")]
    report.save = SaveResult("lora", exports=[Export("lora", "model", {"a": 1})])
    assert Report.from_json(json.loads(json.dumps(report.to_json()))) == report
    assert Report.from_json({**report.to_json(), "of_a_later_version": 1}) == report
    stopped = replace(report, training=None)  # after its first steps
    assert Report.from_json(stopped.to_json()) == stopped


def test_parts_that_were_not_reached_are_empty_objects_in_json():
    found = Report("", "check", 1).to_json()
    assert [found[name] for name in ("model", "dataset", "training", "memory", "plan", "save")] == [{}] * 6
    assert (found["schema"], found["status"]) == (1, "running")
    assert Report.from_json(found).training is None


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"schema": 2}, r"a later version of chatbot_sft wrote it \(schema 2, this one reads up to 1\)"),
        (
            {"status": "exploded"},
            "status exploded is none of running, completed, failed, interrupted, pruned",
        ),
        ({"model": []}, "model is of another kind"),
        ({"training": None}, "training is missing"),
        ({"training": {"steps": 3}}, "training.effective_batch_size is missing"),
        ({"samples": ["text"]}, "samples is of another kind"),
    ],
)
def test_a_damaged_report_says_what_of_it_is(change, why):
    with pytest.raises(DamagedReport, match=f"^{why}$"):
        Report.from_json(a_report(**change))


def test_a_report_of_an_earlier_version_is_read():
    earlier = {
        key: value for key, value in a_report().items() if key not in ("schema", "settings", "plan", "git")
    }
    earlier |= {"plan": {}, "model": {key: value for key, value in MODEL.items() if key != "adapter"}}
    assert Report.from_json(earlier).training.weights_of_step == 4


def test_a_run_that_is_not_there_has_no_report(tmp_path):
    run = Run(tmp_path / "run")
    assert run.report() is None
    with pytest.raises(UserError, match="no such folder"):
        run.finished_report()
    run.folder.mkdir()
    with pytest.raises(UserError, match="not a run directory"):
        run.finished_report()
    with pytest.raises(UserError, match=r"lock.json: cannot be read"):
        run.lock()


def test_two_locks_differ_in_what_is_named():
    other = replace(
        LOCK.in_layout({"rows": 2}),
        decides={"seed": 1, "lora.r": 8, "lora.use_dora": True},
        versions={"torch": "2.13"},
    )
    assert list(map(str, differences(LOCK, other))) == [
        "lora.r 16 → 8",
        "versions.torch 2.11 → 2.13",
        "lora.use_dora (not set) → true",
        "batch_layout.rows (not set) → 2",
    ]
    assert differences(LOCK, LOCK) == []


def test_a_lock_is_written_without_secrets_and_read_with_them(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "a-long-secret-value")
    run = Run(tmp_path)
    lock = replace(LOCK, decides={"model.endpoint": "a-long-secret-value"})
    run.write_lock(lock)
    assert "a-long-secret-value" not in run.lock_file.read_text()
    assert run.lock() == lock


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"schema": 3}, r"a later version of chatbot_sft wrote it \(schema 3, this one reads up to 2\)"),
        ({"schema": 0}, r"not a lock"),
        ({"date": "yesterday"}, r"not a lock: Invalid isoformat string"),
        ({"date": None}, r"not a lock"),
        ({"threads": "two"}, r'not a lock: threads is "two"'),
        ({"threads": True}, r"not a lock: threads is true"),
        ({"processes": 0}, r"not a lock: processes is 0"),
        ({"tokenizer": 7}, r"not a lock: tokenizer is 7"),
        ({"device": None}, r"not a lock: device is null"),
        ({"versions": {"torch": 2}}, r"not a lock: versions.torch is 2"),
        ({"batch_layout": "2 x 4"}, r'not a lock: batch_layout is "2 x 4"'),
        ({"provenance": ""}, r"not a lock"),
        ({"provenance": {**PROVENANCE, "template": 7}}, r"not a lock: provenance.template is 7"),
        ({"provenance": {**PROVENANCE, "git": {}}}, r"not a lock: .*'commit'"),
        (
            {"provenance": {**PROVENANCE, "code": {"sha256": None}}},
            r"not a lock: provenance.code.sha256 is null",
        ),
        (
            {"provenance": {**PROVENANCE, "files": {"data": [{"path": "a", "bytes": "9", "sha256": "b"}]}}},
            r'not a lock: provenance.files.data\[0\].bytes is "9"',
        ),
        ({"processes": None}, r"not a lock: processes is null"),
        ({"config": []}, r"not a lock: config is \[\]"),
        ({"of_another": 1}, r"not a lock"),
        ({"schema": "2"}, r"not a lock"),
        ({"schema": 2, "provenance": {"files": []}}, r"not a lock"),
        ({"schema": 2, "provenance": "x"}, r"not a lock"),
    ],
)
def test_a_lock_that_cannot_be_read_says_why(change, why, tmp_path):
    run = Run(tmp_path)
    write_json(tmp_path / "run.lock.json", {**asdict(LOCK), **change})
    with pytest.raises(UserError, match=rf"run.lock.json: cannot be read \({why}"):
        run.lock()


def test_a_lock_of_the_version_before_is_read_and_gives_way_to_a_new_one(tmp_path):
    run = Run(tmp_path)
    of_then = ("decides", "tokenizer", "date", "versions", "device", "processes", "batch_layout")
    earlier = write_json(tmp_path / "lock.json", {**{key: asdict(LOCK)[key] for key in of_then}, "schema": 1})
    assert run.lock_file == earlier
    assert run.lock() == replace(LOCK, schema=1)
    assert (run.lock().provenance, run.lock().threads, run.lock().config) == (None, None, {})
    run.write_lock(LOCK)  # it is gone on with
    assert [file.name for file in tmp_path.iterdir()] == ["run.lock.json"]
    assert run.lock() == LOCK


def test_no_other_file_knows_the_names_in_a_run_directory():
    """But for loggers, which give a report's files their names elsewhere."""
    elsewhere = {"run/directory.py", "report/loggers.py"}
    source = REPO / "src" / "chatbot_sft"
    names = set(FILES) - {"loss.png"} | {"checkpoints"}  # an export's card has a picture of that name
    found = {
        (str(file.relative_to(source)), node.value)
        for file in source.rglob("*.py")
        if str(file.relative_to(source)) not in elsewhere
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in names
    }
    assert found == {
        ("cli.py", "config.yaml"),  # Hydra's own, in .hydra
        ("config/effects.py", "checkpoints"),  # a word
        ("config/help.py", "config.yaml"),  # that of conf/
        ("config/schema.py", "checkpoints"),  # the default of training.output_dir, without Hydra
        ("save/verify/probe.py", "evidence.json"),  # in a folder of its own
    }


def test_a_key_that_an_earlier_version_did_not_have_counts_as_its_default():
    before = {"seed": 1, "model.load_in_4bit": True}
    same = {**before, "model.load_in_fp8": False, "training.optim_target_modules": None}
    assert changed(before, same, same) == []
    (difference,) = changed(before, {**same, "model.load_in_fp8": True}, same)
    assert str(difference) == "model.load_in_fp8 (not set) → true"
