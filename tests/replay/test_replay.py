"""`task=replay`: what a run trained is trained again from its lock, and the two are held against each other."""

from __future__ import annotations

import json
import shutil

import pytest
from conftest import conversations, only_error, write_json

from chatbot_sft.run import steps
from chatbot_sft.run.directory import EVALUATIONS, Run

STEPS = 4


def overrides(base, data, *more):
    """A run of four steps with everything that decides the last digit: dropout, an order, two evaluations."""
    return [
        *("model=local", f"model.name={base}", "model.load_in_4bit=false", f"dataset.data_path={data}"),
        *(
            f"training.max_steps={STEPS}",
            "training.eval_steps=2",
            "training.save_steps=2",
            "lora.lora_dropout=0.1",
        ),
        *("training.learning_rate=1e-2", "training.warmup_steps=0", "training.sample_max_new_tokens=4"),
        *("save=lora", "save.verify=false", *more),
    ]


@pytest.fixture(scope="module")
def project(tiny_llama, warm, tmp_path_factory):
    """A folder with a base, data, and what was trained on them by names relative to it."""
    folder = tmp_path_factory.mktemp("there") / "project"
    shutil.copytree(tiny_llama, folder / "models" / "base")
    write_json(folder / "chats.json", conversations(24))
    words = overrides("models/base", "chats.json", "model.engine=transformers", "hydra.run.dir=run")
    trained = warm.run(["-m", "chatbot_sft", *words], folder)
    assert trained.returncode == 0, trained.stderr
    return folder


@pytest.fixture
def moved(project, tmp_path):
    """A copy of it elsewhere, whose files name the place where it was; nothing is there any more."""
    folder = tmp_path / "elsewhere" / "project"
    folder.mkdir(parents=True)
    for name in ("models", "run"):
        shutil.copytree(project / name, folder / name)
    shutil.copy(project / "chats.json", folder)
    away = project.rename(project.with_name("away"))
    yield folder
    away.rename(project)


def replayed(warm, folder, *words, run="run"):
    return warm.run(["-m", "chatbot_sft", "task=replay", f"run={run}", *words, "hydra.run.dir=again"], folder)


def found(folder, name="again"):
    return json.loads((folder / name / "report.json").read_text())["replay"]


def content(folder):
    files = (file for file in folder.rglob("*") if file.is_file() and not file.name.startswith(".lock"))
    return {file: file.read_bytes() for file in files}


def test_a_run_is_trained_again_to_the_bit_and_says_so_everywhere(warm, project):
    before = content(project / "run")
    process = replayed(warm, project)
    assert process.returncode == 0, process.stderr
    assert "replay: nothing is different here" in process.stderr
    assert process.stdout.splitlines()[-2:] == ["verdict identical to the bit", "run     again"]
    replay = found(project)
    assert (replay["reproduced"], replay["changes"]) == (True, [])
    counts = {one["what"].partition(" (")[0]: one["count"] for one in replay["compared"]}
    assert counts == {
        "loss": STEPS,
        "grad_norm": STEPS,
        "learning_rate": STEPS,
        "held-out loss": 3,
        "held-out perplexity": 3,
        "held-out token_accuracy": 3,
        "answers": 6,
        "trained weights": 1,
    }
    assert {one["said"] for one in replay["compared"]} == {"identical to the bit"}
    text = (project / "again" / "report.md").read_text()
    assert text.startswith("# Replay of an earlier run: completed")
    assert "## Replay: identical to the bit" in text
    assert content(project / "run") == before
    assert not (project / "again" / "model").exists()
    # What it has written is a run's directory, with a lock of its own.
    again, run = Run(project / "again").lock(), Run(project / "run").lock()
    assert (again.decides, again.batch_layout, again.date) == (run.decides, run.batch_layout, run.date)
    assert again.provenance.command.startswith("python -m chatbot_sft task=replay run=run")


def test_unsloth_too(warm_unsloth, project):
    words = overrides("models/base", "chats.json", "model.engine=unsloth", "hydra.run.dir=unsloth")
    trained = warm_unsloth.run(["-m", "chatbot_sft", *words], project)
    assert trained.returncode == 0, trained.stderr
    words = ["task=replay", "run=unsloth", "hydra.run.dir=unsloth-again"]
    process = warm_unsloth.run(["-m", "chatbot_sft", *words], project)
    assert process.returncode == 0, process.stderr
    assert found(project, "unsloth-again")["verdict"] == "identical to the bit"


def test_trls_loop_too(warm, project):
    """Which tells the figures of logged steps."""
    more = ["model.engine=transformers", "training.loop=trl", "training.logging_steps=2", "hydra.run.dir=trl"]
    trained = warm.run(["-m", "chatbot_sft", *overrides("models/base", "chats.json", *more)], project)
    assert trained.returncode == 0, trained.stderr
    assert [one["step"] for one in steps.read(Run(project / "trl").steps_file)] == [1, 2, 4]
    words = ["task=replay", "run=trl", "hydra.run.dir=trl-again"]
    process = warm.run(["-m", "chatbot_sft", *words], project)
    assert process.returncode == 0, process.stderr
    assert found(project, "trl-again")["verdict"] == "identical to the bit"


def test_a_moved_run_goes_on_exports_answers_and_is_replayed(warm, moved, monkeypatch):
    """All of the folder went along: the run was killed there at step 2, is gone on with in its new place, by another
    name, and used from a third.
    """
    run = Run((moved / "run").rename(moved / "bot"))
    for file in (run.report_file, run.config_file):
        file.unlink()
    shutil.rmtree(run.checkpoints / f"checkpoint-{STEPS}")
    words = overrides("models/base", "chats.json", "model.engine=transformers", "hydra.run.dir=bot")
    process = warm.run(["-m", "chatbot_sft", *words], moved)
    assert process.returncode == 0, process.stderr
    assert "resume: from step 2" in process.stderr

    process = replayed(warm, moved, run="bot")
    assert process.returncode == 0, process.stderr
    assert found(moved)["verdict"] == "identical to the bit"
    assert "4 steps, completed, resumed once" in process.stderr

    (moved / "chats.json").unlink()
    (away := moved.parent / "away").mkdir()
    golden = away / "golden.jsonl"
    golden.write_text('{"messages": [{"role": "user", "content": "a"}], "contains": "b"}\n')
    for words in (
        ["chatbot_sft", "task=export", f"run={run.folder}", "save=merged_16bit", "save.verify=false"],
        ["chatbot_sft", "task=evaluate", f"run={run.folder}", f"evaluation.golden={golden}"],
        ["chatbot_sft.chat", str(run.folder), "--prompt", "câu hỏi 1", "--max-new-tokens", "2"],
    ):
        process = warm.run(["-m", *words], away)
        assert process.returncode == 0, process.stderr


def test_a_killed_run_is_replayed_as_far_as_it_came(warm, moved):
    """From its lock alone: it had no report and no config.yaml yet. Its last line was cut off."""
    run = Run(moved / "run")
    for file in (run.report_file, run.config_file):
        file.unlink()
    shutil.rmtree(run.checkpoints / f"checkpoint-{STEPS}")
    lines = run.steps_file.read_text().splitlines(keepends=True)
    run.steps_file.write_text("".join(lines[:3]) + lines[3][:20])
    evaluated = run.checkpoints / EVALUATIONS
    evaluated.write_text("".join(evaluated.read_text().splitlines(keepends=True)[:2]))
    process = replayed(warm, moved)
    assert process.returncode == 0, process.stderr
    assert "3 steps, killed" in process.stderr
    compared = {one["what"]: one["count"] for one in found(moved)["compared"]}
    assert (compared["loss"], compared["held-out loss"]) == (3, 2)
    assert compared["trained weights"] > 1  # those of checkpoint-2, tensor by tensor
    assert json.loads((moved / "again" / "report.json").read_text())["training"]["steps"] == 3


def test_what_is_not_the_same_is_named_with_its_step_and_ends_the_command(warm, moved):
    """A run of the version before, too: its losses are those of its report, its weights those of its checkpoint."""
    run = Run(moved / "run")
    report = json.loads(run.report_file.read_text())
    report["training"]["history"][2]["loss"] += 1e-4
    del report["training"]["weights_sha256"]
    write_json(run.report_file, report)
    run.steps_file.unlink()
    lock = json.loads(run.lock_file.read_text())
    run.lock_file.unlink()
    config = run.config_file.read_text()  # by which it is replayed: from where its paths lead somewhere
    run.config_file.write_text(config.replace(lock["config"]["model"]["name"], "models/base"))
    of_then = ("decides", "tokenizer", "date", "versions", "device", "processes", "batch_layout")
    write_json(moved / "run" / "lock.json", {**{key: lock[key] for key in of_then}, "schema": 1})
    process = replayed(warm, moved)
    error = only_error(process)
    assert error.startswith("run=run: not reproduced: loss differs: step 3: ")
    assert "its lock.json is of an earlier version" in process.stderr
    assert "verdict not reproduced" in process.stdout
    compared = {one["what"]: one for one in found(moved)["compared"]}
    assert compared["loss"]["first"] == "step 3"
    assert compared["loss"]["largest"] == pytest.approx(
        1e-4 / report["training"]["history"][2]["loss"], rel=0.01
    )
    assert compared["trained weights"]["said"] == "identical to the bit"
    assert "grad_norm" not in compared
    report = json.loads((moved / "again" / "report.json").read_text())
    assert (report["status"], report["replay"]["reproduced"]) == ("failed", False)


def test_a_preference_run_that_began_with_a_run_finds_what_it_began_with(warm, project, tmp_path):
    pairs = tmp_path / "pairs.jsonl"
    sides = ("chosen", "Beer {} is served cold."), ("rejected", "No idea, {} maybe.")
    rows = [
        {
            "prompt": [{"role": "user", "content": f"How cold is beer {n}?"}],
            **{side: [{"role": "assistant", "content": text.format(n)}] for side, text in sides},
        }
        for n in range(16)
    ]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [
        *("objective=dpo", "model.name=run", "model.engine=transformers", "model.load_in_4bit=false"),
        *(f"dataset.data_path={pairs}", "training.max_steps=2", "training.learning_rate=1e-2"),
        *("training.sample_max_new_tokens=0", "save=none", "hydra.run.dir=dpo"),
    ]
    trained = warm.run(["-m", "chatbot_sft", *words], project)
    assert trained.returncode == 0, trained.stderr
    assert set(Run(project / "dpo").lock().provenance.files) == {"data", "model.name", "model.adapter"}
    words = ["task=replay", "run=dpo", "hydra.run.dir=dpo-again"]
    process = warm.run(["-m", "chatbot_sft", *words], project)
    assert process.returncode == 0, process.stderr
    replay = found(project, "dpo-again")
    assert replay["verdict"] == "identical to the bit"
    assert {"rewards/margins", "held-out rewards/margins"} <= {one["what"] for one in replay["compared"]}
