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
    (same,) = weights(was, now, report, again, CPU)
    assert (same.count, same.identical) == (2, True)
    name = now.checkpoints / "checkpoint-4" / "adapter_model.safetensors"
    save_file({"A": one + torch.tensor([[0.0, 0.02], [0.0, 0.0]]), "B": two}, name)
    (found,) = weights(was, now, report, again, Noise(weights=0.1))
    assert (found.first, found.before, found.reproduced) == ("A", "1", True)
    assert found.largest == pytest.approx(0.01)
    assert not weights(was, now, report, again, CPU)[0].reproduced
    save_file({"A": one}, name)
    assert str(weights(was, now, report, again, GPU)[0]).startswith("differs: B: (3,) → (none)")
    save_file({"A": one, "B": two, "C": two.clone()}, name)
    assert str(weights(was, now, report, again, GPU)[0]).startswith("differs: C: (none) → (3,)")
    # A run of the version before says no hash.
    save_file({"A": one, "B": two}, name)
    report.training.weights_sha256 = None
    assert weights(was, now, report, again, CPU)[0].identical


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
