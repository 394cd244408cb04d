"""The step of an objective: the same loss, figures and gradient in every layout, and a reference that is computed
once.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path

import pytest
from preferences import as_dataset, some_pairs

from chatbot_sft.train.layout import Layout
from chatbot_sft.train.packing import PackedShapes
from chatbot_sft.train.rows import Row, StepRows, filler, sequence_tensors, sequences

LAYOUTS = {
    "one by one": Layout(1),
    "padded": Layout(4),
    "without padding": Layout(2, padding_free=True),
    "recomputed": Layout(2, checkpointing=True),
    "packed": Layout(4, packed=True),
    "packed, in parts": Layout(3, packed=True),
}


def rows_of(data, reference=True):
    return [
        Row(
            number, row["input_ids"], row["labels"], row["parts"], row["kinds"],
            [-20.0 - number - place for place in range(len(row["parts"]))] if reference else (),
        )
        for number, row in enumerate(data)
    ]  # fmt: skip


def test_a_row_comes_apart_into_its_sequences_and_they_know_what_they_are():
    (row,) = rows_of(some_pairs(1))
    chosen, rejected = row.sequences
    assert chosen.input_ids + rejected.input_ids == row.input_ids
    assert (chosen.kinds, rejected.kinds) == (("chosen",), ("rejected",))
    assert (chosen.reference, rejected.reference) == ([-20.0], [-21.0])
    assert row.trained_tokens == chosen.trained_tokens + rejected.trained_tokens
    plain = Row(0, [1, 2], [1, 2])
    assert plain.sequences == [plain]
    assert sequences([row, plain]) == [chosen, rejected, plain]
    totals = StepRows([[row], [filler(0)]]).totals
    assert totals.sequences == {"chosen": 1, "rejected": 1}
    assert totals.trained == {"chosen": chosen.trained_tokens, "rejected": rejected.trained_tokens}


@pytest.mark.slow
def test_steps_count_what_they_have_of_each_kind_as_their_rows_do():
    from chatbot_sft.train.batches import Batches

    batches = Batches(as_dataset(some_pairs(7)), 3, 1, shuffle=True)
    for number in range(1, 7):
        (step,) = list(batches.load(number, number))
        assert batches.totals(number) == step.totals
    longest = max(length for row in some_pairs(7) for length in row["parts"])
    assert (batches.longest, batches.sequences) == (longest, 2)


@pytest.mark.slow
def test_the_tensors_of_rows_say_where_each_kind_stands():
    of_rows = sequence_tensors([*rows_of(some_pairs(2)), filler(0)])
    assert of_rows["chosen"].tolist() == [0, 2]
    assert of_rows["rejected"].tolist() == [1, 3]
    assert of_rows["reference"].tolist() == [-20, -21, -21, -22]
    assert len(of_rows["tokens"]) == 4


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.fixture(scope="module")
def session(preferring):
    return preferring({"name": "dpo"}, some_pairs(8))


def losses(session):
    return [entry for entry in session.state.log_history if "loss" in entry]


def run(step, layout, rows, through_logits=False):
    step.gradients.forget()
    if layout.packed:
        assert step.not_packable() is None
        step.pack(lambda layout: PackedShapes((), 32, 64), layout)
    step.use_layout(layout)
    step.padded.two_passes = not through_logits
    values = step.run(StepRows([[row] for row in rows]), StepRows([rows]).totals)
    return values, gradients(step.model)


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_values_and_gradients_of_logits_one_by_one(session, name, monkeypatch):
    import torch

    from chatbot_sft.model import head

    monkeypatch.setattr(head, "CHUNK", 7)
    step = session.step
    rows = rows_of(some_pairs(7, seed=3))
    expected, of_logits = run(step, Layout(1), rows, through_logits=True)
    values, found = run(step, LAYOUTS[name], rows)
    assert torch.allclose(values, expected, rtol=1e-5)
    assert len(values) == 1 + len(step.figures)
    for parameter, gradient in of_logits.items():
        scale = gradient.abs().max().item()
        assert torch.allclose(found[parameter], gradient, atol=2e-5 * scale + 1e-9), parameter


@pytest.mark.slow
def test_a_process_without_rows_adds_nothing(session):
    import torch

    step = session.step
    for layout in (Layout(2), Layout(2, packed=True)):
        run(step, layout, rows_of(some_pairs(1)))
        step.gradients.forget()
        values = step.run(StepRows([[]]), StepRows([]).totals)
        assert torch.equal(values, torch.zeros(1 + len(step.figures)))
        assert not any(gradient.any() for gradient in gradients(step.model).values())


@pytest.mark.slow
def test_the_reference_is_computed_once_and_is_the_model_as_training_begins(
    preferring, tmp_path, monkeypatch, caplog
):
    """At the first step no answer is likelier than to the reference; a second run reads what the first has found."""
    from chatbot_sft.train import step

    monkeypatch.setenv("CHATBOT_SFT_CACHE", str(tmp_path))
    rows, held_out = some_pairs(8), some_pairs(4, seed=9)
    first = preferring({"name": "dpo"}, rows, held_out, eval_steps=5)
    first.evaluate()
    first.train()
    begin = losses(first)[0]
    assert begin["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert begin["rewards/chosen"] == pytest.approx(0, abs=1e-4)
    before, *_, after = first.evaluations.records
    assert before["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert set(first.step.figures) <= after.keys()
    assert after["rewards/margins"] != before["rewards/margins"]
    monkeypatch.setattr(step.Step, "scores", None)
    second = preferring({"name": "dpo", "beta": 0.3}, rows, held_out)
    with caplog.at_level(logging.INFO):
        second.train()
    assert "as an earlier run has found" in caplog.text
    assert losses(second)[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)


@pytest.mark.slow
def test_a_resumed_run_ends_as_if_it_had_never_stopped(preferring, tmp_path, monkeypatch):
    """Its reference is the model as training began, also where the cache has forgotten it."""
    import torch

    from chatbot_sft.run import checkpoints
    from chatbot_sft.train.resume import Origin

    shared = {"save_steps": 1, "save_total_limit": None, "max_steps": 6, "logging_steps": 2, "eval_steps": 2}
    monkeypatch.setenv("CHATBOT_SFT_CACHE", str(tmp_path / "first"))
    rows, held_out = some_pairs(9), some_pairs(4, seed=9)
    whole = preferring({"name": "dpo"}, rows, held_out, **shared)
    whole.train()
    monkeypatch.setenv("CHATBOT_SFT_CACHE", str(tmp_path / "second"))
    folder = checkpoints.verified(Path(whole.settings.training.output_dir) / "checkpoint-3")
    again = preferring({"name": "dpo"}, rows, held_out, origin=Origin(checkpoint=folder), **shared)
    again.train()
    for one, other in zip(whole.state.log_history, again.state.log_history, strict=True):
        names = [name for name in one if not name.startswith("eval_") or "/" in name or name == "eval_loss"]
        for name in names:
            if "runtime" not in name and "per_second" not in name:
                assert other[name] == pytest.approx(one[name], rel=1e-5, abs=1e-6), (name, one["step"])
    trained = zip(whole.model.parameters(), again.model.parameters(), strict=True)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in trained)
