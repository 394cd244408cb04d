"""What is different here from where a run was trained: each class planted, named, refused, and allowed."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from conftest import a_report, composed, conversations, write_json

from chatbot_sft.config import Config, effects
from chatbot_sft.config.schema import WEIGHTS
from chatbot_sft.errors import UserError
from chatbot_sft.model import hardware
from chatbot_sft.replay import evidence
from chatbot_sft.replay.again import Again, check_overrides
from chatbot_sft.replay.changes import Change, of_what_is_known, refusal
from chatbot_sft.replay.places import Places
from chatbot_sft.run.directory import Run
from chatbot_sft.run.fingerprint import data_mark
from chatbot_sft.run.lock import Lock
from chatbot_sft.run.provenance import Provenance
from chatbot_sft.run.versions import versions

DECIDES = {
    "model.engine": "transformers",
    "training.loop": "native",
    "training.optim": "adamw_torch",
    "model.dtype": "float32",
    "seed": 1,
}


def a_base(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run directory as a completed training left it, with a lock that says what is here."""
    monkeypatch.chdir(tmp_path)
    a_base(tmp_path / "base")
    write_json(tmp_path / "chats.json", conversations(3))
    place = Run(tmp_path / "run")
    place.folder.mkdir()
    config = composed(
        place.folder,
        "model=local",
        "model.name=base",
        "dataset.data_path=chats.json",
        "training.report_to=none",
        "seed=1",
    )
    settings = Config.from_mapping({**config, "paths": {"output_dir": "run"}})
    explained = Provenance(
        command="python -m chatbot_sft",
        folder=str(tmp_path),
        seeds={"seed": 1},
        driver=evidence.driver(),
        template="t",
        files=evidence.files(settings),
        code=evidence.code(settings),
    )
    lock = Lock(
        DECIDES, "tokenizer", "2026-11-29T12:00:00", versions(), hardware.device(), threads=2,
        config=settings.to_dict(), provenance=explained,
    )  # fmt: skip
    place.write_lock(lock)
    history = [{"step": step, "loss": 2.0} for step in (1, 2)]
    report = a_report()
    write_json(place.report_file, {**report, "training": {**report["training"], "history": history}})
    place.steps_file.write_text("".join(f'{{"step": {step}, "loss": 2.0}}\n' for step in (1, 2, 3, 4)))
    return place


def edited(run: Run, **parts) -> None:
    """Its lock says otherwise: parts of it, those of the provenance by their own names; {} empties one."""
    lock = json.loads(run.lock_file.read_text())
    for name, value in parts.items():
        holder = lock if name in lock else lock["provenance"]
        holder[name] = {**holder[name], **value} if isinstance(value, dict) and value else value
    write_json(run.lock_file, lock)


def again(run: Run, *allow: str, **named) -> Again:
    """What the command would train; `named` are sections with the files that it names."""
    config = {"task": "replay", "run": str(run.folder), "replay": {"allow": list(allow)}, **named}
    config["paths"] = {"output_dir": str(run.folder.parent / "again")}
    names = [f"{section}.{key}" for section, values in named.items() for key in values]
    return Again.of(Config.from_mapping(config), names)


def test_nothing_is_different_where_it_was_trained(run, caplog):
    caplog.set_level("INFO")
    found = again(run)
    assert found.changes == []
    assert "nothing is different here" not in caplog.text  # the rows and the engine are not known yet
    found.hold(replace(run.lock(), decides={"seed": 1}))
    assert "nothing is different here" not in caplog.text
    found.hold(run.lock())
    assert "replay: nothing is different here" in caplog.text
    settings = found.settings
    assert (settings.task, settings.run, settings.save.methods) == ("train", None, [])
    assert (settings.model.engine, settings.training.loop, settings.training.optim) == (
        "transformers",
        "native",
        "adamw_torch",
    )
    assert settings.training.resume == "never"
    assert Path(settings.training.output_dir) == run.folder.parent / "again" / "checkpoints"
    assert found.origin.started.isoformat() == "2026-11-29T12:00:00"
    assert found.origin.pinned is found


PLANTED = {
    "versions": ({"versions": {"torch": "1.0"}}, r"versions: torch 1.0 → "),
    "device": ({"device": "NVIDIA H100"}, r"device: computes on NVIDIA H100 → "),
    "code": ({"code": {"sha256": "0" * 64}}, r"code: chatbot_sft 0{16}.* → "),
}


@pytest.mark.parametrize("of", PLANTED)
def test_what_decides_stops_unless_it_is_allowed(of, run, caplog):
    caplog.set_level("INFO")
    parts, said = PLANTED[of]
    edited(run, **parts)
    with pytest.raises(UserError, match=said) as error:
        again(run)
    assert str(error.value).endswith(f"replay.allow=[{of}]")
    allowed = again(run, of)
    (change,) = allowed.changes
    assert change.of == of
    effects.refuse(allowed.settings)  # as a training begins
    assert f"replay: different here: {of}: " in caplog.text


@pytest.mark.parametrize(
    "parts",
    [
        {"driver": "580.1"},
        {"versions": {"platform": "Linux-1", "hydra-core": "1.0", "unsloth": "2020.1.1"}},
    ],
)
def test_what_decides_nothing_is_said_and_stops_nothing(parts, run, caplog):
    caplog.set_level("INFO")
    edited(run, **parts)
    assert not any(change.decides for change in again(run).changes)
    assert "(decides nothing)" in caplog.text


def test_another_python_decides_by_its_minor_version(run):
    edited(run, versions={"python": f"{versions()['python']}.1"})
    assert [change.decides for change in again(run).changes] == [False]
    edited(run, versions={"python": "3.4.1"})
    with pytest.raises(UserError, match=r"versions: python 3.4.1 → 3"):
        again(run)


def test_data_that_changed_are_named_with_their_hashes(run):
    before = evidence.data(again(run).settings)[0]
    file = write_json(run.folder.parent / "chats.json", conversations(4))
    said = (
        rf"data: .*/chats.json SHA-256 {before.short}, {before.bytes} bytes → .*, {file.stat().st_size} bytes; make it"
        r" as it was, name where it is as it was \(dataset.data_path=PATH\), or compare all the same:"
        r" replay.allow=\[data\]$"
    )
    with pytest.raises(UserError, match=said):
        again(run)
    two = write_json(run.folder.parent / "two.json", conversations(2))
    said = rf"data: .*/two.json in place of .*/chats.json SHA-256 {before.short}, .* → "
    with pytest.raises(UserError, match=said):
        again(run, dataset={"data_path": str(two)})
    held_out = write_json(run.folder.parent / "held_out.json", conversations(2))
    edited(run, files={"data": [asdict(before), {**asdict(data_mark(held_out)), "sha256": "0" * 64}]})
    with pytest.raises(
        UserError, match=r"held_out.json .*\(dataset.data_path=PATH, dataset.eval_data_path=PATH\), or"
    ):
        again(run, dataset={"eval_data_path": str(held_out)})
    (change,) = again(run, "data", "versions").changes
    assert change.of == "data"


def test_data_that_are_gone_are_named_and_can_be_named_anew(run, tmp_path):
    mark = evidence.data(again(run).settings)[0]
    place = (run.folder.parent / "chats.json").rename(tmp_path / "renamed.json")
    with pytest.raises(
        UserError,
        match=rf"its data are not here: .*chats.json had SHA-256 {mark.sha256}.*dataset.data_path=PATH$",
    ):
        again(run, "data")
    found = again(run, dataset={"data_path": str(place)})
    assert (found.changes, found.settings.dataset.data_path) == ([], str(place))


def test_a_base_that_changed_or_is_gone_is_named(run):
    base = run.folder.parent / "base"
    (base / "model.safetensors").write_bytes(b"WEIGHTS")
    with pytest.raises(
        UserError, match=r"weights: .*/base/model.safetensors SHA-256 .*replay.allow=\[weights\]$"
    ):
        again(run)
    said = (
        r"model.name=nope: nothing that could be read there; the run read .*/base: name where that is now, or"
    )
    with pytest.raises(UserError, match=said):
        again(run, "weights", model={"name": "nope"})
    shutil.rmtree(base)
    with pytest.raises(
        UserError, match=r"model.name: .*/base is gone \(config.json had SHA-256 .*model.name=PATH$"
    ):
        again(run, "weights")


def test_what_the_data_and_the_engine_show_is_judged_by_its_class(run):
    lock = run.lock()
    now = Lock(
        {**DECIDES, "dataset (training rows)": "b", "model.engine": "unsloth", "seed": 2},
        "other",
        lock.date,
        {},
        "",
    )
    found = {change.of: change for change in of_what_is_known(lock, now)}
    assert set(found) == {"tokenizer", "device", "settings", "data"}
    assert (found["device"].what, found["device"].before) == ("model.engine", "transformers")
    found = of_what_is_known(now, lock)
    assert {change.of for change in found} == {"tokenizer", "device", "settings", "data"}
    # What only an imported engine says is not known yet.
    early = Lock({"seed": 1}, lock.tokenizer, lock.date, {}, "")
    assert of_what_is_known(lock, early) == []
    assert refusal(found, ["tokenizer", "device", "settings", "data"]) is None
    assert refusal(found, ["data"]).endswith("replay.allow=[device,data,tokenizer,settings]")


def test_a_base_by_another_name_is_the_same(run):
    lock = replace(run.lock(), decides={WEIGHTS: "base 12ab"})
    assert of_what_is_known(lock, replace(lock, decides={WEIGHTS: "other 12ab"})) == []
    (change,) = of_what_is_known(lock, replace(lock, decides={WEIGHTS: "base 34cd"}))
    assert change.of == "weights"
    moved = (run.folder.parent / "base").rename(run.folder.parent / "other")
    assert again(run, model={"name": str(moved)}).changes == []


def test_many_differences_are_one_line():
    changes = [Change("versions", f"package{number}", "1", "2") for number in range(9)]
    assert "package3 1 → 2 and 5 more; " in refusal(changes, [])


@pytest.mark.parametrize("task", ["check", "plan", "export", "evaluate", "verify"])
def test_what_trained_nothing_is_not_replayed(task, run):
    report = json.loads(run.report_file.read_text())
    write_json(run.report_file, {**report, "task": task, "training": {}})
    with pytest.raises(
        UserError, match=rf"the directory of a task={task}, which trains nothing; name that of a training$"
    ):
        again(run)


def test_what_cannot_be_replayed_says_why(run):
    report = json.loads(run.report_file.read_text())
    lock, steps = run.lock_file.read_text(), run.steps_file.read_text()
    write_json(run.report_file, {**report, "training": {}, "status": "failed", "error": "memory ran out"})
    run.steps_file.unlink()
    with pytest.raises(UserError, match="it ended before its first step; there is nothing to compare with"):
        again(run)
    run.lock_file.unlink()
    with pytest.raises(
        UserError, match=r"no run.lock.json in it: .*and ended before that \(memory ran out\)"
    ):
        again(run)
    run.lock_file.write_text(lock)
    run.steps_file.write_text(steps)
    write_json(run.report_file, report)
    edited(run, processes=2)
    with pytest.raises(
        UserError, match=r"trained by 2 processes, and here is 1; .*torchrun --nproc-per-node 2$"
    ):
        again(run)
    run.lock_file.write_text("{")
    with pytest.raises(UserError, match=r"run.lock.json: cannot be read"):
        again(run)
    run.report_file.write_text("{")
    with pytest.raises(UserError, match=r"its report.json cannot be read"):
        again(run)
    with pytest.raises(UserError, match="no such folder"):
        again(Run(run.folder / "nowhere"))


def test_a_replay_is_never_written_over_its_run(run):
    config = {"task": "replay", "run": str(run.folder), "paths": {"output_dir": str(run.folder)}}
    with pytest.raises(UserError, match="the replay would write into that run"):
        Again.of(Config.from_mapping(config), [])


def test_a_run_that_went_on_from_another_begins_there_again(run, tmp_path):
    report = json.loads(run.report_file.read_text())
    entry = {"step": 4, "time": "", "checkpoint": str(tmp_path / "other" / "checkpoint-4"), "asked": "other"}
    for more in ({}, {"own": False, "extended": False}):
        report["training"]["resumes"] = [{**entry, **more}]
        write_json(run.report_file, report)
        with pytest.raises(
            UserError, match=r"it began there: .*other/checkpoint-4, which is not there any more"
        ):
            again(run)
    report["training"]["resumes"] = [{**entry, "asked": "auto", "own": True, "extended": True}]
    write_json(run.report_file, report)
    with pytest.raises(UserError, match="it had come to its end there, and got a new schedule"):
        again(run)
    report["training"]["resumes"] = [{**entry, "asked": "auto", "own": True, "extended": False}]
    write_json(run.report_file, report)
    assert again(run).settings.training.resume == "never"


def test_a_secret_that_is_not_set_is_asked_for(run, monkeypatch):
    lock = json.loads(run.lock_file.read_text())
    lock["config"]["dataset"]["system_prompt"] = "${oc.env:MY_TOKEN}"
    write_json(run.lock_file, lock)
    with pytest.raises(UserError, match="the environment variable MY_TOKEN holds, and that is not set"):
        again(run)
    monkeypatch.setenv("MY_TOKEN", "a-long-secret-value")
    assert again(run).settings.dataset.system_prompt == "a-long-secret-value"


def test_code_of_a_model_runs_only_where_who_replays_says_so(run):
    lock = json.loads(run.lock_file.read_text())
    lock["config"]["model"]["trust_remote_code"] = True
    write_json(run.lock_file, lock)
    with pytest.raises(UserError, match=r"add model\.trust_remote_code=true, if you trust"):
        again(run)
    assert again(run, model={"trust_remote_code": True}).settings.model.trust_remote_code
    check_overrides(["model.trust_remote_code=true"])


@pytest.mark.parametrize("loop", ["native", "trl"])  # trl: the report has steps 1 and 2 of it
@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (None, "it is gone"),
        ([], "none can be read"),
        (["hello"], "none can be read"),
        (['{"step": 1}', '{"ste'], "step 2 of 4 is not in it, or cannot be read"),
        (['{"step": 2}', '{"step": 3}', '{"step": 4}'], "step 1 of 4 is not in it, or cannot be read"),
    ],
)
def test_a_completed_run_without_its_steps_is_refused_before_it_is_trained_again(lines, said, loop, run):
    edited(run, decides={"training.loop": loop})
    run.steps_file.unlink()
    if lines is not None:
        run.steps_file.write_text("\n".join(lines))
    with pytest.raises(UserError, match=rf"/run/steps.jsonl: {said}; take it from a copy of the run$"):
        again(run)


@pytest.mark.parametrize("section", ["paths", "model", "dataset", "training"])
def test_damaged_settings_are_one_line(section, run):
    lock = json.loads(run.lock_file.read_text())
    del lock["config"][section]
    write_json(run.lock_file, lock)
    with pytest.raises(UserError, match=f"its settings are damaged: there is no {section} in them"):
        again(run)


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [
        (
            "batch_layout",
            {"packs": "all"},
            r"batch_layout: no way to cut .* \(packs=all\); take it from a copy",
        ),
        ("batch_layout", {"packs": 0}, r"batch_layout: no way to cut .* \(packs=0\); "),
        (
            "batch_layout",
            {"packs": 2, "packed": 1},
            r"batch_layout: no way to cut .* \(packs=2, packed=1\); ",
        ),
        ("batch_layout", {"rows": 2}, r"batch_layout: .* by another version of chatbot_sft \(rows=2\)"),
        (
            "config",
            {"seed": "x"},
            r"its settings are damaged, or of another version: seed='x': .*; take them",
        ),
        (
            "decides",
            {"seed": 2},
            (
                r"its run.lock.json was edited, or is damaged: its decides and its config say two things: seed 2 → 1;"
                " take it from a copy$"
            ),
        ),
        ("config", {}, "its run.lock.json is damaged: no config in it; take it from a copy$"),
        ("decides", {"model.engine": 7}, r"its settings are damaged, or of another version: model.engine=7"),
    ],
)
def test_damaged_parts_of_a_lock_are_one_line(part, value, said, run):
    edited(run, **{part: value})
    with pytest.raises(UserError, match=f"^run=.*/run: {said}"):
        again(run)


def test_a_sweep_names_its_runs(run, tmp_path):
    with pytest.raises(
        UserError, match=r"no run.lock.json in it: .*it is a folder of 1 run, name one: run=.*/run$"
    ):
        again(Run(tmp_path))


def test_a_command_names_nothing_but_places(run):
    check_overrides(["task=replay", "run=x", "replay.allow=[data]", "dataset.data_path=y", "hydra.run.dir=z"])
    for word in ("lora.r=8", "+training.seed=1", "model=local", "dataset.eval_fraction=0"):
        with pytest.raises(
            UserError, match="task=replay takes everything from the run but where its files are now"
        ):
            check_overrides([word])
    with pytest.raises(UserError, match=r"replay.allow=everything: not one of versions, device"):
        again(run, "everything")


def test_files_are_found_where_they_went_with_the_run(tmp_path):
    there, here = tmp_path / "there", tmp_path / "here"
    a_base(here / "base")
    (here / "data").mkdir()
    write_json(here / "data" / "a.json", [])
    places = Places(there, there / "outputs" / "run", here / "outputs" / "run")
    config = {
        "model": {"name": str(there / "base"), "adapter": None, "chat_template": None},
        "dataset": {
            "data_path": "data/*.json",
            "eval_data_path": "org/rows",
            "sources": [{"data_path": "data/a.json"}, {"data_path": "org/rows"}],
        },
        "evaluation": {"golden": "gone.jsonl"},
        "objective": {"reference": None},
    }
    found = places.config(config)
    assert found["model"]["name"] == str(here / "base")
    assert found["dataset"]["data_path"] == str(here / "data" / "*.json")
    assert found["dataset"]["eval_data_path"] == "org/rows"
    assert [source["data_path"] for source in found["dataset"]["sources"]] == [
        str(here / "data" / "a.json"),
        "org/rows",
    ]
    assert found["evaluation"]["golden"] == str(there / "gone.jsonl")  # where it was: it is named so
    assert config["model"]["name"] == str(there / "base")
    for name in ("smollm2", "org/model"):
        assert places.config({**config, "model": {"name": name}})["model"]["name"] == name
    # The one that the run read wins, wherever else one of its name is.
    for name in ("data/a.json", "base/model.safetensors", "gone.jsonl"):
        (there / name).parent.mkdir(parents=True, exist_ok=True)
        (there / name).write_text("[1]")
    files = [here / "data" / "a.json", here / "base" / "model.safetensors"]
    marks = [replace(data_mark(file), path=str(there / file.relative_to(here))) for file in files]
    found = replace(places, marks=marks).config(config)
    assert found["model"]["name"] == str(here / "base")
    assert found["dataset"]["data_path"] == str(here / "data" / "*.json")
    assert found["dataset"]["sources"][0]["data_path"] == str(here / "data" / "a.json")
    assert found["evaluation"]["golden"] == str(there / "gone.jsonl")
    assert places.config(config)["model"]["name"] == str(there / "base")  # of which nothing is known
    # The examples of another installation.
    example = places.place("/usr/lib/chatbot_sft/examples/white_crane.jsonl")
    assert example.is_file()
