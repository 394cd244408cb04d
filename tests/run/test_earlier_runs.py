"""Earlier runs: exported, found again where they were moved to, gone on from; and what is said of those that
are damaged.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import MODEL, a_report, only_error, report_of, write_json
from test_checkpoints import flipped, planted

from chatbot_sft.config import Config
from chatbot_sft.errors import UserError
from chatbot_sft.export import Earlier, earlier_saver
from chatbot_sft.model.base import description, located, moved

REPORT = a_report()
EVIDENCE = {
    "rows": [],
    "prompts": [],
    "longest_answer": 1,
    "ends": [2],
    "system_prompt": None,
    "date": "2026-01-02",
}


def base(folder: Path, content: str = "{}") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(content)
    (folder / "model.safetensors").write_bytes(b"weights of the base")
    return folder


@pytest.fixture
def run(tmp_path):
    """A run directory as a completed training left it, and its base beside it."""
    folder = tmp_path / "project" / "run"
    config = Config.from_mapping(
        {
            "model": {"name": str(base(tmp_path / "project" / "base"))},
            "training": {"output_dir": str(folder / "checkpoints")},
        }
    )
    planted(
        folder / "checkpoints", 4, finished=True, identity={"lora.r": 16, "lora.lora_alpha": 16, "seed": 1}
    )
    write_json(
        folder / "report.json",
        {**REPORT, "model": {**MODEL, "name": config.model.name, "base": description(config, folder)}},
    )
    write_json(folder / "config.yaml", config.to_dict())
    write_json(folder / "evidence.json", EVIDENCE)
    return folder


def test_a_run_is_found_by_any_way_that_leads_to_it(run, tmp_path, monkeypatch):
    monkeypatch.chdir(run.parent)
    (tmp_path / "link").symlink_to(run)
    for way in (run, Path("run"), Path("run/"), Path("../project/run"), tmp_path / "link"):
        assert Earlier.find(way).weights.name == "checkpoint-4"


BAD = {
    "report.json": {
        "cut": ('{"task": "train"', "its report.json cannot be read"),
        "empty": ("", "its report.json cannot be read"),
        "a list": ("[]", "its report.json is damaged: it is no object"),
        "null": ("null", "its report.json is damaged: it is no object"),
        "deep": ("[" * 100_000, "its report.json cannot be read"),
        "without training": (
            json.dumps({**REPORT, "training": None}),
            "its report.json is damaged: training is missing",
        ),
        "with a list for save": (
            json.dumps({**REPORT, "save": []}),
            "its report.json is damaged: save is of another kind",
        ),
        "of a check": (
            json.dumps({**REPORT, "training": {}, "task": "check"}),
            "the directory of a task=check, which trains nothing",
        ),
        "empty object": ("{}", "its report.json is damaged: task is missing"),
    },
    "config.yaml": {
        "cut": ("model: {name: ", "its config.yaml cannot be read"),
        "empty": ("", "its config.yaml is damaged: there is no model in it"),
        "a list": ("[1, 2]", "its config.yaml is damaged: there is no model in it"),
        "text": ("hello", "its config.yaml"),
        "Latin-1": ("model: \udce9", "its config.yaml cannot be read"),
        "another rank": (
            "{model: {name: /base}, lora: {r: 8}, training: {output_dir: x}}",
            r"its config.yaml was edited: lora.r 16 → 8; set it back",
        ),
        "an unknown key": (
            "{model: {name: /base}, lora: {rank: 8}, training: {output_dir: x}}",
            "lora.rank: no such key",
        ),
    },
    "evidence.json": {
        "cut": ('{"rows": [', "its evidence.json, by which exports are checked, cannot be read"),
        "a list": ("[]", "its evidence.json"),
        "empty object": ("{}", "its evidence.json"),
        "null": ("null", "its evidence.json"),
    },
}


@pytest.mark.parametrize(("file", "case"), [(file, case) for file, cases in BAD.items() for case in cases])
def test_a_damaged_run_is_one_line(file, case, run):
    text, expected = BAD[file][case]
    (run / file).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=expected) as error:
        Earlier.find(run)
    assert len(str(error.value)) < 700


def test_a_sweep_names_its_runs(tmp_path):
    for number in range(7):
        (tmp_path / str(number)).mkdir()
        write_json(tmp_path / str(number) / "report.json", REPORT)
    with pytest.raises(
        UserError,
        match=r"no report.json in it; it is a folder of 7 runs, name one: run=.*/0, run=.*/1, .*, …$",
    ):
        Earlier.find(tmp_path)
    with pytest.raises(UserError, match=r"nowhere: no such folder; name the directory of a run"):
        Earlier.find(tmp_path / "nowhere")


def test_a_damaged_checkpoint_is_not_exported(run, caplog):
    flipped("adapter_model.safetensors")(run / "checkpoints" / "checkpoint-4")
    with pytest.raises(
        UserError,
        match=(
            r"the checkpoint of step 4 is damaged \(adapter_model.safetensors is damaged .*\), and no adapter"
            r" was saved"
        ),
    ):
        Earlier.find(run)
    (run / "model").mkdir()
    write_json(run / "model" / "adapter_config.json", {})
    assert Earlier.find(run).weights == run / "model"
    assert "the adapter in" in caplog.text


def exporting(run: Path, folder: Path) -> dict:
    return {
        "task": "export",
        "model": {"trust_remote_code": False, "allow_pickle": False},
        "run": str(run),
        "save": {"method": "lora", "save_path": str(folder / "out")},
        "paths": {"output_dir": str(folder / "export")},
    }


def test_a_base_that_is_gone_is_named(run, tmp_path):
    shutil.rmtree(run.parent / "base")
    with pytest.raises(
        UserError,
        match=(
            r"the model it was trained on is not at .*/project/base any more, nor did it move along with"
            r" the run"
        ),
    ):
        earlier_saver(exporting(run, tmp_path), {})


def test_a_base_that_moved_with_its_run_is_found_and_another_one_is_not(run, tmp_path):
    project = run.parent.rename(tmp_path / "elsewhere")
    for beside in (
        project / "run",
        project / "run" / "checkpoints" / "checkpoint-4",
        project / "run" / "model" / "lora",
    ):
        assert moved(beside) == str(project / "base")
    assert Earlier.find(project / "run").config["model"]["name"] == str(project / "base")
    (project / "base" / "model.safetensors").write_bytes(b"weights of another")
    assert moved(project / "run") is None
    shutil.rmtree(project / "base")
    assert moved(project / "run") is None


@pytest.mark.parametrize(
    "report",
    [
        "",
        "[]",
        '{"model": []}',
        '{"model": {"base": {"relative": 5}}}',
        '{"model": {"base": {"relative": "../base"}}}',
    ],
)
def test_a_damaged_hint_is_none(report, run):
    (run / "report.json").write_text(report)
    assert moved(run) is None


@pytest.mark.parametrize(
    "name", ["models/base", "models/base/", "./models/base", "models/../models/base", "link", "~/models/base"]
)
def test_a_model_folder_is_written_out(name, tmp_path, monkeypatch):
    place = base(tmp_path / "models" / "base")
    (tmp_path / "link").symlink_to(place)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    found = located(Config.from_mapping({"model": {"name": name, "dtype": "float32"}})).model
    assert (found.name, found.dtype) == (str(place), "float32")


@pytest.mark.parametrize("model", [{}, {"name": "org/model"}, {"name": "smollm2"}, {"name": "/no"}])
def test_what_is_no_folder_stays_as_it_is(model):
    config = Config.from_mapping({"model": model})
    assert located(config) == config


def test_a_relative_model_is_found_from_anywhere_and_moves_with_its_run(launch, tiny, tiny_llama, tmp_path):
    """Trained with model.name=models/base; then all of it is moved, the data are deleted, and it is used from
    another folder, through a link.
    """
    project = tmp_path / "project"
    shutil.copytree(tiny_llama, project / "models" / "base")
    data = shutil.copy(tiny[4].partition("=")[2], project / "chats.json")
    process = launch(
        *tiny,
        "model.name=models/base",
        "dataset.data_path=chats.json",
        "save=lora",
        "save.verify=true",
        "hydra.run.dir=run",
        cwd=project,
    )
    assert process.returncode == 0, process.stderr
    for file in (
        project / "run" / "model" / "adapter_config.json",
        project / "run" / "checkpoints" / "checkpoint-2" / "adapter_config.json",
    ):
        assert json.loads(file.read_text())["base_model_name_or_path"] == str(project / "models" / "base")
    assert report_of(project)["model"]["name"] == str(project / "models" / "base")
    Path(data).unlink()
    project = project.rename(tmp_path / "moved")
    (tmp_path / "link").symlink_to(project / "run")
    (tmp_path / "other").mkdir()
    export = [
        "task=export",
        "run=../link",
        "save=merged_16bit",
        "save.verify=true",
        "save.save_path=bot",
        "hydra.run.dir=export",
    ]
    process = launch(*export, cwd=tmp_path / "other")
    assert process.returncode == 0, process.stderr

    from chatbot_sft.inference.opening import find

    model = find(project / "run" / "model").open()
    assert model.prompt_ids([{"role": "user", "content": "Xin chào!"}])
    (project / "models" / "base").rename(project / "models" / "gone")
    assert "the model it was trained on is not at" in only_error(
        launch(*export, "hydra.run.dir=again", "save.save_path=b", cwd=tmp_path / "other")
    )
