"""McNemar's exact test, against values that were computed by hand."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatbot_sft.evaluation.compare import Comparison, compared, mcnemar


@pytest.mark.parametrize(
    ("right", "wrong", "p"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (5, 0, 2 / 32),
        (6, 0, 2 / 64),
        (3, 3, 1.0),
        (8, 2, 2 * (1 + 10 + 45) / 1024),
        (10, 2, 2 * (1 + 12 + 66) / 4096),
        (21, 4, 0.0009105205535888672),  # 2 · (1 + 25 + 300 + 2300 + 12650) / 2^25
    ],
)
def test_known_values(right, wrong, p):
    assert mcnemar(right, wrong) == mcnemar(wrong, right) == pytest.approx(p, rel=1e-12)


@given(st.integers(0, 60), st.integers(0, 60))
def test_it_is_the_two_sided_tail_of_a_fair_coin(right, wrong):
    turned = right + wrong
    as_far = [count for count in range(turned + 1) if abs(2 * count - turned) >= abs(right - wrong)]
    tail = Fraction(sum(math.comb(turned, count) for count in as_far), 2**turned)
    assert mcnemar(right, wrong) == pytest.approx(float(tail), rel=1e-12)


def test_many_cases_do_not_overflow():
    assert 0 < mcnemar(3000, 2500) < 1e-10


def test_what_is_not_known_is_no_pair():
    before, after = [True, False, None, False, True], [True, True, True, None, False]
    assert compared(before, after) == Comparison(3, 1, 1, 1.0)
