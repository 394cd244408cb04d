"""Losses that leave the rails, and those that only look like it."""

import math
import random

from hypothesis import example, given
from hypothesis import strategies as st

from chatbot_sft.train.rails import WINDOW, Rails


def left_at(losses):
    """The first step, from 0, at which the losses leave the rails."""
    rails = Rails(len(losses))
    return next((step for step, loss in enumerate(losses) if rails.add(loss)), None)


def noisy(seed, steps, start, floor, pace, spread):
    """A curve that falls from `start` to `floor`, each loss multiplied by log-normal noise."""
    chance = random.Random(seed)
    return [
        (floor + (start - floor) * math.exp(-step / pace)) * math.exp(chance.gauss(0, spread))
        for step in range(steps)
    ]


falling = {
    "seed": st.integers(0, 10**6),
    "start": st.floats(0.5, 8),
    "share": st.floats(0.001, 1),
    "pace": st.floats(1, 1000),
    "spread": st.floats(0, 0.4),
}
curves = falling | {"steps": st.integers(8, 1500), "start": st.floats(0.5, 12)}


@given(**curves)
def test_an_ordinary_curve_never_leaves_the_rails(seed, steps, start, share, pace, spread):
    """Steps of a few conversations scatter by a tenth to a third; 0.4 is more than that."""
    assert left_at(noisy(seed, steps, start, start * share, pace, spread)) is None


@example(seed=0, start=6.0, share=0.0625, pace=4.0, spread=0.0, at=16, factor=20.0)
@example(seed=0, start=8.0, share=0.015625, pace=8.0, spread=0.0, at=16, factor=20.0)
@given(**falling, at=st.integers(WINDOW[0], 500), factor=st.floats(20, 1000))
def test_a_diverging_curve_is_stopped_within_a_window(seed, start, share, pace, spread, at, factor):
    losses = noisy(seed, at + 2 * WINDOW[1], start, start * share, pace, spread)
    broken = losses[:at] + [max(loss * factor, 12.0) for loss in losses[at:]]
    left = left_at(broken)
    assert at < left <= at + WINDOW[1] // 2 + 1


@given(seed=st.integers(0, 10**6), start=st.floats(1, 4), steps=st.integers(20, 1000))
def test_a_learning_rate_that_is_too_high_from_the_start_is_noticed_too(seed, start, steps):
    """Two steps of warm-up, then nothing but noise around what a broken model guesses: no window was ever
    good.
    """
    chance = random.Random(seed)
    losses = [start * math.exp(chance.gauss(0, 0.1)) for _ in range(4)] + [
        5 * start + 5 + chance.random() for _ in range(steps - 4)
    ]
    assert left_at(losses) <= 8


def test_single_spikes_and_small_losses_are_no_divergence():
    spiky = [2.0 if step % 7 else 9.0 for step in range(300)]
    assert left_at(spiky) is None
    assert left_at([0.001] * 50 + [0.3] * 50) is None
    rails = Rails(100)
    for loss in [2.0] * 30 + [9.0] * 2:
        assert not rails.add(loss)
    assert rails.doubtful
    rails.add(2.0)
    rails.add(2.0)
    assert not rails.doubtful
