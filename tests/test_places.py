"""Where a run may write: `save.overwrite` replaces exports of ours and nothing else, and nothing is written
over the base or the data.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import only_error, write_json

from chatbot_sft import places
from chatbot_sft.cache import build_folder
from chatbot_sft.config import Config
from chatbot_sft.errors import UserError
from chatbot_sft.places import MARK, check_export, check_run
from chatbot_sft.save.saver import ModelSaver
from chatbot_sft.train import resume


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a base, data, a run and what else a user has; the current folder."""
    home = tmp_path / "home"
    here = home / "project"
    for folder in ("models/base", "data/more", "runs/one/checkpoints", "notes", "empty"):
        (here / folder).mkdir(parents=True)
    (here / "models/base/config.json").write_text("{}")
    (here / "models/base/model.safetensors").write_bytes(b"weights")
    (here / "data/chats.json").write_text("[]")
    (here / "data/more/chats.jsonl").write_text("{}")
    (here / "runs/one/run.log").write_text("log")
    (here / "notes/mine.txt").write_text("mine")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("CHATBOT_SFT_CACHE", str(home / ".cache" / "chatbot_sft"))
    monkeypatch.setenv("HF_HOME", str(home / ".cache" / "huggingface"))
    monkeypatch.chdir(here)
    return here


def settings(
    save_path="out", method="lora", overwrite=True, data="data/chats.json", run="runs/one", **training
) -> Config:
    return Config.from_mapping(
        {
            "paths": {"output_dir": str(Path(run).absolute())},
            "model": {"name": str(Path("models/base").absolute())},
            "dataset": {"data_path": data},
            "training": {"output_dir": f"{run}/checkpoints", **training},
            "save": {"save_path": save_path, "method": method, "overwrite": overwrite},
        }
    )


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def export(folder: Path, method: str = "lora", **others: str) -> Path:
    """What an earlier run saved in `folder`."""

    def build(made: Path) -> None:
        (made / "adapter_model.safetensors").write_bytes(b"old")
        found = {"method": method, "path": str(folder), "files": {"adapter_model.safetensors": 3}}
        write_json(made / MARK, {"made_from": {"weights": "x"}, "export": found})

    build_folder(folder, build)
    for name, text in others.items():
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (".", "not a folder of its own"),
        ("..", "not a folder of its own"),
        ("./", "not a folder of its own"),
        ("../..", "not a folder of its own"),
        ("/", "not a folder of its own"),
        ("~", "not a folder of its own"),
        ("~/", "in it; name a folder of its own"),
        ("~/project", "in it; name a folder of its own"),
        ("../project", "in it; name a folder of its own"),
        ("models/base", "model.name=.* is there; name a folder of its own"),
        ("models/../models/base/", "model.name=.* is there; name a folder of its own"),
        ("models", "model.name=.* is in it; name a folder of its own"),
        ("link_to_base", "model.name=.* is there; name a folder of its own"),
        ("data", r"the data \(data/chats.json\) is in it; name a folder of its own"),
        ("link_to_data", r"the data \(data/chats.json\) is in it"),
        ("data/chats.json", "the data .* is there"),
        ("runs/one", "the run directory is there; name a folder of its own"),
        ("runs", "the run directory is in it"),
        ("runs/one/checkpoints", "checkpoints come and go there"),
        ("runs/one/checkpoints/checkpoint-5", "checkpoints come and go there"),
        ("runs/one/checkpoints/.saving", "checkpoints come and go there"),
        ("notes", "not empty, and no export of this program"),
        ("link_to_notes", "not empty, and no export of this program"),
        ("notes/mine.txt", "a file of that name is in the way"),
        ("~/.cache/huggingface/hub", "the cache of the Hugging Face hub"),
        ("~/.cache/huggingface/hub/models--a--b/snapshots/c", "in the cache of the Hugging Face hub"),
        ("~/.cache", "the cache of this program is in it"),
        ("~/.cache/chatbot_sft/models", "in the cache of this program"),
    ],
)
@pytest.mark.parametrize("method", ["lora", ["lora", "gguf"]])
def test_overwrite_replaces_nothing_that_is_no_export(path, expected, method, project):
    for name, target in (
        ("link_to_base", "models/base"),
        ("link_to_data", "data"),
        ("link_to_notes", "notes"),
    ):
        (project / name).symlink_to(project / target)
    if method != "lora" and "notes" in path and "mine" not in path:
        (project / "notes" / "lora").mkdir()
        (project / "notes" / "lora" / "mine.txt").write_text("mine")
    before = everything(project)
    saver = ModelSaver(settings(path, method))
    if method != "lora" and "mine.txt" in path:
        return  # several exports have folders in it, which a file does not
    with pytest.raises(UserError, match=rf"save\.save_path=.*: .*{expected}"):
        for target in places.targets(saver.settings).values():
            check_export(saver.settings, target)
    assert everything(project) == before


def test_what_is_free_may_be_written(project):
    for path in (
        "out",
        "empty",
        "runs/one/model",
        "runs/one/checkpoints/final_model",
        "models/new",
        "data/adapter",
        "~/models/bot",
    ):
        place = settings(path, overwrite=False)
        check_export(place, Path(place.save.save_path))
    assert settings("~/models/bot").save.save_path == str(project.parent / "models" / "bot")


def test_an_export_is_replaced_when_told_and_only_if_nothing_else_is_in_it(project):
    old = export(project / "out")
    with pytest.raises(
        UserError,
        match=r"save\.save_path=out: not empty; name another folder, remove it, or set save\.overwrite=true",
    ):
        check_export(settings(overwrite=False), old)
    check_export(settings(), old)
    (old / "notes.md").write_text("what I found when I talked to it")
    with pytest.raises(
        UserError, match=r"notes\.md in it is not part of the export that is there; move it away"
    ):
        check_export(settings(), old)
    (old / "notes.md").unlink()
    (old / "data").symlink_to(project / "data")
    with pytest.raises(UserError, match=r": data in it is not part of the export"):
        check_export(settings(), old)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"export": []}',
        '{"made_from": {}, "export": {}}',
        "[" * 100_000,
        "\ud800",
    ],
)
def test_a_foreign_or_damaged_mark_is_none(text, project):
    place = project / "out"
    place.mkdir()
    (place / MARK).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(UserError, match="not empty, and no export of this program"):
        check_export(settings(), place)


def test_a_gguf_file_is_replaced_only_if_it_is_ours(project):
    target = project / "bot.gguf"
    for content in (b"GGUF" + bytes(100), b"", b"my notes"):
        target.write_bytes(content)
        with pytest.raises(UserError, match="the file there was not made by this program"):
            check_export(settings("bot.gguf", "gguf"), target)
        assert target.read_bytes() == content
    target.write_bytes(b"GGUF" + bytes(20) + b"chatbot_sft")
    check_export(settings("bot.gguf", "gguf"), target)
    with pytest.raises(
        UserError, match=r"a file of that name is in the way \(save.overwrite=true replaces it\)"
    ):
        check_export(settings("bot.gguf", "gguf", overwrite=False), target)
    target.unlink()
    target.mkdir()
    with pytest.raises(UserError, match="a folder of that name is in the way"):
        check_export(settings("bot.gguf", "gguf"), target)


@pytest.mark.parametrize("beside", ["README.md", "README.Modelfile"])
def test_what_is_written_beside_a_gguf_file_is_not_written_over(beside, project):
    (project / beside).write_text("my project")
    with pytest.raises(UserError, match=f"{beside} would be written beside it, and is there already"):
        check_export(settings("README.gguf", "gguf", overwrite=False), project / "README.gguf")


def test_the_adapter_beside_a_failed_export_takes_no_folder_that_is_there(project, monkeypatch):
    from chatbot_sft.save import saver as module

    (project / "runs/one/model-adapter").mkdir()
    (project / "runs/one/model-adapter/mine.txt").write_text("mine")
    monkeypatch.setattr(
        module, "write_adapter", lambda trained, folder: (folder / "adapter_config.json").write_text("{}")
    )

    class Trained:
        fingerprint = "x"

    saver = ModelSaver(settings("runs/one/model", "merged_16bit"))
    made = saver._beside(Trained())
    assert made.name == "model-adapter.2"
    assert saver._beside(Trained()) == made  # its own is replaced when the same run fails again
    assert (project / "runs/one/model-adapter/mine.txt").read_text() == "mine"


# ---- the folder itself


def test_whoever_reads_an_export_goes_on_while_it_is_replaced(tmp_path):
    place = build_folder(tmp_path / "out", lambda folder: (folder / "weights").write_bytes(b"old" * 100))
    with (place / "weights").open("rb") as reader:
        reader.read(30)
        build_folder(place, lambda folder: (folder / "weights").write_bytes(b"new"), replace=True)
        assert reader.read() == b"old" * 90
    assert (place / "weights").read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("when", ["building", "renaming"])
def test_a_replacement_that_fails_leaves_the_export_that_was_there(when, tmp_path, monkeypatch):
    place = export(tmp_path / "out")
    rename = Path.rename

    def failing(self, target):
        if when == "renaming" and self.name == "out" and Path(target) == place:
            raise OSError(28, "No space left on device")
        return rename(self, target)

    def build(folder):
        (folder / "half").write_bytes(b"x")
        if when == "building":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="No space left"):
        build_folder(place, build, replace=True)
    assert sorted(path.name for path in place.iterdir()) == ["adapter_model.safetensors", MARK]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# ---- the run directory and the checkpoint folder


@pytest.mark.parametrize(
    ("run", "data", "expected"),
    [
        (
            "models/base",
            "data/chats.json",
            "hydra.run.dir=.*models/base: model.name=.* is there; name a folder of its own",
        ),
        ("data", "data", r"hydra.run.dir=.*data: the data \(data\) is there"),
        (
            "data/runs/one",
            "data",
            "it is in a folder of data .*, and the run's own files would be read as data",
        ),
        ("data", "data/report.json", "the run would write its own report.json over the data"),
        ("data", "data/*.json", "the run would write its own report.json over the data"),
    ],
)
def test_a_run_directory_is_no_folder_of_the_base_or_the_data(run, data, expected, project):
    (project / "data" / "report.json").write_text("[]")
    with pytest.raises(UserError, match=expected):
        check_run(settings(run=run, data=data))


def test_a_run_directory_may_be_the_current_folder(project):
    check_run(settings(run="."))
    check_run(settings(run="data"))


@pytest.mark.parametrize(
    ("output_dir", "expected"),
    [
        ("", ": is empty"),
        (".", "not a folder of its own"),
        ("..", "not a folder of its own"),
        ("~", "not a folder of its own"),
        ("/", "not a folder of its own"),
        ("models/base", "that is model.name=.*; name a folder of its own"),
        ("link", "that is model.name="),
        ("models", "model.name=.* is in it, and old checkpoints are moved out of the way there"),
        ("data", r"that is the data \(data\)"),
        ("runs/../../project", "model.name=.* is in it"),
        ("other", "checkpoint-500 there is not of this program"),
    ],
)
def test_a_checkpoint_folder_is_of_its_own(output_dir, expected, project):
    (project / "link").symlink_to(project / "models/base")
    (project / "other" / "checkpoint-500").mkdir(parents=True)
    (project / "other" / "checkpoint-500" / "trainer_state.json").write_text("{}")
    before = everything(project)
    with pytest.raises(UserError, match=rf"training\.output_dir(=.*)?{expected}"):
        check_run(settings(data="data", output_dir=output_dir))
    assert everything(project) == before


def test_a_tilde_in_a_path_is_the_home_folder_for_all_of_the_program(project):
    """transformers expands it, and writes where nobody else looks."""
    made = settings(output_dir="~/ck", save_path="~/out")
    assert (made.training.output_dir, made.save.save_path) == (
        str(Path.home() / "ck"),
        str(Path.home() / "out"),
    )


def test_only_what_a_killed_export_left_is_removed(project):
    made = settings("runs/one/model")
    run = project / "runs/one"
    mine = run / ".model.backup"
    mine.mkdir()
    (mine / "weights").write_bytes(b"mine")
    killed = Path(places.__file__)  # any file
    work = run / ".model.a1b2c3_d"
    (work / "model").mkdir(parents=True)
    work.chmod(0o700)
    shutil.copy(killed, work / "model")
    resume.settle(resume.Origin(), made)
    assert mine.is_dir()
    assert not work.exists()


# ---- seen by a user


@pytest.mark.parametrize(
    "key",
    [
        "save.save_path=.",
        "save.save_path=",
        "save.save_path=base",
        "save.save_path=data",
        "save.save_path=run",
        "hydra.run.dir=base",
    ],
)
def test_it_is_refused_before_training(key, tiny, tiny_llama, launch, tmp_path):
    base = shutil.copytree(tiny_llama, tmp_path / "base")
    (tmp_path / "data").mkdir()
    data = shutil.copy(tiny[4].partition("=")[2], tmp_path / "data")
    before = everything(base) | everything(tmp_path / "data")
    arguments = [
        *tiny,
        f"model.name={base}",
        f"dataset.data_path={data}",
        "save.overwrite=true",
        "hydra.run.dir=run",
        key,
    ]
    error = only_error(launch(*arguments))
    assert error.startswith(key.partition("=")[0])
    assert before.items() <= (everything(base) | everything(tmp_path / "data")).items()
    assert not (tmp_path / "run" / "checkpoints").exists()
    if (tmp_path / "run" / "report.json").exists():
        assert json.loads((tmp_path / "run" / "report.json").read_text())["status"] == "failed"


@pytest.mark.parametrize(
    "taken", ["save.save_path=out: not empty", "training.output_dir=base: that is model.name="]
)
def test_the_python_api_refuses_a_taken_place_before_it_trains(taken, project, monkeypatch):
    from chatbot_sft import SFTTrainerWrapper
    from chatbot_sft.train import session as module

    class Rows:
        column_names = ("input_ids", "labels")

    monkeypatch.setattr(module, "engine_of", lambda settings: [None])
    (project / "base").symlink_to("models/base")
    export(project / "out")
    made = settings(overwrite=False) if "save" in taken else settings("new", output_dir="base")
    with pytest.raises(UserError, match=taken):
        SFTTrainerWrapper(made, None, None, Rows()).setup_and_train()


def test_the_python_api_says_where_it_saved(project, monkeypatch, capsys):
    from chatbot_sft import SFTTrainerWrapper
    from chatbot_sft.save.saver import Export, SaveResult
    from chatbot_sft.train import session as module

    class Rows:
        column_names = ("input_ids", "labels")

    class Saver:
        def save(self, save_config):
            return SaveResult(
                "lora", "out", exports=[Export("lora", "out", verified=True), Export("gguf", "out/bot.gguf")]
            )

    monkeypatch.setattr(module, "engine_of", lambda settings: [None])
    wrapper = SFTTrainerWrapper(settings(), None, None, Rows())
    monkeypatch.setattr(wrapper, "saver", Saver)
    wrapper.save_model()
    assert (
        capsys.readouterr().out
        == f"saved lora, verified: {project}/out\nsaved gguf: {project}/out/bot.gguf\n"
    )
