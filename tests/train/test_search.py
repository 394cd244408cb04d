"""Which layouts are tried on a CPU, on machines whose time goes as `search` says it does."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from chatbot_sft.train.layout import Layout, candidates
from chatbot_sft.train.rows import Row, StepRows
from chatbot_sft.train.search import CLEARLY_FASTER, DEARER, Search, try_layouts, work

PAIR = 2.6e-4  # SmolLM2-135M
# Of a token, of a pair in tokens, of a micro-batch.
COSTS = st.tuples(st.floats(0, 1), st.floats(PAIR, DEARER * PAIR), st.floats(0, 1e3)).filter(
    lambda it: it[0] or it[2]
)


def step(lengths: list[int]) -> StepRows:
    return StepRows([[Row(0, [5] * length, [5] * length)] for length in sorted(lengths, reverse=True)])


class Machine:
    """One on which a step takes `costs` for each token, each pair (in tokens) and each micro-batch, after the first
    call has compiled for `compiling` seconds.
    """

    def __init__(self, costs: tuple[float, float, float], typical: StepRows, compiling: float = 0.0) -> None:
        self.costs, self.typical, self.compiling = costs, typical, compiling
        self.now, self.ran = 0.0, []

    def seconds(self, layout: Layout, rows: StepRows | None = None) -> float:
        token, pair, micro_batch = self.costs
        of = work(layout, rows or self.typical, pair)
        return token * of.least + micro_batch * of.micro_batches

    def search(self, layouts: list[Layout], steps: int) -> dict[Layout, str | None]:
        search = Search(self.typical, layouts[0], steps, PAIR)
        if search.why_none(layouts):
            return {}

        def warm_up() -> None:
            self.now += self.compiling + self.seconds(Layout(1), search.warming_up)

        def run(layout: Layout) -> float:
            self.ran.append(layout)
            self.now += self.seconds(layout)
            return self.seconds(layout)

        return try_layouts(search, layouts, warm_up, run, lambda: self.now)


LENGTHS = st.lists(st.integers(2, 600), min_size=2, max_size=16)


@given(
    LENGTHS,
    st.sampled_from([1, 2, 4, 8]),
    st.booleans(),
    st.integers(1, 2000),
    COSTS,
    st.sampled_from([0, 1e9]),
)
def test_trials_take_less_than_a_tenth_of_the_run(lengths, packs, recomputed, steps, costs, compiling):
    """What is compiled meanwhile is compiled for the run."""
    machine = Machine(costs, step(lengths), compiling)
    configured = Layout(packs, checkpointing=recomputed)
    layouts = candidates(configured, len(lengths), packing=False, gpu=False, capturable=False)
    why_not = machine.search(layouts, steps)
    trials = machine.now - compiling if why_not else machine.now
    assert trials <= 0.1 * steps * machine.seconds(configured)
    if steps < 10:
        assert not why_not


@given(LENGTHS, st.sampled_from([1, 2, 4, 8]), st.integers(100, 2000), COSTS)
def test_what_was_not_tried_as_hopeless_is_not_faster_and_what_was_tried_had_a_chance(
    lengths, packs, steps, costs
):
    machine = Machine(costs, step(lengths))
    layouts = candidates(Layout(packs), len(lengths), packing=False, gpu=False, capturable=False)
    why_not = machine.search(layouts, steps)
    assume(why_not)
    assert list(why_not) == layouts
    assert machine.ran[0] == layouts[0]
    fastest = min(map(machine.seconds, machine.ran))
    for layout, why in why_not.items():
        if why == "cannot be faster than one that was measured":
            assert machine.seconds(layout) >= 0.999 * CLEARLY_FASTER * fastest
    for place, layout in enumerate(machine.ran):
        for before in machine.ran[:place]:
            tried, earlier = (work(each, machine.typical, PAIR) for each in (layout, before))
            assert min(tried.ratios(earlier)) < 1


def test_a_short_run_takes_what_is_configured_and_says_so():
    rows, layouts = step([90, 60, 50, 40, 40, 30, 20, 10]), [Layout(2), Layout(1), Layout(4)]
    why_none = {steps: Search(rows, layouts[0], steps, PAIR).why_none(layouts) for steps in (24, 400)}
    assert why_none == {24: "trying others would take too much of 24 steps", 400: None}
    alone = Search(step([90]), Layout(1), 400, PAIR)
    assert alone.why_none([Layout(1)]) == "no other can be faster"


@pytest.mark.parametrize(
    ("costs", "fastest"),
    [((1.0, 0.0, 0.0), Layout(1)), ((0.0, 0.0, 1.0), Layout(8)), ((0.1, 0.0, 300.0), Layout(8))],
)
def test_a_long_run_finds_the_fastest(costs, fastest):
    """Where padding is all that costs, and where a micro-batch does."""
    machine = Machine(costs, step([600, 300, 200, 100, 90, 80, 20, 10]))
    layouts = [Layout(2), Layout(1), Layout(4), Layout(8)]
    machine.search(layouts, 10_000)
    assert min(machine.ran, key=machine.seconds) == fastest


@pytest.mark.parametrize(
    ("steps", "costs", "ran"),
    [
        (30, (1.0, PAIR, 60.0), [Layout(2), Layout(8, True)]),  # it takes two thirds of what is configured
        (30, (1.0, DEARER * PAIR, 0.0), [Layout(2), Layout(8, True)]),  # and here more, which was not known
        (20, (1.0, PAIR, 60.0), []),
    ],
)
def test_a_run_of_thirty_short_steps_tries_what_can_save_most_of_it(steps, costs, ran):
    """Over a twentieth of it, under a tenth."""
    machine = Machine(costs, step([64, 55, 52, 48, 39, 37, 34, 29]))
    machine.search(candidates(Layout(2), 8, packing=False, gpu=False, capturable=False), steps)
    assert machine.ran == ran
    assert not ran or 0.05 < machine.now / (steps * machine.seconds(Layout(2))) < 0.1


def test_rows_of_one_length_are_not_tried_without_padding():
    """There is none to spare, and attention looks at more."""
    machine = Machine((1.0, 0.001, 0.5), step([100] * 8))
    layouts = candidates(Layout(2), 8, packing=False, gpu=False, capturable=False)
    machine.search(layouts, 10_000)
    assert not [layout for layout in machine.ran if layout.padding_free and layout.packs == 2]
