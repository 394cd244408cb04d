"""One gradient, many ways to run it: packing, padding, micro-batches, and what happens when memory runs out."""

import itertools
import json
import random
import re
import time
from types import SimpleNamespace

import pytest
from conftest import EXAMPLE, report_of
from hypothesis import given, settings
from hypothesis import strategies as st

from chatbot_sft.cache import part_folder
from chatbot_sft.data.labels import IGNORED
from chatbot_sft.errors import UserError
from chatbot_sft.train.batches import Batches, best_fit
from chatbot_sft.train.layout import Layout, candidates, step_down
from chatbot_sft.train.rows import Row, StepRows, padded, padding_free
from chatbot_sft.train.tuning import Trial, cache_key, choose

pytestmark = pytest.mark.slow
rows_of_ids = st.lists(st.lists(st.integers(3, 99), min_size=2, max_size=9), min_size=1, max_size=7)


def made(ids: list[list[int]], seed: int = 0) -> list[Row]:
    draw = random.Random(seed)
    return [
        Row(number, row, [token if draw.random() < 0.6 else IGNORED for token in row])
        for number, row in enumerate(ids)
    ]


# Packing and steps


@given(st.lists(st.integers(1, 120), max_size=60), st.integers(10, 100))
def test_best_fit_puts_every_row_in_one_pack_and_fills_them(lengths, capacity):
    packs = best_fit(lengths, capacity)
    assert sorted(row for pack in packs for row in pack) == list(range(len(lengths)))
    sizes = [sum(lengths[row] for row in pack) for pack in packs]
    assert all(size <= capacity or len(pack) == 1 for size, pack in zip(sizes, packs, strict=True))
    # Two packs that would fit into one are what best fit never leaves.
    assert all(a + b > capacity for a, b in itertools.combinations(sizes, 2))


def batches(lengths, *arguments) -> Batches:
    """Over rows of so many tokens, all of them trained."""
    from datasets import Dataset

    return Batches(Dataset.from_dict({"input_ids": [[5] * length for length in lengths]}), *arguments)


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 9), st.integers(1, 3), st.booleans()
)
@settings(max_examples=30)
def test_the_steps_of_all_processes_are_those_of_one(lengths, batch_size, processes, packed):
    shares = [
        batches(lengths, batch_size, 7, True, 60 if packed else None, process, processes)
        for process in range(processes)
    ]
    whole = batches(lengths, batch_size, 7, True, 60 if packed else None)
    steps = whole.epoch(0)
    assert len(steps) == whole.per_epoch
    assert sorted(row for step in steps for pack in step for row in pack) == list(range(len(lengths)))
    for step in steps:
        assert sorted(map(tuple, step)) == sorted(tuple(pack) for share in shares for pack in share.own(step))


def test_each_epoch_has_an_order_of_its_own_and_a_seed_repeats_it():
    made = batches(range(1, 41), 8, 1, True)
    first = made.epoch(0)
    assert first == batches(range(1, 41), 8, 1, True).epoch(0) != batches(range(1, 41), 8, 2, True).epoch(0)
    assert first != made.epoch(1)
    assert [pack for step in batches(range(1, 41), 8, 1, False).epoch(0) for pack in sorted(step)] == [
        [row] for row in range(40)
    ]


def test_the_rows_of_a_step_do_not_depend_on_where_a_run_began():
    """Nine rows in steps of 4: the third step of an epoch has one row."""
    made = batches(range(2, 11), 4, 3, True)
    whole = [[row.number for row in step.rows] for step in made.load(1, 8)]
    assert [len(step) for step in whole] == [4, 4, 1, 4, 4, 1, 4, 4]
    for first in range(1, 9):
        assert [
            [row.number for row in step.rows] for step in batches(range(2, 11), 4, 3, True).load(first, 8)
        ] == whole[first - 1 :]
    assert [[row for pack in made.step(number) for row in pack] for number in range(1, 9)] == whole


def test_a_resume_in_the_middle_of_an_epoch_draws_no_random_number():
    import torch

    states = []
    for first in (4, 5):
        torch.manual_seed(0)
        next(batches(range(2, 11), 4, 3, True).load(first, 8))
        states.append(torch.get_rng_state())
    torch.manual_seed(0)
    assert torch.equal(states[1], torch.get_rng_state())
    assert not torch.equal(states[0], states[1])


@given(rows_of_ids)
@settings(max_examples=30)
def test_tokens_are_counted_as_the_rows_have_them(ids):
    from datasets import Dataset

    rows = made(ids)
    found = Batches(Dataset.from_dict({"input_ids": ids, "labels": [row.labels for row in rows]}), 3, 1, True)
    assert found.lengths == [len(row) for row in rows]
    assert found.trained_lengths == [row.trained_tokens for row in rows]
    for number, step in enumerate(found.load(1, found.per_epoch), 1):
        assert found.tokens(number) == (step.tokens, step.trained_tokens)


# Batches


@given(rows_of_ids)
def test_a_batch_holds_every_token_and_every_trained_label(ids):
    rows = made(ids)
    trained = sum(row.trained_tokens for row in rows)
    rectangle, line = padded(rows, pad_token_id=0), padding_free(rows)
    for index, row in enumerate(rows):
        assert rectangle["input_ids"][index, : len(row)].tolist() == row.input_ids
        assert rectangle["labels"][index].tolist() == row.labels + [IGNORED] * (
            max(map(len, rows)) - len(row)
        )
    assert rectangle["attention_mask"].sum() == line["input_ids"].numel() == sum(map(len, rows))
    assert (rectangle["labels"][:, 1:] != IGNORED).sum() == trained
    # Shifted by one, the label of a row's first token would be predicted from the row before.
    assert (line["labels"][:, 1:] != IGNORED).sum() == trained
    assert line["position_ids"][0].tolist() == [position for row in rows for position in range(len(row))]
    assert line["packed_seq_lengths"].tolist() == [len(row) for row in rows]


@given(rows_of_ids, st.integers(1, 8))
def test_micro_batches_are_a_partition_of_the_step(ids, size):
    step = StepRows([[row] for row in made(ids)])
    groups = list(Layout(size).groups(step))
    assert [row.number for group in groups for row in group] == list(range(len(ids)))
    assert all(len(group) <= size for group in groups)


@pytest.fixture(scope="module")
def trained(tiny_llama, tmp_path_factory):
    """`trained(**training)`: a trainer of the tiny model in float32, ready to run steps."""
    from chatbot_sft import DatasetLoader, ModelLoader, SFTTrainerWrapper

    def build(**training):
        folder = tmp_path_factory.mktemp("layout")
        config = {
            "model": {
                "name": str(tiny_llama),
                "engine": "transformers",
                "load_in_4bit": False,
                "dtype": "float32",
                "max_seq_length": 512,
            },
            "dataset": {"data_path": str(EXAMPLE), "max_rows": 40, "eval_fraction": 0.0},
            "training": {
                "output_dir": str(folder),
                "max_steps": 2,
                "learning_rate": 1e-2,
                "warmup_steps": 0,
                **training,
            },
            "save": {"method": "none"},
        }
        model, tokenizer = ModelLoader(config).load_and_configure()
        wrapper = SFTTrainerWrapper(
            config, model, tokenizer, DatasetLoader(config, tokenizer).prepare_dataset()
        )
        wrapper.setup()
        return wrapper

    return build


def gradient(step, layout, rows):
    import torch

    step.use_layout(layout)
    step.model.zero_grad()
    loss = step.run(rows, rows.totals)
    return loss.item(), torch.cat([parameter.grad.flatten() for parameter in step.trained])


def first_step(wrapper):
    return next(wrapper.job.make_batches(8).load(1, 1))


def test_every_layout_gives_the_loss_and_the_gradient_of_the_configured_one(trained):
    wrapper = trained()
    rows = first_step(wrapper)
    loss, expected = gradient(wrapper.step, Layout(2), rows)
    layouts = [
        *candidates(Layout(2), 8, packing=False, gpu=False, capturable=False),
        Layout(4, checkpointing=True),
    ]
    assert len(layouts) == 8
    for layout in layouts:
        found, ours = gradient(wrapper.step, layout, rows)
        assert found == pytest.approx(loss, abs=1e-5), layout
        assert (ours - expected).norm() < 1e-5 * expected.norm(), layout


def test_packed_conversations_have_the_losses_they_have_alone(trained):
    import torch

    wrapper = trained(packing=True, batch_layout="as_configured")
    model, rows = wrapper.model, first_step(wrapper)
    pack = max(rows.packs, key=len)
    assert len(pack) > 1
    assert all(sum(map(len, pack)) <= 512 for pack in rows.packs)
    batch = padding_free(pack) | {
        "use_cache": False
    }  # transformers looks for rows where there is no cache alone
    del batch["packed_seq_lengths"]
    model.eval()
    with torch.no_grad():
        logits = model(**batch).logits[0]
        start = 0
        for row in pack:
            alone = model(input_ids=torch.tensor([row.input_ids])).logits[0]
            assert torch.allclose(logits[start : start + len(row)], alone, atol=1e-5)
            start += len(row)
        # Positions that run on let attention cross: the check above can fail.
        batch["position_ids"] = torch.arange(start)[None]
        crossed = model(**batch).logits[0]
    assert not torch.allclose(logits[len(pack[0]) :], crossed[len(pack[0]) :], atol=1e-5)
    assert wrapper.setup_and_train().global_step == 2


def test_out_of_memory_is_a_smaller_layout_and_the_same_losses(trained, monkeypatch, caplog):
    import torch

    from chatbot_sft.train.step import Step

    expected = trained(
        batch_layout="as_configured", per_device_train_batch_size=8, gradient_accumulation_steps=1
    )
    expected.setup_and_train()
    micro_batch = Step.micro_batch
    sizes = []

    def small_card(self, batch, trained_tokens):
        rows = batch["input_ids"].shape[0]
        sizes.append(rows)
        loss = micro_batch(self, batch, trained_tokens)
        if rows > 3:  # in the middle of the backward pass, some gradients are there already
            raise torch.OutOfMemoryError("planted")
        return loss

    monkeypatch.setattr(Step, "micro_batch", small_card)
    wrapper = trained(
        batch_layout="as_configured", per_device_train_batch_size=8, gradient_accumulation_steps=1
    )
    wrapper.setup_and_train()
    assert sizes == [8, 4, 2, 2, 2, 2, 2, 2, 2, 2]
    assert wrapper.layout == Layout(2)
    assert [loss for _, loss in wrapper.progress.losses] == pytest.approx(
        [loss for _, loss in expected.progress.losses], abs=1e-5
    )
    assert "layout: out of memory; step 1 again as 2 × 4 padded" in caplog.text


def test_without_a_smaller_layout_out_of_memory_is_one_line(trained, monkeypatch):
    import torch

    from chatbot_sft import UserError
    from chatbot_sft.train.step import Step

    def no_card(*_):
        raise torch.OutOfMemoryError("planted")

    monkeypatch.setattr(Step, "micro_batch", no_card)
    wrapper = trained(batch_layout="as_configured")
    with pytest.raises(
        UserError, match=r"step 1: out of memory .*; set a smaller training.per_device_train_batch_size"
    ):
        wrapper.setup_and_train()


# The choice


WAITED = [0.0]  # seconds that no test has to wait for


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """The search's, which goes on by what a layout is said to take and nothing else."""
    monkeypatch.setattr(
        "chatbot_sft.train.tuning.time",
        SimpleNamespace(perf_counter=lambda: WAITED[0], monotonic_ns=time.monotonic_ns),
    )


def trial(seconds, steps=100, losses=None):
    """A Trial on a machine where each layout takes as long as `seconds` says, and one that it does not name
    too much memory; and its calls.
    """
    from torch import OutOfMemoryError

    calls, losses = [], losses or {}

    def run(layout, step):
        calls.append((layout, len(step.packs)))
        if layout not in seconds:
            raise OutOfMemoryError(f"{layout}")
        WAITED[0] += seconds[layout]
        return losses.get(layout, 1.0)

    step = StepRows([[row] for row in made([[5, 6, 7]] * 8)])
    return Trial(lambda layout: None, run, step, step, steps, 0.1, 1e-4), calls


def test_the_fastest_layout_is_taken_and_remembered():
    slow, fast, too_large = Layout(2), Layout(4), Layout(8)
    planned, calls = trial({Layout(1): 0.0, slow: 0.05, fast: 0.03})
    key = cache_key("fastest", random.random())
    plan = choose([slow, fast, too_large], slow, planned, key)
    assert plan.layout == fast
    assert [(found.layout, found.why_not) for found in plan.measurements] == [
        (slow, None),
        (fast, None),
        (too_large, "out of memory"),
    ]
    before = len(calls)
    again = choose([slow, fast, too_large], slow, planned, key)
    assert len(calls) == before
    assert again.layout == fast
    assert again.reason == "measured by an earlier run"
    assert again.measurements == plan.measurements


def entry(**changes):
    return {
        "layout": Layout(2).as_dict(),
        "seconds": 0.05,
        "peak_gb": None,
        "capture_seconds": 0.0,
        "why_not": None,
    } | changes


@pytest.mark.parametrize(
    "remembered",
    [
        "", "[", "null", "[]", "{}", "3", "[null, null]", "[" * 5000,
        [entry(), entry(layout={"packs": -4})], [entry(), entry(layout={"packs": 0})], [entry(), entry(layout={"packs": "4"})],
        [entry(), entry(layout={"packs": 16})], [entry()], [entry(), entry(layout={"packs": 4}), entry(layout={"packs": 8})],
        [entry(), entry(layout={"packs": 4}, seconds="0.1")], [entry(), entry(layout={"packs": 4}, seconds=-1.0)],
        [entry(), entry(layout={"packs": 4}, seconds=float("nan"))], [entry(), entry(layout={"packs": 4}, capture_seconds=None)],
        [entry(), entry(layout={"packs": 4}, capture_seconds=-9.0)], [entry(), entry(layout={"packs": 4}, why_not=[1])],
        [entry(), entry(layout={"packs": 4}, other=1)], [entry(), entry(layout={"packs": 4, "other": 1})], [entry(), entry(layout=None)],
    ],
)  # fmt: skip
def test_a_measurement_that_is_damaged_or_of_something_else_is_made_again(remembered):
    """A negative number of conversations gave a step of loss 0.000 that trained nothing."""
    slow, fast = Layout(2), Layout(4)
    planned, calls = trial({Layout(1): 0.0, slow: 0.03, fast: 0.005})
    key = cache_key("damaged", random.random())
    file = part_folder("layouts") / f"{key}.json"
    file.write_text(remembered if isinstance(remembered, str) else json.dumps(remembered))
    plan = choose([slow, fast], slow, planned, key)
    assert (plan.layout, plan.reason) == (fast, "measured")
    before = len(calls)
    again = choose([slow, fast], slow, planned, key)
    assert (again.layout, again.reason, len(calls)) == (fast, "measured by an earlier run", before)
    assert all(isinstance(found.layout.packs, int) for found in again.measurements)


def test_what_was_measured_need_not_be_remembered(monkeypatch, tmp_path):
    slow, fast = Layout(2), Layout(4)
    planned, _ = trial({Layout(1): 0.0, slow: 0.03, fast: 0.005})
    monkeypatch.setattr("chatbot_sft.train.tuning.part_folder", lambda _: tmp_path / "gone")
    assert choose([slow, fast], slow, planned, cache_key("unwritable")).layout == fast


def test_what_is_configured_stays_where_nothing_is_clearly_faster():
    configured, other = Layout(2), Layout(4)
    planned, _ = trial({Layout(1): 0.0, configured: 0.0505, other: 0.05})
    assert (
        choose([configured, other], configured, planned, cache_key("close", random.random())).layout
        == configured
    )


def test_a_layout_whose_loss_is_another_is_not_taken_however_fast():
    padded, leaking = Layout(2), Layout(4, padding_free=True)
    planned, _ = trial(
        {Layout(1): 0.0, padded: 0.05, leaking: 0.01}, steps=200, losses={padded: 2.0, leaking: 1.9}
    )
    plan = choose([padded, leaking], padded, planned, cache_key("leak", random.random()))
    assert plan.layout == padded
    assert plan.measurements[1].why_not == "computes another loss: 1.9000, not 2.0000"


def test_where_nothing_fits_the_most_frugal_layout_is_taken():
    planned, _ = trial({Layout(1): 0.0})
    plan = choose(
        [Layout(8), Layout(1, checkpointing=True), Layout(2)],
        Layout(2),
        planned,
        cache_key("none", random.random()),
    )
    assert plan.layout == Layout(1, checkpointing=True)
    assert all(found.why_not == "out of memory" for found in plan.measurements)


def test_candidates_begin_with_what_is_likeliest_and_hold_what_is_configured():
    configured = Layout(2, checkpointing=True)
    gpu = candidates(configured, 8, packing=False, gpu=True, capturable=True)
    assert gpu[:3] == [Layout(8), Layout(8, padding_free=True), Layout(8, captured=True)]
    assert gpu.index(Layout(8)) < gpu.index(Layout(8, checkpointing=True))
    assert configured in gpu
    assert len(set(gpu)) == len(gpu)
    packed = candidates(Layout(2, padding_free=True), 8, packing=True, gpu=True, capturable=True)
    assert all(layout.padding_free and not layout.captured for layout in packed)
    assert candidates(configured, 8, packing=False, gpu=False, capturable=False)[0] == configured


def test_stepping_down_ends():
    layout, seen = Layout(8, captured=True), []
    while layout is not None:
        seen.append(layout)
        layout = step_down(layout, 8)
    assert seen[0].captured
    assert seen[-1] == Layout(1, checkpointing=True)
    assert len(seen) == len(set(seen)) == 6


# The optimizer's single vector


def test_one_vector_is_optimized_as_its_matrices_are():
    import torch

    from chatbot_sft.train.gradients import BLOCK, FlatParameters, flattens

    def matrices():
        torch.manual_seed(1)
        return [torch.nn.Parameter(torch.randn(shape)) for shape in ((16, 300), (70, 64), (8, 1000))]

    apart, together = matrices(), matrices()
    assert flattens(together)
    assert not flattens([*together, torch.nn.Parameter(torch.randn(8))])
    flat = FlatParameters(together)
    assert flat.vector.numel() % BLOCK == 0
    one, many = (
        torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.1, foreach=False)
        for parameters in ([flat.vector], apart)
    )
    for step in range(3):
        flat.attach()
        for parameters in (apart, together):
            torch.manual_seed(step)
            sum((parameter * torch.randn_like(parameter)).sum() for parameter in parameters).backward()
        one.step()
        many.step()
        for parameter in (*apart, *together):
            parameter.grad = None  # as the trainer does after a step
        assert all(torch.equal(a, b) for a, b in zip(apart, together, strict=True))


# The command line


def test_a_run_too_short_to_try_layouts_takes_what_is_configured(launch, tiny, tmp_path):
    arguments = [
        "dataset.max_rows=40",
        "save=none",
        "training.sample_max_new_tokens=0",
        "training.batch_layout=auto",
    ]
    process = launch(*tiny, *arguments)
    assert process.returncode == 0, process.stderr
    assert (
        "layout: 2 × 4 padded, no checkpointing (as configured: trying others would take too much of 2 steps)\n"
        in process.stderr
    )
    training = report_of(tmp_path)["training"]
    assert (training["batch_layouts"], training["batch_layout"]) == ([], "2 × 4 padded, no checkpointing")
    assert training["effective_batch_size"] == 8


@pytest.mark.parametrize(("layout", "steps"), [("auto", 1000), ("as_configured", 9)])
def test_a_plan_says_what_a_training_will_take_and_trains_nothing(launch, tiny, tmp_path, layout, steps):
    """Where no other layout is tried, what is configured is measured all the same."""
    arguments = ["dataset.max_rows=40", f"training.max_steps={steps}"]
    arguments += ["task=plan", f"training.batch_layout={layout}"]
    process = launch(*tiny, *arguments)
    assert process.returncode == 0, process.stderr
    lines = process.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["model", "memory", "layout", "time"]
    report = report_of(tmp_path)
    assert report["status"] == "completed"
    assert report["training"] == {}
    parts = report["plan"]["memory_gb"]
    assert set(parts) == {
        "weights",
        "adapter",
        "gradients",
        "optimizer",
        "libraries",
        "activations",
        "evaluation",
        "total",
    }
    beside = ("weights", "adapter", "gradients", "optimizer", "libraries")
    needed = sum(parts[name] for name in beside) + max(parts["activations"], parts["evaluation"])
    assert parts["total"] == pytest.approx(needed, abs=0.003)
    assert parts["activations"] < parts["libraries"]  # of a tiny model, which takes next to nothing
    assert f"{report['plan']['layout']}" in lines[2]
    measured = {found["layout"]: found["milliseconds"] for found in report["plan"]["layouts"]}
    assert "layout: " in process.stderr
    step = report["plan"]["milliseconds_per_step"]
    if layout == "as_configured":
        assert measured == {}
        assert step > 0
    else:
        assert step == measured[report["plan"]["layout"]]
        assert len([milliseconds for milliseconds in measured.values() if milliseconds]) > 1
    assert report["plan"]["training_seconds"] == pytest.approx(steps * step / 1000, rel=0.01)
    assert re.fullmatch(rf"time    about .+: {steps:,} steps of [\d,]+ ms, .+", lines[3])
    (page,) = tmp_path.rglob("report.md")
    assert lines[3].removeprefix("time    ") in page.read_text(encoding="utf-8")
    assert "| batch layout |" in next(tmp_path.glob("outputs/*/*/report.md")).read_text()
    (run,) = tmp_path.glob("outputs/*/*")
    assert not list(run.glob("checkpoints/checkpoint-*"))
    assert not (run / "model").exists()


def test_a_layout_of_another_version_is_one_line():
    assert Layout.from_dict(Layout(2, captured=True).as_dict()) == Layout(2, captured=True)
    with pytest.raises(
        UserError, match=r"by another version of chatbot_sft \(micro_batch=2\), as this one cannot"
    ):
        Layout.from_dict({"micro_batch": 2})
