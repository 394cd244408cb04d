"""Whole command lines: from a supervised run to its preference run, and a method of one's own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
from conftest import REPO, only_error, report_of

PAIRS = 24


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    file = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = [
        {
            "prompt": [{"role": "user", "content": f"How cold is beer number {n}?"}],
            "chosen": [{"role": "assistant", "content": f"Beer {n} is served at {n % 7} degrees."}],
            "rejected": [{"role": "assistant", "content": f"No idea, {n} maybe."}],
        }
        for n in range(PAIRS)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def steps(pairs):
    """Overrides of a run on the pairs, behind those of `tiny`."""
    return [f"dataset.data_path={pairs}", "dataset.eval_fraction=0.2", "model.dtype=float32"]


def test_a_preference_run_begins_at_a_supervised_one_and_a_sweep_goes_by_its_margins(
    tiny, steps, launch, tmp_path
):
    first = launch(*tiny, "save=none", "model.dtype=float32", "hydra.run.dir=sft")
    assert first.returncode == 0, first.stderr
    base = next(item for item in tiny if item.startswith("model.name="))
    rest = [item for item in tiny if item != base and not item.startswith("dataset.")]
    dpo = [
        *rest,
        *steps,
        "objective=dpo",
        "model.name=sft",
        "save=lora",
        "training.learning_rate=1e-2",
        "training.warmup_steps=0",
    ]
    sweep = [
        "-m",
        "objective.beta=0.1,0.5",
        "sweep.metric=rewards/margins",
        "sweep.direction=maximise",
        "hydra.sweep.dir=sweep",
    ]
    done = launch(*dpo, *sweep, "training.max_steps=4", "training.eval_steps=2")
    assert done.returncode == 0, done.stderr
    reports = [json.loads((tmp_path / "sweep" / job / "report.json").read_text()) for job in "01"]
    for report in reports:
        assert report["model"]["adapter"].startswith(str(tmp_path / "sft" / "checkpoints"))
        figures, history = report["training"]["figures"], report["training"]["history"]
        assert {
            "rewards/chosen",
            "rewards/rejected",
            "rewards/margins",
            "rewards/accuracies",
        } <= figures.keys()
        assert figures["rewards/margins"] > report["training"]["figures_before"]["rewards/margins"]
        assert {"loss", "rewards/margins", "step"} <= history[0].keys()
        assert history[0]["loss"] == pytest.approx(0.6931, abs=1e-3)
        assert [record["step"] for record in report["evaluations"]] == [0, 2, 4]
    log = (tmp_path / "sweep" / "1" / "run.log").read_text()
    assert "as an earlier run has found" in log  # the reference of the first job's rows
    lock = json.loads((tmp_path / "sweep" / "0" / "run.lock.json").read_text())["decides"]
    assert (lock["objective.name"], lock["objective.beta"]) == ("dpo", 0.1)
    assert lock["model.adapter (weights)"]
    best = max("01", key=lambda job: reports[int(job)]["training"]["figures"]["rewards/margins"])
    table = (tmp_path / "sweep" / "leaderboard.csv").read_text().splitlines()
    assert table[1].startswith(f"{best},")

    # An earlier adapter of another shape as the reference, and one of another base.
    measured = [*rest, *steps, base, "objective=dpo", "save=none", "lora.r=4"]
    other = launch(*measured, "objective.reference=sft", "hydra.run.dir=measured")
    assert other.returncode == 0, other.stderr
    begun = report_of(tmp_path / "measured")["training"]["history"][0]
    assert begun["rewards/margins"] != 0  # the reference is not where the training begins
    lock = json.loads((tmp_path / "measured" / "run.lock.json").read_text())["decides"]
    assert lock["objective.reference (weights)"]
    refused = launch(*measured[:-1], "objective.reference=nowhere", "hydra.run.dir=refused")
    assert only_error(refused).startswith("objective.reference=nowhere: no such folder")


def blocks(language):
    """The code of that language in the section on a method of one's own."""
    text = (
        (REPO / "docs" / "objectives.md")
        .read_text(encoding="utf-8")
        .partition("\n## A method of your own\n")[2]
    )
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_method_of_ones_own_in_the_document_trains(tiny, steps, launch, tmp_path):
    (script,), (option,) = blocks("python"), blocks("yaml")
    assert len(script.strip().splitlines()) <= 20
    (tmp_path / "simpo.py").write_text(script, encoding="utf-8")
    (tmp_path / "conf" / "objective").mkdir(parents=True)
    (tmp_path / "conf" / "objective" / "simpo.yaml").write_text(option, encoding="utf-8")
    done = launch(
        "--config-dir", "conf", *tiny, *steps, "objective=simpo", "save=none", "training.learning_rate=1e-2"
    )
    assert done.returncode == 0, done.stderr
    report = report_of(tmp_path)
    assert report["training"]["figures"].keys() == {"rewards/margins", "rewards/accuracies"}
    lock = json.loads(next(tmp_path.rglob("run.lock.json")).read_text())["decides"]
    assert (lock["objective._target_"], lock["objective.gamma"]) == ("simpo.SimPO", 0.5)


def test_two_processes_train_the_losses_of_one(tiny, launch, tmp_path):
    """The estimate of how far the model has moved is one of all processes, and so is the reference."""
    file = tmp_path / "answers.jsonl"
    rows = [
        {
            "prompt": f"How cold is beer {n}?",
            "completion": f" It has {n % 7} degrees." * (1 + n % 3),
            "label": n % 3 > 0,
        }
        for n in range(12)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    common = [
        *tiny, f"dataset.data_path={file}", "dataset.eval_fraction=0.25", "model.dtype=float32", "objective=kto", "save=none",
        "training.learning_rate=1e-2", "training.warmup_steps=0", "training.max_steps=4", "training.sample_max_new_tokens=0",
    ]  # fmt: skip
    alone = launch(*common, "training.gradient_accumulation_steps=4", "hydra.run.dir=one")
    assert alone.returncode == 0, alone.stderr
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "chatbot_sft",
    ]
    together = subprocess.run(
        [*command, *common, "training.gradient_accumulation_steps=2", "hydra.run.dir=two"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CHATBOT_SFT_CACHE": str(tmp_path / "cache")},
    )
    assert together.returncode == 0, together.stderr
    one, two = (report_of(tmp_path / name) for name in ("one", "two"))
    assert two["training"]["processes"] == 2
    for parts in (lambda report: report["training"]["history"], lambda report: report["evaluations"]):
        for a, b in zip(parts(one), parts(two), strict=True):
            for name in ("loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "kl"):
                assert a[name] == pytest.approx(b[name], abs=1e-4), (name, a["step"])
    assert max(entry["kl"] for entry in one["training"]["history"]) > 0
