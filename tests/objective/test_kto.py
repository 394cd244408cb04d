"""Answers that were liked or not: how far the model has moved is one number of the whole step."""

import pytest
from conftest import composed
from preferences import as_dataset, some_singles

from chatbot_sft.config import Config
from chatbot_sft.data.labels import IGNORED
from chatbot_sft.objective import KTO, objective_of
from chatbot_sft.train.layout import Layout
from chatbot_sft.train.packing import PackedShapes
from chatbot_sft.train.rows import StepRows


def test_kto_looks_where_its_loss_needs_it(tmp_path):
    for loss, looks in (("kto", True), ("apo_zero_unpaired", False)):
        settings = Config.from_mapping(composed(tmp_path, "objective=kto", f"objective.loss_type={loss}"))
        objective = objective_of(settings)
        assert type(objective) is KTO
        assert (objective.looks, objective.refers) == (looks, True)


@pytest.mark.slow
def test_beside_each_prompt_stands_an_answer_from_half_the_data_away():
    from chatbot_sft.train.batches import PackedDataset, beside_lengths

    data = some_singles(7)
    rows = PackedDataset(as_dataset(data), beside=14)[list(range(7))]
    for number, row in enumerate(rows):
        other = data[(number + 3) % 7]
        prompt = [token for token, label in zip(row.input_ids, row.labels, strict=True) if label == IGNORED]
        answer = [label for label in other["labels"] if label != IGNORED]
        assert row.beside.input_ids == (prompt + answer)[:14]
        assert row.beside.labels == ([IGNORED] * len(prompt) + answer)[:14]
        assert row.beside.kinds == ("mismatched",)
    assert beside_lengths(as_dataset(data), 14) == [len(row.beside) for row in rows]


@pytest.mark.slow
def test_no_layout_changes_the_loss(preferring):
    """Nor how many micro-batches the step is cut into."""
    import torch

    session = preferring({"name": "kto"}, some_singles(8), max_steps=2)
    session.train()  # after which the model has moved
    step, batches = session.step, session.job.batches
    batches.rows.reference[:, -1] -= (
        3  # mismatched answers have gained, so that the estimate is not its bound, 0
    )
    rows = StepRows([batches.rows[[number]] for number in range(8)])
    found = []
    for layout in (
        Layout(8),
        Layout(3),
        Layout(1, padding_free=True),
        Layout(8, packed=True),
        Layout(2, packed=True),
    ):
        if layout.packed:
            assert step.not_packable() is None
            step.pack(lambda layout: PackedShapes((), 32, 64), layout)
        step.use_layout(layout)
        step.gradients.forget()
        values = step.backward(rows, rows.totals, 1)
        found.append([values, *(p.grad.clone() for p in step.trained)])
    assert found[0][0][-1] > 0
    for others in found[1:]:
        for one, other in zip(found[0], others, strict=True):
            assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_held_out_answers_have_figures_of_their_own(preferring):
    session = preferring({"name": "kto"}, some_singles(8), some_singles(5, seed=4), eval_steps=5)
    session.evaluate()
    session.train()
    before, *_, after = session.evaluations.records
    assert (before["kl"], before["rewards/margins"]) == (0, pytest.approx(0, abs=1e-5))
    assert before["loss"] == pytest.approx(0.5, abs=1e-4)
    assert after["rewards/chosen"] != before["rewards/chosen"]
