"""Conversations packed end to end: each gives the logits, losses and gradients that it gives alone."""

import contextlib
import gc
import itertools
import os
import random
import subprocess
import sys
import weakref
from dataclasses import replace
from types import SimpleNamespace

import pytest
import replicas
from conftest import composed
from families import FAMILIES, write_folders
from hypothesis import given
from hypothesis import strategies as st

from chatbot_sft import cache
from chatbot_sft.data.labels import IGNORED
from chatbot_sft.train import packing
from chatbot_sft.train.captures import Captures
from chatbot_sft.train.layout import Layout, packed_ladder
from chatbot_sft.train.rows import Row, packed

SHAPES = packing.PackedShapes((), 8, 96)
OPTIONS = sorted(replicas.REPLICAS)


def some_rows(lengths, vocabulary=200, seed=0):
    """Conversations of random tokens, the last two thirds of each trained."""
    draw = random.Random(seed)
    rows = []
    for number, length in enumerate(lengths):
        ids = [draw.randrange(3, vocabulary) for _ in range(length)]
        rows.append(Row(number, ids, [IGNORED] * (length // 3) + ids[length // 3 :]))
    return rows


# The batch

rows_of_any_shape = st.lists(
    st.lists(st.tuples(st.integers(0, 99), st.booleans()), min_size=1, max_size=40), min_size=1, max_size=6
).map(
    lambda rows: [
        Row(n, [t for t, _ in row], [t if kept else IGNORED for t, kept in row]) for n, row in enumerate(rows)
    ]
)


@pytest.mark.slow
@given(rows=rows_of_any_shape, left=st.integers(0, 50), empty=st.integers(0, 3), longest=st.integers(1, 60))
def test_a_packed_batch_holds_every_token_and_predicts_the_trained_ones_from_their_own_row(
    rows, left, empty, longest
):
    tokens = sum(map(len, rows))
    pieces = -(-left // longest)
    batch = packed(rows, 7, tokens + left, len(rows) + pieces + empty, longest)
    ids, positions = batch["input_ids"][0].tolist(), batch["position_ids"][0].tolist()
    assert ids == [token for row in rows for token in row.input_ids] + [7] * left
    bounds = batch["cu_seq_lens"].tolist()
    assert len(bounds) == len(rows) + pieces + empty + 1
    assert bounds == sorted(bounds)
    assert bounds[-1] == tokens + left
    filled = bounds[len(rows) :]
    assert all(end - start <= longest for start, end in itertools.pairwise(filled))
    for row, start, end in zip(rows, bounds, bounds[1:], strict=False):
        assert end - start == len(row)
        assert positions[start:end] == list(range(len(row)))
    expected = [
        (start + place, label)
        for row, start in zip(rows, bounds, strict=False)
        for place, label in enumerate(row.labels[1:])
        if label != IGNORED
    ]
    assert list(zip(batch["positions"].tolist(), batch["targets"].tolist(), strict=True)) == expected


@pytest.mark.parametrize(("steps", "tokens"), [(3, 3 * 100), (7, 7 * 100)])
def test_a_run_is_as_long_as_its_steps_whatever_it_draws(steps, tokens):
    epoch = [[(0,), (1,)], [(2,), (3,)]]  # 80 and 120 tokens
    batches = SimpleNamespace(
        lengths=[10, 70, 50, 70], per_epoch=2, epoch=lambda number: epoch, own=lambda step: step
    )
    assert packing.tokens(batches, steps) == tokens


@given(totals=st.lists(st.integers(1, 2000), min_size=1, max_size=12), passes=st.integers(1, 500))
def test_no_other_sizes_of_a_run_cost_less(totals, passes):
    def cost(sizes):
        filled = sum(min(size for size in sizes if size >= total) for total in grained)
        return packing.CAPTURE * len(sizes) + passes / len(totals) * (filled - sum(grained))

    grained = [-(-total // packing.GRAIN) * packing.GRAIN for total in totals]
    found = packing.cheapest(totals, passes)
    assert list(found) == sorted(set(found))
    assert found[-1] == max(grained)
    others = sorted(set(grained) - {max(grained)})
    every = (
        (*chosen, max(grained))
        for number in range(len(others) + 1)
        for chosen in itertools.combinations(others, number)
    )
    assert cost(found) <= min(map(cost, every)) + 1e-6


@given(
    sizes=st.sets(st.integers(1, 40), max_size=5),
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=8),
    longest=st.integers(1, 500),
)
def test_no_batch_needs_more_pieces_than_its_shapes_have(sizes, lengths, longest):
    """A piece longer than the kernel was told of is attended to in part, and the rest is whatever was there."""
    shapes = packing.PackedShapes(
        tuple(sorted(packing.GRAIN * size for size in sizes)), len(lengths), max(longest, *lengths)
    )
    tokens = sum(lengths)
    left = shapes.size(tokens) - tokens
    assert left >= 0
    assert len(lengths) + -(-left // shapes.longest) <= shapes.bounds


def test_packed_layouts_get_less_hungry_and_end():
    ladder = packed_ladder(8, compiled=True, four_bit=True)
    assert [layout.packs for layout in ladder] == [8, 8, 4, 2, 8, 4, 2, 1, 1]
    assert all(layout.packed for layout in ladder)
    assert [layout.decoded for layout in ladder] == [True] + [False] * 8
    assert [layout.checkpointing for layout in ladder] == [False] * 4 + [True] * 5
    assert [layout.captured for layout in ladder] == [True] * 8 + [False]
    assert ladder[0].describe(8) == "8 × 1 packed, no checkpointing, compiled, captured, base decoded"
    assert ladder[-1].describe(8) == "1 × 8 packed, checkpointing"


class Card:
    """A GPU of `total`, and a step that needs what `need` says of a layout beside what runs before have `left` there.
    Graphs hold that until another layout is used; what is let go stays reserved until the cache is emptied.
    """

    def __init__(self, monkeypatch, total, need, left=lambda: 0):
        import torch

        self.total, self.need, self.left, self.layout = total, need, left, None
        self.held = self.reserved = self.peak = 0
        card = SimpleNamespace(total_memory=total)
        monkeypatch.setattr(gc, "collect", lambda: None)  # of all that torch has, at each layout
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
        for name in ("empty_cache", "reset_peak_memory_stats", "max_memory_reserved"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))

    def empty_cache(self):
        self.reserved = self.held + self.left()

    def reset_peak_memory_stats(self):
        self.peak = self.reserved

    def max_memory_reserved(self):
        return self.peak

    def use_layout(self, layout):
        if layout != self.layout:
            self.layout, self.held = layout, 0

    def trial_run(self, layout, rows):
        import torch

        self.use_layout(layout)
        needed = self.need(layout)
        if needed + self.left() > self.total:
            raise torch.OutOfMemoryError
        self.held = needed if layout.captured else 0
        self.reserved = max(self.reserved, needed + self.left())
        self.peak = max(self.peak, self.reserved)
        return 1.0


WHOLE = Layout(8, packed=True, captured=True, compiled=True)
RECOMPUTED = replace(WHOLE, checkpointing=True)
LEAST = Layout(1, packed=True, checkpointing=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("total", "recaptured", "taken"),
    [
        (200, True, replace(WHOLE, decoded=True)),
        (150, True, WHOLE),  # over the margin with the base decoded, whose graphs are let go
        (88, True, replace(WHOLE, packs=4)),
        (23, True, replace(WHOLE, packs=2)),
        (12, True, RECOMPUTED),
        (8, True, replace(RECOMPUTED, packs=4)),
        (2, True, replace(RECOMPUTED, packs=1)),
        (0.5, True, LEAST),
        (150, False, WHOLE),
        (88, False, replace(WHOLE, packs=4)),
        (12, False, replace(WHOLE, packs=1)),
        (8, False, LEAST),
    ],
)
@pytest.mark.parametrize("left_there", [0, 50])
def test_with_less_memory_conversations_are_fewer_then_layers_recomputed(
    monkeypatch, caplog, total, recaptured, taken, left_there
):
    """Whatever runs before have `left_there`: their graphs go first."""
    from chatbot_sft.train import trials
    from chatbot_sft.train.graphs import CaptureFailed

    def need(layout):
        if layout.captured and layout.checkpointing and not recaptured:
            raise CaptureFailed("planted")
        return layout.packs * (1 if layout.checkpointing else 10) + (60 if layout.decoded else 0)

    captures = Captures()
    before = weakref.ref(captures.layers("a run before", type("Graphs", (), {})))
    card = Card(monkeypatch, total, need, lambda: left_there if before() else 0)
    for place in ("largest", "disagreement", "packing.shapes"):
        monkeypatch.setattr(f"chatbot_sft.train.trials.{place}", lambda *_: None)
    step = SimpleNamespace(
        args=SimpleNamespace(device="cuda"), pack=lambda shapes, layout: None,
        settings=SimpleNamespace(training=SimpleNamespace(memory_margin=0.1)),
        use_layout=card.use_layout, trial_run=card.trial_run,
        captures=captures, passes=lambda: SimpleNamespace(captured=None),
    )  # fmt: skip
    ladder = packed_ladder(8, compiled=True, four_bit=True)
    plan = trials.packed_plan(step, SimpleNamespace(batch_size=8), ladder, 500)
    assert plan.layout == taken
    assert plan.measurements[0].layout == ladder[0]
    refused = "8 × 1 packed, checkpointing, compiled, captured: cannot be captured: planted" in caplog.text
    assert refused == (not recaptured and taken.packs == 1)


@pytest.mark.slow
def test_runs_on_one_base_are_asked_once_whether_it_packs(monkeypatch):
    from chatbot_sft.train import trials

    card = Card(monkeypatch, 200, lambda layout: 1)
    asked, said = [], ["other losses", None, None]
    for place in ("largest", "packing.shapes"):
        monkeypatch.setattr(f"chatbot_sft.train.trials.{place}", lambda *_: None)
    monkeypatch.setattr(trials, "disagreement", lambda step, rows: asked.append(step) or said[len(asked) - 1])

    def plan(captures):
        step = SimpleNamespace(
            args=SimpleNamespace(device="cuda"), pack=lambda shapes, layout: None, captures=captures,
            settings=SimpleNamespace(training=SimpleNamespace(memory_margin=0.1)),
            use_layout=card.use_layout, trial_run=card.trial_run,
        )  # fmt: skip
        return trials.packed_plan(step, SimpleNamespace(batch_size=8), [WHOLE], 500)

    shared = Captures()
    assert plan(shared) is None
    assert plan(shared).layout == plan(shared).layout == WHOLE
    assert plan(Captures()).layout == WHOLE
    assert len(asked) == 3


@pytest.mark.slow
def test_a_measured_layout_does_not_pay_for_the_one_before(monkeypatch):
    """The graphs of 8 captured take too much; 4 do not."""
    import torch

    from chatbot_sft.train import tuning
    from chatbot_sft.train.rows import StepRows

    card = Card(monkeypatch, 100, lambda layout: layout.packs * (12 if layout.captured else 11))
    monkeypatch.setattr(tuning, "_on_gpu", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    step = StepRows([[row] for row in some_rows([3] * 8)])
    trial = tuning.Trial(card.use_layout, card.trial_run, step, step, 500, 0.1, 1e-4)
    layouts = [Layout(8, captured=True), Layout(4)]
    plan = tuning.choose(layouts, layouts[1], trial, tuning.cache_key("peak", random.random()))
    assert [found.why_not for found in plan.measurements] == ["over the memory margin", None]


@pytest.mark.slow
@pytest.mark.parametrize("other", [RECOMPUTED, replace(WHOLE, packs=4), replace(WHOLE, decoded=True)])
def test_graphs_serve_the_layout_alone_that_they_were_captured_for(monkeypatch, other):
    from chatbot_sft.train import step as module

    step = SimpleNamespace(
        layout=WHOLE, captured=None, packed=SimpleNamespace(captured="graphs"), shapes=None, decoded=None, flat=None,
        captures=Captures(), _use_layers=lambda layout: None,
        model=None, engine=SimpleNamespace(for_training=lambda model, checkpointing, random: None),
    )  # fmt: skip
    module.Step.use_layout(step, WHOLE)
    assert step.packed.captured == "graphs"
    module.Step.use_layout(step, other)
    assert step.packed.captured is None


# The head


@pytest.mark.slow
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("trained", [False, True])
def test_the_head_gives_the_loss_and_gradients_of_cross_entropy(monkeypatch, smoothing, trained):
    import torch

    from chatbot_sft.model import head

    monkeypatch.setattr(head, "CHUNK", 7)
    torch.manual_seed(0)
    hidden, weight = torch.randn(33, 16), torch.nn.Parameter(torch.randn(50, 16), requires_grad=trained)
    targets = torch.randint(0, 50, (33,))
    targets[::5] = IGNORED
    count = (targets != IGNORED).sum() + 4  # the step has other micro-batches
    leaf, own = hidden.clone().requires_grad_(), weight.detach().clone().requires_grad_()
    expected = torch.nn.functional.cross_entropy(
        leaf @ own.t(), targets, ignore_index=IGNORED, reduction="sum", label_smoothing=smoothing
    )
    (expected / count).backward()
    loss, gradient = head.loss_and_gradient(hidden, weight, targets, count, smoothing)
    assert loss.item() == pytest.approx(expected.item() / count.item(), rel=1e-6)
    assert torch.allclose(gradient, leaf.grad, atol=1e-7)
    if trained:
        assert torch.allclose(weight.grad, own.grad, atol=1e-6)
    else:
        assert weight.grad is None


@pytest.mark.slow
def test_the_head_is_compiled_once_for_any_number_of_positions(monkeypatch):
    import torch

    from chatbot_sft.model import head

    monkeypatch.setattr(head, "CHUNK", 7)
    torch.manual_seed(0)
    weight, count = torch.randn(50, 16), torch.tensor(20)
    given = []
    for positions in (5, 14, 33, 7):
        targets = torch.randint(0, 50, (positions,))
        given.append((torch.randn(positions, 16), targets, torch.randn(positions)))

    def results():
        for hidden, targets, by_logp in given:
            yield from head.loss_and_gradient(hidden, weight, targets.where(targets > 9, IGNORED), count, 0.1)
            yield head.log_probabilities(hidden, weight, targets)
            yield head.gradient(hidden, weight, targets, by_logp)

    expected = list(results())
    graphs = []

    def kernels(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(head, "_compiles", lambda tensor: True)
    compile_function = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda function, **how: compile_function(function, backend=kernels, **how)
    )
    torch.compiler.reset()
    head._compiled.cache_clear()
    torch.use_deterministic_algorithms(True)  # memory that nothing was written to is full of NaN
    try:
        found = list(results())
    finally:
        torch.use_deterministic_algorithms(False)
        head._compiled.cache_clear()
        torch.compiler.reset()
    assert all(torch.allclose(*pair, atol=1e-6) for pair in zip(found, expected, strict=True))
    assert len(graphs) == 3


@pytest.mark.slow
def test_what_the_head_says_of_each_token_is_what_its_logits_say(monkeypatch):
    import torch

    from chatbot_sft.model import head

    monkeypatch.setattr(head, "CHUNK", 7)
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(33, 16), torch.randn(50, 16), torch.randint(0, 50, (33,))
    logits = hidden @ weight.t()
    targets[::3] = logits.argmax(-1)[::3]
    loss, likeliest = head.token_scores(hidden, weight, targets).unbind(1)
    assert torch.allclose(
        loss, torch.nn.functional.cross_entropy(logits, targets, reduction="none"), atol=1e-5
    )
    assert likeliest.tolist() == (logits.argmax(-1) == targets).float().tolist()
    assert 11 <= likeliest.sum() < 33


# The passes, in every family


@pytest.fixture(scope="session")
def replica_models(smollm2, tmp_path_factory):
    """`replica_models(name, **lora)`: the model of that option with an adapter that is not at its start."""
    import json

    import torch

    from chatbot_sft.config import Config
    from chatbot_sft.model import transformers_engine as engine

    base = tmp_path_factory.mktemp("packed")
    whole = json.loads((smollm2 / "tokenizer.json").read_text(encoding="utf-8"))
    (base / "tokenizers").mkdir()
    tokenizers = write_folders(base / "tokenizers", replicas.small_vocabulary(whole))

    def load(name, **lora):
        replica = replicas.REPLICAS[name]
        folder = base / name
        if not folder.exists():
            replicas.write(replica, tokenizers[replica.family], FAMILIES[replica.family].end, folder)
        settings = Config.from_mapping({"model": {"name": str(folder), "load_in_4bit": False}})
        model = engine.load(str(folder), settings, torch.float32)
        names = [module.rpartition(".")[2] for module in replica.linear]
        model = engine.add_lora(model, settings, {"r": 4, "lora_alpha": 8, "target_modules": names, **lora})
        torch.manual_seed(1)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.05 * torch.randn_like(parameter)
        engine.for_training(model, False)
        return model, engine

    return load


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def passes(model, engine, shapes=SHAPES):
    from chatbot_sft.train.packed import PackedPasses

    return PackedPasses(model, engine, contextlib.nullcontext, 0, 0.0, shapes)


def scoring(model, engine, layout=None):
    """What evaluations ask a step for."""
    import torch

    return SimpleNamespace(
        model=model, engine=engine, layout=layout or Layout(2), pad=0, autocast=contextlib.nullcontext, settings=None,
        args=SimpleNamespace(device=torch.device("cpu")), sharded=False, objective=SimpleNamespace(means_tokens=True),
    )  # fmt: skip


def assert_packed_is_alone(model, engine):
    """Losses and gradients of five conversations, packed and one by one."""
    import torch

    assert engine.packable(model) is None
    rows = some_rows((31, 9, 2, 60, 17))
    count = torch.tensor(sum(row.trained_tokens for row in rows))
    together = passes(model, engine).run(rows, count, Layout(8, packed=True))
    of_pack = gradients(model)
    model.zero_grad()
    alone = 0.0
    for row in rows:
        loss = engine.loss(model, engine.inputs(Layout(1).batch([row], 0)), count)
        loss.backward()
        alone += loss.detach()
    assert together.item() == pytest.approx(alone.item(), rel=2e-6)
    of_rows = gradients(model)
    assert of_pack.keys() == of_rows.keys()
    for name, gradient in of_rows.items():
        assert torch.allclose(of_pack[name], gradient, atol=1e-5 * gradient.abs().max().item() + 1e-9), name


@pytest.mark.slow
@pytest.mark.parametrize("option", OPTIONS)
def test_packed_conversations_train_as_each_alone_does_in_every_family(replica_models, option):
    """Gemma 3's local layers see 16 tokens back, in their own conversation."""
    assert_packed_is_alone(*replica_models(option))


@pytest.mark.slow
@pytest.mark.parametrize("lora", [{"use_rslora": True}, {"use_dora": True}])
def test_packed_conversations_train_as_each_alone_does_with_every_adapter(replica_models, lora):
    assert_packed_is_alone(*replica_models("llama3b", **lora))


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recomputed_layers_give_every_bit_of_losses_and_gradients(replica_models, monkeypatch, dropout):
    """Without dropout they do not ask for the random state, which has no place in a graph."""
    import torch

    model, engine = replica_models("llama3b", lora_dropout=dropout)
    assert engine.packable(model) is None
    rows = some_rows((31, 9, 2, 60, 17))
    count = torch.tensor(sum(row.trained_tokens for row in rows))
    ours, passed = passes(model, engine), []
    module = model.get_base_model().get_decoder().layers[0].mlp
    module.register_forward_pre_hook(lambda *_: passed.append(None))

    def run(checkpointing):
        torch.manual_seed(2)
        engine.for_training(model, checkpointing, random=bool(dropout))
        model.zero_grad()
        layout = Layout(8, packed=True, checkpointing=checkpointing)
        return ours.run(rows, count, layout), gradients(model)

    loss, expected = run(False)
    assert len(passed) == 1
    if not dropout:
        monkeypatch.setattr(torch, "get_rng_state", lambda: pytest.fail("asks for the random state"))
    again, found = run(True)
    assert len(passed) == 3
    assert torch.equal(again, loss)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.equal(found[name], gradient), name


# Projections that are one product


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "lora", "products"),
    [
        *((option, {}, 0 if "phi" in option else 2) for option in OPTIONS),
        ("llama3b", {"use_rslora": True, "rank_pattern": {"k_proj": 2}, "alpha_pattern": {"up_proj": 2}}, 2),
        ("llama3b", {"target_modules": ["k_proj", "v_proj"]}, 1),
        ("llama3b", {"target_modules": ["o_proj", "down_proj"]}, 0),
        ("llama3b", {"use_dora": True}, 0),
        ("llama3b", {"lora_dropout": 0.1}, 0),
    ],
)
def test_joined_projections_train_as_they_do_apart(replica_models, option, lora, products):
    """`products` in each layer; Phi's weights are joined already."""
    import torch

    from chatbot_sft.model.joined import join

    model, engine = replica_models(option, **lora)
    assert engine.packable(model) is None
    rows, packs = some_rows((31, 9, 2, 60, 17)), passes(model, engine)
    count = torch.tensor(sum(row.trained_tokens for row in rows))
    ids = torch.arange(5, 25)[None]

    def train():
        torch.manual_seed(2)
        model.train()
        model.zero_grad()
        return packs.run(rows, count, Layout(8, packed=True)), gradients(model)

    def others():
        """What an adapter that is switched off gives, and an evaluation."""
        with torch.no_grad(), model.disable_adapter():
            off = model(ids).logits
        with torch.no_grad():
            return off, model.eval()(ids).logits

    (loss, expected), before = train(), others()
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    joined = join(model)
    assert len(joined) == products * model.config.get_text_config().num_hidden_layers
    again, found = train()
    assert again.item() == pytest.approx(loss.item(), rel=2e-6)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, atol=1e-5 * gradient.abs().max().item() + 1e-9), name
    assert all(map(torch.equal, others(), before))
    assert all(one.read is None and not one.parts for one in joined)  # no states are held on to
    for one in joined:
        one.separate()
    after = model.state_dict()
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[name], weight) for name, weight in weights.items())
    assert not any("forward" in vars(module) for module in model.modules())
    assert train()[0] == loss


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "dtype", "joined"),
    [("bf16", "bfloat16", True), (None, "float32", True), ("bf16", "float32", False)],
)
def test_projections_whose_weights_are_cast_are_not_joined(monkeypatch, precision, dtype, joined):
    import torch

    from chatbot_sft.train import step as module

    monkeypatch.setattr(module, "join", lambda model: [model])
    model = SimpleNamespace(dtype=getattr(torch, dtype))
    step = SimpleNamespace(precision=precision, model=model, joined=[], decoded=None)
    module.Step._use_layers(step, WHOLE)
    assert bool(step.joined) == joined
    step.joined = []
    module.Step._use_layers(step, replace(WHOLE, captured=False, compiled=False))
    assert not step.joined


@pytest.mark.slow
def test_joined_projections_that_read_different_states_are_not_mixed_up(replica_models):
    """As in a model that gives its keys something else to read."""
    import torch

    from chatbot_sft.model.joined import join

    model, _ = replica_models("llama3b")
    attention = model.get_base_model().get_decoder().layers[0].self_attn
    projections = [attention.q_proj, attention.k_proj, attention.v_proj]
    states = [torch.randn(1, 5, attention.q_proj.in_features) for _ in projections]
    expected = [project(x) for project, x in zip(projections, states, strict=True)]
    join(model)
    found = [project(x) for project, x in zip(projections, states, strict=True)]
    assert all(torch.allclose(*pair, atol=1e-5) for pair in zip(found, expected, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("grad", [False, True])
def test_one_adapter_alone_is_joined_and_compiled(replica_models, compiled, grad):
    import torch

    from chatbot_sft.model.joined import join

    model, _ = replica_models("llama3b", target_modules=["up_proj"])
    mlp = model.get_base_model().get_decoder().layers[0].mlp
    x = torch.randn(1, 5, mlp.up_proj.in_features)
    expected = mlp(x)
    join(model)
    mlp.compile()
    with torch.set_grad_enabled(grad):
        assert torch.allclose(mlp(x), expected, atol=1e-5)
    assert len(compiled) == 1


@pytest.mark.slow
def test_joined_layers_are_kept_compiled_from_one_process_to_the_next(tmp_path):
    """What autograd makes of them too, and whatever else was imported: PyTorch's key has the name of the first module
    that has torch in it, optuna's where a sweep prunes.
    """
    program = """
import sys
import types
sys.modules["early"] = types.ModuleType("early")
from chatbot_sft.model.engine import load_engine
load_engine("transformers")
import torch
if "early" in sys.argv:
    sys.modules["early"].torch = torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM
from chatbot_sft.model.joined import join
sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 100}
base = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2))
model = get_peft_model(base, LoraConfig(r=4, target_modules=["gate_proj", "up_proj"], task_type="CAUSAL_LM"))
assert join(model.train())
mlp = base.get_decoder().layers[0].mlp
mlp.compile()
mlp(torch.randn(1, 5, 64, requires_grad=True)).sum().backward()
counted = torch._dynamo.utils.counters["aot_autograd"]
print(counted["autograd_cache_miss"], counted["autograd_cache_hit"], counted["autograd_cache_bypass"])
"""
    # Without what another test's engine has set in this process.
    own = {
        name: value for name, value in os.environ.items() if not name.startswith(("TORCHINDUCTOR", "TRITON"))
    }
    environment = {**own, cache.VARIABLE: str(tmp_path)}
    counts = [
        subprocess.run(
            [sys.executable, "-c", program, *more],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for more in ([], [], ["early"])
    ]
    assert counts == [["1", "0", "0"], ["0", "1", "0"], ["0", "1", "0"]]


@pytest.mark.slow
def test_weights_in_one_place_are_not_copied_again():
    import torch

    from chatbot_sft.model.joined import in_one_place

    weights = [torch.nn.Parameter(torch.randn(rows, 8), requires_grad=False) for rows in (6, 2, 2)]
    expected = torch.cat(weights)
    whole = in_one_place(weights)
    again = in_one_place(weights)
    assert torch.equal(again, expected)
    assert whole.data_ptr() == again.data_ptr() == weights[0].data_ptr()
    weights[1].data.zero_()
    assert not again[6:8].any()
    assert in_one_place(weights[::-1]).data_ptr() != whole.data_ptr()


@pytest.fixture
def compiled(monkeypatch):
    """The graphs that layers are compiled to, where PyTorch would make kernels of them."""
    import torch

    from chatbot_sft.model import transformers_engine

    monkeypatch.setattr(transformers_engine, "_compiled_for", [])
    graphs, compile_layer = [], torch.nn.Module.compile

    def kernels(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda layer, backend=kernels: compile_layer(layer, backend=backend)
    )
    yield graphs
    torch.compiler.reset()


def one_kernel(query, key, value, bounds, scaling, sliding_window):
    """One call, as on a GPU, where the compiler does not look into it; each token sees all before it. It reads the
    bounds, and changes nothing by them.
    """
    import torch

    grouped = query.shape[1] != key.shape[1]
    output = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=scaling, enable_gqa=grouped
    ).transpose(1, 2)
    return output + 0.0 * bounds.sum()


@pytest.mark.slow
@pytest.mark.parametrize("together", [False, True])
def test_layers_are_compiled_once_for_packed_rows_of_all_sizes(
    replica_models, compiled, monkeypatch, together
):
    """Other data's too, so that its run finds them in the cache. For a padded batch, as evaluations have, they are not."""
    import torch

    from chatbot_sft.model import packed_attention
    from chatbot_sft.model.joined import join
    from chatbot_sft.train import estimate
    from chatbot_sft.train.packed import uncompiled
    from chatbot_sft.train.step import Step

    model, engine = replica_models("llama3b")
    monkeypatch.setattr(packed_attention, "_one_by_one", one_kernel)
    attention = packed_attention.attention

    def told_of_the_longest(*arguments, max_length_q=0, **more):
        """As the kernel is."""
        output, _ = attention(*arguments, **more)
        return output + 0.0 * max_length_q, None

    monkeypatch.setattr(packed_attention, "attention", told_of_the_longest)
    assert engine.packable(model) is None
    assert not together or join(model)
    made = []
    other = packing.PackedShapes((), 11, 120)
    for shapes, lengths in (
        (SHAPES, (31, 9, 2, 60, 17)),
        (SHAPES, (90, 90, 90)),
        (other, (110, 90, 90, 90, 90)),
        (other, (40, 12)),
    ):
        packs = passes(model, engine, shapes)
        batch = packs.batch(some_rows(lengths))
        del batch["positions"], batch["targets"]
        with torch.no_grad(), uncompiled():
            expected = packs.layers(**batch)
        engine.compile_layers(model)
        hidden = packs.layers(**batch)
        hidden.sum().backward()
        assert torch.allclose(hidden, expected, atol=1e-5)
        made.append(len(compiled))
    assert made[0] and made == made[:1] * 4

    step = scoring(model, engine, WHOLE)
    step.gradients, step.use_layout = SimpleNamespace(whole=lambda: None), lambda layout: None
    step.inference = lambda: Step.inference(step)
    monkeypatch.setattr(estimate, "batches_of", lambda *_: ["two rows"])
    monkeypatch.setattr(estimate, "PackedDataset", lambda dataset: {"two rows": some_rows((50, 50))})
    estimate._evaluate_longest(step, None)
    assert made[0] == len(compiled)


@pytest.mark.slow
def test_dropout_that_is_recomputed_is_not_captured(replica_models):
    """A graph of the backward pass draws its own numbers, not those of the forward pass."""
    import torch

    from chatbot_sft.train.graphs import CaptureFailed

    model, engine = replica_models("llama3b", lora_dropout=0.3)
    ours = passes(model, engine)
    ours.random = True
    with pytest.raises(CaptureFailed, match="another dropout"):
        ours.run(some_rows((9, 5)), torch.tensor(8), RECOMPUTED)


@pytest.mark.slow
def test_one_token_that_sees_its_neighbour_is_found_before_training(replica_models, monkeypatch):

    from chatbot_sft.train import trials
    from chatbot_sft.train.rows import StepRows

    model, engine = replica_models("llama3b")
    assert engine.packable(model) is None
    rows = some_rows((31, 9, 12))
    ours = passes(model, engine)
    step = SimpleNamespace(
        passes=lambda: ours, precision=None, inference=contextlib.nullcontext, **vars(scoring(model, engine))
    )
    whole = StepRows([[row] for row in rows])
    assert trials.disagreement(step, whole) is None
    batch = ours.batch

    def leaking(rows):
        made = batch(rows)
        made["cu_seq_lens"][1] += 1
        return made

    monkeypatch.setattr(ours, "batch", leaking)
    assert "when packed" in trials.disagreement(step, whole)


@pytest.mark.slow
@pytest.mark.parametrize("option", OPTIONS)
def test_an_evaluation_scores_packed_conversations_as_padded_ones(replica_models, option, monkeypatch):
    """One of them has nothing trained, another its last token alone."""
    import torch

    from chatbot_sft.train import scores

    model, engine = replica_models(option)
    assert engine.packable(model) is None
    model.eval()
    rows = [*some_rows((31, 9, 2, 60)), Row(4, [5, 6, 7], [IGNORED] * 3), Row(5, [8, 9], [IGNORED, 9])]
    padded = scores.score_batch(scoring(model, engine), rows)
    packed = scores.score_batch(scoring(model, engine, replace(WHOLE, captured=False)), rows)
    assert packed[:, 1:].tolist() == padded[:, 1:].tolist()
    assert packed[:, 2].tolist() == [21, 6, 2 - 1, 40, 0, 1]
    assert torch.allclose(packed[:, 0], padded[:, 0], rtol=1e-5)

    made = scores.packed

    def leaking(*arguments):
        batch = made(*arguments)
        batch["cu_seq_lens"][1] += 1
        return batch

    monkeypatch.setattr(scores, "packed", leaking)
    planted = scores.score_batch(scoring(model, engine, WHOLE), rows)
    assert not torch.allclose(planted[:, 0], padded[:, 0], rtol=1e-5)


@pytest.mark.slow
@given(
    lengths=st.lists(st.integers(1, 70), min_size=1, max_size=30),
    rows=st.integers(1, 4),
    gpu=st.booleans(),
    asked=st.booleans(),
    packed=st.booleans(),
)
def test_batches_of_an_evaluation_hold_every_row_once_and_no_more_tokens_than_there_is_room_for(
    lengths, rows, gpu, asked, packed
):
    import torch
    from datasets import Dataset

    from chatbot_sft.train import evaluation

    dataset = Dataset.from_dict(
        {"input_ids": [[1] * length for length in lengths], "labels": [[1] * length for length in lengths]}
    )
    step = scoring(None, None, WHOLE if packed else None)
    step.settings = SimpleNamespace(
        training=SimpleNamespace(per_device_eval_batch_size=rows if asked else None)
    )
    step.args = SimpleNamespace(
        per_device_eval_batch_size=rows, device=torch.device("cuda" if gpu else "cpu")
    )
    room, evaluation.TOKENS = evaluation.TOKENS, 100
    try:
        batches = evaluation.batches_of(dataset, step)
    finally:
        evaluation.TOKENS = room
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    takes = [
        sum(lengths[row] for row in batch) if packed else len(batch) * max(lengths[row] for row in batch)
        for batch in batches
    ]
    for batch, after, tokens in zip(batches, [*batches[1:], None], takes, strict=True):
        assert tokens <= 100 or len(batch) <= rows
        if after is not None:
            assert len(batch) >= rows
            more = lengths[after[0]] if packed else max(lengths[row] for row in batch)
            assert tokens + more > 100 or not gpu or asked


@pytest.mark.slow
def test_what_a_graph_would_compute_wrong_is_refused(replica_models):
    """A longer conversation than the graph was captured for: its attention would stop early, in silence."""
    model, engine = replica_models("llama3b")
    packed_passes = passes(model, engine, packing.PackedShapes((), 2, 20))
    packed_passes.batch(some_rows((20, 3)))
    with pytest.raises(ValueError, match="not within"):
        packed_passes.batch(some_rows((21, 3)))
    with pytest.raises(ValueError, match="not within"):
        packed_passes.batch(some_rows((5, 5, 5)))


@pytest.mark.slow
@pytest.mark.parametrize("option", ["llama3b", "gemma3_4b", "phi4_mini"])
def test_a_model_that_packs_answers_and_is_evaluated_as_before(replica_models, option):
    """Its attention is ours from then on; padded batches, and a cache of keys and values, are transformers'."""
    import torch

    model, engine = replica_models(option)
    engine.for_inference(model)
    ids = torch.tensor([[5, 9, 30, 31, 7, 44] * 5])
    padded = {"input_ids": ids.repeat(2, 1), "attention_mask": torch.ones(2, 30, dtype=torch.long)}
    padded["attention_mask"][1, :11] = 0

    def answers():
        options = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        with torch.no_grad():
            return model.generate(**padded, **options), model(**padded).logits[:, -1]

    before, logits_before = answers()
    assert engine.packable(model) is None
    after, logits_after = answers()
    assert torch.equal(before, after)
    assert torch.allclose(logits_before, logits_after, atol=1e-5)


# Around the step


@pytest.mark.slow
def test_the_optimizer_moves_whole_weights_and_the_passes_see_them_in_bfloat16():
    """A change too small for bfloat16 adds up all the same."""
    import torch

    from chatbot_sft.train.gradients import FlatParameters

    parameters = [torch.nn.Parameter(torch.ones(64, 80)), torch.nn.Parameter(torch.ones(80, 64))]
    flat = FlatParameters(parameters)
    flat.compute_in(torch.bfloat16)
    optimizer = torch.optim.SGD([flat.vector], lr=1e-4)
    for _ in range(100):
        flat.attach()
        assert {p.dtype for p in parameters} == {p.grad.dtype for p in parameters} == {torch.bfloat16}
        for _ in range(2):  # micro-batches
            sum(p.sum() for p in parameters).backward()
            flat.collect()
        optimizer.step()
    assert parameters[0][0, 0].item() == pytest.approx(0.98, abs=0.005)
    flat.whole()
    assert {parameter.dtype for parameter in parameters} == {torch.float32}
    assert parameters[1][0, 0].item() == pytest.approx(1 - 100 * 2 * 1e-4, abs=1e-5)
    flat.remember()
    flat.vector.data.zero_()
    flat.undo()
    assert parameters[0][0, 0].item() == pytest.approx(0.98, abs=1e-5)


@pytest.mark.slow
def test_weights_in_bfloat16_learn_the_same_through_their_copy():
    """To the bit: the copy, which runs of one form share, is but another place."""
    import torch

    from chatbot_sft.train.gradients import FlatParameters

    def learned(dtype, captures):
        torch.manual_seed(0)
        parameters = [torch.nn.Parameter(torch.randn(64, 80, dtype=torch.bfloat16)) for _ in range(2)]
        flat = FlatParameters(parameters, captures)
        flat.compute_in(dtype)
        assert (flat.copy is None) == (captures is None)
        optimizer = torch.optim.AdamW([flat.vector], lr=1e-2)
        for _ in range(5):
            flat.attach()
            for _ in range(3):  # micro-batches
                sum((p * torch.randn(64, 80, dtype=torch.bfloat16)).sum() for p in parameters).backward()
                flat.collect()
            optimizer.step()
        flat.whole()
        return flat.vector.data

    assert torch.equal(learned(torch.bfloat16, None), learned(torch.bfloat16, Captures()))


@pytest.fixture
def trained_here(tiny, tmp_path, monkeypatch):
    """`trained_here(name, late, **overrides)` trains in this process and gives the report; `late`: as on a
    GPU, where the figures of a step are read after the next one has begun.
    """
    from chatbot_sft import pipeline
    from chatbot_sft.train import step as module

    whole = module.Step

    class Late(whole):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.flat = module.FlatParameters(self.trained)
            self.gradients, self.waits = self.flat, False

    def train(name, late, *overrides):
        monkeypatch.setattr(module, "Step", Late if late else whole)
        return pipeline.run(composed(tmp_path / name, *tiny, "save=none", *overrides))

    return train


@pytest.mark.slow
def test_books_that_are_closed_a_step_later_say_the_same(trained_here, tmp_path):
    steps = [
        "training.max_steps=7",
        "training.eval_steps=3",
        "training.save_steps=2",
        "training.save_total_limit=null",
    ]
    at_once, later = (trained_here(name, name == "late", *steps) for name in ("now", "late"))
    assert [entry["step"] for entry in later.history] == [1, 2, 3, 4, 5, 6, 7]
    for one, other in zip(at_once.history, later.history, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-6)
    assert [record["step"] for record in later.evaluations] == [
        record["step"] for record in at_once.evaluations
    ]
    assert later.training.eval_loss == pytest.approx(at_once.training.eval_loss, rel=1e-6)
    saved = sorted(folder.name for folder in (tmp_path / "late" / "checkpoints").glob("checkpoint-*"))
    assert saved == [f"checkpoint-{step}" for step in (2, 4, 6, 7)]


@pytest.mark.slow
def test_a_packed_step_that_runs_out_of_memory_goes_on_in_smaller_ones(trained_here, monkeypatch):
    import torch

    from chatbot_sft.train import packed, planning
    from chatbot_sft.train.tuning import Plan

    def planned(job, batches, step, trial, as_configured):
        assert step.not_packable() is None
        step.pack(
            lambda layout: packing.shapes(batches, trial.steps, layout), layout := Layout(8, packed=True)
        )
        return Plan(layout, "asked for here")

    class Small(packed.PackedPasses):
        def run(self, rows, count, layout):
            if len(rows) > 4:
                raise torch.OutOfMemoryError
            return super().run(rows, count, layout)

    monkeypatch.setattr(planning, "planned", planned)
    whole = trained_here("whole", True, "training.max_steps=3")
    monkeypatch.setattr("chatbot_sft.train.step.PackedPasses", Small)
    smaller = trained_here("smaller", True, "training.max_steps=3")
    assert whole.training.batch_layout == "8 × 1 packed, no checkpointing"
    assert smaller.training.batch_layout == "4 × 2 packed, no checkpointing"
    for one, other in zip(whole.history, smaller.history, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)


@pytest.mark.slow
def test_a_step_that_is_found_broken_late_is_undone(trained_here, monkeypatch):
    import torch

    from chatbot_sft.train import guard, step

    seen = {}
    backward, undo = step.Step.backward, step.FlatParameters.undo

    def breaking(self, rows, trained_tokens, number):
        loss = backward(self, rows, trained_tokens, number)
        if number == 4:
            self.gradients.gradient.fill_(float("nan"))
            seen["before"] = self.flat.vector.data.clone()
        return loss

    def undone(self):
        undo(self)
        seen["after"] = self.vector.data.clone()

    monkeypatch.setattr(step.Step, "backward", breaking)
    monkeypatch.setattr(step.FlatParameters, "undo", undone)
    with pytest.raises(guard.Diverged, match="step 4: the gradient norm is nan"):
        trained_here("broken", True, "training.max_steps=9")
    assert torch.equal(seen["before"], seen["after"])


@pytest.mark.slow
def test_a_checkpoint_whose_optimizer_had_other_vectors_is_refused(monkeypatch, tmp_path):
    import torch

    from chatbot_sft.errors import UserError
    from chatbot_sft.train import snapshot

    matrices = [torch.nn.Parameter(torch.ones(4, 4)) for _ in range(2)]
    monkeypatch.setattr(snapshot, "load_trained", lambda model, folder: None)
    monkeypatch.setattr(snapshot, "_read", lambda file: torch.optim.AdamW(matrices).state_dict())
    checkpoint = SimpleNamespace(folder=tmp_path / "checkpoint-2", record={"losses": {}})
    origin = SimpleNamespace(checkpoint=checkpoint)
    job = SimpleNamespace(origin=origin, optimizer=torch.optim.AdamW(matrices[:1]))
    with pytest.raises(UserError, match=r"checkpoint-2: its optimizer.pt cannot be gone on with here"):
        snapshot.load(job, SimpleNamespace(model=None))


# On a GPU


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("recomputed", [False, True])
def test_graphs_of_the_kernel_give_the_losses_of_the_reference(tmp_path, recomputed, together):
    """Batches of one size whose longest conversations differ share a graph."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from chatbot_sft.config import Config
    from chatbot_sft.model import transformers_engine as engine
    from chatbot_sft.model.joined import join
    from chatbot_sft.train.packed import evaluating, uncompiled

    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3, "vocab_size": 1000}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)).save_pretrained(
        tmp_path
    )
    settings = Config.from_mapping({"model": {"name": str(tmp_path), "load_in_4bit": False}})
    model = engine.load(str(tmp_path), settings, torch.bfloat16)
    modules = ["q_proj", "v_proj", "up_proj", "down_proj"]
    model = engine.add_lora(model, settings, {"r": 4, "lora_alpha": 8, "target_modules": modules})
    engine.prepare(model)
    assert engine.packable(model) is None
    engine.for_training(model, recomputed, random=False)
    shapes = packing.PackedShapes((256, 512), 8, 240)
    fast = passes(model, engine, shapes)
    fast.autocast = lambda: torch.autocast("cuda", torch.bfloat16)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    assert not together or len(join(model)) == 6
    seen = set()
    # The last but one leaves more than the longest conversation that its graph was told of.
    for lengths in ((40, 40, 40, 40, 40, 40), (230, 10), (60, 60, 120), (200, 60), (200, 200, 60)):
        rows = some_rows(lengths, 1000, seed=sum(lengths))
        count = torch.tensor(sum(row.trained_tokens for row in rows), device="cuda")
        batch = {name: values.cuda() for name, values in Layout(8).batch(rows, 0).items()}
        with torch.no_grad(), fast.autocast(), evaluating(model), uncompiled():
            padded = model(**{k: v for k, v in batch.items() if k != "labels"}).logits.float()
        labels = batch["labels"][:, 1:].flatten()
        expected = torch.nn.functional.cross_entropy(
            padded[:, :-1].flatten(0, 1), labels, ignore_index=IGNORED, reduction="sum"
        )
        loss = fast.run(rows, count, replace(WHOLE, checkpointing=recomputed))
        assert loss.item() == pytest.approx(expected.item() / count.item(), rel=5e-3)
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
        seen.add(shapes.size(sum(lengths)))
    assert len(fast.captured.graphs) == len(seen) == 2


@pytest.mark.gpu
@pytest.mark.slow
def test_a_captured_step_does_not_wait_for_the_device(tmp_path, monkeypatch):
    """Neither for its batch nor in its optimizer, once the sizes are captured."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from chatbot_sft.config import Config
    from chatbot_sft.model import transformers_engine as engine
    from chatbot_sft.objective import objective_of
    from chatbot_sft.train.arguments import sft_arguments
    from chatbot_sft.train.figures import Figures
    from chatbot_sft.train.optimizer import build_optimizer
    from chatbot_sft.train.rows import StepRows
    from chatbot_sft.train.step import Step

    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    sizes = {"hidden_size": 512, "intermediate_size": 512, "num_hidden_layers": 2, "vocab_size": 1000}
    LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)).save_pretrained(
        tmp_path
    )
    settings = Config.from_mapping({
        "model": {"name": str(tmp_path), "load_in_4bit": False},
        "training": {"optim": "adamw_8bit"},
        "paths": {"output_dir": str(tmp_path / "run")},
    })  # fmt: skip
    model = engine.load(str(tmp_path), settings, torch.bfloat16)
    lora = {"r": 16, "lora_alpha": 16, "target_modules": ["q_proj", "k_proj", "down_proj"]}
    model = engine.add_lora(model, settings, lora)
    args = sft_arguments(settings, engine, "native")
    step = Step(model, engine, settings, args, 0, objective_of(settings))
    assert step.not_packable() is None
    layout = replace(WHOLE, compiled=False)
    step.pack(lambda layout: packing.PackedShapes((256, 512), 8, 240), layout)
    step.use_layout(layout)
    assert len(step.joined) == 2
    assert not step.waits
    optimizer = build_optimizer(args, model, step.flat)

    def take(number):
        rows = some_rows((200, 60, 150), 1000, seed=number)
        whole = StepRows([[row] for row in rows])
        values = step.backward(whole, whole.totals, number)
        loss, stop = step.over_all_processes(values, False)
        norm = step.clip(optimizer)
        figures = Figures([loss, norm, stop])
        step.take(optimizer)
        return figures

    first = take(1).read()
    take(2)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: pytest.fail("waits"))
    torch.cuda.set_sync_debug_mode("error")
    try:
        taken = [take(number) for number in range(3, 8)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    monkeypatch.undo()
    assert all(figure.isfinite() for figures in (first, taken[-1].read()) for figure in figures)
