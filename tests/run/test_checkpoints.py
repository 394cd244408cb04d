"""Checkpoints that were damaged, cut, exchanged or come from elsewhere: passed over with a line, or named;
never an exception by name.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from datetime import datetime
from pathlib import Path

import pytest
from conftest import a_report, write_json

from chatbot_sft.config import Config
from chatbot_sft.config.schema import ROWS
from chatbot_sft.errors import UserError
from chatbot_sft.run import checkpoints
from chatbot_sft.run.directory import Run
from chatbot_sft.run.lock import Lock, decides
from chatbot_sft.run.provenance import Code, Provenance
from chatbot_sft.train import resume

FILES = (
    "adapter_model.safetensors",
    "adapter_config.json",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
    "training_args.bin",
)


def planted(folder: Path, step: int, finished: bool = False, identity: dict | None = None) -> Path:
    staged = folder / "made"
    staged.mkdir(parents=True)
    for name in FILES:
        (staged / name).write_bytes(name.encode() * 100)
    (staged / "trainer_state.json").write_text(json.dumps({"global_step": step, "log_history": []}))
    origin = resume.Origin(started=datetime(2026, 1, 2, 3, 4, 5), identity=identity or {})
    losses, layout = (
        {"pending": 0.0, "total": 1.0, "logged_until": step},
        {"micro_batch": 2, "padding_free": False, "checkpointing": False},
    )
    checkpoints.publish(
        staged, folder / f"checkpoint-{step}", resume.record(origin, step, 1.5, finished, losses, layout)
    )
    return folder / f"checkpoint-{step}"


def from_config(folder: Path, **training) -> Config:
    return Config.from_mapping(
        {
            "paths": {"output_dir": str(folder)},
            "training": {"output_dir": str(folder / "checkpoints"), **training},
        }
    )


def flipped(name):
    def damage(folder):
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)

    return damage


def written(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def cut(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-7])


def removed(name):
    return lambda folder: (folder / name).unlink()


def record_with(**changes):
    def damage(folder):
        record = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps({**record, **changes}))

    return damage


def record_without(*keys):
    def damage(folder):
        record = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(
            json.dumps({key: value for key, value in record.items() if key not in keys})
        )

    return damage


def as_folder(name):
    def damage(folder):
        (folder / name).unlink()
        (folder / name).mkdir()

    return damage


def as_pipe(name):
    def damage(folder):
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return damage


def as_broken_link(name):
    def damage(folder):
        (folder / name).unlink()
        (folder / name).symlink_to(folder / "gone")

    return damage


DAMAGE = {
    "a flipped byte in the adapter": (
        flipped("adapter_model.safetensors"),
        "adapter_model.safetensors is damaged (its checksum is another)",
    ),
    "a flipped byte in the optimizer": (flipped("optimizer.pt"), "optimizer.pt is damaged"),
    "a flipped byte in the scheduler": (flipped("scheduler.pt"), "scheduler.pt is damaged"),
    "a flipped byte in the random state": (flipped("rng_state.pth"), "rng_state.pth is damaged"),
    "a flipped byte in training_args.bin": (flipped("training_args.bin"), "training_args.bin is damaged"),
    "trainer_state.json is a list": (
        written("trainer_state.json", b'[{"global_step": 4, "log_history": [] }]'),
        "trainer_state.json has",
    ),
    "trainer_state.json is as long, and lacks a key": (
        lambda folder: (folder / "trainer_state.json").write_bytes(
            (folder / "trainer_state.json").read_bytes().replace(b"global_step", b"global_stop")
        ),
        "trainer_state.json is damaged",
    ),
    "trainer_state.json is empty": (
        written("trainer_state.json", b""),
        "trainer_state.json has 0 bytes in place of",
    ),
    "trainer_state.json is gone": (removed("trainer_state.json"), "trainer_state.json is missing"),
    "trainer_state.json is a folder": (as_folder("trainer_state.json"), "trainer_state.json is missing"),
    "the optimizer is cut": (cut("optimizer.pt"), "optimizer.pt has"),
    "the optimizer is another program's": (
        written("optimizer.pt", b"PK\x03\x04" + bytes(1196)),
        "optimizer.pt is damaged",
    ),
    "the optimizer is gone": (removed("optimizer.pt"), "optimizer.pt is missing"),
    "the scheduler is a pipe": (as_pipe("scheduler.pt"), "scheduler.pt is missing"),
    "the adapter leads nowhere": (
        as_broken_link("adapter_model.safetensors"),
        "adapter_model.safetensors is missing",
    ),
    "a file that was not written with it": (
        written("pytorch_model.bin", b"pickle"),
        "pytorch_model.bin was not written with it",
    ),
    "run.json is gone": (removed("run.json"), "run.json: No such file"),
    "run.json is empty": (written("run.json", b""), "run.json is no JSON"),
    "run.json is cut": (cut("run.json"), "run.json is no JSON"),
    "run.json is a list": (written("run.json", b"[]"), "run.json is no object"),
    "run.json is null": (written("run.json", b"null"), "run.json is no object"),
    "run.json is Latin-1": (written("run.json", "{“é”}".encode("utf-16")), "run.json is no JSON"),
    "run.json is 100,000 levels deep": (written("run.json", b"[" * 100_000), "run.json is no JSON"),
    "run.json has a number of 5,000 digits": (
        written("run.json", b'{"step": ' + b"9" * 5000 + b"}"),
        "run.json is no JSON",
    ),
    "run.json is a folder": (as_folder("run.json"), "run.json: Is a directory"),
    **{
        f"run.json lacks {key}": (record_without(key), f"run.json: {key} is missing")
        for key in checkpoints.RECORD_KEYS
    },
    "run.json lacks its own checksum": (
        record_without("checksum"),
        "run.json was changed after it was written",
    ),
    "run.json has another step": (record_with(step=400), "run.json was changed after it was written"),
    "run.json has a text for a step": (record_with(step="4"), "run.json: step is damaged"),
    "run.json has other losses": (record_with(losses={}), "run.json was changed after it was written"),
    "run.json began at no time": (record_with(started="yesterday", checksums={}), "run.json was changed"),
    "run.json is an old one with a damaged time": (
        lambda folder: [record_without("checksums")(folder), record_with(started="yesterday")(folder)],
        "run.json: started is no time",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_with_a_line(case, tmp_path, caplog):
    damage, expected = DAMAGE[case]
    planted(tmp_path / "checkpoints", 2)
    last = planted(tmp_path / "checkpoints", 4)
    assert resume.find_origin(from_config(tmp_path)).checkpoint.step == 4
    damage(last)
    with caplog.at_level(logging.INFO):
        origin = resume.find_origin(from_config(tmp_path))
    assert origin.checkpoint.step == 2
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"checkpoints: {last} is passed over: {expected}")
    assert "\n" not in line
    with pytest.raises(
        UserError,
        match=r"training.resume=.*: that checkpoint cannot be gone on from: .*; name the one before it",
    ):
        resume.find_origin(from_config(tmp_path / "new", resume=str(last)))
    resume.settle(origin, from_config(tmp_path))
    assert [path.name for path in (tmp_path / "checkpoints.1").iterdir()] == [
        "checkpoint-4"
    ]  # kept, out of the way


def test_where_no_checkpoint_is_left_a_line_says_that_training_begins_anew(tmp_path, caplog):
    flipped("optimizer.pt")(planted(tmp_path / "checkpoints", 2))
    assert resume.find_origin(from_config(tmp_path)).checkpoint is None
    assert (
        caplog.records[-1].getMessage()
        == f"resume: no whole checkpoint is left in {tmp_path}/checkpoints; the training begins anew"
    )


@pytest.mark.parametrize("keys", [["format"], ["format", "checksums"]])
def test_a_checkpoint_of_the_loop_before_is_refused_and_not_begun_anew_over(keys, tmp_path):
    """transformers' Trainer wrote it: the same file names, with other things in them."""
    old = planted(tmp_path / "checkpoints", 4)
    record_without(*keys, "checksum")(old)
    record = json.loads((old / "run.json").read_text())
    if "checksums" in record:
        (old / "run.json").write_text(json.dumps({**record, "checksum": checkpoints._own_checksum(record)}))
    for settings in (from_config(tmp_path), from_config(tmp_path / "new", resume=str(old))):
        with pytest.raises(
            UserError,
            match=r"checkpoint-4 was written by another version of chatbot_sft.*training.resume=never",
        ):
            resume.find_origin(settings)
    assert resume.find_origin(from_config(tmp_path, resume="never")).checkpoint is None
    cut("optimizer.pt")(old)
    assert resume.find_origin(from_config(tmp_path)).checkpoint is None


def test_a_checkpoint_may_be_copied_and_renamed(tmp_path):
    made = planted(tmp_path / "checkpoints", 4)
    copy = shutil.copytree(made, tmp_path / "the good one")
    assert resume.find_origin(from_config(tmp_path / "new", resume=str(copy))).checkpoint.step == 4


def test_a_checkpoint_names_secrets_and_a_renewed_one_makes_no_other_run(tmp_path, monkeypatch):
    given = {"training": {"_target_": "mine.Trainer", "note": "first-token-1", "api_key": "typed"}}

    def identity():
        return decides(Config.from_mapping(given), "model", "rows", 1)

    monkeypatch.setenv("MY_TOKEN", "first-token-1")
    written, raw = (
        identity(),
        {**identity(), "training.note": "first-token-1", "training.api_key": "typed"},
    )  # raw: of an earlier version
    assert (written["training.note"], written["training.api_key"], written["lora.bias"]) == (
        "${oc.env:MY_TOKEN}",
        "***",
        "none",
    )
    for number, kept in enumerate((written, raw)):
        planted(tmp_path / str(number) / "checkpoints", 4, identity=kept)
        origin = resume.find_origin(from_config(tmp_path / str(number)))
        resume.refuse_changes(origin, identity(), whole=True)
    monkeypatch.setenv("MY_TOKEN", "second-token-2")
    monkeypatch.setenv("OPENAI_API_KEY", "none")  # as lora.bias is
    given["training"]["note"] = "second-token-2"
    origin = resume.find_origin(from_config(tmp_path / "0"))
    resume.refuse_changes(origin, identity(), whole=True)
    assert "second-token-2" not in str(origin.identity)
    given["training"]["note"] = "a word"
    with pytest.raises(UserError, match=r"other settings: training.note \$\{oc.env:MY_TOKEN\} → a word"):
        resume.refuse_changes(origin, identity(), whole=True)


# ---- more steps for a run that has ended


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ((4, None), {"max_steps": 6}, True),
        ((4, None), {"max_steps": 4}, False),
        ((4, None), {"max_steps": 3}, False),
        ((30, None), {"max_steps": 30}, False),  # it was stopped early at step 4: that was its end
        ((30, None), {"max_steps": 31}, True),
        ((None, 1.0), {"max_steps": None, "num_train_epochs": 2}, True),
        ((None, 1.0), {"max_steps": None, "num_train_epochs": 1}, False),
        ((None, 1.0), {"max_steps": 6}, True),
        ((None, 1.0), {"max_steps": 4}, False),
        (
            (4, None),
            {"max_steps": None, "num_train_epochs": 5},
            False,
        ),  # how many steps those are is not known yet
    ],
)
def test_a_finished_run_goes_on_when_more_steps_are_asked_for(before, now, expected, tmp_path, caplog):
    identity = {"training.max_steps": before[0], "training.num_train_epochs": before[1], "lora.r": 16}
    planted(tmp_path / "checkpoints", 4, finished=True, identity=identity)
    write_json(tmp_path / "report.json", a_report())
    settings = from_config(tmp_path, **now)
    if not expected:
        with pytest.raises(UserError, match=r"already completed; .* or raise training.max_steps to go on"):
            resume.refuse_completed(settings)
        return
    resume.refuse_completed(settings)
    origin = resume.find_origin(settings)
    assert origin.extended
    assert not origin.finished
    length = {
        "training.max_steps": settings.training.max_steps,
        "training.num_train_epochs": settings.training.num_train_epochs,
    }
    resume.refuse_changes(origin, {**length, "lora.r": 16}, whole=True)
    with pytest.raises(UserError, match=r"was trained with other settings: lora.r 16 → 8"):
        resume.refuse_changes(origin, {**length, "lora.r": 8}, whole=True)
    assert caplog.records == []  # something may refuse it still
    resume.settle(origin, settings)
    line = caplog.records[0].getMessage()
    assert line.startswith("resume: the run had ended at step 4; it goes on to ")
    assert "schedule is a new one: linear over " in line


START = "python -m chatbot_sft dataset.data_path=a.json 'training.run_name=one two' model.token="
SHOWN = "'model.token=${oc.env:HF_TOKEN}'"


@pytest.mark.parametrize(
    ("now", "folder", "finished", "said"),
    [
        ("python -m chatbot_sft", ".", False, f". Go on with: {START}"),
        ("python -m chatbot_sft dataset.data_path=a.json", "/else where", False, f"Go on with: cd '/else where' && {START}"),
        ("python -m chatbot_sft", ".", True, f". It was started with: {START}"),
        (f"{START}hf_secret", ".", False, ""),
        ("python -m chatbot_sft lora.r=8", ".", False, ""),
        ("", ".", False, ""),
    ],
)  # fmt: skip
def test_a_start_that_left_words_out_is_told_the_whole_command(
    now, folder, finished, said, tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.chdir(tmp_path)
    planted(tmp_path / "checkpoints", 4, finished, {"training.max_steps": 4, "lora.r": 16})
    known = Provenance(
        f"{START}hf_secret hydra.run.dir=here", str(tmp_path / folder), {}, None, "", {}, Code("")
    )
    before = Lock({}, "", "2026-01-02T03:04:05", {}, "cpu", provenance=known)
    Run(tmp_path).write_lock(before)
    settings = from_config(tmp_path, max_steps=8 if finished else 4)
    origin = resume.find_origin(settings, f"{now} hydra.run.dir=there" if now else "")
    with pytest.raises(UserError) as caught:
        resume.refuse_changes(origin, {"training.max_steps": 4, "lora.r": 8}, whole=False)
    whole = f"{said.removesuffix('model.token=')}{SHOWN} hydra.run.dir={tmp_path}" if said else "away"
    assert str(caught.value).endswith(whole)


def test_more_steps_do_not_make_an_interrupted_run_another_one(tmp_path):
    """Killed in the middle, half of it would have had one schedule and half another."""
    planted(tmp_path / "checkpoints", 4, identity={"training.max_steps": 30})
    origin = resume.find_origin(from_config(tmp_path, max_steps=60))
    assert not origin.extended
    with pytest.raises(UserError, match=r"training.max_steps 30 → 60"):
        resume.refuse_changes(origin, {"training.max_steps": 60}, whole=True)


@pytest.mark.parametrize("report", ["[]", "null", "{", "3", '{"task": "train"}'])
def test_a_damaged_report_does_not_stop_a_run(report, tmp_path):
    (tmp_path / "report.json").write_text(report)
    resume.refuse_completed(from_config(tmp_path))


@pytest.mark.slow  # imports torch
def test_the_best_checkpoint_of_a_moved_run_is_the_one_beside_the_last(tmp_path):
    """Even where there still is one in the place that the run was copied from."""
    from types import SimpleNamespace

    from chatbot_sft.train import snapshot

    for place in ("before", "now"):
        planted(tmp_path / place, 2)
    last = planted(tmp_path / "now", 4)
    known = {"best_model_checkpoint": str(tmp_path / "before" / "checkpoint-2"), "best_global_step": 2}
    write_json(last / "trainer_state.json", {"global_step": 4, "log_history": [], **known})
    args = SimpleNamespace(process_index=0, local_process_index=0)
    checkpoint = checkpoints.Checkpoint(last, {})
    assert snapshot.state(checkpoint, args).best_model_checkpoint == str(tmp_path / "now" / "checkpoint-2")
    shutil.rmtree(tmp_path / "now" / "checkpoint-2")
    assert snapshot.state(checkpoint, args).best_model_checkpoint is None


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (
            "11 trained (12 of a.json)",
            "dataset (training rows): 10 trained (10 of a.json) → 11 trained (12 of a.json)",
        ),
        (
            "10 trained (10 of a.json)",
            "dataset (training rows): 10 trained (10 of a.json), as before, but not the same ones",
        ),
        (None, "dataset (training rows) aaaa → bbbb"),  # an earlier version's checkpoint does not say it
    ],
)
def test_other_rows_are_told_by_their_number_and_their_files(now, said, tmp_path):
    before = resume.Origin(identity={ROWS: "aaaa"}, rows="10 trained (10 of a.json)")
    record = resume.record(before, 4, 1.0, True, {}, {})
    if now is None:
        del record["rows"]
    origin = resume.Origin(
        checkpoint=checkpoints.Checkpoint(tmp_path / "checkpoint-4", record), rows=now or ""
    )
    with pytest.raises(UserError) as caught:
        resume.refuse_changes(origin, {ROWS: "bbbb"}, whole=False)
    assert f"was trained with other settings: {said}" in str(caught.value)
