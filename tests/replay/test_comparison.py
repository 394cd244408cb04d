"""Figures and weights of two trainings held against each other."""

from __future__ import annotations

import json
import math

import pytest
from conftest import a_report, write_json

from chatbot_sft.replay.adapters import compared as weights
from chatbot_sft.replay.compared import Compared
from chatbot_sft.replay.comparison import compared
from chatbot_sft.replay.noise import CPU, GPU, Noise
from chatbot_sft.run.directory import Run
from chatbot_sft.run.report import Report

LOSSES = (2.0, 1.5, 1.25)


def run(folder, losses=LOSSES, evaluated=(), sha256="a" * 64, ended=True):
    """(Run, Report) of a training with these losses, a step each."""
    folder.mkdir()
    place = Run(folder)
    figures = [{"step": n, "loss": loss, "grad_norm": 1.0} for n, loss in enumerate(losses, 1)]
    place.steps_file.write_text("".join(json.dumps(one) + "\n" for one in figures))
    whole = a_report(evaluations=list(evaluated))
    training = {**whole["training"], "weights_sha256": sha256} if ended else {}
    return place, Report.from_json({**whole, "training": training})


def held(tmp_path, before, after, noise=CPU):
    (was, report), (now, again) = run(tmp_path / "a", **before), run(tmp_path / "b", **after)
    return {one.what: one for one in compared(was, now, report, again, noise)}


def evaluation(step, loss, answer="yes"):
    return {"step": step, "loss": loss, "seconds": step, "samples": [{"prompt": "p", "answer": answer}]}


def test_what_is_the_same_is_identical(tmp_path):
    found = held(tmp_path, {"evaluated": [evaluation(0, 3.0)]}, {"evaluated": [evaluation(0, 3.0)]})
    assert list(found) == [
        "loss",
        "grad_norm",
        "held-out loss",
        "answers",
        f"trained weights (SHA-256 {'a' * 16})",
    ]
    assert all(one.identical and one.reproduced for one in found.values())
    assert str(found["loss"]) == "identical to the bit"
    assert found["loss"].count == 3


def test_the_last_bit_of_a_loss_is_a_difference_on_a_cpu_and_noise_on_a_gpu(tmp_path):
    other = math.nextafter(1.5, 2)
    found = held(tmp_path, {}, {"losses": (2.0, other, 1.25)})
    assert (found["loss"].first, found["loss"].reproduced) == ("step 2", False)
    assert str(found["loss"]).startswith(f"differs: step 2: 1.5 → {other!r}, at most ")
    (tmp_path / "gpu").mkdir()
    on_gpu = held(tmp_path / "gpu", {}, {"losses": (2.0, other, 1.25)}, GPU)["loss"]
    assert (on_gpu.identical, on_gpu.reproduced) == (False, True)
    assert str(on_gpu).startswith("within the noise: step 2: ")
    assert str(on_gpu).endswith("(noise up to 0.5%)")


@pytest.mark.parametrize(("losses", "first"), [((2.0, 1.5), "step 3"), ((2.0, 1.5, 1.25, 1.0), "step 4")])
def test_a_step_more_or_less_is_no_noise(losses, first, tmp_path):
    found = held(tmp_path, {}, {"losses": losses}, GPU)["loss"]
    assert (found.first, found.largest, found.reproduced) == (first, math.inf, False)


def test_of_a_run_that_was_killed_what_it_has_is_compared(tmp_path):
    after = {"losses": (*LOSSES, 1.0), "evaluated": [evaluation(0, 3.0), evaluation(4, 1.0)]}
    found = held(tmp_path, {"ended": False, "evaluated": [evaluation(0, 3.0)]}, after)
    assert found.keys() == {"loss", "grad_norm", "held-out loss", "answers"}
    assert all(one.identical for one in found.values())


def changed_steps(place, change):
    """steps.jsonl with each line as `change` makes it; without those of which it makes nothing."""
    lines = [json.loads(line) for line in place.steps_file.read_text().splitlines()]
    kept = [one for one in map(change, lines) if one]
    place.steps_file.write_text("".join(json.dumps(one) + "\n" for one in kept))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda one: {key: value for key, value in one.items() if key != "grad_norm"}, "grad_norm"),
        (lambda one: {**one, "loss": str(one["loss"])}, "loss"),
        (lambda one: {**one, "loss": None}, "loss"),
        (lambda one: one if one["step"] > 1 else None, "loss"),
        (lambda one: {**one, "learning_rate": 9.9}, "learning_rate"),
        (lambda one: None, "grad_norm"),
    ],
)
def test_a_figure_that_was_taken_away_is_a_difference(change, what, tmp_path):
    (was, report), (now, again) = run(tmp_path / "a"), run(tmp_path / "b")
    changed_steps(was, change)
    found = {one.what: one for one in compared(was, now, report, again, GPU)}
    assert not found[what].reproduced


def test_of_an_earlier_version_what_it_kept_is_compared(tmp_path):
    (was, report), (now, again) = run(tmp_path / "a"), run(tmp_path / "b")
    was.steps_file.unlink()
    report.history = again.history = [{"step": 1, "loss": 2.0}]
    found = compared(was, now, report, again, CPU, kept=False)
    assert found[0].what == "loss"
    assert all(one.reproduced for one in found)


def test_an_answer_to_another_question_is_a_difference(tmp_path):
    asked = evaluation(0, 3.0)
    asked["samples"] = [{"prompt": "p ", "answer": "WRONG"}]
    found = held(tmp_path, {"evaluated": [asked]}, {"evaluated": [evaluation(0, 3.0)]}, GPU)
    assert not found["answers"].reproduced


@pytest.mark.slow
def test_files_that_are_not_those_of_the_report_are_a_difference(tmp_path):
    import torch
    from safetensors.torch import save_file

    (was, report), (now, again) = run(tmp_path / "a"), run(tmp_path / "b")
    report.training.weights_of_step = again.training.weights_of_step = 3
    for place, value in ((was, 1.0), (now, 0.0)):
        folder = place.checkpoints / "checkpoint-3"
        folder.mkdir(parents=True)
        save_file({"a": torch.full((2,), value)}, folder / "adapter_model.safetensors")
    (found,) = weights(was, now, report, again, GPU)
    assert not found.reproduced
    assert "not those that its report has the hash of" in found.what


def test_an_answer_that_is_another_is_quoted(tmp_path):
    after = {"evaluated": [evaluation(0, 3.0, "no")]}
    found = held(tmp_path, {"evaluated": [evaluation(0, 3.0)]}, after)["answers"]
    assert str(found) == "differs: step 0, “p”: yes → no, at most 1e+02%"


def test_what_is_no_number_is_the_same_as_what_is_none(tmp_path):
    """report.json has null where a loss was NaN."""
    (was, report), (now, again) = (run(tmp_path / name, evaluated=[evaluation(0, None)]) for name in "ab")
    again.evaluations[0]["loss"] = math.nan
    assert all(one.identical for one in compared(was, now, report, again, CPU))


@pytest.mark.slow  # imports torch
def test_weights_are_held_against_each_other_matrix_by_matrix(tmp_path):
    import torch
    from safetensors.torch import save_file

    def saved(run, **tensors):
        (folder := run.checkpoints / "checkpoint-4").mkdir(parents=True)
        save_file(tensors, folder / "adapter_model.safetensors")

    one, two = torch.ones(2, 2), torch.ones(3, dtype=torch.bfloat16)
    (was, report), (now, again) = run(tmp_path / "a"), run(tmp_path / "b", sha256="b" * 64)
    (nothing,) = weights(was, now, report, again, CPU)
    assert (nothing.what, nothing.reproduced) == ("trained weights (no checkpoint says by how much)", False)
    assert weights(was, now, report, again, Noise(weights=0.1)) == []
    saved(was, A=one, B=two)
    saved(now, A=one, B=two)
    (contradiction,) = weights(was, now, report, again, CPU)
    assert not contradiction.reproduced
    assert "not those that its report has the hash of" in contradiction.what
    name = now.checkpoints / "checkpoint-4" / "adapter_model.safetensors"
    save_file({"A": one + torch.tensor([[0.0, 0.02], [0.0, 0.0]]), "B": two}, name)
    (found,) = weights(was, now, report, again, Noise(weights=0.1))
    assert (found.first, found.before, found.reproduced) == ("A", "1", True)
    assert found.largest == pytest.approx(0.02 / 7**0.5)
    assert str(found).endswith(", in all 0.76% (noise up to 10%)")
    assert not weights(was, now, report, again, CPU)[0].reproduced
    save_file({"A": one + 0.01, "B": two * 1.5}, name)  # the farthest is told, not the first
    assert weights(was, now, report, again, GPU)[0].first == "B"
    save_file({"A": one * math.nan, "B": two}, name)
    assert not weights(was, now, report, again, GPU)[0].reproduced
    save_file({"A": one}, name)
    assert str(weights(was, now, report, again, GPU)[0]).startswith("differs: B: (3,) → (none)")
    save_file({"A": one, "B": two, "C": two.clone()}, name)
    assert str(weights(was, now, report, again, GPU)[0]).startswith("differs: C: (none) → (3,)")
    # A run of the version before says no hash.
    save_file({"A": one, "B": two}, name)
    report.training.weights_sha256 = None
    (same,) = weights(was, now, report, again, CPU)
    assert (same.count, same.identical) == (2, True)


def test_a_comparison_comes_back_from_a_report(tmp_path):
    found = Compared("loss", 3, "step 1", "1", "2", math.inf)
    report = Report.from_json(
        a_report(task="replay", replay={"run": "a", "verdict": "not reproduced", "reproduced": False})
    )
    report.replay.compared = [{"what": found.what, "count": 3, "largest": found.largest, "said": str(found)}]
    Run(tmp_path).write_report(report)
    assert Run(tmp_path).report().replay.compared[0]["largest"] is None
    write_json(tmp_path / "report.json", {**report.to_json(), "replay": {"run": "a"}})
    assert Run(tmp_path).peek() is None
